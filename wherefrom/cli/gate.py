"""The gate on the command line: what stopped it, a line each, and the exit status that says so."""

from __future__ import annotations

from collections.abc import Iterable

import click

from wherefrom.audit.entries import Entry
from wherefrom.audit.gate import Finding
from wherefrom.query.printable import excerpt, printable

__all__ = ["GATE_STATUS", "tell_gate"]

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
