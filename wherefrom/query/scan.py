"""The scan: every document whose inner product with a query could be among the k largest.

The scan copy holds each stored vector as ``y = s c + e`` with integer levels c and ``|e| <= r``.
The query is split likewise, ``q = t (v + d)`` with integers v, a power of two t and remainders d
of at most 1/2 (all exact), so that ``<v, c>`` comes from exact integer products. By Cauchy-Schwarz

    |<q, y> - t s <v, c>|  =  |<q, e> + t <d, s c>|  <=  |q| r + t |d| (|y| + r).

What is rounded, in units of ``u = 2**-53`` times ``|q| (|y| + r)``, n the dimension:

* the estimate ``s <v, c>``: one product (and one division of s by the document's norm, where values
  are to be normalised), at most 2 (1 + 1/4);
* the inner product that it is to bound, if that is computed in float64: n products and n - 1 sums
  in any order and perhaps a division, at most n + 2;
* the sum or difference of estimate and error: 1 + 1/4, and 1 u of the error itself.

The error has ``2 (n + 16) u |q| (|y| + r)`` added to it and is multiplied by ``1 + 1e-12``, which
covers the rounding of the norms and of the error. So it bounds both the true inner product and the
computed one. (``t |v| <= |q| + t |d|``, and the 1/4 stands for ``t |d| / |q|``, which is at most
``sqrt(n) / 2**15``: enough for n up to 2**26. Bounds are kept as multiples of t, which is exact.)

A document is kept if its upper bound reaches the k-th largest lower bound and exceeds 0. That only
grows while rows are read, so a row is dropped at once when its upper bound falls below it, and what
is left in the end depends neither on the order of the rows, nor on chunks, threads or other
queries.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wherefrom.errors import QueryError
from wherefrom.query.kernels import LARGEST, CodeProducts
from wherefrom.query.selection import Candidates, Selection
from wherefrom.store import ScanChunk, ScanCopy

__all__ = ["Candidates", "Scan", "scan"]

_UNIT = 2.0**-53
_ROUNDING = 1 + 1e-12
_QUERIES = 64  # in one pass: more would want smaller chunks
_BYTES = 1 << 22  # of a chunk's codes
_BOUNDS = 1 << 16  # of a chunk: they should stay in a core's cache


class Scan(Protocol):
    """:func:`scan` of one index, wherever its codes lie."""

    def __call__(
        self,
        queries: NDArray[np.float32],
        k: int,
        directions: Sequence[int],
        *,
        ordinals: NDArray[np.int64] | None = None,
        normalised: bool = False,
        slack: float | None = None,
    ) -> list[list[Candidates]]:
        """As :func:`scan` does."""


def scan(
    copy: ScanCopy,
    queries: NDArray[np.float32],
    k: int,
    directions: Sequence[int],
    *,
    ordinals: NDArray[np.int64] | range | None = None,
    normalised: bool = False,
    slack: float | None = None,
    floors: NDArray[np.float64] | None = None,
) -> list[list[Candidates]]:
    """Find, for each query and direction, all documents that could be among the k best.

    A document's value is ``direction * <query, y>``, y its stored vector; the k best are those of
    the k largest positive values, ties included. As many threads as torch has are used.

    Args:
        copy: The scan copy of n documents.
        queries: float32 ``[query, dimension]``.
        k: Positive.
        directions: Of 1 and -1.
        ordinals: Which documents to search, a range of them or some; all by default.
        normalised: Whether to divide values by the norms of the documents' uncompressed vectors
            (``copy.whole``); where these are zero, so is the value.
        slack: If given, y is the document's vector before quantisation, not the stored one, and may
            lie off by this share of its norm.
        floors: ``[query, direction]``: leave out documents whose values are certain to lie below.

    Returns:
        ``[query][direction]``.

    Raises:
        QueryError: A query vector is not finite.
    """
    if not np.isfinite(queries).all():
        raise QueryError("the query's gradient holds NaN or infinity; check the completion")
    found: list[list[Candidates]] = []
    for start in range(0, len(queries), _QUERIES):
        some = slice(start, start + _QUERIES)
        split = _split(queries[some])
        selections = [
            Selection(split.unit, k, direction, None if floors is None else floors[some, place])
            for place, direction in enumerate(directions)
        ]
        bounding = _Bounding(copy, split, selections, normalised, slack)
        _for_each(copy.chunks(bounding.rows, ordinals), bounding)
        found += map(list, zip(*(each.candidates() for each in selections), strict=True))
    return found


@dataclass(frozen=True, slots=True)
class _Split:
    """Queries as integers: ``query = unit * (integers + remainder)``.

    Attributes:
        integers: int64 [query, dimension].
        unit: [query], powers of two.
        norm: [query], upper bounds of ``|query| / unit``.
        reach_error: [query], what the error has for each ``|y| + r``, likewise divided by the unit.
    """

    integers: NDArray[np.int64]
    unit: NDArray[np.float64]
    norm: Tensor
    reach_error: Tensor


def _split(queries: NDArray[np.float32]) -> _Split:
    wide = queries.astype(np.float64)
    largest = np.abs(wide).max(axis=1)
    unit = np.where(largest > 0, np.ldexp(1.0, np.frexp(largest / LARGEST)[1]), 1.0)
    wide /= unit[:, None]
    integers = np.rint(wide)
    norm = _norms(wide) * _ROUNDING
    rounding = 2 * (queries.shape[1] + 16) * _UNIT * norm
    reach_error = (_norms(wide - integers) + rounding) * _ROUNDING
    return _Split(
        integers.astype(np.int64), unit, torch.from_numpy(norm), torch.from_numpy(reach_error)
    )


def _norms(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Euclidean norms; numpy sums pairwise, so they are good to some 1e-14."""
    return np.asarray(np.sqrt(np.add.reduce(rows * rows, axis=1)))


