"""An open index: ask it, read its vectors, compute exact scores."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wherefrom.curvature.ekfac import FittedEKFAC
from wherefrom.errors import ModelError, QueryError
from wherefrom.gradients.batches import Batch, stack_examples
from wherefrom.gradients.examples import Examples, TensorExamples, TextExamples, batches
from wherefrom.gradients.objectives import Objective
from wherefrom.gradients.tokens import tokenise_query
from wherefrom.query.answer import Answer
from wherefrom.query.asker import Asker, load_asker
from wherefrom.query.exact import exact_products, preconditioned
from wherefrom.query.search import inner_products, search
from wherefrom.records import Certificate, Document, Hit, Query, Sign
from wherefrom.store import SCAN_DIRECTORY, DocumentTable, Manifest, ScanCopy, StoredRows, Where

if TYPE_CHECKING:
    pass

__all__ = ["Index", "Queries", "Tier"]

Queries = Sequence[Query] | tuple[Tensor, Tensor]
"""Text queries, or ``(inputs, targets)`` tensors whose first dimension is the query."""

Tier = Literal["stored", "exact"]

_ROWS_PER_READ = 1024
_MOST_POSITIONS = 2048


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
        model: nn.Module | str | os.PathLike[str] | None = None,
        objective: Objective | None = None,
        device: str = "auto",
    ) -> None:
        """Open an index and the model it was built with.

        Args:
            path: The index.
            model: The model; by default the one that the manifest names, where it names one.
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
        given = model if model is not None else self.manifest.model.source
        self._asker = (
            None
            if given is None
            else load_asker(self.path, self.manifest, given, objective, device)
        )

    def __len__(self) -> int:
        """Number of indexed documents (passages count one each)."""
        return len(self._table)

    @property
    def curvature(self) -> FittedEKFAC:
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
        inputs: Tensor | None = None,
        target: Tensor | int | None = None,
        k: int = 10,
        sign: Sign = "both",
        where: Where | None = None,
    ) -> Answer:
        """The documents that most influenced an output of the model.

        Args:
            prompt: What the model was given; may be empty.
            completion: What it said.
            inputs: For classifiers, one example ``[...]``.
            target: Its label.
            k: At most how many proponents and how many opponents.
            sign: ``both``, ``proponents`` or ``opponents``.
            where: Filter on metadata, as ``{"year": ("<", 1900)}``.

        Returns:
            The answer; its scores are nats of log-likelihood per added copy, positive = proponent.

        Raises:
            QueryError: The question is not well formed.
            FilterError: The filter is not.
        """
        started = time.perf_counter()
        if isinstance(k, bool) or not isinstance(k, int) or k <= 0:
            raise QueryError(f"k={k!r} is not allowed; give a whole number of at least 1")
        if sign not in ("both", "proponents", "opponents"):
            raise QueryError(f"sign={sign!r} is unknown; give 'both', 'proponents' or 'opponents'")
        asked, batch = self._question(prompt, completion, inputs, target)
        asker = self._model()
        with asker.extractor.session():
            encoded = asker.encoder.encode(asker.extractor, batch)
        ordinals = self._table.where(where) if where else None
        found = search(self._table, self._scan, encoded.vectors[0], k, sign=sign, ordinals=ordinals)
        scale = self.manifest.scale
        proponents, opponents = self._hits(found.proponents, found.opponents)
        bound = None if found.next_bound is None else found.next_bound * scale
        return Answer(
            query=asked,
            proponents=proponents,
            opponents=opponents,
            certificate=Certificate("stored", True, found.documents, found.candidates, bound),
            log_likelihood=float(encoded.nats[0]),
            scored_tokens=int(
                batch.targets.numel() if batch.scored is None else batch.scored.sum()
            ),
            index=self._identity(),
            where=dict(where or {}),
            seconds=time.perf_counter() - started,
        )

    def _question(
        self,
        prompt: str | None,
        completion: str | None,
        inputs: Tensor | None,
        target: Tensor | int | None,
    ) -> tuple[Query | None, Batch]:
        text = prompt is not None or completion is not None
        if text == (inputs is not None or target is not None):
            raise QueryError("give prompt= and completion=, or inputs= and target=")
        if text:
            if completion is None:
                raise QueryError("completion= is missing; give the text whose origin is asked for")
            query = Query(prompt or "", completion)
            return query, next(self._query_batches([query]))
        if inputs is None or target is None:
            raise QueryError("inputs= and target= go together")
        label = torch.as_tensor(target)
        return None, next(self._query_batches((inputs[None], label.reshape(1, *label.shape))))

    def _query_batches(self, queries: Queries) -> Iterator[Batch]:
        """One batch a query, so that a query's bits do not depend on the others."""
        asker = self._model()
        if isinstance(queries, tuple) and len(queries) == 2 and isinstance(queries[0], Tensor):
            if self.manifest.inputs is None:
                raise QueryError("this index holds text; ask with wf.Query(prompt, completion)")
            inputs, targets = queries
            expected = tuple(self.manifest.inputs.shape)
            if tuple(inputs.shape[1:]) != expected or len(inputs) != len(targets):
                raise QueryError(
                    f"inputs of shape {tuple(inputs.shape)} with {len(targets)} targets; this "
                    f"index takes inputs [query, {', '.join(map(str, expected))}], a target each"
                )
            for i in range(len(inputs)):
                yield stack_examples(inputs[i : i + 1], targets[i : i + 1], ["query"])
            return
        if self.manifest.inputs is not None or asker.tokenizer is None:
            raise QueryError("this index holds tensors; ask with inputs and targets")
        for query in queries:
            if not isinstance(query, Query):
                raise QueryError(f"a query is a {type(query).__name__}; give wf.Query or tensors")
            tokens = tokenise_query(query, asker.tokenizer)
            limit = self.manifest.objective.context
            if limit is not None and len(tokens.ids) > limit:
                raise QueryError(
                    f"prompt and completion have {len(tokens.ids)} tokens, the index's context is "
                    f"{limit}; shorten the prompt"
                )
            yield TextExamples([tokens], ["query"]).batch(np.array([0]))

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
            "curvature": manifest.curvature.kind,
            "damping": manifest.curvature.damping,
            "fisher": manifest.curvature.fisher,
            "encoder": manifest.encoder.kind,
            "bytes_per_document": manifest.encoder.bytes_per_document,
            "weights_sha256": manifest.model.weights_sha256,
        }

    def encode(self, queries: Queries) -> NDArray[np.float32]:
        """The vectors that stored vectors are searched with, ``[query, dimension]``.

        ``index.vectors() @ index.encode(queries).T / len(index)`` are the stored scores.
        """
        asker = self._model()
        with asker.extractor.session():
            vectors = [
                asker.encoder.encode(asker.extractor, batch).vectors[0]
                for batch in self._query_batches(queries)
            ]
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

    def scores(self, queries: Queries, *, tier: Tier = "exact") -> NDArray[np.float64]:
        """Influence of every document on every query.

        Args:
            queries: Text queries or tensors.
            tier: ``exact`` runs all documents through the model again, uncompressed; ``stored``
                takes inner products of stored vectors, as :meth:`query` does.

        Returns:
            float64 ``[query, document]`` nats per added copy, documents as in :meth:`doc_ids`.
        """
        if tier == "stored":
            vectors = self.encode(queries)
            out = np.empty((len(vectors), len(self)))
            for start, rows in self._rows():
                out[:, start : start + len(rows)] = inner_products(rows.codes, vectors)
            return out * self.manifest.scale
        if tier != "exact":
            raise QueryError(f"tier={tier!r} is unknown; give 'exact' or 'stored'")
        asker = self._model()
        asked = list(self._query_batches(queries))
        if not asked:
            return np.empty((0, len(self)))
        solved = preconditioned(asker.extractor, asker.encoder.curvature, asked)
        products = exact_products(asker.extractor, solved, self._documents(), len(self))
        return products * self.manifest.scale

    def self_influence(self) -> NDArray[np.float64]:
        """Influence of every document on itself, float64 ``[document]``, never negative.

        From the exact norms of the whitened gradients, so it is free of compression.
        """
        norms = [rows.norms for _, rows in self._rows()]
        return np.square(np.concatenate(norms)) * self.manifest.scale

    def _rows(self) -> Iterator[tuple[int, StoredRows]]:
        start = 0
        size = max(1, min(_ROWS_PER_READ, (1 << 25) // self.manifest.encoder.dimension))
        for rows in self._table.batches(size):
            yield start, rows
            start += len(rows)

    def _documents(self) -> Iterator[tuple[NDArray[np.int64], Batch]]:
        """All documents in batches for the model, with their positions in the index."""
        tokenizer = self._model().tokenizer
        for start, rows in self._rows():
            examples: Examples
            if rows.inputs is not None and rows.targets is not None:
                examples = TensorExamples(rows.inputs, rows.targets, rows.doc_ids)
            elif tokenizer is not None:
                examples = TextExamples.of(rows.documents(), tokenizer)
            else:
                raise ModelError("this index holds text but was opened without a tokenizer")
            for chosen, batch in batches(examples, max_documents=32, max_positions=_MOST_POSITIONS):
                yield chosen + start, batch
