"""Many questions on the command line: one answer a line, written as they come."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from wherefrom.audit.entries import Entry
from wherefrom.cli.failures import Failed, Interrupted
from wherefrom.cli.gate import GATE_STATUS, note_unseen, tell_gate
from wherefrom.cli.progress import progress_bars
from wherefrom.errors import QueryError, StorageError
from wherefrom.query.answer import Answer
from wherefrom.query.export.json_text import json_text
from wherefrom.query.printable import printable
from wherefrom.store import storage_errors

if TYPE_CHECKING:
    from wherefrom.audit.asking import BatchQuery
    from wherefrom.cli.query_options import Asked
    from wherefrom.maintenance.index import Index

__all__ = [
    "BATCH_SCHEMA",
    "BatchSource",
    "batch_summary",
    "collect",
    "finish_batch",
    "require_writable",
    "write_tables",
]

BATCH_SCHEMA = "wherefrom-batch/1"
_STDOUT = Path("-")


@dataclass(frozen=True, slots=True)
class BatchSource:
    """Where many questions come from.

    Attributes:
        read: Those of a file of questions, which is read before the model is loaded.
        log: A log of Inspect, which takes the model's tokenizer to be read.
        incorrect: Of its samples, only those whose answer is wrong or missing.
        scorer: Who says so.
    """

    read: tuple[BatchQuery, ...]
    log: Path | None
    incorrect: bool
    scorer: str | None

    @classmethod
    def checked(cls, given: Mapping[str, Any]) -> BatchSource:
        """What options name.

        Raises:
            QueryError: The file cannot be read, or a line is no question.
        """
        from wherefrom.cli.query_file import read_batch

        batch, log = given["batch"], given["inspect_log"]
        if log is not None and not log.is_file():
            raise QueryError(f"{log} is no file; give a log of Inspect (.eval or .json)")
        read = () if batch is None else tuple(read_batch(batch))
        return cls(read, log, given["incorrect"], given["scorer"])

    def questions(self, index: Index) -> Sequence[BatchQuery]:
        """What to ask of an index.

        Raises:
            QueryError: The log cannot be read, or holds nothing to trace.
            MissingExtraError: Logs need ``inspect_ai``, which is not installed.
        """
        if self.log is None:
            return self.read
        from wherefrom.audit.asking import BatchQuery
        from wherefrom.audit.inspect_logs import SampleChoice, TracedSample, read_samples
        from wherefrom.cli.failures import one_line_warnings
        from wherefrom.gradients.objectives import TextObjective

        objective = index.asker.extractor.objective
        tokenizer = objective.bound_tokenizer if isinstance(objective, TextObjective) else None
        choice = SampleChoice(scorer=self.scorer, incorrect=self.incorrect)
        with one_line_warnings():
            samples = read_samples(self.log, tokenizer, choice)
        return [
            BatchQuery(sample.id, sample.query, sample.tags)
            if isinstance(sample, TracedSample)
            else BatchQuery(sample.id, None, sample.tags, f"cannot be traced: {sample.reason}")
            for sample in samples
        ]


def require_writable(path: Path | None, *, overwrite: bool = False) -> None:
    """Refuse an output file before any work is done for it.

    Raises:
        StorageError: It is there already, or cannot be.
    """
    if path is None or path == _STDOUT:
        return
    if path.is_dir() or (path.exists() and not overwrite):
        raise StorageError(f"{path} exists already; choose another path or give --overwrite")
    if not path.absolute().parent.is_dir():
        raise StorageError(f"cannot write {path}: its folder does not exist; make it first")


def collect(
    entries: Iterable[Entry], total: int, jsonl: Path | None, *, whole: bool = True
) -> list[Entry]:
    """Take entries as they come, each written down before the next one is asked for.

    Args:
        entries: As they are answered.
        total: How many there will be.
        jsonl: Where to write them, if anywhere; ``-`` is standard output.
        whole: Whether to keep the answers; else only what became of them, without hits.

    Raises:
        StorageError: The disk refuses.
        Interrupted: By Ctrl-C; what was answered is in the file.
    """
    done: list[Entry] = []
    try:
        with progress_bars(quiet=total == 1 or jsonl == _STDOUT) as progress, _lines(jsonl) as to:
            for entry in entries:
                if to is not None:
                    to.write(f"{json_text(entry.to_dict())}\n".encode())
                    to.flush()
                done.append(entry if whole else _bare(entry))
                progress("asking", len(done), total)
    except KeyboardInterrupt as interrupt:
        kept = "nothing was kept" if jsonl is None else f"{jsonl} holds their answers"
        told = f"{len(done)} of {total} questions were asked; {kept}"
        raise Interrupted(told, interrupt) from interrupt
    return done


def _bare(entry: Entry) -> Entry:
    """An entry that holds little memory."""
    if entry.answer is None:
        return entry
    bare = replace(
        entry.answer, proponents=(), opponents=(), explanation=None, similarity=None, groups=()
    )
    return replace(entry, answer=bare)


@contextmanager
def _lines(path: Path | None) -> Iterator[IO[bytes] | None]:
    """The file to write lines to, if any."""
    if path is None:
        yield None
    elif path == _STDOUT:
        yield sys.stdout.buffer
    else:
        with storage_errors(path), path.open("wb") as stream:
            yield stream


def write_tables(
    answers: Sequence[tuple[str, Answer]],
    html: Path | None,
    csv: Path | None,
    parquet: Path | None,
) -> None:
    """Write the other files that were asked for, and say where they are.

    Args:
        answers: With a title each, the question's id, which may be empty.
        html: A report.
        csv: The hits as a table.
        parquet: Likewise.

    Raises:
        StorageError: The disk refuses.
    """
    if html is csv is parquet is None:
        return
    from wherefrom.query.export.tables import write_csv, write_parquet
    from wherefrom.query.report.html import write_report

    if html is not None:
        click.echo(f"Report: {write_report(answers, html)}", err=True)
    hits, ids = [answer for _, answer in answers], [name for name, _ in answers]
    if csv is not None:
        click.echo(f"Hits: {write_csv(hits, csv, ids=ids)}", err=True)
    if parquet is not None:
        click.echo(f"Hits: {write_parquet(hits, parquet, ids=ids)}", err=True)


def batch_summary(entries: Sequence[Entry]) -> dict[str, Any]:
    """What came of a batch, as plain values."""
    return {
        "schema": BATCH_SCHEMA,
        "answers": sum(entry.failure is None for entry in entries),
        "failed": [
            {"id": entry.id, **asdict(entry.failure)}
            for entry in entries
            if entry.failure is not None
        ],
        "gate": [
            {"id": entry.id, **asdict(finding)} for entry in entries for finding in entry.gate
        ],
    }


def finish_batch(ctx: click.Context, entries: Sequence[Entry], asked: Asked) -> None:
    """Say what failed and what the gate stopped, a line each, and end accordingly.

    Raises:
        Failed: Questions could not be answered; the gate, which weighs more, let all others pass.
    """
    failed = 0
    for entry in entries:
        if entry.failure is not None:
            failed += 1
            line = printable(f"{entry.id}: {entry.failure.detail}")
            click.echo(f"wherefrom: unanswered: {line}", err=True)
    if tell_gate(entries, named=True):
        ctx.exit(GATE_STATUS)
    if failed:
        raise Failed(f"{failed:,} of {len(entries):,} questions could not be answered")
    note_unseen(entries, asked)
