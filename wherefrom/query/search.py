"""Certified search: the true top k of the stored vectors, with scores in float64.

The scan bounds every document's inner product. The documents with the best estimates are scored in
full first; then every other document whose upper bound reaches the k-th best score so far. So the
true top k is among those scored, ties included. Scores are computed from the stored rows, row by
row in one fixed order, so they do not depend on what else was asked, on chunking, threads or
backend.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wherefrom.query.scan import Bounds, scan
from wherefrom.records import Sign
from wherefrom.store import DocumentTable, ScanCopy

__all__ = ["Found", "inner_products", "search"]

_ROWS = 512


@dataclass(frozen=True, slots=True)
class Found:
    """Result of a search, in units of inner products (not divided by N).

    Attributes:
        proponents: ``(ordinal, inner product)`` of the k largest positive ones, best first, ties
            by doc_id.
        opponents: Likewise of the k most negative ones.
        documents: How many documents were searched.
        candidates: How many had their inner product computed in full.
        next_bound: Upper bound, in the directions asked for, of all others; ``None`` without any.
    """

    proponents: list[tuple[int, float]]
    opponents: list[tuple[int, float]]
    documents: int
    candidates: int
    next_bound: float | None


def inner_products(
    vectors: NDArray[np.float64], queries: NDArray[np.float32]
) -> NDArray[np.float64]:
    """``[query, row]`` float64 inner products, each a function of its two vectors alone.

    Products of float32 numbers are exact in float64; numpy's pairwise sum of a contiguous row has
    one order whatever stands around it, which BLAS does not promise.
    """
    out = np.empty((len(queries), len(vectors)))
    for i, query in enumerate(queries.astype(np.float64)):
        for j, vector in enumerate(vectors):
            out[i, j] = np.add.reduce(vector * query)
    return out


class _Direction:
    """The best k of one end of the ranking, as rows are scored; larger is better."""

    def __init__(self, sign: float, k: int) -> None:
        self.sign = sign
        self._k = k
        self._best: list[tuple[float, str, int]] = []

    @property
    def threshold(self) -> float:
        """What a further document has to reach: the k-th best so far, or more than nothing."""
        full = len(self._best) == self._k
        return self._best[-1][0] if full else float(np.nextafter(0.0, 1.0))

    def add(
        self, ordinals: NDArray[np.int64], doc_ids: list[str], products: NDArray[np.float64]
    ) -> None:
        """Take in scored documents."""
        signed = self.sign * products
        for i in np.flatnonzero(signed >= self.threshold):
            self._best.append((float(signed[i]), doc_ids[i], int(ordinals[i])))
        self._best.sort(key=lambda entry: (-entry[0], entry[1]))
        del self._best[self._k :]

    def found(self) -> list[tuple[int, float]]:
        """The best: ordinals and inner products."""
        return [(ordinal, self.sign * value) for value, _, ordinal in self._best]


def search(
    table: DocumentTable,
    copy: ScanCopy,
    query: NDArray[np.float32],
    k: int,
    *,
    sign: Sign = "both",
    ordinals: NDArray[np.int64] | None = None,
) -> Found:
    """The top k documents by inner product, of each sign asked for; ties by doc_id.

    Args:
        table: Stored rows.
        copy: Their scan copy.
        query: float32 ``[dimension]``.
        k: At most how many of each sign, positive.
        sign: Which ends of the ranking.
        ordinals: Documents to search; all by default.

    Raises:
        QueryError: The query vector is not finite.
        IntegrityError: A candidate's row differs from its digest.
    """
    bounds = scan(copy, query, ordinals)
    proponents, opponents = _Direction(1.0, k), _Direction(-1.0, k)
    asked = {
        "both": [proponents, opponents],
        "proponents": [proponents],
        "opponents": [opponents],
    }[sign]
    done = np.zeros(len(bounds.ordinals), bool)
    for wanted in _rounds(bounds, asked, done, 2 * k):
        for start in range(0, len(wanted), _ROWS):
            chosen = bounds.ordinals[wanted[start : start + _ROWS]]
            rows = table.rows(chosen)
            products = inner_products(rows.codes, query[None])[0]
            for direction in asked:
                direction.add(chosen, rows.doc_ids, products)
        done[wanted] = True
    rest = ~done
    limits = [float(_upper(bounds, d)[rest].max()) for d in asked] if rest.any() else []
    return Found(
        proponents.found(),
        opponents.found(),
        len(bounds.ordinals),
        int(done.sum()),
        max(0.0, *limits) if limits else None,
    )


def _upper(bounds: Bounds, direction: _Direction) -> NDArray[np.float64]:
    """Upper bounds in a direction."""
    return direction.sign * bounds.estimate + bounds.error


def _rounds(
    bounds: Bounds, asked: list[_Direction], done: NDArray[np.bool_], first: int
) -> Iterator[NDArray[np.int64]]:
    """Which documents to score: the best estimates first, then all that could still enter."""
    best = np.zeros(len(done), bool)
    for direction in asked:
        estimate = direction.sign * bounds.estimate
        if first < len(estimate):
            best[np.argpartition(-estimate, first)[:first]] = True
        else:
            best[:] = True
    yield np.flatnonzero(best)
    left = np.zeros(len(done), bool)
    for direction in asked:
        left |= _upper(bounds, direction) >= direction.threshold
    yield np.flatnonzero(left & ~done)
