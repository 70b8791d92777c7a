"""An open index: ask it, read its vectors, compute exact scores."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from wherefrom.curvature.fitted import FittedCurvature
from wherefrom.errors import ModelError, QueryError
from wherefrom.gradients.models import ModelSource
from wherefrom.gradients.objectives import Objective
from wherefrom.query.accelerators import Accelerators
from wherefrom.query.answer import Answer
from wherefrom.query.asker import Asker, load_asker
from wherefrom.query.documents import document_batches, row_blocks
from wherefrom.query.exact import energies, every_product
from wherefrom.query.options import Choices, QueryOptions
from wherefrom.query.questions import Asked, Queries, Question, ask, questions
from wherefrom.query.respond import Responder
from wherefrom.query.search import inner_products
from wherefrom.query.sweep import DampingSweep, dampings_around, sweep_of
from wherefrom.records import Normalise, QuerySet, Reduce, Rerank, Sign, Tier
from wherefrom.store import SCAN_DIRECTORY, DocumentTable, Manifest, ScanCopy, Where
from wherefrom.store.accelerators import AcceleratorKind

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Index"]


class Index:
    """A finished index on disk, opened for reading.

    Made by :func:`wherefrom.open` and :func:`wherefrom.build`.

    Attributes:
        path: Its directory.
        manifest: What it was built from and with.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        model: ModelSource | None = None,
        base_model: ModelSource | None = None,
        objective: Objective | None = None,
        device: str = "auto",
    ) -> None:
        """Open an index and the model it was built with.

        Args:
            path: The index.
            model: The model; by default the one that the manifest names, where it names one.
            base_model: The model that an adapter is for; by default the one the manifest names.
            objective: Needed for an objective of your own only.
            device: Where to run the model.

        Raises:
            NotAnIndexError: The path holds no index.
            UnfinishedIndexError: It holds an interrupted build.
            MismatchError: The model or tokenizer is another one than the index was built with.
            ModelError: The model that the manifest names cannot be loaded.
            IntegrityError: Files are missing or differ from their digests.
        """
        self.path = Path(path)
        self.manifest = Manifest.read(self.path)
        self._device = device
        self._table = DocumentTable.open(self.path, self.manifest)
        self._scan = ScanCopy.open(self.path / SCAN_DIRECTORY, self.manifest.scan)
        record = self.manifest.model
        named = record.source is not None or (record.adapter and record.adapter.source) is not None
        self._asker = (
            load_asker(self.path, self.manifest, model, base_model, objective, device)
            if named or model is not None
            else None
        )

    def __len__(self) -> int:
        """Number of indexed documents (passages count one each)."""
        return len(self._table)

    @property
    def curvature(self) -> FittedCurvature:
        """The fitted curvature.

        Raises:
            ModelError: The index was opened without its model.
        """
        return self.asker.encoder.curvature

    @property
    def asker(self) -> Asker:
        """The model side: model, objective, layers, encoder.

        Raises:
            ModelError: The index was opened without its model.
        """
        if self._asker is None:
            raise ModelError(
                f"{self.path} was built from a model in memory, which it cannot load by itself; "
                "open it with wf.open(path, model=your_model)"
            )
        return self._asker

    @property
    def table(self) -> DocumentTable:
        """The stored documents."""
        return self._table

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
        rerank_seconds: float = 5.0,
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
            rerank_seconds: What recomputing may take.
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
        self.__dict__.pop("_responder", None)
        self.__dict__.pop("_accelerators", None)

    def encode(self, queries: Queries, *, damping: float | None = None) -> NDArray[np.float32]:
        """The vectors that stored vectors are searched with, ``[query, dimension]``.

        ``index.vectors() @ index.encode(queries).T / len(index)`` are the stored scores.
        """
        asked = self.questions(queries)
        if not asked:
            return np.empty((0, self.manifest.encoder.dimension), np.float32)
        encoded = self._responder.encoded(asked, QueryOptions(damping=damping))
        return np.stack([one.vector for one in encoded])

    def vectors(self) -> NDArray[np.float32]:
        """All stored vectors, ``[document, dimension]``, in the order of :meth:`doc_ids`."""
        out = np.empty((len(self), self.manifest.encoder.dimension), np.float32)
        for positions, rows in row_blocks(self._table):
            out[positions] = rows.vectors
        return out

    def questions(self, queries: Queries) -> list[Question]:
        """What is differentiated for each query.

        Raises:
            QueryError: A query is not well formed or of the wrong kind for the index.
        """
        return list(questions(self.asker.extractor.objective, self.manifest.inputs, queries))

    def doc_ids(self) -> list[str]:
        """Ids of all documents, in the order of the index."""
        return self._table.doc_ids()

    def scores(
        self, queries: Queries, *, tier: Tier = "exact", damping: float | None = None
    ) -> NDArray[np.float64]:
        """Influence of every document on every query.

        Args:
            queries: Text queries, sets of them, or tensors.
            tier: ``exact`` runs all documents through the model again, uncompressed; ``stored``
                takes inner products of stored vectors.
            damping: Another damping than the index's.

        Returns:
            float64 ``[query, document]`` nats per added copy, documents as in :meth:`doc_ids`.
        """
        if tier == "stored":
            return self._stored_scores(self.encode(queries, damping=damping))
        if tier != "exact":
            raise QueryError(f"tier={tier!r} is unknown; give 'exact' or 'stored'")
        asker = self.asker
        asked = self.questions(queries)
        curvature = asker.encoder.curvature
        if damping is not None:
            curvature = curvature.with_damping(damping)
        products = every_product(
            asker.extractor,
            curvature,
            asked,
            lambda: document_batches(self._table, asker.extractor),
            len(self),
        )
        return products * self.manifest.scale

    def self_influence(self) -> NDArray[np.float64]:
        """Influence of every document on itself, float64 ``[document]``, never negative.

        Free of compression: from the norms of whitened gradients where the index holds those, else
        by running all documents through the model again.

        Raises:
            ModelError: They must be run again, but the index was opened without its model.
        """
        if self.manifest.curvature.whitened and self.manifest.encoder.reduce != "energy":
            return np.square(self._scan.whole) * self.manifest.scale
        asker = self.asker
        documents = document_batches(self._table, asker.extractor)
        found = energies(asker.extractor, asker.encoder.curvature, documents, len(self))
        return found * self.manifest.scale

    @cached_property
    def _responder(self) -> Responder:
        return Responder(self.path, self.manifest, self._table, self._scan, self.asker)

    @cached_property
    def _accelerators(self) -> Accelerators:
        return Accelerators(self.path, self.manifest, self._table, self._device)

    def _respond(self, asked: Sequence[Question], options: QueryOptions) -> list[Answer]:
        accelerator = self._accelerators.open(options.backend)
        return self._responder.respond(asked, options, accelerator)

    def _question(self, **asked: Unpack[Asked]) -> Question:
        return ask(self.asker.extractor.objective, self.manifest.inputs, **asked)

    def _stored_scores(self, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
        out = np.empty((len(vectors), len(self)))
        for positions, rows in row_blocks(self._table):
            out[:, positions] = inner_products(rows.vectors, vectors)
        return out * self.manifest.scale
