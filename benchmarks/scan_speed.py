"""The scan over 50,000 stored documents of 8 KB, against the machine's memory read bandwidth.

The stored vectors are 4096 float16 numbers; the scan reads their int8 copy. Bandwidth is the best
of torch's sum and matrix-vector product over an array larger than any cache, with as many threads.
It is read anew before every timed scan, which also drives the scan copy out of the processor's
caches.

The vectors are synthetic: heavy-tailed entries, log-normal norms, and clusters, from which the
queries are drawn too, so that a query has documents that stand out.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.figures import Figure, Report, command, expect
from wherefrom.query.scan import Candidates, scan
from wherefrom.query.search import CertifiedSearch, Ranking
from wherefrom.records import Document
from wherefrom.store import SCAN_DIRECTORY, DocumentTable, ScanCopy

__all__ = ["measure"]

DIMENSION = 4096
_SHARD = 1000
_CLUSTERS = 64
_DEGREES_OF_FREEDOM = 4
_LARGER_THAN_ANY_CACHE = 1 << 30
_K = 10
_DIRECTIONS = (1, -1)


@dataclass(frozen=True, slots=True)
class Collection:
    """A store with its scan copy, as an index holds them."""

    table: DocumentTable
    copy: ScanCopy
    queries: NDArray[np.float32]


class Bandwidth:
    """Reads an array of ``size`` bytes in the fastest known ways.

    Args:
        size: Should exceed the processor's caches by far.
    """

    def __init__(self, size: int) -> None:
        """Allocate it, and touch all of it."""
        self._rows = torch.ones(size // (4 * DIMENSION), DIMENSION)
        self._vector = torch.ones(DIMENSION)
        self._bytes = self._rows.numel() * 4

    def measure(self) -> float:
        """Bytes per second, the better of two ways."""
        ways: tuple[Callable[[], object], ...] = (
            self._rows.sum,
            lambda: torch.mv(self._rows, self._vector),
        )
        return max(self._bytes / seconds(way) for way in ways)


def measure(*, quick: bool) -> Report:
    """Time scans, and check the answers against brute force."""
    count = 2_000 if quick else 50_000
    rounds = 3 if quick else 15
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        collection = _store(Path(folder), count)
        writing = time.perf_counter() - started
        first = seconds(partial(_scan, collection.copy, collection.queries[0]))
        bandwidth = Bandwidth(_LARGER_THAN_ANY_CACHE // (16 if quick else 1))
        bandwidth.measure()
        search = CertifiedSearch(collection.table, partial(scan, collection.copy))
        speeds, scans, searches, candidates = [], [], [], []
        for i in range(rounds):
            query = collection.queries[i % len(collection.queries)]
            speeds.append(bandwidth.measure())
            scans.append(seconds(partial(_scan, collection.copy, query)))
            begun = time.perf_counter()
            (found,) = search.search(query[None], _K)
            searches.append(time.perf_counter() - begun)
            candidates.append(len(found.scored))
        checks = _check(collection)
    best = max(speeds)
    (segment,) = collection.copy.segments
    columns = (segment.codes, segment.scale, segment.residual, segment.norm)
    read = sum(column.nbytes for column in columns)
    stored = 2 * DIMENSION * count
    return Report(
        (
            Figure(
                "scan: bytes read per second / memory bandwidth",
                "×",
                tuple(read / s / best for s in scans),
                at_least=0.5,
            ),
            Figure(
                "scan: stored bytes per second / memory bandwidth",
                "×",
                tuple(stored / s / best for s in scans),
                at_least=0.5,
            ),
            Figure("memory read bandwidth", "GB/s", tuple(s / 1e9 for s in speeds)),
            Figure("scan", "ms", tuple(1e3 * s for s in scans)),
            Figure("scan, first after opening", "ms", (1e3 * first,)),
            Figure(f"certified search, top {_K} of both signs", "ms", _milliseconds(searches)),
        ),
        tuple(checks),
        {
            "documents": count,
            "stored_bytes_per_document": 2 * DIMENSION,
            "scanned_bytes": read,
            "candidates": candidates,
            "writing_seconds": writing,
            "threads": torch.get_num_threads(),
            "rounds": rounds,
        },
    )


def seconds(run: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _milliseconds(times: list[float]) -> tuple[float, ...]:
    return tuple(1e3 * taken for taken in times)


def _vectors(count: int, centres: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    random = np.random.default_rng(seed)
    entries = random.standard_t(_DEGREES_OF_FREEDOM, (count, DIMENSION)).astype(np.float32)
    entries += centres[random.integers(len(centres), size=count)]
    norms = random.lognormal(0.0, 1.0, count).astype(np.float32)
    return entries * norms[:, None]


def _store(folder: Path, count: int) -> Collection:
    random = np.random.default_rng(0)
    centres = random.standard_t(_DEGREES_OF_FREEDOM, (_CLUSTERS, DIMENSION)).astype(np.float32)
    centres *= 0.5
    table = DocumentTable.create(folder, metadata={}, dimension=DIMENSION, bits=16)
    for start in range(0, count, _SHARD):
        vectors = _vectors(min(_SHARD, count - start), centres, 1 + start)
        table.append(
            [Document(f"{start + i:06d}") for i in range(len(vectors))],
            vectors,
            norms=np.linalg.norm(vectors.astype(np.float64), axis=1),
            tokens=np.ones(len(vectors), np.int64),
        )
    table.seal()
    record = ScanCopy.build(table, folder / SCAN_DIRECTORY)
    copy = ScanCopy.open(folder / SCAN_DIRECTORY, record, table.live, verify=False)
    return Collection(table, copy, _vectors(4, centres, -1 % (1 << 31)))


def _scan(copy: ScanCopy, query: NDArray[np.float32]) -> list[Candidates]:
    (found,) = scan(copy, query[None], _K, _DIRECTIONS)
    return found


def _check(collection: Collection) -> list[str]:
    """Against products of all stored rows in float64."""
    queries = collection.queries.astype(np.float64)
    parts = [rows.vectors @ queries.T for rows in collection.table.batches(_SHARD)]
    products = np.concatenate(parts).T
    certain = all(
        _bounded(found, direction * exact)
        for query, exact in zip(collection.queries, products, strict=True)
        for direction, found in zip(_DIRECTIONS, _scan(collection.copy, query), strict=True)
    )
    search = CertifiedSearch(collection.table, partial(scan, collection.copy))
    answers = search.search(collection.queries, _K)
    same = all(
        _same_end(ranking, ranking.direction * exact)
        for found, exact in zip(answers, products, strict=True)
        for ranking in found.rankings
    )
    return [
        expect(certain, "every inner product in float64 lies within the scan's bounds"),
        expect(same, f"the search finds brute force's top {_K} of both signs, in order"),
    ]


def _bounded(found: Candidates, exact: NDArray[np.float64]) -> bool:
    within = np.abs(found.estimate - exact[found.ordinals]) <= found.error
    return bool(within.all()) and bool(np.delete(exact, found.ordinals).max() <= found.rest)


def _same_end(ranking: Ranking, exact: NDArray[np.float64]) -> bool:
    best = np.argsort(-exact, kind="stable")[:_K]
    found = ranking.best()
    products = [ranking.value(ranked) for ranked in found]
    same = [ranked.ordinal for ranked in found] == best.tolist()
    return same and np.allclose(products, exact[best], rtol=1e-9)


if __name__ == "__main__":
    command(measure)()