class _Bounding:
    """Bounds the values of a chunk's rows and offers them to a selection for each direction."""

    def __init__(
        self,
        copy: ScanCopy,
        split: _Split,
        selections: list[Selection],
        normalised: bool,
        slack: float | None,
    ) -> None:
        self.rows = max(1, min(_BYTES // copy.width, _BOUNDS // len(split.unit)))
        self._products = CodeProducts(split.integers, copy.format, copy.width)
        self._split = split
        self._selections = selections
        self._normalised = normalised
        self._slack = slack

    def __call__(self, chunk: ScanChunk) -> None:
        left_out = chunk.residual
        if self._slack is not None:
            left_out = left_out + chunk.lost + self._slack * chunk.whole
        scale = self._column(chunk.scale, chunk)
        reach = self._column(chunk.norm + chunk.residual, chunk)
        estimate = self._products(chunk.codes).mul_(scale)
        error = reach * self._split.reach_error
        if left_out.any():
            error += self._column(left_out * _ROUNDING, chunk) * self._split.norm
        for selection in self._selections:
            selection.offer(chunk.ordinals, estimate, error)

    def _column(self, terms: NDArray[np.float64], chunk: ScanChunk) -> Tensor:
        """What estimate or error have of each row, [m, 1]; zero where the value is."""
        if self._normalised:
            nothing = np.zeros(len(terms))
            terms = np.divide(terms, chunk.whole, out=nothing, where=chunk.whole > 0)
        return torch.tensor(terms)[:, None]


def _for_each(chunks: Iterator[ScanChunk], work: Callable[[ScanChunk], None]) -> None:
    """Run ``work`` on all chunks, in as many threads as torch has.

    Threads with chunks of their own keep them in their caches, and do not wait for each other after
    every operation as the threads within torch's operations do.
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
        # The workers' number is theirs, but it is also what threads yet to come would start with.
        torch.set_num_threads(threads)
