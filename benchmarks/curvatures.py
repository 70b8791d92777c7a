"""Time and memory of the seven curvatures on the same two models, fit and query.

Each curvature is fitted on each model in a process of its own. Memory is how far the peak of
resident memory rises above what model, libraries and one batch have taken before; *kept* is the
size of what an index stores of the curvature. A query is one forward and backward pass and the
preconditioning of its gradient, uncompressed. LiSSA is held to 500 steps. Spearman is the mean
rank correlation of the uncompressed scores with those of ``exact`` for the classifier and of
``ekfac`` for the language model, where the exact blocks do not fit: context, and not a target.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from statistics import mean, median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.figures import BenchmarkError, Figure, Report, command, expect

__all__ = ["measure"]

_KINDS = ("ekfac", "kfac", "diagonal", "identity", "datainf", "lissa", "exact")
_SUBJECTS = {"lm": "ekfac", "lora": "exact"}
"""The models, and the curvature that others are correlated with."""

_MIB = 2.0**20
_LONGEST = 1800

_Runs = Mapping[str, Mapping[str, Any]]


def measure(*, quick: bool) -> Report:
    """Fit every curvature on a language model and on a LoRA classifier."""
    count = 12 if quick else 200
    figures: list[Figure] = []
    checks: list[str] = []
    settings: dict[str, Any] = {}
    for name, reference in _SUBJECTS.items():
        with tempfile.TemporaryDirectory() as folder:
            _process("curvature_subjects", name, folder, str(count))
            # In a process of its own each; a quick run has no time to import torch so often.
            jobs = [_KINDS] if quick else [(kind,) for kind in _KINDS]
            printed = [_process("curvature_once", folder, *job) for job in jobs]
        taken = [run for lines in printed for run in json.loads(lines.splitlines()[-1])]
        refused = {run["kind"]: run["refused"] for run in taken if run["refused"] is not None}
        runs = {run["kind"]: run for run in taken if run["refused"] is None}
        checks += _checks(name, runs, refused)
        figures += _figures(name, runs, reference)
        settings[name] = _setting(runs, refused)
    return Report(tuple(figures), tuple(checks), {**settings, "rounds": 1})


def _figures(name: str, runs: _Runs, reference: str) -> list[Figure]:
    correlations = {
        kind: _correlations(run["scores"], runs[reference]["scores"]) for kind, run in runs.items()
    }
    quantities: tuple[tuple[str, str, Callable[[str], Sequence[float]]], ...] = (
        ("fit", "s", lambda kind: [runs[kind]["fit_wall"]]),
        ("fit (CPU time)", "s", lambda kind: [runs[kind]["fit_cpu"]]),
        ("fit, peak memory", "MiB", lambda kind: [runs[kind]["peak_bytes"] / _MIB]),
        ("kept", "MiB", lambda kind: [runs[kind]["stored_bytes"] / _MIB]),
        ("query (CPU time)", "ms", lambda kind: [1e3 * cpu for cpu in runs[kind]["query_cpu"]]),
        (f"Spearman with {reference} per query", "", lambda kind: correlations[kind]),
    )
    return [
        Figure(f"{name}: {quantity}: {kind}", unit, tuple(values(kind)))
        for quantity, unit, values in quantities
        for kind in runs
    ]


def _checks(name: str, runs: _Runs, refused: Mapping[str, str]) -> list[str]:
    checks = [
        expect(
            all(run["worst_difference"] < 1e-4 for run in runs.values()),
            f"{name}: for each curvature, scores from stored vectors equal the exact tier's within "
            "1e-4 of the largest",
        )
    ]
    if name == "lm":
        checks.append(
            expect(
                set(refused) == {"exact"} and "GiB of memory" in refused["exact"],
                "lm: exact refuses blocks that do not fit in memory, with the size they would need",
            )
        )
    else:
        checks.append(expect(not refused, f"{name}: no curvature refuses"))
    return checks


def _setting(runs: _Runs, refused: Mapping[str, str]) -> dict[str, Any]:
    first = next(iter(runs.values()))
    return {
        "documents": first["documents"],
        "tokens": first["tokens"],
        "weights_of_indexed_layers": sum(first["blocks"]),
        "blocks": len(first["blocks"]),
        "queries": len(first["scores"]),
        "refused": dict(refused),
        "fisher": {kind: run["fisher"] for kind, run in runs.items()},
        "one_pass_cpu_seconds": {kind: run["pass_cpu"] for kind, run in runs.items()},
        "query_wall_ms": {kind: 1e3 * median(run["query_wall"]) for kind, run in runs.items()},
        "encoding_a_document_cpu_ms": {k: 1e3 * run["document_cpu"] for k, run in runs.items()},
        "mean_spearman": {
            other: {
                kind: mean(_correlations(run["scores"], runs[other]["scores"]))
                for kind, run in runs.items()
            }
            for other in ("identity", "ekfac")
        },
        "lissa": {**runs["lissa"]["report"], "query_residual": runs["lissa"]["query_residual"]},
        "worst_difference": {kind: run["worst_difference"] for kind, run in runs.items()},
    }


def _correlations(
    ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]
) -> list[float]:
    """Spearman of each query's scores."""
    return [
        float(np.corrcoef(_ranks(a), _ranks(b))[0, 1]) for a, b in zip(ours, theirs, strict=True)
    ]


def _ranks(scores: Sequence[float]) -> NDArray[np.int64]:
    return np.argsort(np.argsort(scores))


def _process(module: str, *arguments: str) -> str:
    """What a module prints, run in a process of its own."""
    finished = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", *arguments],
        capture_output=True,
        text=True,
        timeout=_LONGEST,
    )
    if finished.returncode != 0:
        last = (finished.stderr.strip() or "no message").splitlines()[-1]
        raise BenchmarkError(f"{module} {' '.join(arguments)} failed: {last}")
    return finished.stdout


if __name__ == "__main__":
    command(measure)()
