"""An open index: ask it, read its vectors, compute exact scores."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from wherefrom.curvature.fitted import FittedCurvature
from wherefrom.errors import ModelError, QueryError
from wherefrom.gradients.batches import Batch
from wherefrom.gradients.examples import (
    Examples,
    TensorExamples,
    TextExamples,
    batches,
    documents_at_once,
)
from wherefrom.gradients.models import ModelSource
from wherefrom.gradients.objectives import Objective, TextObjective
from wherefrom.query.answer import Answer
from wherefrom.query.asker import Asker, load_asker
from wherefrom.query.exact import energies, exact_products, preconditioned
from wherefrom.query.questions import (
    Asked,
    EncodedQuestion,
    Queries,
    Question,
    ask,
    encode,
    questions,
)
from wherefrom.query.search import inner_products, search
from wherefrom.query.sweep import DampingSweep, dampings_around, sweep_of
from wherefrom.records import Certificate, Document, Hit, QuerySet, Reduce, Sign
from wherefrom.store import SCAN_DIRECTORY, DocumentTable, Manifest, ScanCopy, StoredRows, Where

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Index", "Tier"]

Tier = Literal["stored", "exact"]

_ROWS_PER_READ = 1024
_QUERY_BYTES = 1 << 30


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
        return self._model().encoder.curvature

    def _model(self) -> Asker:
        if self._asker is None:
            raise ModelError(
                f"{self.path} was built from a model in memory, which it cannot load by itself; "
                "open it with wf.open(path, model=your_model)"
            )
        return self._asker

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

        Returns:
            The answer; its scores are nats of the measurement per added copy, positive =
            proponent.

        Raises:
            QueryError: The question is not well formed.
            CurvatureError: The damping is not allowed.
            FilterError: The filter is not.
        """
        started = time.perf_counter()
        _require_count(k)
        if sign not in ("both", "proponents", "opponents"):
            raise QueryError(f"sign={sign!r} is unknown; give 'both', 'proponents' or 'opponents'")
        question = self._question(
            prompt=prompt,
            completion=completion,
            contrast=contrast,
            inputs=inputs,
            target=target,
            queries=queries,
            reduce=reduce,
        )
        (encoded,) = self._encoded([question], damping)
        ordinals = self._table.where(where) if where else None
        found = search(self._table, self._scan, encoded.vector, k, sign=sign, ordinals=ordinals)
        scale = self.manifest.scale
        proponents, opponents = self._hits(found.proponents, found.opponents)
        bound = None if found.next_bound is None else found.next_bound * scale
        return Answer(
            query=question.asked,
            proponents=proponents,
            opponents=opponents,
            certificate=Certificate("stored", True, found.documents, found.candidates, bound),
            log_likelihood=encoded.nats,
            scored_tokens=question.scored_tokens,
            damping=self.manifest.curvature.damping if damping is None else damping,
            residual=encoded.residual,
            index=self._identity(),
            where=dict(where or {}),
            seconds=time.perf_counter() - started,
        )

    def sweep_damping(
        self,
        *,
        dampings: Sequence[float] | None = None,
        k: int = 10,
        **asked: Unpack[Asked],
    ) -> DampingSweep:
        """How stable a ranking is under other dampings; nothing is re-indexed.

        Args:
            dampings: What to try; by default a tenth to ten times the index's own.
            k: How many of each sign to compare.
            **asked: The question, as in :meth:`query`: ``prompt`` and ``completion``, ``inputs``
                and ``target``, or ``queries``.

        Raises:
            QueryError: The question is not well formed.
            CurvatureError: A damping is not allowed.
        """
        _require_count(k)
        question = self._question(**asked)
        own = self.manifest.curvature.damping
        tried = dampings_around(own, dampings)
        encoded = [self._encoded([question], damping)[0] for damping in (None, *tried)]
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

    def _question(self, **asked: Unpack[Asked]) -> Question:
        return ask(self._model(), self.manifest.inputs, **asked)

    def _encoded(self, asked: Sequence[Question], damping: float | None) -> list[EncodedQuestion]:
        asker = self._model()
        with asker.extractor.session():
            return [encode(asker, question, damping) for question in asked]

    def _hits(self, *lists: Sequence[tuple[int, float]]) -> list[tuple[Hit, ...]]:
        """Hits for lists of ``(ordinal, inner product)``; their rows are read at once."""
        ordinals = [ordinal for found in lists for ordinal, _ in found]
        if not ordinals:
            return [() for _ in lists]
        rows = self._table.rows(np.array(ordinals))
        facts = iter(zip(rows.documents(), rows.tokens.tolist(), rows.norms.tolist(), strict=True))
        return [
            tuple(
                self._hit(rank, product, *next(facts))
                for rank, (_, product) in enumerate(found, start=1)
            )
            for found in lists
        ]

    def _hit(self, rank: int, product: float, document: Document, tokens: int, norm: float) -> Hit:
        return Hit(
            rank=rank,
            doc_id=document.doc_id,
            score=product * self.manifest.scale,
            text=document.text,
            metadata=document.metadata,
            parent_id=document.parent_id,
            char_start=document.char_start,
            tokens=tokens,
            norm=norm,
        )

    def _identity(self) -> Mapping[str, Any]:
        manifest = self.manifest
        return {
            "path": str(self.path.resolve()),
            "manifest_sha256": manifest.digest,
            "documents": len(self),
            "objective": manifest.objective.kind,
            "curvature": manifest.curvature.kind,
            "damping": manifest.curvature.damping,
            "fisher": manifest.curvature.fisher,
            "encoder": manifest.encoder.kind,
            "bytes_per_document": manifest.encoder.bytes_per_document,
            "weights_sha256": manifest.model.weights_sha256,
        }

    def encode(self, queries: Queries, *, damping: float | None = None) -> NDArray[np.float32]:
        """The vectors that stored vectors are searched with, ``[query, dimension]``.

        ``index.vectors() @ index.encode(queries).T / len(index)`` are the stored scores.
        """
        asked = list(questions(self._model(), self.manifest.inputs, queries))
        vectors = [encoded.vector for encoded in self._encoded(asked, damping)]
        return (
            np.stack(vectors) if vectors else np.empty((0, self.manifest.encoder.dimension), "f4")
        )

    def vectors(self) -> NDArray[np.float32]:
        """All stored vectors, ``[document, dimension]``, in the order of :meth:`doc_ids`."""
        out = np.empty((len(self), self.manifest.encoder.dimension), np.float32)
        for start, rows in self._rows():
            out[start : start + len(rows)] = rows.codes
        return out

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
                takes inner products of stored vectors, as :meth:`query` does.
            damping: Another damping than the index's.

        Returns:
            float64 ``[query, document]`` nats per added copy, documents as in :meth:`doc_ids`.
        """
        if tier == "stored":
            return self._stored_scores(self.encode(queries, damping=damping))
        if tier != "exact":
            raise QueryError(f"tier={tier!r} is unknown; give 'exact' or 'stored'")
        asker = self._model()
        asked = list(questions(asker, self.manifest.inputs, queries))
        if not asked:
            return np.empty((0, len(self)))
        curvature = asker.encoder.curvature
        if damping is not None:
            curvature = curvature.with_damping(damping)
        # Preconditioned queries are as large as the layers: as many at once as memory should hold.
        size = sum(layer.size for layer in asker.extractor.layers)
        at_once = max(1, _QUERY_BYTES // (8 * size))
        found = []
        for start in range(0, len(asked), at_once):
            solved = preconditioned(asker.extractor, curvature, asked[start : start + at_once])
            found.append(exact_products(asker.extractor, solved, self._documents(), len(self)))
        return np.concatenate(found) * self.manifest.scale

    def _stored_scores(self, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
        out = np.empty((len(vectors), len(self)))
        for start, rows in self._rows():
            out[:, start : start + len(rows)] = inner_products(rows.codes, vectors)
        return out * self.manifest.scale

    def self_influence(self) -> NDArray[np.float64]:
        """Influence of every document on itself, float64 ``[document]``, never negative.

        Free of compression: from the norms of whitened gradients where the index holds those, else
        by running all documents through the model again.

        Raises:
            ModelError: They must be run again, but the index was opened without its model.
        """
        if self.manifest.curvature.whitened:
            norms = [rows.norms for _, rows in self._rows()]
            return np.square(np.concatenate(norms)) * self.manifest.scale
        asker = self._model()
        found = energies(asker.extractor, asker.encoder.curvature, self._documents(), len(self))
        return found * self.manifest.scale

    def _rows(self) -> Iterator[tuple[int, StoredRows]]:
        start = 0
        size = max(1, min(_ROWS_PER_READ, (1 << 25) // self.manifest.encoder.dimension))
        for rows in self._table.batches(size):
            yield start, rows
            start += len(rows)

    def _documents(self) -> Iterator[tuple[NDArray[np.int64], Batch]]:
        """All documents in batches for the model, with their positions in the index."""
        extractor = self._model().extractor
        objective = extractor.objective
        at_once = documents_at_once(32, extractor.layers, objective.copies)
        for start, rows in self._rows():
            examples: Examples
            if rows.inputs is not None and rows.targets is not None:
                examples = TensorExamples(rows.inputs, rows.targets, rows.doc_ids)
            elif isinstance(objective, TextObjective):
                examples = TextExamples.of(rows.documents(), objective)
            else:
                raise ModelError(f"{objective.kind} reads tensors, but this index holds text")
            for chosen, batch in batches(examples, max_documents=at_once):
                yield chosen + start, batch


def _require_count(k: int) -> None:
    if isinstance(k, bool) or not isinstance(k, int) or k <= 0:
        raise QueryError(f"k={k!r} is not allowed; give a whole number of at least 1")
