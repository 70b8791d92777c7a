"""``wherefrom query``: ask an index which documents made the model say something."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wherefrom.cli import values
from wherefrom.cli.query_options import (
    BACKENDS,
    Asked,
    answer_options,
    batch_options,
    gate_options,
    model_options,
    refuse,
    require_batch,
    require_consistent,
    wanted_options,
)
from wherefrom.records import SCORE_CONTRACT

if TYPE_CHECKING:
    from wherefrom.audit.asking import BatchQuery
    from wherefrom.maintenance.index import Index

__all__ = ["BACKENDS", "query"]

_FILES = ("queries", "batch", "inspect_log")
_UNSWEPT = (
    "sign",
    "clauses",
    "normalise",
    "rerank",
    "rerank_seconds",
    "candidates",
    "damping",
    "refine",
    "refine_damping",
    "refine_documents",
    "backend",
    "explain",
    "similarity",
    "group_by",
    "fail_if",
    "batch",
    "inspect_log",
    "jsonl",
    "html",
    "csv",
    "parquet",
)
"""What a sweep over dampings, of both signs and of all documents' stored scores, leaves undone."""


@click.command(
    short_help="Ask which documents made the model say something.", epilog=SCORE_CONTRACT
)
@click.argument("index", type=click.Path(path_type=Path))
@click.option(
    "--prompt",
    callback=values.valid_unicode,
    help="What the model was given, empty by default; for a classifier, the text.",
)
@click.option(
    "--completion",
    callback=values.valid_unicode,
    help="What it said; for a classifier, the label. Prompt and completion are joined as they are: "
    "mind the space between them.",
)
@click.option(
    "--contrast",
    callback=values.valid_unicode,
    help="What it might have said instead: scores are then of the completion's log-likelihood "
    "minus that of the contrast.",
)
@click.option(
    "--queries",
    type=click.Path(allow_dash=True, path_type=Path),
    metavar="FILE",
    help="Ask about many outputs as one, in place of the three above: JSON lines with completion "
    "and, as needed, prompt and contrast; - is standard input.",
)
@click.option(
    "--reduce",
    type=click.Choice(["mean", "sum"]),
    help="How --queries become one: the mean of what they measure (the default) or the sum.",
)
@batch_options
@answer_options
@wanted_options
@gate_options
@click.option(
    "--sweep-damping",
    is_flag=True,
    help="Show how stable the ranking is from a tenth to ten times the index's damping, instead of "
    "the answer.",
)
@click.option(
    "--dampings",
    callback=values.dampings,
    metavar="LIST",
    help="Show how stable the ranking is under these dampings, as 0.01,0.1,1, instead of the "
    "answer.",
)
@model_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@click.option(
    "--jsonl",
    type=click.Path(allow_dash=True, path_type=Path),
    metavar="FILE",
    help="Write answers as JSON lines, each as soon as it is there; - is standard output.",
)
@click.option("--overwrite", is_flag=True, help="Replace the file of --jsonl.")
@click.option(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Also write a self-contained HTML report.",
)
@click.option(
    "--csv",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Also write the hits as a CSV table, without formulas.",
)
@click.option(
    "--parquet",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Also write the hits as a Parquet table.",
)
@click.option(
    "--width",
    type=click.IntRange(min=40),
    metavar="COLUMNS",
    help="Width of the tables; that of the terminal by default.",
)
@click.pass_context
def query(ctx: click.Context, /, index: Path, **given: Any) -> None:
    """Ask INDEX which documents made the model say COMPLETION after PROMPT.

    Scores are in nats of the completion's log-likelihood per added copy of a document. A positive
    score marks a proponent: with one more copy of it the completion gets more likely.

    Exit status 3 if a condition of --fail-if holds or cannot be decided; 1 if a question could not
    be answered.
    """
    _require_one_question(given)
    sweep = given["sweep_damping"] or given["dampings"] is not None
    if sweep:
        refuse(ctx, _UNSWEPT, "does not go with a sweep over dampings; leave it out")
    require_consistent(ctx)
    require_batch(ctx)
    many = given["batch"] is not None or given["inspect_log"] is not None
    _require_outputs(given, many)
    from wherefrom.cli.batch import BatchSource, require_writable
    from wherefrom.cli.query_file import read_queries
    from wherefrom.store import Manifest

    # Mistakes in paths, filters, conditions, the backend or the file show here, before torch takes
    # its seconds to load.
    asked = Asked.checked(given, index, Manifest.read(index))
    require_writable(given["jsonl"], overwrite=given["overwrite"])
    for name in ("html", "csv", "parquet"):
        require_writable(given[name], overwrite=True)
    if many:
        source = BatchSource.checked(given)
        opened = _open(index, given)
        _ask_many(ctx, opened, source.questions(opened), asked, given)
        return
    # A process that lives for seconds keeps what little garbage it makes.
    gc.disable()
    ctx.call_on_close(gc.enable)
    question = {name: given[name] for name in ("completion", "contrast")}
    question["prompt"] = given["prompt"] or ""
    if given["queries"] is not None:
        question = {"queries": read_queries(given["queries"]), "reduce": given["reduce"] or "mean"}
    opened = _open(index, given)
    if sweep:
        _sweep(opened, question, given)
    else:
        _ask_one(ctx, opened, question, asked, given)


