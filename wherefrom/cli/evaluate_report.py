"""How evaluations run and end: missing libraries, progress, tables, files, interruptions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from wherefrom.cli.evaluate_options import Shown
from wherefrom.cli.failures import Interrupted, one_line_warnings
from wherefrom.errors import EvaluationError, MissingExtraError
from wherefrom.records import Progress

if TYPE_CHECKING:
    from wherefrom.evaluation.evidence import Evidence
    from wherefrom.evaluation.retraining import Retrainer

__all__ = ["evaluating", "resumable", "show_evidence"]

_EXTRA = ("scipy", "sklearn")


@contextmanager
def evaluating(shown: Shown) -> Iterator[Progress]:
    """Refuse results that could not be written, then show progress and warnings.

    Raises:
        EvaluationError: A result could not be written to where it is to go.
        MissingExtraError: A library of the extra is not installed.
    """
    try:
        if shown.output is not None and not shown.output.absolute().parent.is_dir():
            raise EvaluationError(f"{shown.output} is in no folder that exists; make it first")
        if shown.plot is not None:
            from wherefrom.evaluation.plots import require_format

            require_format(shown.plot)
        from wherefrom.cli.progress import progress_bars

        with progress_bars() as progress, one_line_warnings():
            yield progress
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _EXTRA:
            raise
        raise MissingExtraError(
            f"evaluations need {missing}, which is not installed: "
            "pip install 'wherefrom[evaluation]'"
        ) from error


@contextmanager
def resumable(retrainer: Retrainer) -> Iterator[None]:
    """Say what is kept where the user presses Ctrl-C.

    Raises:
        Interrupted: The user did.
    """
    try:
        yield
    except KeyboardInterrupt as interrupt:
        count = len(retrainer.ledger)
        raise Interrupted(
            f"{count} finished training{' is' if count == 1 else 's are'} kept in "
            f"{retrainer.path}; the same command goes on from there",
            interrupt,
        ) from interrupt


def show_evidence(evidence: Evidence, shown: Shown) -> None:
    """Print evidence and write it to the files that were asked for.

    Raises:
        StorageError: The disk refuses.
    """
    from wherefrom.cli.evaluate_table import evidence_table
    from wherefrom.cli.render import emit_json, terminal
    from wherefrom.store.durable import write_bytes_atomically

    fields = evidence.to_json()
    if shown.as_json:
        emit_json(fields)
    else:
        evidence_table(evidence, terminal(shown.width))
    if shown.output is not None:
        text = json.dumps(fields, ensure_ascii=False, allow_nan=False, indent=1)
        write_bytes_atomically(shown.output, f"{text}\n".encode())
        click.echo(f"Result: {shown.output.resolve()}", err=True)
    if shown.plot is not None:
        from wherefrom.evaluation.plots import plot

        plot(evidence, shown.plot)
        click.echo(f"Plot: {shown.plot.resolve()}", err=True)
