"""How long a person waits: ``wherefrom --help``, and ``wherefrom query`` on a demo-like index.

Every run is a fresh process; files may be in the operating system's cache. The index is over
passages of the demo's corpus under a model of the demo's dimensions, untrained.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.figures import BenchmarkError, Figure, Report, command, expect
from benchmarks.workload import demo_index
from wherefrom.demo.corpus import QUESTIONS, TRAINING_PASSAGES

__all__ = ["measure"]


def measure(*, quick: bool) -> Report:
    """Time whole processes."""
    documents = 60 if quick else TRAINING_PASSAGES
    rounds = 2 if quick else 7
    question = QUESTIONS[1]
    with tempfile.TemporaryDirectory() as folder:
        index = demo_index(Path(folder), documents)
        expected = index.query(prompt=question.prompt, completion=question.completion, k=10)
        ask = ["query", str(index.path), "--prompt", question.prompt, "--json"]
        ask += ["--completion", question.completion, "-k", "10"]
        _run("--help")  # writes the bytecode, which an installed package has already
        helps, asked = [], []
        for _ in range(rounds):
            helps.append(_run("--help"))
            asked.append(_run(*ask))
    answers = [json.loads(run.output) for run in asked]
    same = all(_hits(answer) == _hits(expected.to_dict()) for answer in answers)
    shown = all("Usage:" in run.output for run in helps)
    return Report(
        (
            Figure("wherefrom --help", "s", tuple(run.wall for run in helps), at_most=1.0),
            Figure("cold wherefrom query", "s", tuple(run.wall for run in asked), at_most=5.0),
            Figure("wherefrom --help (CPU time)", "s", tuple(run.cpu for run in helps)),
            Figure("cold wherefrom query (CPU time)", "s", tuple(run.cpu for run in asked)),
        ),
        (
            expect(shown, "every --help shows the help page"),
            expect(same, "every answer holds the documents and scores of index.query, bit for bit"),
        ),
        {"documents": len(index), "rounds": rounds},
    )


class _Run:
    """A finished command.

    Args:
        arguments: Of ``wherefrom``.
    """

    def __init__(self, arguments: tuple[str, ...]) -> None:
        before, started = os.times(), time.perf_counter()
        finished = subprocess.run(
            [sys.executable, "-m", "wherefrom", *arguments], capture_output=True, text=True
        )
        self.wall = time.perf_counter() - started
        after = os.times()
        self.cpu = (after.children_user + after.children_system) - (
            before.children_user + before.children_system
        )
        if finished.returncode != 0:
            last = (finished.stderr.strip() or "no message").splitlines()[-1]
            raise BenchmarkError(f"wherefrom {arguments[0]} failed: {last}")
        self.output = finished.stdout


def _run(*arguments: str) -> _Run:
    return _Run(arguments)


def _hits(answer: dict[str, Any]) -> list[tuple[str, float]]:
    sides = (answer["proponents"], answer["opponents"])
    return [(hit["doc_id"], hit["score"]) for side in sides for hit in side]


if __name__ == "__main__":
    command(measure)()
