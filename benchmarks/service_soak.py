"""Minutes of load on ``wherefrom serve``: waiting times, refusals, and memory over time.

Clients ask different questions, some answered from the stored vectors and some by gradients run
again, one after the other without a pause. The queue holds half of the clients: the others are told
429 and when to come back, which they do. Nothing else may go wrong, every answer must be the one
that ``index.query`` gives, and memory must not grow.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import httpx
import numpy as np
import torch
from numpy.typing import NDArray

import wherefrom as wf
from benchmarks.figures import Figure, Report, command, expect
from benchmarks.service import hits_of, metric, serving
from benchmarks.workload import demo_index
from wherefrom.demo.corpus import QUESTIONS

__all__ = ["Soak", "measure", "soak"]

_MEMORY = "process_resident_memory_bytes"
_DOCUMENTS = 200
_CLIENTS = 32
_SETTLED = 0.2
"""Share of the time after which memory is looked at: caches fill and threads start before."""

_MOST_GROWTH = 2.0
"""MiB a minute that are noise."""


@dataclass(frozen=True, slots=True)
class Soak:
    """What clients met with.

    Attributes:
        seconds: Of every answer, by the name of its question.
        answers: Different hits and scores that were told, by the name of the question.
        statuses: How many responses had each status.
        other: What was neither an answer nor 429, the first few.
        memory: ``[sample, 2]``: seconds since the beginning, and bytes.
        elapsed: Seconds in all.
    """

    seconds: Mapping[str, Sequence[float]]
    answers: Mapping[str, frozenset[str]]
    statuses: Mapping[int, int]
    other: tuple[str, ...]
    memory: NDArray[np.float64]
    elapsed: float

    @property
    def growth(self) -> float:
        """Bytes a minute: slope of a line through memory, once it has settled."""
        times, sizes = self.memory[self.memory[:, 0] >= _SETTLED * self.elapsed].T
        return float(np.polyfit(times, sizes, 1)[0] * 60.0)


def soak(
    url: str, questions: Mapping[str, Mapping[str, Any]], *, clients: int, seconds: float
) -> Soak:
    """Have ``clients`` ask for ``seconds``.

    Args:
        url: Of the server.
        questions: Bodies of ``POST /v1/query``; each client goes round them.
        clients: How many.
        seconds: For how long; what was asked by then is waited for.
    """
    return asyncio.run(_soak(url, questions, clients, seconds))


async def _soak(
    url: str, questions: Mapping[str, Mapping[str, Any]], clients: int, seconds: float
) -> Soak:
    took: dict[str, list[float]] = {name: [] for name in questions}
    answers: dict[str, set[str]] = {name: set() for name in questions}
    statuses: Counter[int] = Counter()
    other: list[str] = []
    memory: list[tuple[float, float]] = []
    begun = time.perf_counter()
    end = begun + seconds
    limits = httpx.Limits(max_connections=clients + 1)
    async with httpx.AsyncClient(
        base_url=url, timeout=300.0, limits=limits, trust_env=False, verify=False
    ) as http:

        async def ask(number: int) -> None:
            for name in itertools.islice(itertools.cycle(questions), number, None):
                if time.perf_counter() >= end:
                    return
                started = time.perf_counter()
                response = await http.post("/v1/query", json=dict(questions[name]))
                statuses[response.status_code] += 1
                if response.status_code == 200:
                    took[name].append(time.perf_counter() - started)
                    answers[name].add(json.dumps(hits_of(response.json())))
                elif response.status_code == 429:
                    wait = float(response.headers["Retry-After"])
                    await asyncio.sleep(min(wait, max(0.0, end - time.perf_counter())))
                elif len(other) < 5:
                    other.append(f"{response.status_code} {response.text[:200]}")

        async def watch() -> None:
            while (now := time.perf_counter()) < end:
                response = await http.get("/metrics")
                memory.append((now - begun, metric(response.text, _MEMORY)))
                await asyncio.sleep(max(0.1, seconds / 300))

        await asyncio.gather(watch(), *(ask(number) for number in range(clients)))
    told = {name: frozenset(found) for name, found in answers.items()}
    elapsed = time.perf_counter() - begun
    return Soak(took, told, statuses, tuple(other), np.array(memory), elapsed)


def measure(
    *, quick: bool, index: Path | None = None, clients: int = _CLIENTS, seconds: float = 300.0
) -> Report:
    """Ask a server from many clients for minutes."""
    if quick:
        clients, seconds = min(clients, 4), min(seconds, 4.0)
    torch.set_num_threads(1)  # Sums of another number of threads differ in their last bits.
    with tempfile.TemporaryDirectory() as folder:
        if index is None:
            demo_index(Path(folder), 40 if quick else _DOCUMENTS)
            index = Path(folder) / "demo.index"
        opened = wf.open(index)
        asked = {
            f"{rerank} {number}": {
                "prompt": question.prompt,
                "completion": question.completion,
                "rerank": rerank,
            }
            for number, question in enumerate(QUESTIONS[:3])
            for rerank in ("stored", "recompute")
        }
        expected = {
            name: frozenset([json.dumps(hits_of(opened.query(**body).to_dict()))])
            for name, body in asked.items()
        }
        with serving(index, clients // 2) as url:
            found = soak(url, asked, clients=clients, seconds=seconds)
        documents = len(opened)
    checks = (
        expect(
            set(found.statuses) <= {200, 429},
            "every response is an answer or the documented 429" + "".join(found.other),
        ),
        expect(
            all(found.answers[name] <= expected[name] for name in asked),
            "every answer holds the documents and scores of index.query, bit for bit",
        ),
        expect(
            quick or found.growth < _MOST_GROWTH * 2**20,
            f"memory grows by less than {_MOST_GROWTH:g} MiB a minute",
        ),
    )
    figures = []
    for rerank in ("stored", "recompute"):
        times = [t for name, ts in found.seconds.items() if name.startswith(rerank) for t in ts]
        for share in (50, 99):
            value = float(np.percentile(times, share))
            figures.append(Figure(f"{rerank}: p{share}", "s", (value,)))
    answered, refused = found.statuses[200], found.statuses.get(429, 0)
    memory = found.memory[:, 1] / 2**20
    figures += [
        Figure("answers", "", (float(answered),)),
        Figure("answers per second", "1/s", (answered / found.elapsed,)),
        Figure("told 429", "", (float(refused),)),
        Figure("resident memory, settled", "MiB", (float(memory[int(_SETTLED * len(memory))]),)),
        Figure("resident memory, at the end", "MiB", (float(memory[-1]),)),
        Figure("growth of memory", "MiB/min", (found.growth / 2**20,)),
    ]
    setting = {"documents": documents, "clients": clients, "seconds": seconds}
    return Report(tuple(figures), checks, setting)


if __name__ == "__main__":
    command(
        measure,
        click.option(
            "--index",
            type=click.Path(path_type=Path),
            help="An index over text; by default one of 200 passages is made.",
        ),
        click.option("--clients", type=click.IntRange(min=2), default=_CLIENTS, show_default=True),
        click.option("--seconds", type=float, default=300.0, show_default=True),
    )()
