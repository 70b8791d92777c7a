"""Experiments found, run in processes of their own, and their results kept. Loads no torch.

A module of this folder is an experiment if it has these two; other modules are parts of such::

    BUDGET_MINUTES = 10  # of one thread
    def run(work: Path, *, quick: bool) -> Findings: ...

Its stored result says of which recipe it is: a digest of the code of the module and of its parts,
comments, docstrings and layout left out. As long as that is the same, the result is kept.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.environment import child_variables, describe, load_average, now

if TYPE_CHECKING:
    from wherefrom.evaluation.evidence import Evidence

__all__ = [
    "PICTURES",
    "PICTURE_BYTES",
    "RESULTS",
    "SCHEMA",
    "Experiment",
    "ExperimentError",
    "Findings",
    "Outcome",
    "Runner",
    "experiments",
    "stored_result",
]

SCHEMA = "wherefrom.experiment/1"
PICTURE_BYTES = 150_000

_FOLDER = Path(__file__).resolve().parent
_ROOT = _FOLDER.parent.parent
RESULTS = _FOLDER / "results"
PICTURES = _ROOT / "docs" / "experiments"


class ExperimentError(Exception):
    """An experiment failed; the message is what it said."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What an experiment hands over.

    Attributes:
        evidence: In the order to be shown.
        pictures: Draws each at a path; names are ``NAME-*.png``, files of at most 150 kB.
    """

    evidence: tuple[Evidence, ...]
    pictures: Mapping[str, Callable[[Path], None]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Experiment:
    """An experiment as its source describes it.

    Attributes:
        name: Of its module.
        minutes: Of one thread, as promised.
        recipe: Digest of the code.
    """

    name: str
    minutes: float
    recipe: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a run.

    Attributes:
        result: As stored, or ``None``.
        skipped: What is missing, if that is why.
        failure: What an experiment said that failed.
    """

    result: dict[str, Any] | None = None
    skipped: str | None = None
    failure: str | None = None


def experiments(folder: Path = _FOLDER) -> dict[str, Experiment]:
    """All experiments of the folder, by name; nothing is imported."""
    found = {}
    for path in sorted(folder.glob("*.py")):
        minutes = _budget(ast.parse(path.read_text(encoding="utf-8")))
        if minutes is not None:
            found[path.stem] = Experiment(path.stem, minutes, _recipe(path))
    return found


def stored_result(name: str) -> dict[str, Any] | None:
    """The stored result of an experiment, if there is one."""
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        return None
    stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return stored


class Runner:
    """Runs experiments in processes of one thread; several threads may share one."""

    def __init__(self) -> None:
        self._processes: set[subprocess.Popen[bytes]] = set()

    def run(self, experiment: Experiment, work: Path, *, quick: bool) -> Outcome:
        """Run an experiment, and keep what it found unless it was quick.

        Args:
            experiment: Which.
            work: Folder of its own, where it keeps what it has finished; made if it is not there.
            quick: Small sizes: shows that it runs.
        """
        work.mkdir(parents=True, exist_ok=True)
        environment: dict[str, Any] = {**describe(), "threads": 1, "date": now()}
        environment["load_before"] = load_average()
        with tempfile.TemporaryDirectory() as name:
            drawn = Path(name) / "pictures"
            drawn.mkdir()
            report = Path(name) / "report.json"
            failure = self._process(experiment.name, work, report, drawn, quick=quick)
            if failure is not None:
                return Outcome(failure=failure)
            found = json.loads(report.read_text(encoding="utf-8"))
            if found["skipped"] is not None:
                return Outcome(skipped=found["skipped"])
            environment["load_after"] = load_average()
            result = {
                "schema": SCHEMA,
                "experiment": experiment.name,
                "recipe": experiment.recipe,
                "budget_minutes": experiment.minutes,
                **_seconds_spent(work),
                "evidence": found["evidence"],
                "pictures": sorted(path.name for path in drawn.iterdir()),
                "environment": environment,
            }
            if not quick:
                PICTURES.mkdir(parents=True, exist_ok=True)
                for path in drawn.iterdir():
                    shutil.copyfile(path, PICTURES / path.name)
                _store(RESULTS / f"{experiment.name}.json", result)
        return Outcome(result)

    def interrupt(self) -> None:
        """Press Ctrl-C in every process at work."""
        for process in tuple(self._processes):
            process.send_signal(signal.SIGINT)

    def _process(
        self, name: str, work: Path, report: Path, drawn: Path, *, quick: bool
    ) -> str | None:
        """Run the process and note how long it took; what it said if it failed."""
        command = [sys.executable, "-m", "benchmarks.experiments.once", name]
        command += ["--work", str(work), "--report", str(report), "--pictures", str(drawn)]
        command += ["--quick"] if quick else []
        log = work / "log.txt"
        started = time.perf_counter()
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command, cwd=_ROOT, env=child_variables(1), stdout=stream, stderr=subprocess.STDOUT
            )
            self._processes.add(process)
            try:
                status = process.wait()
            finally:
                self._processes.discard(process)
                _note_seconds(work, time.perf_counter() - started)
        if status == 0:
            return None
        said = log.read_text(encoding="utf-8", errors="replace").strip()
        return f"exit status {status}; its output, also in {log}:\n{said[-4000:]}"


def _note_seconds(work: Path, seconds: float) -> None:
    with (work / "seconds.txt").open("a", encoding="utf-8") as stream:
        stream.write(f"{seconds:.1f}\n")


def _seconds_spent(work: Path) -> dict[str, float]:
    """All that was spent in this folder: a result stands on what earlier runs finished, too."""
    noted = [float(line) for line in (work / "seconds.txt").read_text(encoding="utf-8").split()]
    return {"seconds": round(sum(noted), 1), "runs": len(noted)}


def _store(path: Path, result: Mapping[str, Any]) -> None:
    """Write a result so that there is the old one or the new one, and never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    partial = path.with_suffix(".json.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _budget(tree: ast.Module) -> float | None:
    """The number that a module assigns to ``BUDGET_MINUTES``."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == [
            "BUDGET_MINUTES"
        ]:
            return float(ast.literal_eval(node.value))
    return None


def _recipe(path: Path) -> str:
    """Digest of the code of a module and of those beside it that it imports."""
    sources: dict[str, str] = {}
    waiting = [path]
    while waiting:
        module = waiting.pop()
        if module.stem in sources or module.stem in ("__init__", "harness"):
            continue
        tree = ast.parse(module.read_text(encoding="utf-8"))
        waiting += [path.parent / f"{name}.py" for name in _parts(tree)]
        waiting = [part for part in waiting if part.is_file()]
        sources[module.stem] = ast.unparse(_without_docstrings(tree))
    text = json.dumps(sorted(sources.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def _parts(tree: ast.Module) -> Iterator[str]:
    """Names of modules of this folder that a module imports."""
    prefix = "benchmarks.experiments"
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == prefix:
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{prefix}."):
            yield str(node.module).removeprefix(f"{prefix}.")
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith(f"{prefix}."):
                    yield alias.name.removeprefix(f"{prefix}.")


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        first = node.body[0] if node.body else None
        if (
            isinstance(first, ast.Expr)
            and isinstance(first.value, ast.Constant)
            and isinstance(first.value.value, str)
        ):
            node.body[:1] = [] if len(node.body) > 1 else [ast.Pass()]
    return tree
