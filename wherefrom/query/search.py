"""Certified search: the true top k of the stored vectors, with scores in float64.

A backend proposes candidates with a bound on all other documents; the candidates are scored in
full from their stored rows; and while a document that was left out could still enter by its bound,
more are asked for. So the true top k is among those scored, ties included. Scores are computed row
by row in one fixed order: they do not depend on what else was asked, on chunking, threads or
backend.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from wherefrom.errors import QueryError
from wherefrom.query.scan import Candidates, Scan
from wherefrom.records import Sign
from wherefrom.store import DocumentTable, StoredRows
from wherefrom.store.accelerators import Accelerator

__all__ = ["DIRECTIONS", "CertifiedSearch", "Found", "Ranked", "Ranking", "inner_products"]

DIRECTIONS: dict[Sign, tuple[int, ...]] = {
    "both": (1, -1),
    "proponents": (1,),
    "opponents": (-1,),
}
"""The ends of a ranking: +1 for the most positive scores, -1 for the most negative ones."""

_ENTRIES_PER_READ = 1 << 23
_MOST_ROWS = 512
_FIRST, _WIDENED = 4, 4
_MOST_FILTERED = 1 << 16
_SMALLEST = float(np.nextafter(0.0, 1.0))


@dataclass(frozen=True, slots=True)
class Ranked:
    """A scored document.

    Attributes:
        ordinal: Its position in the index.
        product: Inner product with the query, not divided by N.
        norm: Of its vector.
        rows: The rows it was read with.
        position: Which of them is its own.
    """

    ordinal: int
    product: float
    norm: float
    rows: StoredRows
    position: int

    @property
    def doc_id(self) -> str:
        """The document's id."""
        return self.rows.doc_ids[self.position]

    def alone(self) -> Ranked:
        """The same without the other rows, so that they can be let go."""
        return replace(self, rows=self.rows.alone(self.position), position=0)


@dataclass(slots=True)
class Ranking:
    """One end of the ranking, filled as documents are scored.

    Attributes:
        direction: +1 or -1.
        k: At most how many.
        normalised: Whether products are divided by the documents' norms.
        rest: Upper bound, in this direction, of what was not scored; ``-inf`` if all was.
    """

    direction: int
    k: int
    normalised: bool = False
    rest: float = -np.inf
    _best: list[tuple[float, str, Ranked]] = field(default_factory=list)

    @property
    def threshold(self) -> float:
        """What a further document has to reach: the k-th best so far, or more than nothing."""
        return self._best[-1][0] if len(self._best) == self.k else _SMALLEST

    def add(self, scored: Sequence[Ranked]) -> None:
        """Take in scored documents; larger is better, ties go by doc_id."""
        for one in scored:
            value = self.value(one)
            if value >= self.threshold:
                insort(self._best, (value, one.doc_id, one.alone()), key=_order)
                del self._best[self.k :]

    def value(self, one: Ranked) -> float:
        """What a document is ranked by, in this direction."""
        if not self.normalised:
            return self.direction * one.product
        return self.direction * one.product / one.norm if one.norm > 0.0 else 0.0

    def best(self) -> list[Ranked]:
        """The best so far, best first."""
        return [one for _, _, one in self._best]


@dataclass(frozen=True, slots=True)
class Found:
    """Result of a search, in units of inner products (not divided by N).

    Attributes:
        rankings: One for each direction asked for.
        documents: How many documents were searched.
        scored: Positions of those whose inner product was computed in full.
    """

    rankings: tuple[Ranking, ...]
    documents: int
    scored: frozenset[int]


def _order(entry: tuple[float, str, Ranked]) -> tuple[float, str]:
    return -entry[0], entry[1]


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


