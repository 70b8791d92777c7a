"""How long clients of ``wherefrom serve`` wait when many ask at once, and what the server weighs.

The server is a process of its own. Every client asks, waits for the answer and asks again; the
queue holds them all, so that a client waits for every other one's answer. Latencies are those of
clients, the server's rates and memory its own.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import httpx
import numpy as np
import torch

import wherefrom as wf
from benchmarks.environment import child_variables
from benchmarks.figures import BenchmarkError, Figure, Report, command, expect
from benchmarks.workload import demo_index
from wherefrom.demo.corpus import QUESTIONS, TRAINING_PASSAGES

__all__ = ["Load", "hits_of", "load", "measure", "metric", "serving"]

_SERVED = re.compile(r"Serving .* at (\S+) ")
_MEMORY = "process_resident_memory_bytes"
_THREADS = 1
_RERANKS = ("stored", "recompute")


@dataclass(frozen=True, slots=True)
class Load:
    """What clients met with.

    Attributes:
        seconds: Of every answer, from a client's question to the last byte.
        answers: Different hits-and-scores that were told: one, if all is well.
        statuses: How many responses had each status.
        elapsed: Seconds from the first question to the last answer.
    """

    seconds: tuple[float, ...]
    answers: frozenset[str]
    statuses: dict[int, int]
    elapsed: float

    @property
    def rate(self) -> float:
        """Answers per second."""
        return len(self.seconds) / self.elapsed

    def percentile(self, share: float) -> float:
        """Seconds that this share of the answers took at most, in per cent."""
        return float(np.percentile(self.seconds, share))


def load(url: str, asked: dict[str, Any], *, clients: int, seconds: float) -> Load:
    """Have ``clients`` ask one question over and over.

    Args:
        url: Of the server.
        asked: The body of ``POST /v1/query``.
        clients: How many.
        seconds: For how long; a question that was asked by then is waited for.
    """
    return asyncio.run(_load(url, asked, clients, seconds))


async def _load(url: str, asked: dict[str, Any], clients: int, seconds: float) -> Load:
    took: list[float] = []
    answers: set[str] = set()
    statuses: dict[int, int] = {}
    begun = time.perf_counter()
    end = begun + seconds
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(
        base_url=url, timeout=300.0, limits=limits, trust_env=False
    ) as http:

        async def ask() -> None:
            while time.perf_counter() < end:
                started = time.perf_counter()
                response = await http.post("/v1/query", json=asked)
                statuses[response.status_code] = statuses.get(response.status_code, 0) + 1
                if response.status_code == 200:
                    took.append(time.perf_counter() - started)
                    answers.add(json.dumps(hits_of(response.json())))

        await asyncio.gather(*(ask() for _ in range(clients)))
    return Load(tuple(took), frozenset(answers), statuses, time.perf_counter() - begun)


def measure(
    *,
    quick: bool,
    index: Path | None = None,
    clients: int = 32,
    seconds: float = 20.0,
    reranks: tuple[str, ...] = _RERANKS,
) -> Report:
    """Ask a server from many clients at once."""
    if quick:
        clients, seconds = min(clients, 4), min(seconds, 2.0)
    question = QUESTIONS[1]
    torch.set_num_threads(_THREADS)  # Sums of another number of threads differ in their last bits.
    figures: list[Figure] = []
    checks: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        if index is None:
            demo_index(Path(folder), 60 if quick else TRAINING_PASSAGES)
            index = Path(folder) / "demo.index"
        opened = wf.open(index)
        with serving(index, clients) as url:
            for rerank in reranks:
                asked = {
                    "prompt": question.prompt,
                    "completion": question.completion,
                    "rerank": rerank,
                }
                expected = opened.query(**asked).to_dict()
                alone = load(url, asked, clients=1, seconds=min(seconds, 3.0))
                found = load(url, asked, clients=clients, seconds=seconds)
                same = {json.dumps(hits_of(expected))}
                checks += [
                    expect(alone.answers == found.answers == same, f"{rerank}: {_SAME}"),
                    expect(set(found.statuses) == {200}, f"{rerank}: every request is answered"),
                ]
                figures += [
                    Figure(f"{rerank}: one client, median", "s", (alone.percentile(50),)),
                    Figure(f"{rerank}: {clients} clients, p50", "s", (found.percentile(50),)),
                    Figure(f"{rerank}: {clients} clients, p99", "s", (found.percentile(99),)),
                    Figure(f"{rerank}: answers per second", "1/s", (found.rate,)),
                ]
                memory = metric(httpx.get(f"{url}metrics", trust_env=False).text, _MEMORY) / 2**20
                figures.append(Figure(f"{rerank}: resident memory after", "MiB", (memory,)))
        setting = {"documents": len(opened), "clients": clients, "seconds": seconds}
    return Report(tuple(figures), tuple(checks), setting)


_SAME = "every answer holds the documents and scores of index.query, bit for bit"


@contextmanager
def serving(index: Path, queue: int) -> Iterator[str]:
    """A server process; its URL.

    Raises:
        BenchmarkError: It does not start.
    """
    arguments = ["serve", str(index), "--port", "0", "--queue", str(queue), "--quiet"]
    arguments += ["--time-limit", "300"]
    with subprocess.Popen(
        [sys.executable, "-m", "wherefrom", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env=child_variables(_THREADS),
    ) as process:
        try:
            line = process.stderr.readline() if process.stderr else ""
            found = _SERVED.match(line)
            if found is None:
                raise BenchmarkError(f"the server does not start: {line.strip()}")
            yield found[1]
        finally:
            process.terminate()


def metric(exposition: str, name: str) -> float:
    """A number that the server counts, from what ``/metrics`` says."""
    (line,) = (line for line in exposition.splitlines() if line.startswith(f"{name} "))
    return float(line.split()[1])


def hits_of(answer: dict[str, Any]) -> list[tuple[str, float]]:
    """Documents and scores of an answer, as it is told."""
    sides = (answer["proponents"], answer["opponents"])
    return [(hit["doc_id"], hit["score"]) for side in sides for hit in side]


if __name__ == "__main__":
    command(
        measure,
        click.option(
            "--index",
            type=click.Path(path_type=Path),
            help="An index over text; by default one of the demo's size is made.",
        ),
        click.option("--clients", type=click.IntRange(min=1), default=32, show_default=True),
        click.option("--seconds", type=float, default=20.0, show_default=True),
        click.option(
            "--rerank",
            "reranks",
            type=click.Choice(_RERANKS),
            multiple=True,
            default=_RERANKS,
            show_default=True,
            help="What to ask for; may be repeated.",
        ),
    )()
