"""From questions to answers: encode -> search -> recompute -> certify.

Stored scores find the documents; where the time allows it, the best of them are scored again by
running their gradients, uncompressed, and only these exact scores are shown.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from wherefrom.query.answer import Answer
from wherefrom.query.asker import Asker
from wherefrom.query.background import judged, percentile
from wherefrom.query.exact import preconditioned
from wherefrom.query.options import QueryOptions
from wherefrom.query.questions import EncodedQuestion, Question, encode
from wherefrom.query.recall import (
    SAMPLE,
    drawn,
    expected_missed,
    noise_interval,
    recall_of,
)
from wherefrom.query.recompute import recomputed
from wherefrom.query.refinement import refined
from wherefrom.query.scan import Candidates, scan
from wherefrom.query.search import DIRECTIONS, Found, Ranked, Ranking, Searcher
from wherefrom.records import Certificate, Hit, Recall, Tier
from wherefrom.store import DocumentTable, Manifest, ScanCopy
from wherefrom.store.accelerators import Accelerator

__all__ = ["MODEL_ROUNDING", "Responder"]

MODEL_ROUNDING = 1e-4
"""How far a document's gradient may lie from that of another run, as a share of its norm.

A model in float32 gives gradients that differ in the seventh digit with the batch they were run in;
proofs about exact scores allow for a hundred times as much.
"""


@dataclass(frozen=True, slots=True)
class _Outcome:
    """Final rankings and what is known of what they leave out."""

    tier: Tier
    rankings: tuple[Ranking, ...]
    certified: bool
    documents: int
    candidates: int
    recall: Recall | None = None


@dataclass(frozen=True, slots=True)
class Responder:
    """An open index with its model.

    Attributes:
        path: Of the index.
        manifest: Of the index.
        table: Its documents.
        copy: Its scan copy.
        asker: Model and encoder.
    """

    path: Path
    manifest: Manifest
    table: DocumentTable
    copy: ScanCopy
    asker: Asker

    def respond(
        self,
        questions: Sequence[Question],
        options: QueryOptions,
        accelerator: Accelerator | None = None,
    ) -> list[Answer]:
        """Answer questions, one by one but for the scan, which they share.

        Args:
            questions: What is asked.
            options: How to answer.
            accelerator: What proposes candidates in place of the scan.

        Raises:
            FilterError: The filter is not well formed.
            CurvatureError: The damping is not allowed.
            QueryError: A query's gradient is not finite.
        """
        started = time.perf_counter()
        ordinals = self.table.where(options.where) if options.where else None
        documents = len(self.table) if ordinals is None else len(ordinals)
        encoded = self.encoded(questions, options)
        recompute = self._recomputes(options, documents)
        searcher = Searcher(self.table, self.copy, accelerator)
        found = searcher.search(
            np.stack([one.vector for one in encoded]),
            max(options.k, options.candidates) if recompute else options.k,
            sign=options.sign,
            ordinals=ordinals,
            normalised=options.normalise != "none",
        )
        answers = []
        for question, one, stored in zip(questions, encoded, found, strict=True):
            outcome = _stored(stored)
            if recompute:
                outcome = self._exact(question, one, stored, options, ordinals, searcher)
            seconds = time.perf_counter() - started
            answers.append(self._answer(question, one, outcome, options, seconds))
            started = time.perf_counter()
        return answers

    def encoded(
        self, questions: Sequence[Question], options: QueryOptions
    ) -> list[EncodedQuestion]:
        """What stored vectors are multiplied with, a question by itself each."""
        if options.refine:
            return [refined(self.asker, self.table, question, options) for question in questions]
        with self.asker.extractor.session():
            return [encode(self.asker, question, options.damping) for question in questions]

    def _recomputes(self, options: QueryOptions, documents: int) -> bool:
        """Whether the best documents are to be run again."""
        if options.rerank != "auto":
            return options.rerank == "recompute"
        speed = self.manifest.seconds_per_document
        if speed is None:
            return False
        most = len(DIRECTIONS[options.sign]) * max(options.k, options.candidates) + SAMPLE
        return speed * min(documents, most) <= options.rerank_seconds

    def _exact(
        self,
        question: Question,
        encoded: EncodedQuestion,
        stored: Found,
        options: QueryOptions,
        ordinals: NDArray[np.int64] | None,
        searcher: Searcher,
    ) -> _Outcome:
        """The best documents by stored score, scored exactly, and what they may leave out."""
        solved = self._solved(question, encoded, options)
        chosen = {one.ordinal: one for ranking in stored.rankings for one in ranking.best()}
        rankings = tuple(
            Ranking(ranking.direction, options.k, ranking.normalised) for ranking in stored.rankings
        )
        bounds = self._provable(encoded, options, ordinals)
        wanted = {i for candidates in bounds for i in candidates.ordinals.tolist()}
        certified = bool(bounds) and self._affordable(len(wanted), len(chosen), options)
        if certified:
            missing = np.array(sorted(wanted - chosen.keys()), np.int64)
            chosen |= {one.ordinal: one for one in searcher.read(missing, encoded.vector)}
            for ranking, candidates in zip(rankings, bounds, strict=True):
                ranking.rest = candidates.rest
        before = [chosen[i] for i in sorted(chosen)]
        exact = recomputed(self.asker.extractor, solved, before)
        for ranking in rankings:
            ranking.add(exact)
        certified = certified or len(chosen) == stored.documents
        recall = None
        if not certified:
            others = self._others(chosen, ordinals)
            sample = searcher.read(
                drawn(SAMPLE, others, self.manifest.encoder.seed), encoded.vector
            )
            after = recomputed(self.asker.extractor, solved, sample)
            recall = self._recall(
                encoded.vector, list(zip(sample, after, strict=True)), rankings, chosen, ordinals
            )
            for ranking in rankings:
                ranking.add(after)
            chosen |= {one.ordinal: one for one in after}
            certified = len(chosen) == stored.documents
        return _Outcome(
            "exact",
            rankings,
            certified,
            stored.documents,
            len(chosen),
            None if certified else recall,
        )

    def _solved(
        self, question: Question, encoded: EncodedQuestion, options: QueryOptions
    ) -> list[Tensor]:
        """``(G + lambda)^-1 grad f`` in the order of the weights, of each layer ``[1, size]``."""
        curvature = self.asker.encoder.curvature
        if encoded.solved is not None:
            return [
                curvature.raw(layer, solved).reshape(1, -1)
                for layer, solved in enumerate(encoded.solved)
            ]
        if options.damping is not None:
            curvature = curvature.with_damping(options.damping)
        return preconditioned(self.asker.extractor, curvature, [question])

    def _provable(
        self,
        encoded: EncodedQuestion,
        options: QueryOptions,
        ordinals: NDArray[np.int64] | None,
    ) -> list[Candidates]:
        """For each direction, documents that must hold the exact top k; none if not provable.

        Only vectors that hold all coordinates bound exact scores: what a stored one lacks, its
        quantisation, has a known norm.
        """
        record = self.manifest.encoder
        if record.reduce != "none" or record.pca is not None:
            return []
        (proposed,) = scan(
            self.copy,
            encoded.vector[None],
            options.k,
            DIRECTIONS[options.sign],
            ordinals=ordinals,
            normalised=options.normalise != "none",
            slack=MODEL_ROUNDING,
        )
        return proposed

    def _affordable(self, wanted: int, chosen: int, options: QueryOptions) -> bool:
        """Whether so many documents can be run in the time allowed, or were to be run anyway."""
        speed = self.manifest.seconds_per_document
        return wanted <= chosen or (speed is not None and speed * wanted <= options.rerank_seconds)

    def _others(
        self, chosen: Mapping[int, Ranked], ordinals: NDArray[np.int64] | None
    ) -> NDArray[np.int64]:
        every = np.arange(len(self.table)) if ordinals is None else ordinals
        return np.setdiff1d(every, np.array(sorted(chosen), np.int64), assume_unique=True)

    def _recall(
        self,
        query: NDArray[np.float32],
        sample: Sequence[tuple[Ranked, Ranked]],
        rankings: Sequence[Ranking],
        chosen: Mapping[int, Ranked],
        ordinals: NDArray[np.int64] | None,
    ) -> Recall:
        """Estimated recall of rankings, from random documents with stored and exact scores."""
        norm = _norm(query)
        errors = [
            (stored.product - exact.product) / (norm * exact.norm)
            for stored, exact in sample
            if norm * exact.norm > 0.0
        ]
        sigmas = noise_interval(np.array(errors))
        searched = np.arange(len(self.table)) if ordinals is None else ordinals
        # As many as there are: the scan then tells the estimate of every document.
        (ends,) = scan(
            self.copy, query[None], len(searched), (1, -1), ordinals=ordinals, normalised=True
        )
        cosines = np.zeros(len(self.table))
        for direction, end in zip((1, -1), ends, strict=True):
            cosines[end.ordinals] = direction * end.estimate / norm
        reach = norm * self.copy.whole[searched]
        left = (reach > 0.0) & ~np.isin(searched, list(chosen))
        missed = []
        for ranking in rankings:
            units = np.full(len(reach), norm) if ranking.normalised else reach
            values = [ranking.value(one) for one in ranking.best()]
            stored = ranking.direction * cosines[searched]
            missed.append([expected_missed(stored, left, units, values, sigma) for sigma in sigmas])
        return recall_of(rankings[0].k, missed, len(sample))

    def _answer(
        self,
        question: Question,
        encoded: EncodedQuestion,
        outcome: _Outcome,
        options: QueryOptions,
        seconds: float,
    ) -> Answer:
        norm = _norm(encoded.vector)
        lists: dict[int, tuple[Hit, ...]] = {1: (), -1: ()}
        bounds: dict[int, float | None] = {1: None, -1: None}
        unit = self.manifest.scale
        if options.normalise == "cosine":
            unit = 1.0 / norm if norm > 0.0 else 0.0
        for ranking in outcome.rankings:
            best = enumerate(ranking.best(), start=1)
            lists[ranking.direction] = tuple(self._hit(rank, one, norm) for rank, one in best)
            if outcome.certified and np.isfinite(ranking.rest):
                bounds[ranking.direction] = max(0.0, ranking.rest * unit)
        manifest = self.manifest
        return Answer(
            query=question.asked,
            proponents=lists[1],
            opponents=lists[-1],
            certificate=Certificate(
                tier=outcome.tier,
                certified=outcome.certified,
                documents=outcome.documents,
                candidates=outcome.candidates,
                backend=options.backend,
                next_proponent=bounds[1],
                next_opponent=bounds[-1],
                recall=outcome.recall,
                background=judged(manifest, outcome.tier, outcome.documents, lists[1], lists[-1]),
            ),
            log_likelihood=encoded.nats,
            scored_tokens=question.scored_tokens,
            sign=options.sign,
            normalise=options.normalise,
            damping=encoded.damping,
            refined=encoded.refined,
            residual=encoded.residual,
            index=self._identity(),
            where=dict(options.where),
            seconds=seconds,
        )

    def _hit(self, rank: int, one: Ranked, query_norm: float) -> Hit:
        document = one.rows.document(one.position)
        norm = one.norm
        score = one.product * self.manifest.scale
        reach = norm * query_norm
        cosine = one.product / reach if reach > 0.0 else 0.0
        return Hit(
            rank=rank,
            doc_id=document.doc_id,
            score=score,
            text=document.text,
            metadata=document.metadata,
            parent_id=document.parent_id,
            char_start=document.char_start,
            tokens=int(one.rows.tokens[one.position]),
            norm=norm,
            cosine=cosine,
            relatif=score / norm if norm > 0.0 else 0.0,
            percentile=percentile(self.manifest, cosine),
        )

    def _identity(self) -> Mapping[str, Any]:
        manifest = self.manifest
        return {
            "path": str(self.path.resolve()),
            "manifest_sha256": manifest.digest,
            "documents": len(self.table),
            "objective": manifest.objective.kind,
            "curvature": manifest.curvature.kind,
            "damping": manifest.curvature.damping,
            "fisher": manifest.curvature.fisher,
            "encoder": manifest.encoder.name,
            "bytes_per_document": manifest.encoder.bytes_per_document,
            "weights_sha256": manifest.model.weights_sha256,
        }


def _stored(found: Found) -> _Outcome:
    """A search by stored scores is proved as it is."""
    return _Outcome("stored", found.rankings, True, found.documents, len(found.scored))


def _norm(query: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.add.reduce(np.square(query.astype(np.float64)))))
