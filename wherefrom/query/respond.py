"""From questions to answers: encode -> search -> recompute -> certify.

Stored scores find the documents; where the time allows it, the best of them are scored again by
running their gradients, uncompressed, and only these exact scores are shown.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wherefrom.query.answer import Answer
from wherefrom.query.asker import Asker
from wherefrom.query.background import judged, percentile
from wherefrom.query.options import QueryOptions
from wherefrom.query.questions import EncodedQuestion, Question, encode
from wherefrom.query.recall import SAMPLE
from wherefrom.query.recompute import Outcome, Recomputer
from wherefrom.query.refinement import FEWEST_BITS, refined
from wherefrom.query.scan import Scan
from wherefrom.query.search import DIRECTIONS, CertifiedSearch, Ranked
from wherefrom.records import Certificate, Hit
from wherefrom.store import DocumentTable, Location, Manifest, ScanCopy
from wherefrom.store.accelerators import Accelerator

__all__ = ["Responder"]

_TOGETHER = 64
"""Questions that share one scan."""


@dataclass(frozen=True, slots=True)
class Responder:
    """An open index with its model.

    Attributes:
        location: Of the index.
        manifest: Of the index.
        table: Its documents.
        copy: Its scan copy.
        asker: Model and encoder.
        scan: Over the scan copy, here or elsewhere.
    """

    location: Location
    manifest: Manifest
    table: DocumentTable
    copy: ScanCopy
    asker: Asker
    scan: Scan

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
        ordinals = self.table.facts.where(options.where) if options.where else None
        search = CertifiedSearch(self.table, self.scan, accelerator)
        # A refined question holds all its layers' weights: one at a time.
        size = 1 if options.refine else _TOGETHER
        return [
            answer
            for start in range(0, len(questions), size)
            for answer in self._group(questions[start : start + size], options, ordinals, search)
        ]

    def _group(
        self,
        questions: Sequence[Question],
        options: QueryOptions,
        ordinals: NDArray[np.int64] | None,
        search: CertifiedSearch,
    ) -> list[Answer]:
        """Answer questions that share one scan."""
        started = time.perf_counter()
        documents = len(self.table) if ordinals is None else len(ordinals)
        recompute = self._recomputes(options, documents)
        if options.refine and not recompute and self.table.layout.bits < FEWEST_BITS:
            warnings.warn(
                f"the index stores {self.table.layout.bits}-bit codes, which spoil what refine= "
                f"gains in stored scores; build with bits={FEWEST_BITS} or more, or ask with "
                "rerank='recompute'",
                stacklevel=5,
            )
        encoded = self.encoded(questions, options)
        found = search.search(
            np.stack([one.vector for one in encoded]),
            max(options.k, options.candidates) if recompute else options.k,
            sign=options.sign,
            ordinals=ordinals,
            normalised=options.normalise != "none",
        )
        recomputer = Recomputer(
            self.manifest, self.table, self.copy, self.asker, search, options, ordinals
        )
        answers = []
        for question, one, stored in zip(questions, encoded, found, strict=True):
            outcome = Outcome.of_stored(stored, one)
            if recompute:
                outcome = recomputer.outcome(question, one, stored)
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
        return options.in_time(speed * min(documents, most))

    def _answer(
        self,
        question: Question,
        encoded: EncodedQuestion,
        outcome: Outcome,
        options: QueryOptions,
        seconds: float,
    ) -> Answer:
        norm = outcome.query_norm
        lists: dict[int, tuple[Hit, ...]] = {1: (), -1: ()}
        bounds: dict[int, float | None] = {1: None, -1: None}
        unit = self.manifest.scale
        if options.normalise == "cosine":
            unit = 1.0 / norm if norm > 0.0 else 0.0
        # The background was measured under the index's own damping.
        comparable = not encoded.refined and encoded.damping == self.manifest.curvature.damping
        for ranking in outcome.rankings:
            lists[ranking.direction] = tuple(
                self._hit(rank, one, norm, comparable=comparable)
                for rank, one in enumerate(ranking.best(), start=1)
            )
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
                slope=self._slope(outcome),
                recall=outcome.recall,
                background=(
                    judged(manifest, outcome.tier, outcome.documents, lists[1], lists[-1])
                    if comparable and options.normalise == "none"
                    else None
                ),
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
            options=asdict(options),
            seconds=seconds,
        )

    def _slope(self, outcome: Outcome) -> float | None:
        fidelity = self.manifest.encoder.fidelity
        return fidelity.slope if outcome.tier == "stored" and fidelity is not None else None

    def _hit(self, rank: int, one: Ranked, query_norm: float, *, comparable: bool) -> Hit:
        (document,) = one.rows.documents()
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
            tokens=int(one.rows.tokens[0]),
            norm=norm,
            cosine=cosine,
            relatif=score / norm if norm > 0.0 else 0.0,
            percentile=percentile(self.manifest, cosine) if comparable else None,
        )

    def _identity(self) -> Mapping[str, Any]:
        manifest = self.manifest
        return {
            "path": self.location.full,
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