def _open(index: Path, given: Mapping[str, Any]) -> Index:
    from wherefrom.api import open as open_index

    names = ("model", "base_model", "device")
    return open_index(index, **{name: given[name] for name in names})


def _sweep(index: Index, question: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Show how stable a ranking is."""
    from wherefrom.cli.render import emit_json, terminal
    from wherefrom.cli.stability import sweep_table

    found = index.sweep_damping(**question, dampings=given["dampings"], k=given["k"])
    if given["as_json"]:
        emit_json(found.to_dict())
    else:
        sweep_table(found, terminal(given["width"]))


def _ask_one(
    ctx: click.Context,
    index: Index,
    question: Mapping[str, Any],
    asked: Asked,
    given: Mapping[str, Any],
) -> None:
    """Ask one question and show its answer."""
    from wherefrom.audit.asking import told
    from wherefrom.audit.entries import Entry
    from wherefrom.audit.gate import Gate
    from wherefrom.cli.batch import collect, write_tables
    from wherefrom.cli.failures import one_line_warnings
    from wherefrom.cli.gate import GATE_STATUS, note_unseen, tell_gate, warn_unmatched
    from wherefrom.cli.render import answer_table, emit_json, terminal

    warn_unmatched(asked.fail_if, index, asked.options["sign"])
    with one_line_warnings():
        answer = told(index, index.query(**question, **asked.options), asked.wanted)
    gate = Gate.parse(asked.fail_if, index.manifest.metadata, answer.sign).judge(answer)
    entry = Entry.of(answer, "1", fail_if=asked.fail_if, gate=gate)
    if given["as_json"]:
        emit_json(entry.judged())
    elif given["jsonl"] != Path("-"):
        answer_table(answer, terminal(given["width"]))
    collect([entry], 1, given["jsonl"])
    write_tables([("", answer)], given["html"], given["csv"], given["parquet"])
    if tell_gate([entry], named=False):
        ctx.exit(GATE_STATUS)
    note_unseen([entry], asked)


def _ask_many(
    ctx: click.Context,
    index: Index,
    batch: Sequence[BatchQuery],
    asked: Asked,
    given: Mapping[str, Any],
) -> None:
    """Ask many questions, each by itself, and write their answers down."""
    from wherefrom.audit.asking import ask_all
    from wherefrom.cli.batch import batch_summary, collect, finish_batch, write_tables
    from wherefrom.cli.failures import one_line_warnings
    from wherefrom.cli.gate import warn_unmatched
    from wherefrom.cli.render import emit_json

    warn_unmatched(asked.fail_if, index, asked.options["sign"])
    html, csv, parquet = (given[name] for name in ("html", "csv", "parquet"))
    entries = ask_all(index, batch, asked.options, wanted=asked.wanted, fail_if=asked.fail_if)
    with one_line_warnings():
        done = collect(entries, len(batch), given["jsonl"], whole=any((html, csv, parquet)))
    answers = [(entry.id, entry.answer) for entry in done if entry.answer is not None]
    write_tables(answers, html, csv, parquet)
    if given["as_json"]:
        emit_json(batch_summary(done))
    finish_batch(ctx, done, asked)


def _require_one_question(given: Mapping[str, Any]) -> None:
    """Refuse a question that is asked in two ways, or in none."""
    files = [name for name in _FILES if given[name] is not None]
    if given["reduce"] is not None and files != ["queries"]:
        raise click.UsageError("--reduce goes with --queries; leave it out")
    if not files:
        if given["completion"] is None:
            raise click.UsageError(
                "give --completion (and --prompt), or --queries, --batch or --inspect-log"
            )
        return
    first, *others = files
    for name in (*others, "prompt", "completion", "contrast"):
        if given[name] is not None:
            raise click.UsageError(
                f"{_option(name)} does not go with {_option(first)}; leave one of them out"
            )


def _require_outputs(given: Mapping[str, Any], many: bool) -> None:
    """Refuse outputs that would mix, and many answers without a place to go."""
    jsonl = given["jsonl"]
    if many and jsonl is None:
        raise click.UsageError("--batch and --inspect-log go with --jsonl; - is standard output")
    if many and given["width"] is not None:
        raise click.UsageError("--width is of tables, which one question has only; leave it out")
    if jsonl == Path("-") and given["as_json"]:
        raise click.UsageError("--json and --jsonl - both write to standard output; give one")
    if jsonl is None and given["overwrite"]:
        raise click.UsageError("--overwrite goes with --jsonl; leave it out")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
