"""Peak memory of fitting EK-FAC, in units of the factors that it gives.

Each fit runs in a process of its own. Counted is how far the peak of resident memory rises above
what the model, the libraries and one batch have taken before; the factors are what an index keeps:
eigenvectors in float32 and eigenvalues in float64. glibc keeps freed blocks of up to 32 MiB for
itself, so resident memory is more than what is alive; the *live* runs have it give back every block
from 1 MiB on (``MALLOC_MMAP_THRESHOLD_``).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from benchmarks.figures import BenchmarkError, Figure, Report, command, expect

__all__ = ["measure"]

_DEEP = (512, 1376, 8)
_WIDE = (1024, 2752, 2)
_SMALL = (256, 688, 2)
_DOCUMENTS = 96
_GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
_MIB = 2.0**20


def measure(*, quick: bool) -> Report:
    """Fit a deep and a wide model, one after the other."""
    shapes = {"small": _SMALL} if quick else {"deep": _DEEP, "wide": _WIDE}
    rounds = 1 if quick else 3
    runs: dict[str, list[dict[str, Any]]] = {}
    for _ in range(rounds):
        for name, shape in shapes.items():
            for kind, variables in (("", {}), (", live", _GIVE_BACK)):
                runs.setdefault(name + kind, []).append(_fit(shape, variables))
    every = [run for taken in runs.values() for run in taken]
    checks = (
        expect(all(run["documents"] == _DOCUMENTS for run in every), "every document is fitted on"),
        expect(
            all(run["worst_trace"] < 1e-5 for run in every),
            "each layer's eigenvalues sum to the mean squared norm of its gradients within 1e-5",
        ),
    )
    figures = []
    for name, taken in runs.items():
        ratios = tuple(run["peak_bytes"] / run["factor_bytes"] for run in taken)
        figures.append(
            Figure(f"{name}: peak above model and batch / factors", "×", ratios, at_most=1.5)
        )
        for label, key in (
            ("peak above model and batch", "peak_bytes"),
            ("factors", "factor_bytes"),
        ):
            sizes = tuple(run[key] / _MIB for run in taken)
            figures.append(Figure(f"{name}: {label}", "MiB", sizes))
        figures.append(Figure(f"{name}: fit (CPU time)", "s", tuple(r["fit_cpu"] for r in taken)))
    setting = {
        name: dict(zip(("width", "feed_forward", "layers"), shape, strict=True))
        for name, shape in shapes.items()
    }
    return Report(
        tuple(figures),
        checks,
        {**setting, "documents": _DOCUMENTS, "batches": every[0]["batches"], "rounds": rounds},
    )


def _fit(shape: tuple[int, int, int], variables: Mapping[str, str]) -> dict[str, Any]:
    numbers = [str(number) for number in (*shape, _DOCUMENTS)]
    finished = subprocess.run(
        [sys.executable, "-m", "benchmarks.fit_memory_once", *numbers],
        capture_output=True,
        text=True,
        env={**os.environ, **variables},
    )
    if finished.returncode != 0:
        raise BenchmarkError(f"the fit failed: {finished.stderr.strip().splitlines()[-1]}")
    taken: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return taken


if __name__ == "__main__":
    command(measure)()
