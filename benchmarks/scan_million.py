"""Exact top 100 of 1,000,000 rows of 1 KB, of 1, 2, 4 and 8 bits an entry.

The time of a search, scoring of the candidates included, is set against the time that it takes to
read the codes from memory: torch's sum of them as 64-bit integers, with as many threads, taken anew
before each search. The rows' norms are log-normal; queries are heavy-tailed. Memory is the peak of
the whole process, libraries and mapped files included.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, get_args

from benchmarks.figures import BenchmarkError, Figure, Report, command
from benchmarks.scan_million_once import BYTES, QUERIES, write
from wherefrom.store import Bits, CodeFormat

__all__ = ["measure"]

_PACKED: tuple[Bits, ...] = tuple(bits for bits in get_args(Bits) if bits <= 8)


def measure(*, quick: bool) -> Report:
    """Time searches of each kind of code."""
    rows, rounds = (20_000, 2) if quick else (1_000_000, 12)
    figures: list[Figure] = []
    candidates: dict[str, list[int]] = {}
    threads = 0
    for bits in reversed(_PACKED):
        found = _search(CodeFormat(bits, BYTES * 8 // bits), rows, rounds)
        figures += _figures(bits, found)
        candidates[f"{bits} bits"] = found["candidates"]
        threads = found["threads"]
    return Report(
        tuple(figures),
        ("answers to two queries, of both signs, are those of brute force, in order",),
        {
            "rows": rows,
            "bytes_per_row": BYTES,
            "rounds": rounds,
            "threads": threads,
            "candidates": candidates,
        },
    )


def _search(code: CodeFormat, rows: int, rounds: int) -> dict[str, Any]:
    """What a process that searches random codes reports."""
    with tempfile.TemporaryDirectory() as folder:
        record = write(Path(folder), rows, code)
        finished = subprocess.run(
            [
                *(sys.executable, "-m", "benchmarks.scan_million_once", "--directory", folder),
                *("--record", record.model_dump_json(), "--rounds", str(rounds)),
            ],
            capture_output=True,
            text=True,
        )
    if finished.returncode != 0:
        raise BenchmarkError(f"the search failed: {finished.stderr.strip().splitlines()[-1]}")
    return dict(json.loads(finished.stdout.splitlines()[-1]))


def _figures(bits: int, found: dict[str, Any]) -> list[Figure]:
    taken: dict[str, list[float]] = found["seconds"]
    ratios = tuple(one / read for one, read in zip(taken["one"], taken["read"], strict=True))
    alone = min(taken["one"])
    batches = tuple(batch / alone for batch in taken["batch"])
    kind = f"{bits}-bit codes"
    return [
        Figure(f"{kind}: exact top 100 / reading the codes", "×", ratios, at_most=3),
        Figure(f"{kind}: {QUERIES} queries / one", "×", batches, at_most=6),
        Figure(f"{kind}: peak memory", "MiB", (found["peak_bytes"] / 2**20,), at_most=1536),
        *(
            Figure(f"{kind}: {what}", "ms", tuple(1e3 * seconds for seconds in taken[name]))
            for name, what in (
                ("read", "reading"),
                ("scan", "scan"),
                ("one", "exact top 100"),
                ("batch", f"the same of {QUERIES} queries"),
            )
        ),
    ]


if __name__ == "__main__":
    command(measure)()
