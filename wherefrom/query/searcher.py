"""An index to ask: which documents made the model say that, why these, and how alike they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from wherefrom.query.accelerators import Accelerators
from wherefrom.query.answer import Answer
from wherefrom.query.interpretation.explanation import By, Explanation, Grouping, Similarity
from wherefrom.query.interpretation.interpreter import Interpreter
from wherefrom.query.opened import OpenIndex
from wherefrom.query.options import Choices, QueryOptions
from wherefrom.query.questions import Asked, Queries, Question
from wherefrom.query.sweep import DampingSweep, dampings_around, sweep_of
from wherefrom.records import Normalise, Query, QuerySet, Reduce, Rerank, Sign, Tier
from wherefrom.store import Where
from wherefrom.store.accelerators import AcceleratorKind

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Searcher"]


class Searcher(OpenIndex):
    """A finished index on disk, opened for reading.

    Made by :func:`wherefrom.open` and :func:`wherefrom.build`.

    Attributes:
        path: Its directory.
        manifest: What it was built from and with.
    """

    def query(
        self,
        *,
        prompt: str | None = None,
        completion: str | None = None,
        contrast: str | Tensor | int | None = None,
        inputs: Tensor | None = None,
        target: Tensor | float | None = None,
        queries: Queries | QuerySet | None = None,
        reduce: Reduce = "mean",
        k: int = 10,
        sign: Sign = "both",
        where: Where | None = None,
        damping: float | None = None,
        normalise: Normalise = "none",
        rerank: Rerank = "auto",
        rerank_seconds: float | None = 5.0,
        candidates: int = 100,
        refine: int = 0,
        refine_damping: float | None = None,
        refine_documents: int | None = None,
        backend: str = "scan",
    ) -> Answer:
        """The documents that most influenced an output of the model.

        Args:
            prompt: What the model was given; may be empty. For classifiers of text, the text.
            completion: What it said; for classifiers of text, the label.
            contrast: What it might have said instead, a completion or a target: the measurement is
                the difference of the two log-likelihoods.
            inputs: For tensor indexes, one example ``[...]``.
            target: Its target.
            queries: Several outputs asked about as one, in place of all of the above.
            reduce: Whether their measurement is the ``mean`` or the ``sum``.
            k: At most how many proponents and how many opponents.
            sign: ``both``, ``proponents`` or ``opponents``.
            where: Filter on metadata, as ``{"year": ("<", 1900)}``.
            damping: Another damping than the index's, in the same units; nothing is re-indexed.
            normalise: What to rank by: scores (``none``), their ``cosine`` in the whitened space,
                or ``relatif``, scores divided by the documents' norms (Barshan et al. 2020).
            rerank: ``stored`` ranks by stored vectors; ``recompute`` runs the best documents again
                and ranks them by exact, uncompressed scores; ``auto`` recomputes if that fits
                ``rerank_seconds`` by the speed that the build measured.
            rerank_seconds: What recomputing may take; ``None`` for no limit.
            candidates: How many documents of each sign to recompute.
            refine: Steps of conjugate gradients on the Gauss-Newton matrix of all layers, with the
                curvature as preconditioner; see ``docs/guide.md``.
            refine_damping: Damping of that matrix, in units of the mean eigenvalue of all layers.
            refine_documents: On how many documents it stands; all by default, for those that it
                does not know get too large scores.
            backend: What proposes candidates: ``scan``, or the name of an accelerator that
                :meth:`accelerate` made. Scores do not depend on it.

        Returns:
            The answer; its scores are nats of the measurement per added copy, positive =
            proponent.

        Raises:
            QueryError: The question is not well formed.
            CurvatureError: The damping is not allowed.
            FilterError: The filter is not.
            IntegrityError: Stored rows, or the accelerator, differ from their digests.
        """
        options = QueryOptions(
            k=k,
            sign=sign,
            where=dict(where or {}),
            damping=damping,
            normalise=normalise,
            rerank=rerank,
            rerank_seconds=rerank_seconds,
            candidates=candidates,
            refine=refine,
            refine_damping=refine_damping,
            refine_documents=refine_documents,
            backend=backend,
        )
        question = self._question(
            prompt=prompt,
            completion=completion,
            contrast=contrast,
            inputs=inputs,
            target=target,
            queries=queries,
            reduce=reduce,
        )
        return self._respond([question], options)[0]

    def answers(self, queries: Queries, **options: Unpack[Choices]) -> list[Answer]:
        """An answer to each of several questions, which share one scan of the index.

        They are, to the last bit, what :meth:`query` answers one by one.

        Args:
            queries: Text queries, sets of them, or ``(inputs, targets)`` tensors.
            **options: How to answer, as in :meth:`query`: ``k``, ``sign``, ``where``, ...

        Raises:
            QueryError: A question is not well formed.
        """
        asked = self.questions(queries)
        return self._respond(asked, QueryOptions(**options)) if asked else []

    def sweep_damping(
        self,
        *,
        dampings: Sequence[float] | None = None,
        k: int = 10,
        **asked: Unpack[Asked],
    ) -> DampingSweep:
        """How stable a ranking of stored scores is under other dampings; nothing is re-indexed.

        Args:
            dampings: What to try; by default a tenth to ten times the index's own.
            k: How many of each sign to compare.
            **asked: The question, as in :meth:`query`: ``prompt`` and ``completion``, ``inputs``
                and ``target``, or ``queries``.

        Raises:
            QueryError: The question is not well formed.
            CurvatureError: A damping is not allowed.
        """
        options = QueryOptions(k=k)
        question = self._question(**asked)
        own = self.manifest.curvature.damping
        tried = dampings_around(own, dampings)
        encoded = [
            self._responder.encoded([question], replace(options, damping=damping))[0]
            for damping in (None, *tried)
        ]
        reference, *others = self._stored_scores(np.stack([one.vector for one in encoded]))
        return sweep_of(
            question.asked,
            self.manifest.objective.kind,
            own,
            tried,
            reference,
            np.stack(others),
            [one.residual for one in encoded[1:]],
            self.doc_ids(),
            k,
        )

    def accelerate(self, kind: AcceleratorKind) -> None:
        """Make a vector index that proposes candidates, and record it in the manifest.

        Args:
            kind: ``faiss-flat``, ``faiss-sq8``, ``faiss-rabitq`` or ``lance-ivf``; ask with
                ``query(..., backend=kind)``.

        Raises:
            QueryError: The kind is unknown.
            MissingExtraError: FAISS is not installed.
            StorageError: The disk refuses.
        """
        self.manifest = self._accelerators.build(kind)
        for made in ("_responder", "_accelerators", "_interpreter"):
            self.__dict__.pop(made, None)

    def explain(
        self,
        asked: Answer | Query | QuerySet,
        *,
        by: By | None = None,
        doc_ids: Sequence[str] | None = None,
        damping: float | None = None,
        **tensors: Unpack[Asked],
    ) -> Explanation:
        """What scores are made of: shares of layers, and of tokens on both sides.

        Every kind of share sums to the exact, uncompressed score of the document, whichever tier
        the answer shows. A token's share is that of its *prediction*: it stands on the token whose
        prediction it comes from. Where a text has one prediction only, its label, shares are of
        what layers did at each token's *position*; ``tokens_are`` says which.

        Args:
            asked: An answer of this index, or a question.
            by: ``layer`` or ``token`` only; both by default.
            doc_ids: Which documents; the hits of the answer by default.
            damping: For a question, another than the index's; an answer brings its own.
            **tensors: For tensor indexes, what was asked with: ``inputs``, ``target``, ...

        Raises:
            QueryError: A question comes without documents, an answer about tensors without
                them, or a document is unknown.
            MismatchError: The answer is another index's.
            ModelError: The model cannot be run in forward mode, which shares of tokens need.
        """
        return self._interpreter.explain(asked, by, doc_ids, damping, tensors)

    def similarity(self, answer: Answer, *, most_similar: int = 10) -> Similarity:
        """How alike hits and question are in words, beside influence.

        BM25 score and rank among all documents searched, the longest run of words that a document
        shares with the question, near-duplicates among the hits; and the documents most like the
        question in words, with their exact influence.

        Args:
            answer: Of this index, about text.
            most_similar: How many of the most similar documents to score.

        Raises:
            QueryError: The answer is about tensors.
            MismatchError: The answer is another index's.
        """
        return self._interpreter.similarity(answer, most_similar)

    def groups(
        self,
        asked: Answer | Query | QuerySet,
        by: str,
        *,
        tier: Tier = "stored",
        bins: int | None = None,
        where: Where | None = None,
        damping: float | None = None,
        **tensors: Unpack[Asked],
    ) -> Grouping:
        """Influence summed by a metadata column, over all documents and not the hits only.

        Args:
            asked: An answer of this index, whose filter applies, or a question.
            by: The column.
            tier: ``stored`` sums scores of the stored vectors, whose noise averages out; ``exact``
                runs all documents again.
            bins: Cut a column of numbers into so many bins of about equally many documents.
            where: Sum over documents that pass this filter; by default the answer's.
            damping: For a question, another than the index's; an answer brings its own.
            **tensors: For tensor indexes, what was asked with: ``inputs``, ``target``, ...

        Raises:
            FilterError: There is no such column, or the filter is not well formed.
            QueryError: The column has too many values, or bins do not apply to it.
            MismatchError: The answer is another index's.
        """
        (found,) = self._interpreter.groups(asked, {by: bins}, tier, where, damping, tensors)
        return found

    def annotate(
        self,
        answer: Answer,
        *,
        explain: bool = True,
        similarity: bool = True,
        group_by: Sequence[str] | Mapping[str, int | None] = (),
        **tensors: Unpack[Asked],
    ) -> Answer:
        """The answer with shares, similarity and groups in it, for reports and exports.

        Args:
            answer: Of this index.
            explain: Add :meth:`explain`.
            similarity: Add :meth:`similarity`; left out for tensors.
            group_by: Add :meth:`groups` of these columns; a mapping says into how many bins
                each is cut.
            **tensors: For tensor indexes, what was asked with: ``inputs``, ``target``, ...

        Raises:
            WherefromError: As those three.
        """
        columns = group_by if isinstance(group_by, Mapping) else dict.fromkeys(group_by)
        added = (
            self._interpreter.groups(answer, columns, "stored", None, None, tensors)
            if columns
            else ()
        )
        return replace(
            answer,
            explanation=self.explain(answer, **tensors) if explain else answer.explanation,
            similarity=(
                self.similarity(answer)
                if similarity and answer.query is not None
                else answer.similarity
            ),
            groups=(*answer.groups, *added),
        )

    @cached_property
    def _interpreter(self) -> Interpreter:
        return Interpreter(self.manifest, self._table, self._responder, self._question)

    @cached_property
    def _accelerators(self) -> Accelerators:
        return Accelerators(self.location, self.manifest, self._table, self._device)

    def _respond(self, asked: Sequence[Question], options: QueryOptions) -> list[Answer]:
        accelerator = self._accelerators.open(options.backend)
        return self._responder.respond(asked, options, accelerator)
