"""What carries out the work of commands over many documents, and what an interruption leaves."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

__all__ = [
    "EXECUTORS",
    "execution_options",
    "is_another_rank",
    "left_at",
    "tell_of_going_on",
    "tell_of_rank",
]

EXECUTORS = ("serial", "processes", "ray", "torchrun")
"""``wherefrom.indexer.executors.EXECUTORS``, which takes torch to import."""

_Command = TypeVar("_Command", bound=Callable[..., Any])
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def _bytes(ctx: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    number, unit = value.strip().upper().removesuffix("B").removesuffix("I"), ""
    if number and number[-1] in "KMGT":
        number, unit = number[:-1], number[-1]
    try:
        found = float(number) * _UNITS[unit]
    except ValueError:
        found = 0.0
    if not 1.0 <= found < float("inf"):
        raise click.BadParameter(f"{value!r} is no amount of memory; give bytes, or 500M, 8G, ...")
    return int(found)


_OPTIONS = (
    click.option(
        "--executor",
        type=click.Choice(EXECUTORS),
        help="What carries out the work: this process (serial, the default), several processes, "
        "a Ray cluster, or the processes that torchrun started (the default under torchrun).",
    ),
    click.option(
        "--workers",
        type=click.IntRange(min=1),
        metavar="N",
        help="Tasks at once, for processes and ray; one a GPU, or what the processors allow, by "
        "default.",
    ),
    click.option(
        "--threads",
        type=click.IntRange(min=1),
        metavar="N",
        help="Threads of torch in each worker; as many as it takes by itself by default.",
    ),
)
_FACTOR_MEMORY = click.option(
    "--factor-memory",
    callback=_bytes,
    metavar="BYTES",
    help="Memory for the curvature's factors, as 8G; less of it takes more passes over the "
    "documents. By default all layers are gathered in one, and none may take more than half of "
    "the machine's memory.",
)


def execution_options(command: _Command) -> _Command:
    """Add the options to a command."""
    for option in reversed((*_OPTIONS, _FACTOR_MEMORY)):
        command = option(command)
    return command


def is_another_rank() -> bool:
    """Whether rank 0 of the same job does what this process was told to."""
    if "RANK" not in os.environ:
        return False
    from wherefrom.indexer.executors.torchrun import is_follower

    return is_follower()


def tell_of_rank() -> None:
    """Say why this process does nothing."""
    rank = os.environ["RANK"]
    click.echo(f"wherefrom: rank {rank} of this job (RANK) leaves it to rank 0", err=True)


def tell_of_going_on(index: Path) -> None:
    """Say so if a build is gone on with."""
    from wherefrom.query.printable import printable
    from wherefrom.store import build_info, state

    folder = _built_at(index)
    if state(folder) == "unfinished":
        begun = build_info(folder).get("started", "an unknown time")
        click.echo(printable(f"wherefrom: going on with the build begun at {begun}"), err=True)


def left_at(index: Path) -> str:
    """What an interruption left."""
    from wherefrom.store import Location, state

    place, folder = Location(index), _built_at(index)
    found = state(folder)
    if found == "unfinished":
        return f"{folder} is left unfinished; run the same command again to go on"
    if place.remote:
        return f"what is published at {place} is whole, if anything is: as it was before, or new"
    return f"{place} is as it was before" if found == "finished" else "nothing was written"


def _built_at(index: Path) -> Path:
    """The directory that an index is made in; for a URL, one in the cache."""
    from wherefrom.maintenance.publish import built_at
    from wherefrom.store import Location

    place = Location(index)
    return built_at(place) if place.remote else place.directory
