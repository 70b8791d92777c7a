"""From an answer to what stands behind it: its question explained, compared and summed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from wherefrom.errors import MismatchError, QueryError
from wherefrom.query.answer import Answer
from wherefrom.query.asker import Asker
from wherefrom.query.documents import document_batches, row_blocks
from wherefrom.query.exact import exact_products
from wherefrom.query.interpretation.explain import Explainer
from wherefrom.query.interpretation.explanation import By, Explanation, Grouping, Similarity
from wherefrom.query.interpretation.groups import grouping
from wherefrom.query.interpretation.lexical import Lexicon
from wherefrom.query.interpretation.similarity import similarity_of
from wherefrom.query.options import QueryOptions
from wherefrom.query.questions import Asked, Question
from wherefrom.query.reading import ordinals_of, rows_of
from wherefrom.query.respond import Responder
from wherefrom.query.search import inner_products
from wherefrom.query.solution import Solution, exactly, solve
from wherefrom.records import Query, QuerySet, Tier
from wherefrom.store import DocumentTable, Manifest, Where

__all__ = ["Interpreter"]


@dataclass(frozen=True, eq=False)
class Interpreter:
    """An open index with its model, asked about answers.

    Attributes:
        manifest: Of the index.
        table: Its documents.
        responder: Encodes questions as answers had them encoded.
        question: Makes a question of its parts, as :meth:`wherefrom.Index.query` takes them.
    """

    manifest: Manifest
    table: DocumentTable
    responder: Responder
    question: Callable[..., Question]

    def explain(
        self,
        asked: Answer | Query | QuerySet,
        by: By | None,
        doc_ids: Sequence[str] | None,
        damping: float | None,
        tensors: Asked,
    ) -> Explanation:
        """See :meth:`wherefrom.Index.explain`."""
        if by not in (None, "layer", "token"):
            raise QueryError(f"by={by!r} is unknown; give 'layer' or 'token', or leave it out")
        if doc_ids is None:
            if not isinstance(asked, Answer):
                raise QueryError("a question has no documents yet; give doc_ids=, or an answer")
            doc_ids = [hit.doc_id for hit in asked.hits]
        question, options = self._asked_again(asked, tensors, damping)
        if by == "token" and question.asked is None:
            raise QueryError("this index holds tensors, which have no tokens; give by='layer'")
        curvature = None
        if not options.refine:
            curvature = self._asker.encoder.curvature
            if options.damping is not None:
                curvature = curvature.with_damping(options.damping)
        explainer = Explainer(
            self._asker, question, self._solution(question, options), curvature, self.manifest.scale
        )
        return explainer.explain(rows_of(self.table, ordinals_of(self.table, doc_ids)), by)

    def similarity(self, answer: Answer, most_similar: int) -> Similarity:
        """See :meth:`wherefrom.Index.similarity`."""
        if answer.query is None:
            raise QueryError("similarity compares words, and this answer is about tensors")
        question, options = self._asked_again(answer, {}, None)
        solution = self._solution(question, options)

        def influence(
            ordinals: NDArray[np.int64],
        ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
            rows = rows_of(self.table, ordinals)
            products, norms = exactly(self._asker, self.manifest, solution, rows)
            reach = norms * solution.norm
            cosines = np.divide(products, reach, out=np.zeros_like(products), where=reach > 0.0)
            return products * self.manifest.scale, cosines

        return similarity_of(
            answer,
            self.manifest,
            self.table,
            self._lexicon,
            influence,
            most_similar=most_similar,
        )

    def groups(
        self,
        asked: Answer | Query | QuerySet,
        columns: Mapping[str, int | None],
        tier: Tier,
        where: Where | None,
        damping: float | None,
        tensors: Asked,
    ) -> list[Grouping]:
        """See :meth:`wherefrom.Index.groups`; scores are computed once for all columns.

        Args:
            asked: An answer, or a question.
            columns: Into how many bins each is cut.
            tier: Of the scores.
            where: Which documents; by default the answer's filter.
            damping: Of a question, if not the index's.
            tensors: What a question about tensors was asked with.
        """
        if tier not in ("stored", "exact"):
            raise QueryError(f"tier={tier!r} is unknown; give 'stored' or 'exact'")
        question, options = self._asked_again(asked, tensors, damping)
        chosen = self.table.facts.where(options.where if where is None else where)
        values = {by: self.table.facts.column(by, chosen) for by in columns}
        if tier == "stored":
            scores = self._stored(question, options, chosen)
        else:
            solution = self._solution(question, options)
            extractor = self._asker.extractor
            documents = document_batches(self.table, extractor, chosen)
            count = len(self.table)
            scores = exact_products(extractor, solution.raw, documents, count)[0][chosen]
        nats = scores * self.manifest.scale
        return [grouping(values[by], nats, by, tier, bins=bins) for by, bins in columns.items()]

    def _stored(
        self, question: Question, options: QueryOptions, chosen: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Inner products of stored vectors, float64 ``[chosen document]``."""
        (encoded,) = self.responder.encoded([question], options)
        found = [
            inner_products(rows.vectors, encoded.vector[None])[0]
            for _, rows in row_blocks(self.table, chosen)
        ]
        return np.concatenate([np.empty(0), *found])

    @property
    def _asker(self) -> Asker:
        return self.responder.asker

    @cached_property
    def _lexicon(self) -> Lexicon:
        return Lexicon.of_table(self.table)

    def _solution(self, question: Question, options: QueryOptions) -> Solution:
        """The question solved for as the answer was: refined anew, if it was refined."""
        encoded = None
        if options.refine:
            (encoded,) = self.responder.encoded([question], options)
        return solve(self._asker, question, options.damping, encoded)

    def _asked_again(
        self,
        asked: Answer | Query | QuerySet,
        tensors: Asked,
        damping: float | None,
    ) -> tuple[Question, QueryOptions]:
        """The question of an answer, and how it was asked.

        Raises:
            MismatchError: The answer is another index's.
            QueryError: It is about tensors, and they are not given.
        """
        query: Query | QuerySet | None
        if not isinstance(asked, Answer):
            options, query = QueryOptions(damping=damping), asked
        elif damping is not None:
            raise QueryError("damping= is of a question; the answer was asked with its own")
        else:
            if asked.index.get("manifest_sha256") != self.manifest.digest:
                raise MismatchError(
                    "the answer is of another index (manifest "
                    f"{str(asked.index.get('manifest_sha256'))[:12]}, here "
                    f"{self.manifest.digest[:12]}); ask this one again"
                )
            options, query = QueryOptions(**asked.options), asked.query
        if query is None:
            if not tensors:
                raise QueryError(
                    "the answer is about tensors, which it does not keep; give what it was asked "
                    "with: inputs= and target="
                )
            return self.question(**tensors), options
        if tensors:
            raise QueryError(f"{min(tensors)}= goes with tensors, and the question is text")
        if isinstance(query, QuerySet):
            return self.question(queries=query), options
        text = {"prompt": query.prompt, "completion": query.completion, "contrast": query.contrast}
        return self.question(**text), options
