"""``make experiments``: runs the experiments whose stored result is not of today's recipe.

Each runs in a process of one thread. What is finished is kept, of an experiment that is stopped
too: the same command goes on. Quick runs are shown and not stored.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import click
import psutil
from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.experiments.harness import Experiment, Outcome, Runner, experiments
from benchmarks.experiments.harness import stored_result as stored
from benchmarks.packages import cache_folder

__all__ = ["main"]

_EXPERIMENTS = experiments()


@click.command()
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(list(_EXPERIMENTS)),
    help="Run this one (repeatable).",
)
@click.option("--quick", is_flag=True, help="Small sizes: shows that all runs; nothing is stored.")
@click.option(
    "--again",
    is_flag=True,
    help="Run although the stored result is of today's recipe. Parts that the work folder holds "
    "are used; remove it to begin from nothing.",
)
@click.option(
    "--work",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where models, retrainings and partial results are kept.  [default: in the user's cache "
    "folder]",
)
@click.option(
    "--at-once",
    type=click.IntRange(1),
    default=min(2, psutil.cpu_count(logical=False) or 1),
    show_default=True,
    help="Experiments that run beside each other, of one thread each.",
)
def main(only: Sequence[str], quick: bool, again: bool, work: Path | None, at_once: int) -> None:
    """Run the experiments of the field and store what they find.

    Exit status 1 if one failed, which stops none of the others, and 130 if interrupted.
    """
    console = Console(markup=False, emoji=False, highlight=False)
    work = (work or cache_folder() / "experiments").resolve() / ("quick" if quick else "full")
    chosen = [one for one in _EXPERIMENTS.values() if not only or one.name in only]
    waiting = [one for one in chosen if quick or again or not _is_current(one)]
    _announce(chosen, waiting, at_once, console, quick=quick)
    failed = False
    runner = Runner()
    pool = ThreadPoolExecutor(at_once)
    try:
        runs = {pool.submit(runner.run, one, work / one.name, quick=quick): one for one in waiting}
        for run in as_completed(runs):
            failed |= _tell(runs[run], run.result(), console)
    except KeyboardInterrupt:
        pool.shutdown(wait=False, cancel_futures=True)
        runner.interrupt()
        pool.shutdown()
        console.print(
            f"interrupted: what is finished is kept in {work}; run again to go on", soft_wrap=True
        )
        sys.exit(130)
    pool.shutdown()
    sys.exit(1 if failed else 0)


def _is_current(experiment: Experiment) -> bool:
    """Whether the stored result is of today's recipe."""
    result = stored(experiment.name)
    return result is not None and result["recipe"] == experiment.recipe


def _announce(
    chosen: Sequence[Experiment],
    waiting: Sequence[Experiment],
    at_once: int,
    console: Console,
    *,
    quick: bool,
) -> None:
    """What will run, and how long all of it may take."""
    table = Table(box=None, pad_edge=False)
    for title in ("experiment", "budget", "stored result"):
        table.add_column(title, justify="right" if title == "budget" else "left")
    for one in chosen:
        result = stored(one.name)
        state = "none" if result is None else "of another recipe"
        if _is_current(one):
            state = "kept" if one not in waiting else "is made again"
        table.add_row(one.name, f"{one.minutes:g} min", state)
    console.print(table)
    total = sum(one.minutes for one in waiting)
    longest = max((one.minutes for one in waiting), default=0.0)
    size = " (full size; these are quick)" if quick else ""
    console.print(
        f"{len(waiting)} to run: at most {total:g} minutes of one thread, about "
        f"{max(longest, total / at_once):.0f} minutes with {at_once} at once{size}\n"
    )


def _tell(experiment: Experiment, outcome: Outcome, console: Console) -> bool:
    """Print what became of one; whether it failed."""
    if outcome.failure is not None:
        text = Text(f"{experiment.name}: failed: {outcome.failure}", style="red")
        console.print(text, soft_wrap=True)
        return True
    if outcome.skipped is not None:
        text = Text(f"{experiment.name}: skipped: {outcome.skipped}", style="yellow")
        console.print(text, soft_wrap=True)
        return False
    # The room takes torch to import: a parent of processes that measure stays small until here.
    from wherefrom.cli.evaluate_table import evidence_table
    from wherefrom.evaluation.evidence import Evidence

    result = outcome.result or {}
    for fields in result["evidence"]:
        evidence_table(Evidence.from_json(fields), console)
    over = " (over its budget)" if result["seconds"] > 60 * experiment.minutes else ""
    console.print(f"{experiment.name}: {result['seconds'] / 60:.1f} minutes{over}\n")
    return False


if __name__ == "__main__":
    main()
