"""What commands that change an index share: their summary, and how they are interrupted."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wherefrom.maintenance.changes import Change

__all__ = ["interruptible", "tell_change"]

_SHOWN = 5


@contextmanager
def interruptible(index: Path, remedy: str) -> Iterator[None]:
    """Say what an interruption leaves: the index as it was, or changed and not tidied up.

    Args:
        index: The index.
        remedy: What to do next.

    Raises:
        Interrupted: For Ctrl-C and SIGTERM.
    """
    from wherefrom.cli.failures import Interrupted, terminable
    from wherefrom.store import Manifest

    before = Manifest.read(index).generation
    try:
        with terminable():
            yield
    except KeyboardInterrupt as interrupt:
        left = "as it was before"
        if Manifest.read(index).generation != before:
            left = "changed, and files of the state before are still in it"
        raise Interrupted(f"{index} is {left}; {remedy}", interrupt) from interrupt


def tell_change(
    index: Path, change: Change, schema: str, started: float, *, as_json: bool, quiet: bool
) -> None:
    """Summarise a change.

    Args:
        index: The index.
        change: What was done.
        schema: Name of the JSON object's schema.
        started: When, by ``time.perf_counter``.
        as_json: Print one JSON object.
        quiet: Print nothing but warnings.
    """
    from wherefrom.cli.failures import warn
    from wherefrom.cli.render import emit_json, print_facts, terminal
    from wherefrom.store import Location, Manifest

    seconds = time.perf_counter() - started
    if as_json:
        emit_json(
            {
                "schema": schema,
                "index": Location(index).full,
                "manifest_sha256": Manifest.read(index).digest,
                **asdict(change),
                "seconds": seconds,
            }
        )
        return
    for warning in change.warnings:
        warn(warning)
    if change.accelerators:
        names = ", ".join(change.accelerators)
        warn(f"{names} was made of the documents before; make it again with wherefrom accelerate")
    if not quiet:
        print_facts(_facts(index, change, seconds), terminal())


def _facts(index: Path, change: Change, seconds: float) -> list[tuple[str, object]]:
    facts: list[tuple[str, object]] = [("index", str(index))]
    counts = (("added", change.added), ("removed", change.removed), ("there already", change.same))
    facts += [(name, f"{count:,}") for name, count in counts if count]
    if change.skipped:
        facts.append(("skipped", f"without a scored token: {_some(change.skipped)}"))
    if change.missing:
        facts.append(("not there", f"{len(change.missing):,}: {_some(change.missing)}"))
    facts.append(("documents", f"{change.documents:,}"))
    if change.drift is not None:
        facts.append(("drift", f"{change.drift.energy:.2f} times the whitened energy of the build"))
    return [*facts, ("generation", change.generation), ("seconds", f"{seconds:.1f}")]


def _some(ids: Sequence[str]) -> str:
    """The first of some ids."""
    return ", ".join(ids[:_SHOWN]) + (", ..." if len(ids) > _SHOWN else "")
