"""``wherefrom compact``: write an index anew as one piece."""

from __future__ import annotations

import time
from pathlib import Path

import click

__all__ = ["COMPACT_SCHEMA", "compact"]

COMPACT_SCHEMA = "wherefrom-compact/1"


@click.command(short_help="Write an index anew, without what was deleted.")
@click.argument("index", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a summary.")
@click.option("--quiet", is_flag=True, help="Show no summary.")
def compact(index: Path, as_json: bool, quiet: bool) -> None:
    """Write INDEX anew as one piece, after many changes, for speed and room.

    Answers stay the same. Who has INDEX open goes on reading its files as they were, which stay
    beside the new ones until the next change: it takes as much room again until then.
    """
    from wherefrom.cli.changing import interruptible, tell_change
    from wherefrom.maintenance.delete import compact as compact_index

    started = time.perf_counter()
    with interruptible(index, "run the same command again"):
        change = compact_index(index)
    tell_change(index, change, COMPACT_SCHEMA, started, as_json=as_json, quiet=quiet)
