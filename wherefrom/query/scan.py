"""The scan: every document whose inner product with a query could be among the k largest.

The scan copy holds each stored vector as ``y = s c + e`` with integer levels c and ``|e| <= r``.
The query is split likewise, ``q = t (v + d)`` with integers v, a power of two t and ``|d_i| <= 1/2``
(both exact), so that ``<v, c>`` comes from exact integer products. By Cauchy-Schwarz

    |<q, y> - t s <v, c>|  =  |<q, e> + t <d, s c>|  <=  |q| r + t |d| (|y| + r).

What is rounded, in units of ``u = 2**-53`` times ``|q| (|y| + r)``, n the dimension:

* the estimate ``(t <v, c>) s``: exact but for one product (two, where s is first divided by the
  document's norm), at most 2 (1 + 1/4);
* the inner product that it is to bound, if that is computed in float64: n products and n - 1 sums
  in any order and perhaps a division, at most n + 2;
* sums and differences of estimate and error: 1 + 1/4, and 1 u of the error itself.

The error has ``2 (n + 16) u |q| (|y| + r)`` added to it and is then multiplied by ``1 + 1e-12``,
which also covers the norms' own rounding and the error's. So it bounds both the true inner product
and the computed one. (``t |v| <= |q| + t |d|``, and the 1/4 stands for ``t |d| / |q|``, which is
below ``sqrt(n) / 2**15``: enough for n up to 2**26.)

A document is kept if its upper bound reaches the k-th largest lower bound (and exceeds 0). As that
only grows while rows are read, nothing is kept of a row once its bound is passed, and what is kept
does not depend on the order of the rows, their chunks or the number of threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from wherefrom.errors import QueryError
from wherefrom.query.kernels import LARGEST, CodeProducts
from wherefrom.query.selection import Candidates, Selection
from wherefrom.store import ScanChunk, ScanCopy

__all__ = ["Candidates", "scan"]

_UNIT = 2.0**-53
_ROUNDING = 1 + 1e-12
_STREAMED_BYTES = 1 << 22
_CACHED_BYTES = 1 << 19  # of a chunk that is read several times: it should stay in a core's cache
_CACHED_BOUNDS = 1 << 16  # likewise of its products with all queries


def scan(
    copy: ScanCopy,
    queries: NDArray[np.float32],
    k: int,
    directions: Sequence[int],
    *,
    ordinals: NDArray[np.int64] | None = None,
    normalised: bool = False,
    slack: float | None = None,
) -> list[list[Candidates]]:
    """Find, for each query and direction, all documents that could be among the k best.

    A document's value is ``direction * <query, y>``, y its stored vector; the k best are those of
    the k largest positive values, ties included. As many threads as torch has are used.

    Args:
        copy: The scan copy of n documents.
        queries: float32 ``[query, dimension]``.
        k: Positive.
        directions: Of 1 and -1.
        ordinals: Which documents to search; all by default.
        normalised: Whether to divide values by the norms of the documents' uncompressed vectors
            (``copy.whole``); where these are zero, so is the value.
        slack: Bound the inner product with the vector before quantisation instead, and allow that
            one to lie off by this share of its norm (``copy.whole``).

    Returns:
        ``[query][direction]``.

    Raises:
        QueryError: A query vector is not finite.
    """
    if not np.isfinite(queries).all():
        raise QueryError("the query's gradient holds NaN or infinity; check the completion")
    found: list[list[Candidates]] = []
    for start in range(0, len(queries), _QUERIES):
        split = _split(queries[start : start + _QUERIES])
        selections = [Selection(split.unit, k, direction) for direction in directions]
        products = CodeProducts(split.integers, copy.format, copy.codes.shape[1])

        def bound(chunk: ScanChunk) -> None:
            scale, reach, extra = _row_terms(chunk, normalised=normalised, slack=slack)
            estimate = products(chunk.codes).mul_(scale)
            error = reach * split.reach_error
            if extra.any():
                error += extra * split.norm
            for selection in selections:
                selection.offer(chunk.ordinals, estimate, error)

        _for_each(copy.chunks(_rows_per_chunk(copy, len(split.unit)), ordinals), bound)
        found += map(list, zip(*(each.candidates() for each in selections), strict=True))
    return found


@dataclass(frozen=True, slots=True)
class _Split:
    """Queries as integers: ``query = unit * (integers + remainder)``.

    Attributes:
        integers: [query, dimension].
        unit: [query], powers of two.
        norm: [query], upper bounds of ``|query|``.
        reach_error: [query], the part of the error that is proportional to ``|y| + r``.
    """

    integers: NDArray[np.int64]
    unit: NDArray[np.float64]
    norm: NDArray[np.float64]
    reach_error: NDArray[np.float64]


def _split(queries: NDArray[np.float32]) -> _Split:
    wide = queries.astype(np.float64)
    largest = np.abs(wide).max(axis=1)
    unit = np.where(largest > 0, np.ldexp(1.0, np.frexp(largest / LARGEST)[1]), 1.0)
    wide /= unit[:, None]
    integers = np.rint(wide)
    norm = unit * _norms(wide) * _ROUNDING
    remainder = unit * _norms(wide - integers)
    rounding = 2 * (queries.shape[1] + 16) * _UNIT
    return _Split(integers.astype(np.int64), unit, norm, (remainder + rounding * norm) * _ROUNDING)


def _norms(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Euclidean norms; numpy sums pairwise, so they are good to some 1e-14."""
    return np.asarray(np.sqrt(np.add.reduce(rows * rows, axis=1)))


def _row_terms(
    chunk: ScanChunk, *, normalised: bool, slack: float | None
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """What estimate and error have of each row [m]: the scale, ``|y| + r``, and ``r``."""
    extra = chunk.residual
    if slack is not None:
        extra = extra + chunk.lost + slack * chunk.whole
    terms = chunk.scale, chunk.norm + chunk.residual, extra * _ROUNDING
    if not normalised:
        return terms
    scale, reach, extra = (
        np.divide(term, chunk.whole, out=np.zeros(len(term)), where=chunk.whole > 0)
        for term in terms
    )
    return scale, reach, extra


def _for_each(chunks: Iterator[ScanChunk], work: Callable[[ScanChunk], None]) -> None:
    """Run ``work`` on all chunks, in as many threads as torch has.

    Threads with chunks of their own keep them in their caches and never wait for each other, as
    the threads within torch's operations would after each.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        for chunk in chunks:
            work(chunk)
        return
    lock = threading.Lock()

    def worker() -> None:
        torch.set_num_threads(1)
        while True:
            with lock:
                chunk = next(chunks, None)
            if chunk is None:
                return
            work(chunk)

    try:
        with ThreadPoolExecutor(threads, "scan") as pool:
            for done in [pool.submit(worker) for _ in range(threads)]:
                done.result()
    finally:
        # The workers' number is theirs, but also what threads yet to come would start with.
        torch.set_num_threads(threads)
