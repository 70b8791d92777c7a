"""Exact scores: the best documents run again, uncompressed, and what they may leave out.

That the list is the true one can be proved where stored vectors hold all coordinates: what a stored
one lacks, its quantisation, has a known norm, which bounds the exact score. Else the list's recall
is estimated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from wherefrom.query.asker import Asker
from wherefrom.query.options import QueryOptions
from wherefrom.query.questions import EncodedQuestion, Question
from wherefrom.query.recall import (
    SAMPLE,
    drawn,
    expected_missed,
    noise_interval,
    recall_of,
)
from wherefrom.query.scan import Candidates
from wherefrom.query.search import DIRECTIONS, CertifiedSearch, Found, Ranked, Ranking
from wherefrom.query.solution import Solution, exactly, solve
from wherefrom.records import Recall, Tier
from wherefrom.store import DocumentTable, Manifest, ScanCopy

__all__ = ["MODEL_ROUNDING", "Outcome", "Recomputer", "vector_norm"]

MODEL_ROUNDING = {"float64": 1e-4, "float32": 1e-4}
"""How far a document's gradient may lie from that of another run, as a share of its norm.

A model in float32 gives gradients that differ in the seventh digit with the batch they were run in;
proofs about exact scores allow for a hundred times as much. Models of less precision differ in the
third digit: nothing is proved of them.
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Final rankings, and what is known of what they leave out.

    Attributes:
        tier: Of the scores.
        rankings: One for each direction asked for.
        certified: Whether they are proved to be the true ones.
        documents: How many were searched.
        candidates: How many were scored in full.
        query_norm: Norm of the query's vector, to make cosines of scores.
        recall: Estimated, where nothing is proved.
    """

    tier: Tier
    rankings: tuple[Ranking, ...]
    certified: bool
    documents: int
    candidates: int
    query_norm: float
    recall: Recall | None = None

    @classmethod
    def of_stored(cls, found: Found, encoded: EncodedQuestion) -> Outcome:
        """A search by stored scores, which is proved as it is."""
        norm = vector_norm(encoded.vector)
        return cls("stored", found.rankings, True, found.documents, len(found.scored), norm)


@dataclass(frozen=True, slots=True)
class Recomputer:
    """Runs the best documents of searches again.

    Attributes:
        manifest: Of the index.
        table: Its documents.
        copy: Its scan copy.
        asker: Model and encoder.
        search: Scans, and reads documents with their stored scores.
        options: How to answer.
        ordinals: Documents that are searched; all if ``None``.
    """

    manifest: Manifest
    table: DocumentTable
    copy: ScanCopy
    asker: Asker
    search: CertifiedSearch
    options: QueryOptions
    ordinals: NDArray[np.int64] | None

    def outcome(self, question: Question, encoded: EncodedQuestion, found: Found) -> Outcome:
        """Rankings by exact scores.

        Args:
            question: What was asked.
            encoded: Its vector.
            found: The best documents by stored score.
        """
        solved = solve(self.asker, question, self.options.damping, encoded)
        norm = solved.norm
        rankings = tuple(
            Ranking(ranking.direction, self.options.k, ranking.normalised)
            for ranking in found.rankings
        )
        best = {one.ordinal: one for ranking in found.rankings for one in ranking.best()}
        bounds = self._bounds(encoded)
        needed = {ordinal for one in bounds for ordinal in one.ordinals.tolist()}
        proved = bool(bounds) and self._affordable(len(needed), len(best))
        if proved:
            unread = np.array(sorted(needed - best.keys()), np.int64)
            best |= {one.ordinal: one for one in self.search.read(unread, encoded.vector)}
            best = {ordinal: best[ordinal] for ordinal in needed}
            for ranking, candidates in zip(rankings, bounds, strict=True):
                ranking.rest = candidates.rest
        chosen = sorted(best)
        exact = self._rescored(solved, [best[i] for i in chosen])
        for ranking in rankings:
            ranking.add(exact)
        if proved or len(chosen) == found.documents:
            return Outcome("exact", rankings, True, found.documents, len(chosen), norm)
        others = np.setdiff1d(self._searched(), np.array(chosen, np.int64), assume_unique=True)
        sampled = drawn(SAMPLE, others, self.manifest.encoder.seed)
        sample = self.search.read(sampled, encoded.vector)
        rescored = self._rescored(solved, sample)
        recall = self._recall(
            encoded.vector, sample, rescored, [best[i] for i in chosen], exact, rankings
        )
        for ranking in rankings:
            ranking.add(rescored)
        scored = len(chosen) + len(sample)
        if scored == found.documents:
            return Outcome("exact", rankings, True, found.documents, scored, norm)
        return Outcome("exact", rankings, False, found.documents, scored, norm, recall)

    def _rescored(self, solved: Solution, documents: Sequence[Ranked]) -> list[Ranked]:
        """Documents with exact inner products, and exact norms where stored ones are of a part."""
        rows = [one.rows for one in documents]
        products, norms = exactly(self.asker, self.manifest, solved, rows)
        return [
            replace(one, product=float(product), norm=float(norm))
            for one, product, norm in zip(documents, products, norms, strict=True)
        ]

    def _searched(self) -> NDArray[np.int64]:
        return np.arange(len(self.table)) if self.ordinals is None else self.ordinals

    def _bounds(self, encoded: EncodedQuestion) -> list[Candidates]:
        """For each direction, documents that must hold the exact top k; none if not provable."""
        record = self.manifest.encoder
        rounding = MODEL_ROUNDING.get(self.manifest.model.dtype)
        if record.reduce != "none" or record.pca is not None or rounding is None:
            return []
        (proposed,) = self.search.scan(
            encoded.vector[None],
            self.options.k,
            DIRECTIONS[self.options.sign],
            ordinals=self.ordinals,
            normalised=self.options.normalise != "none",
            slack=rounding,
        )
        return proposed

    def _affordable(self, needed: int, anyway: int) -> bool:
        """Whether so many documents can be run in the time allowed, or no more than anyway."""
        speed = self.manifest.seconds_per_document
        in_time = speed is not None and self.options.in_time(speed * needed)
        return needed <= anyway or in_time

    def _recall(
        self,
        query: NDArray[np.float32],
        sample: Sequence[Ranked],
        rescored: Sequence[Ranked],
        chosen: Sequence[Ranked],
        exact: Sequence[Ranked],
        rankings: Sequence[Ranking],
    ) -> Recall:
        """Estimated recall of rankings, from documents with stored and exact scores."""
        norm = vector_norm(query)
        middle, low, high = noise_interval(_errors(sample, rescored, norm))
        high = max(high, noise_interval(_errors(chosen, exact, norm))[0])
        searched = self._searched()
        cosines = self._cosines(query, norm)[searched]
        reach = norm * self.copy.whole[searched]
        left = (reach > 0.0) & ~np.isin(searched, [one.ordinal for one in chosen])
        missed = []
        for ranking in rankings:
            units = np.full(len(reach), norm) if ranking.normalised else reach
            values = [ranking.value(one) for one in ranking.best()]
            found = [
                [
                    expected_missed(
                        ranking.direction * cosines, left, units, values, sigma, blurred=blurred
                    )
                    for blurred in self._models()
                ]
                for sigma in (middle, low, high)
            ]
            missed.append([np.mean(found[0], axis=0), *(one for part in found for one in part)])
        return recall_of(self.options.k, missed, len(sample))

    def _models(self) -> tuple[bool, ...]:
        """Whether stored cosines are blurred, or leave something out: each if they may be both."""
        record = self.manifest.encoder
        whole = record.reduce in ("none", "sketch") and record.sketched is None
        return (True,) if whole and record.pca is None else (True, False)

    def _cosines(self, query: NDArray[np.float32], norm: float) -> NDArray[np.float64]:
        """Stored cosines of all documents that are searched, ``[document of the index]``."""
        count = len(self.copy)
        # As many as there are: the scan then tells the estimate of every document.
        (ends,) = self.search.scan(
            query[None], count, (1, -1), ordinals=self.ordinals, normalised=True
        )
        cosines = np.zeros(count)
        for direction, end in zip((1, -1), ends, strict=True):
            cosines[end.ordinals] = direction * end.estimate / norm
        return cosines


def _errors(stored: Sequence[Ranked], exact: Sequence[Ranked], norm: float) -> NDArray[np.float64]:
    """Stored cosines minus exact ones."""
    return np.array(
        [
            (a.product - b.product) / (norm * a.norm)
            for a, b in zip(stored, exact, strict=True)
            if norm * a.norm > 0.0
        ]
    )


def vector_norm(query: NDArray[np.float32]) -> float:
    """Euclidean norm, float64, in one fixed order."""
    return float(np.sqrt(np.add.reduce(np.square(query.astype(np.float64)))))
