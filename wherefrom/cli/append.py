"""``wherefrom append``: add documents to an index."""

from __future__ import annotations

import time
import warnings
from pathlib import Path

import click

from wherefrom.cli.query_options import model_options

__all__ = ["APPEND_SCHEMA", "append"]

APPEND_SCHEMA = "wherefrom-append/1"


@click.command(short_help="Add documents to an index.")
@click.argument("index", type=click.Path(path_type=Path))
@click.argument("corpus", type=click.Path(path_type=Path))
@click.option(
    "--replace",
    is_flag=True,
    help="Put documents in the place of those of the same id that differ, with all passages.",
)
@click.option(
    "--metadata",
    multiple=True,
    metavar="COLUMN",
    help="Column to keep as metadata, one that the index has; may be repeated. All by default.",
)
@model_options
@click.option(
    "--executor",
    type=click.Choice(("serial", "processes", "ray")),
    help="What carries out the work: this process (serial, the default), several processes, or a "
    "Ray cluster.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Tasks at once, for processes and ray; one a GPU, or what the processors allow, by "
    "default.",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="Threads of torch in each worker; as many as it takes by itself by default, or as an "
    "append began with that this one goes on with.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a summary.")
@click.option("--quiet", is_flag=True, help="Show neither progress nor summary.")
def append(
    index: Path,
    corpus: Path,
    replace: bool,
    metadata: tuple[str, ...],
    model: str | None,
    base_model: str | None,
    device: str,
    executor: str | None,
    workers: int | None,
    threads: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Add the documents of CORPUS to INDEX, without fitting its curvature again.

    Documents that it holds already are passed over. Who reads the index meanwhile sees it as it was
    until all of them are in; if this is interrupted, the same command goes on where it stopped. A
    warning tells when the new documents are of another kind than the curvature knows.
    """
    from wherefrom.cli.changing import interruptible, tell_change
    from wherefrom.cli.execution import is_another_rank, tell_of_rank
    from wherefrom.cli.progress import progress_bars

    if is_another_rank():  # One rank appends; the others would find the index busy.
        tell_of_rank()
        return
    started = time.perf_counter()
    with interruptible(index, "run the same command again to go on"):
        from wherefrom.api import open as open_index

        with progress_bars(quiet=quiet) as progress, warnings.catch_warnings():
            # What an append warns of stands in the change, and is told below.
            warnings.simplefilter("ignore")
            opened = open_index(index, model=model, base_model=base_model, device=device)
            change = opened.append(
                corpus,
                replace=replace,
                metadata_columns=metadata or None,
                executor=executor,
                workers=workers,
                threads=threads,
                progress=progress,
            )
    tell_change(index, change, APPEND_SCHEMA, started, as_json=as_json, quiet=quiet)
