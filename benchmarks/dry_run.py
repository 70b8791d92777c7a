"""How near ``build --dry-run`` comes to what the build then takes.

Estimates and builds run in fresh processes, one after the other, over four kinds of documents and
models. Seconds are of the processor, over all threads, so that what else the machine does is left
out; memory is the peak of the process. Each figure is the estimate over what it took.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.dry_run_once import WORKLOADS
from benchmarks.environment import child_variables
from benchmarks.figures import BenchmarkError, Figure, Report, command, expect

__all__ = ["measure"]

_SIZES = {"short texts": 2000, "long texts": 800, "classifier": 3000, "demo": 400}
_SAMPLE = 256
_WHAT = {
    "total_seconds": "processor time",
    "index_bytes": "index on disk",
    "peak_memory": "peak memory",
    "tokens": "tokens",
}
_WITHIN = 1.25


def measure(*, quick: bool) -> Report:
    """Estimate, build and compare."""
    ratios: dict[str, list[float]] = {what: [] for what in _WHAT}
    setting: dict[str, Any] = {}
    for name in WORKLOADS:
        documents = 120 if quick else _SIZES[name]
        sample = 64 if quick else _SAMPLE
        with tempfile.TemporaryDirectory() as folder:
            found = _once(name, documents, sample, Path(folder) / "estimated")
            taken = _once(name, documents, 0, Path(folder) / "built")
        expect(found["documents"] == taken["documents"], f"{name}: all documents are counted")
        for what, values in ratios.items():
            values.append(found[what] / taken[what])
        setting[name] = {"estimated": found, "taken": taken}
    figures = [
        Figure(f"{words}, estimated over taken: furthest off", "×", _furthest(ratios[what]))
        for what, words in _WHAT.items()
    ]
    return Report(
        tuple(
            Figure(f.name, f.unit, f.values, at_most=_WITHIN, judged_by="worst") for f in figures
        ),
        ("the estimate counts the documents that the build indexes",),
        {"sample": _SAMPLE, "workloads": setting},
    )


def _furthest(ratios: list[float]) -> tuple[float, ...]:
    """How far off either way, as a factor of at least 1, of each workload."""
    return tuple(max(ratio, 1.0 / ratio) for ratio in ratios)


def _once(name: str, documents: int, sample: int, path: Path) -> dict[str, Any]:
    finished = subprocess.run(
        [
            *(sys.executable, "-W", "ignore", "-m", "benchmarks.dry_run_once"),
            *(name, str(documents), str(sample), str(path)),
        ],
        env=child_variables(1),
        capture_output=True,
        text=True,
    )
    if finished.returncode != 0:
        raise BenchmarkError(f"{name}: {finished.stderr.splitlines()[-1:]}")
    told: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return told


if __name__ == "__main__":
    command(measure)()
