"""Peak memory of a build over n documents and over 4 n documents.

Each build runs in a process of its own; the peak is all of its resident memory, libraries
included. Nothing is subtracted.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.figures import BenchmarkError, Figure, Report, command, expect

__all__ = ["measure"]


def measure(*, quick: bool) -> Report:
    """Build small and large corpora, one after the other."""
    count = 200 if quick else 1500
    rounds = 1 if quick else 3
    small: list[float] = []
    large: list[float] = []
    for _ in range(rounds):
        small.append(_peak(count))
        large.append(_peak(4 * count))
    ratios = tuple(b / a for a, b in zip(small, large, strict=True))
    extra = tuple((b - a) / (3 * count) for a, b in zip(small, large, strict=True))
    mib = 2.0**20
    return Report(
        (
            Figure("peak memory, 4 n documents / n documents", "×", ratios, at_most=1.1),
            Figure("peak memory, n documents", "MiB", tuple(peak / mib for peak in small)),
            Figure("peak memory, 4 n documents", "MiB", tuple(peak / mib for peak in large)),
            Figure("growth per added document", "bytes", extra),
        ),
        ("every document is indexed",),
        {"n": count, "rounds": rounds},
    )


def _peak(count: int) -> float:
    """Peak resident bytes of a build over ``count`` documents."""
    with tempfile.TemporaryDirectory() as folder:
        finished = subprocess.run(
            [
                *(sys.executable, "-m", "benchmarks.build_once"),
                *("--documents", str(count), "--index", str(Path(folder) / "once.index")),
            ],
            capture_output=True,
            text=True,
        )
    if finished.returncode != 0:
        raise BenchmarkError(f"the build failed: {finished.stderr.strip().splitlines()[-1]}")
    taken = json.loads(finished.stdout.splitlines()[-1])
    expect(taken["documents"] == count, "every document is indexed")
    return float(taken["peak_bytes"])


if __name__ == "__main__":
    command(measure)()
