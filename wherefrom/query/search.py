"""Certified search: the true top k of the stored vectors, with scores in float64.

The scan bounds every document's inner product; documents whose upper bound reaches the k-th best
lower bound are *candidates*, and the true top k is among them, ties included. Their scores are then
computed from the stored rows, one row at a time in one fixed order, so they do not depend on what
else was asked, on chunking, threads or backend.
"""

from __future__ import annotations

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
        proponents: ``(ordinal, inner product)`` of the k largest positive ones, best first.
        opponents: Likewise of the k smallest negative ones, most negative first.
        documents: How many documents were searched.
        candidates: How many had their inner product computed in full.
        next_bound: Upper bound of the absolute value for all others; ``None`` without others.
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
    want_positive, want_negative = sign != "opponents", sign != "proponents"
    chosen = np.zeros(len(bounds.ordinals), bool)
    if want_positive:
        chosen |= _reaching(bounds.estimate, bounds.error, k)
    if want_negative:
        chosen |= _reaching(-bounds.estimate, bounds.error, k)
    candidates = bounds.ordinals[chosen]
    doc_ids: list[str] = []
    products = np.empty(len(candidates))
    for start in range(0, len(candidates), _ROWS):
        rows = table.rows(candidates[start : start + _ROWS])
        products[start : start + len(rows)] = inner_products(rows.codes, query[None])[0]
        doc_ids += rows.doc_ids
    return Found(
        _best(candidates, products, doc_ids, k) if want_positive else [],
        [(o, -p) for o, p in _best(candidates, -products, doc_ids, k)] if want_negative else [],
        len(bounds.ordinals),
        len(candidates),
        _next_bound(bounds, ~chosen, sign),
    )


def _reaching(
    estimate: NDArray[np.float64], error: NDArray[np.float64], k: int
) -> NDArray[np.bool_]:
    """Which upper bounds reach the k-th best lower bound (and can be positive at all)."""
    upper, lower = estimate + error, estimate - error
    if k >= len(lower):
        return np.greater(upper, 0.0)
    threshold = np.partition(lower, len(lower) - k)[len(lower) - k]
    reaching: NDArray[np.bool_] = (upper >= threshold) & (upper > 0.0)
    return reaching


def _best(
    ordinals: NDArray[np.int64], products: NDArray[np.float64], doc_ids: list[str], k: int
) -> list[tuple[int, float]]:
    """The k largest positive products, ties by doc_id."""
    positive = np.flatnonzero(products > 0.0)
    order = sorted(positive.tolist(), key=lambda i: (-products[i], doc_ids[i]))
    return [(int(ordinals[i]), float(products[i])) for i in order[:k]]


def _next_bound(bounds: Bounds, others: NDArray[np.bool_], sign: Sign) -> float | None:
    """Upper bound, over documents left out, of what could have entered a list."""
    if not others.any():
        return None
    estimate, error = bounds.estimate[others], bounds.error[others]
    ends = {"proponents": [estimate], "opponents": [-estimate], "both": [estimate, -estimate]}[sign]
    return max(0.0, *(float((end + error).max()) for end in ends))
