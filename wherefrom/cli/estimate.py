"""What ``wherefrom build --dry-run`` says: time, disk and memory that a build will take."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wherefrom.indexer.estimate import Estimate

__all__ = ["ESTIMATE_SCHEMA", "tell_estimate"]

ESTIMATE_SCHEMA = "wherefrom-estimate/1"


def tell_estimate(index: Path, found: Estimate, *, as_json: bool, quiet: bool) -> None:
    """Print an estimate: one JSON object, or a list.

    Args:
        index: Where the index would stand.
        found: The estimate.
        as_json: Print one JSON object.
        quiet: Print no list.
    """
    from wherefrom.cli.render import emit_json, print_facts, terminal
    from wherefrom.store import Location

    if as_json:
        emit_json({"schema": ESTIMATE_SCHEMA, "path": Location(index).full, **found.to_json()})
    elif not quiet:
        print_facts(_facts(found), terminal())


def _facts(found: Estimate) -> Iterator[tuple[str, object]]:
    from wherefrom.cli.render import readable_size

    yield "documents", f"{found.documents:,} of about {found.tokens:,} scored tokens"
    yield "measured on", f"{found.sample:,} of them, on this machine as busy as it is"
    workers = "" if found.workers == 1 else f", {found.workers} at once"
    yield "time", f"{_duration(found.total_seconds)}{workers}"
    for phase, seconds in found.seconds.items():
        yield f"· {phase}", _duration(seconds)
    yield "index on disk", readable_size(found.index_bytes)
    for part, size in found.disk.items():
        yield (f"· {part}" if part != "work" else "beside it meanwhile"), readable_size(size)
    yield "memory of a worker", readable_size(found.peak_memory)
    for part, size in found.memory.items():
        yield f"· {part}", readable_size(size)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
