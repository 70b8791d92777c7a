"""How much an answer depends on the damping: one question under several, with no re-indexing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wherefrom.errors import QueryError
from wherefrom.query.measurement import measurement_of
from wherefrom.records import Query, QuerySet

__all__ = ["FACTORS", "SWEEP_SCHEMA", "DampingSweep", "SweepRow", "dampings_around", "sweep_of"]

SWEEP_SCHEMA = "wherefrom-damping-sweep/1"

FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""The index's own damping times these, unless others are asked for."""


@dataclass(frozen=True, slots=True)
class SweepRow:
    """The ranking under one damping, against that under the index's own.

    Attributes:
        damping: In units of a layer's mean eigenvalue.
        proponents: Ids of the k strongest, best first.
        opponents: Likewise of the k most negative.
        overlap: Share of the own damping's proponents and opponents that are among them too.
        spearman: Rank correlation of the scores of all documents with those under the own damping.
        residual: Relative residual of the solution, for curvatures solved by iteration.
    """

    damping: float
    proponents: tuple[str, ...]
    opponents: tuple[str, ...]
    overlap: float
    spearman: float
    residual: float | None


@dataclass(frozen=True, slots=True)
class DampingSweep:
    """One question under several dampings.

    Attributes:
        query: What was asked; ``None`` for tensor queries.
        objective: The index's.
        damping: The index's own.
        k: How many of each sign are compared.
        rows: One a damping, in the order asked for.
    """

    query: Query | QuerySet | None
    objective: str
    damping: float
    k: int
    rows: tuple[SweepRow, ...]

    @property
    def least_overlap(self) -> float:
        """The smallest of the rows' overlaps: 1 where the damping does not matter."""
        return min(row.overlap for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with the schema version and the meaning of the score."""
        return {
            "schema": SWEEP_SCHEMA,
            "contract": measurement_of(self.query, self.objective).contract,
            **asdict(self),
            "least_overlap": self.least_overlap,
        }

    def to_json(self) -> str:
        """:meth:`to_dict` as JSON."""
        return json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False)


def dampings_around(own: float, dampings: Sequence[float] | None) -> tuple[float, ...]:
    """What to sweep over.

    Raises:
        QueryError: Nothing, or nothing is left to vary.
    """
    if dampings is None:
        if own == 0.0:
            raise QueryError("the index's damping is 0; say which others to try: dampings=...")
        return tuple(float(f"{factor * own:.6g}") for factor in FACTORS)
    if not dampings:
        raise QueryError("dampings are empty; give at least one, as [0.01, 0.1, 1.0]")
    return tuple(float(damping) for damping in dampings)


def sweep_of(
    query: Query | QuerySet | None,
    objective: str,
    own: float,
    dampings: Sequence[float],
    reference: NDArray[np.float64],
    products: NDArray[np.float64],
    residuals: Sequence[float | None],
    doc_ids: Sequence[str],
    k: int,
) -> DampingSweep:
    """Compare rankings.

    Args:
        query: What was asked.
        objective: The index's.
        own: The index's damping.
        dampings: The others.
        reference: ``[document]`` scores under the index's damping.
        products: ``[damping, document]`` scores under the others.
        residuals: Of the solution under each, where there is any.
        doc_ids: Ids of the documents.
        k: How many of each sign to compare.
    """
    ids = np.array(doc_ids)
    # By id first, so that ties come out as they do in answers.
    order = np.argsort(ids, kind="stable")
    best = _top(ids[order], reference[order], k)
    rows = []
    for damping, scores, residual in zip(dampings, products, residuals, strict=True):
        found = _top(ids[order], scores[order], k)
        wanted = sum(len(side) for side in best)
        shared = sum(len(set(a) & set(b)) for a, b in zip(best, found, strict=True))
        overlap = shared / wanted if wanted else 1.0
        rows.append(SweepRow(damping, *found, overlap, _spearman(reference, scores), residual))
    return DampingSweep(query, objective, own, k, tuple(rows))


def _top(
    ids: NDArray[np.str_], scores: NDArray[np.float64], k: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Ids of the k most positive and the k most negative scores."""
    sides = []
    for signed in (scores, -scores):
        order = np.argsort(-signed, kind="stable")[:k]
        sides.append(tuple(str(ids[i]) for i in order if signed[i] > 0.0))
    return sides[0], sides[1]


def _spearman(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Rank correlation, ties at their mean rank; 0 where only one of the two varies."""
    a, b = _ranks(x), _ranks(y)
    if np.array_equal(a, b):
        return 1.0
    if a.std() == 0.0 or b.std() == 0.0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: NDArray[np.float64] = (last - (counts - 1) / 2.0)[inverse]
    return ranks
