"""The gate on the command line: what stopped it, a line each, and the exit status that says so."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import click

from wherefrom.audit.entries import Entry
from wherefrom.audit.gate import Finding, Gate
from wherefrom.cli.failures import warn
from wherefrom.query.printable import excerpt, printable

if TYPE_CHECKING:
    from wherefrom.cli.query_options import Asked
    from wherefrom.maintenance.index import Index
    from wherefrom.records import Sign

__all__ = ["GATE_STATUS", "note_unseen", "tell_gate", "warn_unmatched"]

GATE_STATUS = 3
"""Exit status where a condition of ``--fail-if`` holds, or cannot be decided."""

_LONGEST_NAME = 80


def tell_gate(entries: Iterable[Entry], *, named: bool) -> bool:
    """Print what stopped answers at the gate on stderr, a line each.

    Args:
        entries: The answers.
        named: Whether to say which answer it was.

    Returns:
        Whether anything did.
    """
    stopped = False
    for entry in entries:
        for finding in entry.gate:
            stopped = True
            where = f"{_name(entry.id)}: " if named else ""
            click.echo(f"wherefrom: gate: {where}{_told(finding)}", err=True)
    return stopped


def note_unseen(entries: Iterable[Entry], asked: Asked) -> None:
    """Say on stderr, where a gate let pass, that it saw the strongest hits only.

    Args:
        entries: The answers.
        asked: Holds the gate, and how many hits were asked for.
    """
    k = asked.options["k"]
    most = max(
        (entry.answer.certificate.documents for entry in entries if entry.answer is not None),
        default=0,
    )
    if asked.gate_sees_hits and most > k:
        click.echo(
            f"wherefrom: note: the gate saw the {k:,} strongest hits of a sign, at most, of "
            f"{most:,} documents; a larger -k holds more of them against it",
            err=True,
        )


def warn_unmatched(fail_if: Sequence[str], index: Index, sign: Sign) -> None:
    """Warn of values that a gate asks for and no document has.

    Args:
        fail_if: The conditions.
        index: Open.
        sign: Which hits are asked for.
    """
    for message in Gate.parse(fail_if, index.manifest.metadata, sign).unmatched(index.table):
        warn(message)


def _told(finding: Finding) -> str:
    of = "the answer"
    if finding.hit is not None:
        of = f"{finding.hit} {finding.rank} ({_name(finding.doc_id or '')})"
    condition = printable(finding.condition)
    if finding.verdict == "undecidable":
        return f"undecidable of {of}, which lacks what this asks for: {condition}"
    return f"{of}: {condition}"


def _name(text: str) -> str:
    return excerpt(text, _LONGEST_NAME)
