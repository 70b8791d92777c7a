"""Inner products in other people's float32: scaling that loses nothing, and proved error bounds.

Vector libraries sum in float32, in an order that depends on the processor, the batch and the
threads. Whatever the order, with or without fused multiply-add, a sum of n products is off by at
most ``γ(n) Σ|q_j d_j| <= γ(n) ‖q‖ ‖d‖`` with ``γ(n) = n u / (1 - n u)`` and ``u = 2**-24`` (Higham,
*Accuracy and Stability of Numerical Algorithms*, 2nd ed., §3.1), unless it leaves float32's range.
Influence scores are so small that it would. So both sides are multiplied by powers of two, which
costs no rounding, until the query's largest entry and the longest vector are 1/2 at least. Then
what a few operations a term may still lose to underflow, 2**-120 n (‖q‖ + ‖d‖) at the very most, is
less than ``u ‖q‖ ‖d‖`` for the longest d.

A bound in proportion to each vector's norm cannot be told apart from the ranking: with one bound
for all, the longest vector's, a search over norms of many sizes could exclude nothing. So vectors
are stored with further entries that make up their norm, to which the query has a weight κ: what a
library then ranks by is ``⟨q, d⟩ + κ ‖d‖``, an upper bound of the product for each row by itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wherefrom.errors import QueryError
from wherefrom.store.quantise import ROUNDING, row_norms

if TYPE_CHECKING:
    from wherefrom.store.documents import DocumentTable

__all__ = [
    "UNIT",
    "Loss",
    "Ranges",
    "ScaledQuery",
    "accumulation",
    "best_first",
    "power_of_two",
    "rounded_up",
    "scaled_rows",
    "with_norms",
]

UNIT = 2.0**-24
"""Relative error of one float32 operation."""

_ENTRIES_PER_BATCH = 1 << 20


def accumulation(terms: int) -> float:
    """γ(terms), the relative error of a float32 sum of products; ``terms`` < 2**24."""
    return terms * UNIT / (1.0 - terms * UNIT)


def rounded_up(value: float) -> float:
    """A float32 number no smaller than ``value``, which is not negative; 0 for 0."""
    return float(np.nextafter(np.float32(value), np.float32(np.inf))) if value > 0.0 else 0.0


def with_norms(exact: NDArray[np.float64], rounded: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors [n, dimension] with their norms, or a little more, as one further entry."""
    norms = (row_norms(exact) * (1.0 + 2.0 * UNIT)).astype(np.float32)
    norms = np.nextafter(norms, np.float32(np.inf), out=norms, where=norms > 0)
    return np.concatenate([rounded, norms[:, None]], axis=1)


def power_of_two(largest: float, exponent: int) -> float:
    """What brings ``largest`` into [2**(exponent - 1), 2**exponent); 1 for zero."""
    return math.ldexp(1.0, exponent - math.frexp(largest)[1]) if largest > 0.0 else 1.0


@dataclass(frozen=True, slots=True)
class ScaledQuery:
    """A query in float32 as a library is asked it.

    Attributes:
        values: float32 [dimension]; ``scale`` times the query, but for what underflows.
        scale: A power of two.
        norm: Upper bound of the norm of ``values`` before they were rounded to float32.
    """

    values: NDArray[np.float32]
    scale: float
    norm: float

    @classmethod
    def of(cls, query: NDArray[np.float32], dimension: int, exponent: int) -> ScaledQuery:
        """Scale ``query`` so that its largest entry lies just below ``2**exponent``.

        Raises:
            QueryError: It holds NaN or infinity.
            ValueError: It is no float32 vector of ``dimension`` entries.
        """
        if query.shape != (dimension,) or query.dtype != np.float32:
            raise ValueError(
                f"query: got {query.dtype} of shape {query.shape}; "
                f"expected float32 of shape {(dimension,)}"
            )
        if not np.isfinite(query).all():
            raise QueryError("the query's vector holds NaN or infinity; check the completion")
        wide = query.astype(np.float64)
        scale = power_of_two(float(np.abs(wide).max()), exponent)
        wide *= scale
        norm = float(row_norms(wide[None])[0]) * ROUNDING
        return cls(wide.astype(np.float32), scale, norm)

    def with_entries(self, value: float, count: int = 1) -> NDArray[np.float32]:
        """Its values and ``count`` times ``value``."""
        return np.concatenate([self.values, np.full(count, value, np.float32)])

    def sum_error(self, more: int) -> float:
        """What κ has to be for a sum of ``len(values) + more`` roundings at most."""
        gamma = accumulation(len(self.values) + more)
        return self.norm * gamma / (1.0 - gamma)


class Ranges:
    """What has to be known of all stored vectors before they can be scaled and quantised.

    Attributes:
        low: Smallest entry of each dimension, [dimension].
        high: Largest.
        largest: Upper bound of the vectors' norms.
    """

    def __init__(self, table: DocumentTable) -> None:
        """Read all vectors of ``table`` once.

        Raises:
            IntegrityError: The table cannot be read.
            StorageError: The disk refuses.
        """
        dimension = table.layout.dimension
        self.low = np.full(dimension, np.inf)
        self.high = np.full(dimension, -np.inf)
        self.largest = 0.0
        for batch in table.batches(_rows_per_batch(dimension)):
            vectors = batch.vectors
            np.minimum(self.low, vectors.min(axis=0), out=self.low)
            np.maximum(self.high, vectors.max(axis=0), out=self.high)
            self.largest = max(self.largest, float(row_norms(vectors).max()) * ROUNDING)
        if not len(table):
            self.low[:] = self.high[:] = 0.0


class Loss:
    """How far what a library holds lies from the stored vectors, in the library's units.

    Attributes:
        residual: Upper bound of the norms of the stored vectors minus the decoded ones.
        largest: Upper bound of the norms of the stored vectors.
    """

    def __init__(self) -> None:
        self.residual = 0.0
        self.largest = 0.0

    def add(self, exact: NDArray[np.float64], decoded: NDArray[np.float32]) -> None:
        """Take in some vectors [n, dimension] and what they decode to."""
        missed = exact - decoded.astype(np.float64)
        self.residual = max(self.residual, float(row_norms(missed).max()) * ROUNDING)
        self.largest = max(self.largest, float(row_norms(exact).max()) * ROUNDING)


def scaled_rows(
    table: DocumentTable, scale: float
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float32]]]:
    """All documents' ordinals [n] and vectors [n, dimension] times ``scale``, in float64 and 32.

    Every row is checked against its digest on the way.

    Raises:
        IntegrityError: A row is missing or differs from its digest.
        StorageError: The disk refuses.
    """
    for batch in table.batches(_rows_per_batch(table.layout.dimension)):
        exact = batch.vectors * scale
        yield batch.ordinals, exact, exact.astype(np.float32)


def _rows_per_batch(dimension: int) -> int:
    return max(1, _ENTRIES_PER_BATCH // dimension)


def best_first(
    ordinals: NDArray[Any], scores: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Both in the order of descending scores, equal ones by ordinal."""
    order = np.lexsort((ordinals, -scores))
    return ordinals[order].astype(np.int64), scores[order]
