"""Against kronfluence 1.0.1, the reference implementation of EK-FAC influence.

Both score 20 queries against 2,000 passages under the same model, from token ids that are the
same, each in processes of its own with as many threads. kronfluence lives in a virtual environment
of its own, outside the repository, which is made on the first run.

"Total" is the whole process up to the scores of the first 20 queries: importing, loading,
kronfluence's factors and pairwise scores; here the build of an index *and* uncompressed scores.
The second 20 queries cost kronfluence another pass over all documents, and wherefrom 20 searches.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.figures import BenchmarkError, Figure, Report, command, expect

__all__ = ["default_environment", "measure"]

VERSION = "1.0.1"
TORCH = "2.13.0"
_HERE = Path(__file__).resolve().parent
_MARKER = "benchmark-ready"
_PROBE = "import kronfluence.analyzer; from transformers import LlamaForCausalLM"

_Side = Mapping[str, Any]


class NotInstalledError(Exception):
    """kronfluence cannot be installed here."""


def default_environment() -> Path:
    """Where kronfluence's environment is kept: the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "wherefrom-benchmarks" / f"kronfluence-{VERSION}"


def measure(*, quick: bool, kronfluence_env: Path | None) -> Report:
    """Run both on one job, in turn, and compare scores, time and memory."""
    count = 160 if quick else 2000
    rounds = 1 if quick else 2
    try:
        python = _kronfluence_python(kronfluence_env or default_environment())
    except NotInstalledError as error:
        return Report(skipped=str(error))
    commands = {
        "wherefrom": [sys.executable, "-m", "benchmarks.wherefrom_side"],
        "kronfluence": [str(python), str(_HERE / "kronfluence_side.py")],
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _run([sys.executable, "-m", "benchmarks.comparison", name, str(count)])
        sides: dict[str, list[_Side]] = {side: [] for side in commands}
        for turn in range(rounds):
            # Whoever is first in one round is second in the next.
            for side in list(commands)[:: 1 if turn % 2 == 0 else -1]:
                _run([*commands[side], name])
                text = (folder / f"{side}.json").read_text(encoding="utf-8")
                sides[side].append(json.loads(text))
        ours = np.load(folder / "wherefrom.npz", allow_pickle=False)
        theirs = np.load(folder / "kronfluence.npy", allow_pickle=False)
        job = json.loads((folder / "tokens.json").read_text(encoding="utf-8"))
        same = ours["doc_ids"].tolist() == job["doc_ids"]
        exact, stored = ours["exact"], ours["stored"]
    checks = [
        expect(same, "both sides score the same documents in the same order"),
        expect(
            len({side["threads"] for runs in sides.values() for side in runs}) == 1,
            "both sides run with the same number of threads",
        ),
    ]
    # kronfluence leaves out the 1/N of the score contract.
    difference = np.abs(exact - theirs / count).max(1) / np.abs(exact).max(1)
    return Report(
        (*_agreement(exact, stored, theirs, difference), *_costs(sides)),
        tuple(checks),
        {
            "documents": count,
            "queries": len(exact),
            "tokens": sum(len(row["ids"]) for row in job["documents"]),
            "fisher": "empirical",
            "kronfluence": VERSION,
            "bytes_per_document": sides["wherefrom"][0]["bytes_per_document"],
            "tokens_per_query": _mean_length([*job["first"], *job["second"]]),
            "peak_mib_after": {side: _peaks(runs[0]) for side, runs in sides.items()},
            "threads": sides["wherefrom"][0]["threads"],
            "rounds": rounds,
        },
    )


def _agreement(
    exact: NDArray[np.float64],
    stored: NDArray[np.float64],
    theirs: NDArray[np.float64],
    difference: NDArray[np.float64],
) -> tuple[Figure, ...]:
    def spearman(scores: NDArray[np.float64]) -> tuple[float, ...]:
        pairs = zip(scores, theirs, strict=True)
        return tuple(float(np.corrcoef(_ranks(a), _ranks(b))[0, 1]) for a, b in pairs)

    return (
        Figure(
            "Spearman with kronfluence per query, uncompressed",
            "",
            spearman(exact),
            at_least=0.99,
            judged_by="worst",
        ),
        Figure("Spearman with kronfluence per query, stored vectors", "", spearman(stored)),
        Figure(
            "largest difference of scores / largest score, uncompressed",
            "",
            tuple(difference.tolist()),
        ),
    )


def _costs(sides: Mapping[str, Sequence[_Side]]) -> tuple[Figure, ...]:
    def taken(side: str, *steps: str) -> tuple[float, ...]:
        return tuple(sum(run["seconds"][step] for step in steps) for run in sides[side])

    def peaks(side: str) -> tuple[float, ...]:
        return tuple(run["peak_bytes"]["end"] / 2**20 for run in sides[side])

    def ratio(over: tuple[float, ...], under: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(a / b for a, b in zip(over, under, strict=True))

    totals = taken("wherefrom", "total"), taken("kronfluence", "total")
    asked = taken("wherefrom", "loading", "build", "first")
    memory = peaks("wherefrom"), peaks("kronfluence")
    again, rescan = taken("wherefrom", "second"), taken("kronfluence", "second")
    return (
        Figure("total time, wherefrom / kronfluence", "×", ratio(*totals), at_most=1.0),
        Figure("peak memory, wherefrom / kronfluence", "×", ratio(*memory), at_most=1.0),
        Figure(
            "second batch of 20 queries, kronfluence / wherefrom",
            "×",
            ratio(rescan, again),
            at_least=100.0,
        ),
        Figure("total, wherefrom (index and 20 uncompressed rows)", "s", totals[0]),
        Figure("total, wherefrom (index and 20 searches)", "s", asked),
        Figure("total, kronfluence", "s", totals[1]),
        Figure("build, wherefrom", "s", taken("wherefrom", "build")),
        Figure("factors, kronfluence", "s", taken("kronfluence", "factors")),
        Figure("20 uncompressed rows, wherefrom", "s", taken("wherefrom", "exact")),
        Figure("20 uncompressed rows, kronfluence", "s", taken("kronfluence", "first")),
        Figure("second 20 queries, wherefrom", "s", again),
        Figure("second 20 queries, kronfluence", "s", rescan),
        Figure("peak memory, wherefrom", "MiB", memory[0]),
        Figure("peak memory, kronfluence", "MiB", memory[1]),
    )


def _mean_length(rows: Sequence[Mapping[str, Any]]) -> float:
    return sum(len(row["ids"]) for row in rows) / len(rows)


def _peaks(run: _Side) -> dict[str, int]:
    """Peak memory up to the end of each step, in MiB."""
    return {step: round(peak / 2**20) for step, peak in run["peak_bytes"].items()}


def _ranks(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.argsort(np.argsort(scores, kind="stable"), kind="stable")


def _run(arguments: Sequence[str]) -> None:
    finished = subprocess.run(arguments, capture_output=True, text=True)
    if finished.returncode != 0:
        last = (finished.stderr.strip() or "no message").splitlines()[-1]
        raise BenchmarkError(f"{' '.join(arguments[:3])} failed: {last}")


def _kronfluence_python(environment: Path) -> Path:
    """The Python of an environment that holds kronfluence; made if need be."""
    python = environment / "bin" / "python"
    if (environment / _MARKER).is_file():
        return python
    constraints = _HERE.parent / "constraints.txt"
    # In one call: on its own, kronfluence would bring another torch along with torchvision.
    wanted = [f"torch=={TORCH}", f"kronfluence=={VERSION}", "transformers"]
    try:
        venv.create(environment, with_pip=True, clear=True)
        pip = [str(python), "-m", "pip", "--quiet"]
        _run([*pip, "install", "--constraint", str(constraints), *wanted])
        # kronfluence asks for torchvision and never imports it; transformers does, and fails where
        # torch is a CPU build and torchvision is not.
        _run([*pip, "uninstall", "--yes", "torchvision"])
        _run([str(python), "-c", _PROBE])
    except (BenchmarkError, OSError, subprocess.CalledProcessError) as error:
        raise NotInstalledError(
            f"kronfluence {VERSION} cannot be installed in {environment}: {error}"
        ) from error
    (environment / _MARKER).touch()
    return python


_ENVIRONMENT = click.option(
    "--kronfluence-env",
    type=click.Path(path_type=Path, file_okay=False),
    help="Virtual environment of kronfluence; made if it is not there.",
)

if __name__ == "__main__":
    command(measure, _ENVIRONMENT)()
