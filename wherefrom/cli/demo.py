"""``wherefrom demo``: the whole of it on a real corpus, from training a model to asking it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wherefrom.records import SCORE_CONTRACT

if TYPE_CHECKING:
    from wherefrom.demo.run import DemoRun

__all__ = ["DEMO_SCHEMA", "demo"]

DEMO_SCHEMA = "wherefrom-demo/1"

_SHOWN = 5


@click.command(
    short_help="Train a small model on real speeches, index them, and ask.", epilog=SCORE_CONTRACT
)
@click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("wherefrom-demo"),
    show_default=True,
    metavar="DIR",
    help="Where the model, the index and the report go; a second run reuses what is there.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def demo(directory: Path, as_json: bool) -> None:
    """Train a small model on State of the Union addresses, index them, and ask.

    Takes some minutes on two cores; nothing is downloaded.
    """
    from wherefrom.cli.failures import Interrupted
    from wherefrom.cli.progress import progress_bars
    from wherefrom.cli.render import emit_json

    try:
        from wherefrom.demo.run import run_demo

        with progress_bars() as progress:
            run = run_demo(directory, progress)
    except KeyboardInterrupt as interrupt:
        raise Interrupted(
            f"what was finished is kept in {directory}; run the demo again to go on", interrupt
        ) from interrupt
    if as_json:
        emit_json(_summary(directory, run))
    else:
        _show(directory, run)


def _show(directory: Path, run: DemoRun) -> None:
    """Each question with its strongest hits, and whether the answers' years fit."""
    from wherefrom.cli.render import answer_table, terminal

    console = terminal()
    for question, answer in run.answers:
        first, last = question.years
        console.rule(f"{question.name}, {first}-{last}", characters="-")
        answer_table(answer, console, _SHOWN)
        console.print()
    for check in run.eras:
        console.print(check.in_words())
    made = "reused" if run.reused else "made"
    console.print(
        f"\nModel and index over {len(run.index):,} passages {made} in {directory}; "
        f"report: {run.report}; {run.seconds:.0f} s in all.",
        soft_wrap=True,
    )
    console.print(
        f'Ask your own:  wherefrom query {directory / "index"} --prompt "..." --completion " ..."',
        soft_wrap=True,
    )


def _summary(directory: Path, run: DemoRun) -> dict[str, Any]:
    """All answers whole, and where everything is."""
    return {
        "schema": DEMO_SCHEMA,
        "directory": str(directory.resolve()),
        "index": str((directory / "index").resolve()),
        "report": str(run.report.resolve()),
        "documents": len(run.index),
        "reused": run.reused,
        "questions": [
            {"name": question.name, "years": list(question.years), "answer": answer.to_dict()}
            for question, answer in run.answers
        ],
        "eras": [asdict(check) for check in run.eras],
        "seconds": run.seconds,
    }
