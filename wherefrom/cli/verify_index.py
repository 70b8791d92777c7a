"""The side of ``wherefrom verify`` that checks an index."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from wherefrom.maintenance.verification import Verification

__all__ = ["is_index", "verify_index"]


def is_index(path: Path) -> bool:
    """Whether an index stands at ``path``, or what is left of one.

    A bundle holds the manifest of an index, too, but none of its other parts.
    """
    from wherefrom.store import Location

    names = ("encoder.safetensors", "documents.lance", "scan", "build.json")
    return Location.of(path).remote or any((path / name).exists() for name in names)


def verify_index(path: Path, given: dict[str, Any]) -> bool:
    """Check an index and say what was found; whether it is in order."""
    from wherefrom.cli.failures import one_line_warnings
    from wherefrom.cli.progress import progress_bars
    from wherefrom.cli.render import emit_json
    from wherefrom.maintenance.verification import verify

    options = ("model", "base_model", "device", "sample", "seed", "digests_only", "repair")
    with one_line_warnings(), progress_bars() as progress:
        found = verify(path, **{name: given[name] for name in options}, progress=progress)
    if given["as_json"]:
        emit_json(found.to_dict())
    else:
        _tell(found)
    return found.ok


def _tell(found: Verification) -> None:
    """Say what was found: problems and notes on stderr, one line on stdout."""
    from wherefrom.query.printable import printable

    for what in found.repaired:
        click.echo(f"wherefrom: verify: repaired: {printable(what)}", err=True)
    for problem in found.problems:
        line = printable(f"{problem.where} {problem.detail}; {problem.remedy}")
        click.echo(f"wherefrom: verify: {problem.kind}: {line}", err=True)
    for note in found.notes:
        click.echo(f"wherefrom: verify: note: {printable(note)}", err=True)
    name = printable(found.path)
    if found.problems:
        count = len(found.problems)
        things = "1 thing is" if count == 1 else f"{count:,} things are"
        click.echo(f"{name} is damaged: {things} wrong.")
        return
    checked = found.checked
    told = f"{name}: whole. {checked['rows']:,} rows and {checked['files']:,} files checked"
    again = found.reencoded
    if again is None:
        click.echo(f"{told}; no document was encoded again.")
        return
    told += f"; {again.documents:,} documents encoded again, {again.equal:,} to the last bit"
    if again.within:
        told += f", {again.within:,} within rounding ({again.largest:.1g} of a vector's norm)"
    click.echo(f"{told}.")