class CertifiedSearch:
    """Finds the documents with the largest stored scores.

    Args:
        table: Stored rows.
        scan: Over the codes of the same documents.
        accelerator: What proposes candidates in place of the scan.
    """

    def __init__(
        self, table: DocumentTable, scan: Scan, accelerator: Accelerator | None = None
    ) -> None:
        self.scan = scan
        self._table = table
        self._accelerator = accelerator

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        *,
        sign: Sign = "both",
        ordinals: NDArray[np.int64] | None = None,
        normalised: bool = False,
    ) -> list[Found]:
        """The top k documents by inner product, of each sign asked for; ties by doc_id.

        Args:
            queries: float32 ``[query, dimension]``; all of them are answered by one scan.
            k: At most how many of each sign, positive.
            sign: Which ends of the ranking.
            ordinals: Documents to search; all by default.
            normalised: Rank by inner products divided by the documents' uncompressed norms.

        Raises:
            QueryError: A query vector is not finite.
            IntegrityError: A candidate's row differs from its digest.
        """
        if not np.isfinite(queries).all():
            raise QueryError("the query's gradient holds NaN or infinity; check the completion")
        count = len(self._table) if ordinals is None else len(ordinals)
        directions = DIRECTIONS[sign]
        if self._accelerator is None:
            proposed = self.scan(queries, k, directions, ordinals=ordinals, normalised=normalised)
            rounds: Iterator[Sequence[Iterator[Candidates]]] = (
                [iter([candidates]) for candidates in one] for one in proposed
            )
        else:
            rounds = (
                [self._accelerated(query, k, d, ordinals, count) for d in directions]
                for query in queries
            )
        return [
            self._rank(query, k, directions, proposals, count, normalised)
            for query, proposals in zip(queries, rounds, strict=True)
        ]

    def _rank(
        self,
        query: NDArray[np.float32],
        k: int,
        directions: Sequence[int],
        proposals: Sequence[Iterator[Candidates]],
        count: int,
        normalised: bool,
    ) -> Found:
        """Score candidates until no document that was left out can enter."""
        rankings = tuple(Ranking(direction, k, normalised) for direction in directions)
        scored: set[int] = set()
        pending = {i: proposal for i, proposal in enumerate(proposals)}
        while pending:
            proposed = {i: next(proposal) for i, proposal in pending.items()}
            for i, candidates in proposed.items():
                rankings[i].rest = candidates.rest
            wanted = _union(proposed.values(), scored)
            for ranked in self._scored(wanted, query):
                for ranking in rankings:
                    ranking.add(ranked)
            scored.update(wanted.tolist())
            pending = {i: pending[i] for i in pending if rankings[i].rest >= rankings[i].threshold}
        return Found(rankings, count, frozenset(scored))

    def read(self, ordinals: NDArray[np.int64], query: NDArray[np.float32]) -> list[Ranked]:
        """Documents with their stored scores, in the order asked for."""
        return [one.alone() for part in self._scored(ordinals, query) for one in part]

    def _scored(
        self, ordinals: NDArray[np.int64], query: NDArray[np.float32]
    ) -> Iterator[list[Ranked]]:
        size = max(1, min(_MOST_ROWS, _ENTRIES_PER_READ // len(query)))
        for start in range(0, len(ordinals), size):
            chosen = ordinals[start : start + size]
            rows = self._table.rows(chosen)
            products = inner_products(rows.vectors, query[None])[0]
            facts = zip(chosen.tolist(), products.tolist(), rows.norms.tolist(), strict=True)
            yield [Ranked(*fact, rows, position) for position, fact in enumerate(facts)]

    def _accelerated(
        self,
        query: NDArray[np.float32],
        k: int,
        direction: int,
        ordinals: NDArray[np.int64] | None,
        count: int,
    ) -> Iterator[Candidates]:
        """Ever more of an accelerator's candidates; in the end, the scan's."""
        accelerator = self._accelerator
        if ordinals is not None and len(ordinals) > _MOST_FILTERED:
            accelerator = None  # They name each document of a filter; the scan only visits them.
        error = np.inf if accelerator is None else accelerator.error(query)
        wanted = _FIRST * k
        while accelerator is not None and np.isfinite(error) and wanted < count // 2:
            found, scores = accelerator.search(query, wanted, direction, ordinals)
            if len(found) < wanted:
                break
            order = np.argsort(found)
            rest = float(scores[-1]) + error
            yield Candidates(found[order], scores[order], np.full(len(found), error), rest)
            wanted *= _WIDENED
        ((candidates,),) = self.scan(query[None], k, (direction,), ordinals=ordinals)
        yield candidates


def _union(proposed: Iterable[Candidates], done: set[int]) -> NDArray[np.int64]:
    """Candidates that were not scored yet, ascending."""
    every = np.unique(np.concatenate([candidates.ordinals for candidates in proposed]))
    return every[[ordinal not in done for ordinal in every.tolist()]] if done else every
