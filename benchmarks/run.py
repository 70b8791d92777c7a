"""``make bench``: runs every benchmark in a fresh process, shows the figures and stores them.

Each result goes to ``benchmarks/results/NAME.json`` with the machine's description, the load
average before and after, and the date. Quick runs are shown and not stored: their sizes are not
those that the targets are meant for.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import psutil
from rich.console import Console

from benchmarks.environment import child_variables, describe, load_average, now
from benchmarks.figures import Figure
from benchmarks.table import figure_table

__all__ = ["BENCHMARKS", "main"]

BENCHMARKS = (
    "build_cost",
    "memory",
    "scan_speed",
    "scan_million",
    "encoder_cost",
    "encoders",
    "refinement",
    "cold_start",
    "insight",
    "service",
    "service_soak",
    "curvatures",
    "datainf_solve",
    "fit_memory",
    "minilm",
    "smollm2",
    "against_kronfluence",
    "scale_costs",
    "scale_simulation",
    "dry_run",
)

_ROOT = Path(__file__).resolve().parent.parent
_RESULTS = Path(__file__).resolve().parent / "results"


@click.command()
@click.option(
    "--only", multiple=True, type=click.Choice(BENCHMARKS), help="Run this one (repeatable)."
)
@click.option("--quick", is_flag=True, help="Small sizes: shows that all runs; nothing is stored.")
@click.option(
    "--threads",
    type=click.IntRange(1),
    default=psutil.cpu_count(logical=False) or 1,
    show_default=True,
    help="Threads of every process that is timed.",
)
@click.option(
    "--kronfluence-env",
    type=click.Path(path_type=Path, file_okay=False),
    help="Virtual environment of kronfluence; made if it is not there.  [default: in the user's "
    "cache folder]",
)
def main(only: Sequence[str], quick: bool, threads: int, kronfluence_env: Path | None) -> None:
    """Measure the figures that wherefrom promises.

    Exit status 1 if a benchmark failed to run or found a wrong result; a missed target is shown,
    and is no failure.
    """
    console = Console()
    failed = False
    for name in BENCHMARKS:
        if only and name not in only:
            continue
        options = ["--quick"] if quick else []
        if name == "against_kronfluence" and kronfluence_env is not None:
            options += ["--kronfluence-env", str(kronfluence_env.resolve())]
        with console.status(f"{name} ..."):
            result = _run(name, options, threads)
        if result is None:
            console.print(f"{name}: failed (see above)", style="red")
            failed = True
            continue
        if result["skipped"] is not None:
            console.print(f"{name}: skipped: {result['skipped']}", style="yellow", markup=False)
            continue
        figures = [Figure.from_json(stored) for stored in result["figures"]]
        console.print(figure_table(name + (" (quick)" if quick else ""), figures))
        for check in result["checks"]:
            console.print(f"  checked: {check}", markup=False)
        loads = [result["environment"][when][0] for when in ("load_before", "load_after")]
        console.print(f"  load average: {loads[0]} before, {loads[1]} after\n")
        if not quick:
            _store(name, result)
    sys.exit(1 if failed else 0)


def _run(name: str, options: Sequence[str], threads: int) -> dict[str, Any] | None:
    """The benchmark's report with its environment; ``None`` if it failed, having said why."""
    environment: dict[str, Any] = {**describe(), "threads": threads, "date": now()}
    environment["load_before"] = load_average()
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "report.json"
        finished = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}", "--output", str(output), *options],
            cwd=_ROOT,
            env=child_variables(threads),
            stderr=subprocess.PIPE,
            text=True,
        )
        if finished.returncode != 0:
            click.echo(finished.stderr, err=True)
            return None
        report: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    environment["load_after"] = load_average()
    return {"benchmark": name, **report, "environment": environment}


def _store(name: str, result: dict[str, Any]) -> None:
    _RESULTS.mkdir(exist_ok=True)
    text = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
    (_RESULTS / f"{name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
