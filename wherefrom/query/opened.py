"""An open index: what it holds, its model, and scores of all documents at once."""

from __future__ import annotations

import os
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wherefrom.curvature.fitted import FittedCurvature
from wherefrom.errors import IntegrityError, MismatchError, ModelError, QueryError
from wherefrom.gradients.models import ModelSource
from wherefrom.gradients.objectives import Objective
from wherefrom.query.asker import Asker, load_asker
from wherefrom.query.documents import document_batches, row_blocks
from wherefrom.query.exact import energies, every_product
from wherefrom.query.options import QueryOptions
from wherefrom.query.questions import Asked, Queries, Question, ask, questions
from wherefrom.query.reading import (
    DocumentPage,
    StoredDocument,
    documents_page,
    index_summary,
    ordinals_of,
    stored_documents,
)
from wherefrom.query.respond import Responder
from wherefrom.query.scan import Scan, scan
from wherefrom.query.search import inner_products
from wherefrom.query.shard_workers import sharded_scan
from wherefrom.query.sharded import ShardedScan
from wherefrom.records import Tier
from wherefrom.store import (
    SCAN_DIRECTORY,
    DocumentTable,
    LiveRows,
    Location,
    Manifest,
    ScanCopy,
    Where,
)
from wherefrom.store.location import lineage

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

__all__ = ["OpenIndex"]


class OpenIndex:
    """A finished index on disk, opened for reading; :class:`~wherefrom.Index` adds the questions.

    Attributes:
        location: Where it is.
        path: Its directory; for an index on object storage, a copy of all but its documents.
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
        executor: str = "serial",
        workers: int | None = None,
    ) -> None:
        """Open an index and the model it was built with.

        Args:
            path: The index: a directory or, as ``s3://bucket/name``, a URL of object storage.
            model: The model; by default the one that the manifest names, where it names one.
            base_model: The model that an adapter is for; by default the one the manifest names.
            objective: Needed for an objective of your own only.
            device: Where to run the model.
            executor: Where to scan: ``serial`` in this process, by torch's threads; ``processes``
                or ``ray``, by workers that hold a shard each.
            workers: How many shards.

        Raises:
            NotAnIndexError: The path holds no index.
            UnfinishedIndexError: It holds an interrupted build.
            MismatchError: The model or tokenizer is another one than the index was built with.
            ModelError: The model that the manifest names cannot be loaded.
            IntegrityError: Files are missing or differ from their digests.
            MissingExtraError: Ray is not installed.
            ExecutionError: Ray cannot be reached.
        """
        self.location = Location.of(path)
        self._device = device
        self._executor = executor
        self._workers = workers
        self._open_published()
        record = self.manifest.model
        named = record.source is not None or (record.adapter and record.adapter.source) is not None
        self._asker = (
            load_asker(self.location, self.manifest, model, base_model, objective, device)
            if named or model is not None
            else None
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let search workers go, if there are any. Safe to call twice."""
        _let_go(self._scanner)

    def refresh(self) -> bool:
        """Go on with the index as it is published now; until then it is as it was opened.

        Returns:
            Whether it was changed since.

        Raises:
            MismatchError: Another index was built in its place.
            IntegrityError: Files are missing or differ from their digests.
        """
        if Manifest.read(self.location).digest == self.manifest.digest:
            return False
        scanner = self._scanner
        self._open_published(lineage(self.manifest))
        _let_go(scanner)
        for name in [name for name in self.__dict__ if _is_cached(type(self), name)]:
            del self.__dict__[name]
        return True

    def _open_published(self, build: str | None = None) -> None:
        """Open the documents of the manifest that is there.

        Writers leave what the manifest before names in place, not that of two before.

        Args:
            build: The lineage that they must be of, to go with the encoder that is open.

        Raises:
            MismatchError: They are of another one; what was open stays so.
            IntegrityError: Files are missing or differ from their digests; likewise.
        """
        while True:
            manifest = Manifest.read(self.location)
            if build not in (None, lineage(manifest)):
                raise MismatchError(
                    f"{self.location} was built anew since it was opened; open it again"
                )
            try:
                path = self.location.folder(manifest)
                table = DocumentTable.open(self.location, manifest)
                copy = ScanCopy.open(
                    path / SCAN_DIRECTORY,
                    manifest.scan,
                    table.live,
                    verify=not self.location.remote,  # Those were compared as they were fetched.
                )
                facts = table.facts  # Mapped now: a later change may remove the files.
                break
            except IntegrityError:
                if Manifest.read(self.location).seal == manifest.seal:
                    raise
        self.manifest, self.path = manifest, path
        self._table, self._scan, self._facts = table, copy, facts
        self._scanner = self._open_scanner()

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
                f"{self.location} was built from a model in memory, which it cannot load by "
                "itself; open it with wf.open(path, model=your_model)"
            )
        return self._asker

    @property
    def table(self) -> DocumentTable:
        """The stored documents."""
        return self._table

    def document(self, doc_id: str) -> StoredDocument:
        """One document.

        Raises:
            QueryError: The index holds no such document.
            IntegrityError: Its stored row differs from its digest.
        """
        (found,) = stored_documents(self._table.rows(ordinals_of(self._table, [doc_id])))
        return found

    def documents(
        self, where: Where | None = None, *, offset: int = 0, limit: int = 50
    ) -> DocumentPage:
        """Documents that pass a metadata filter, a page of them, in the order of the index.

        Args:
            where: As in :meth:`wherefrom.Index.query`; all documents by default.
            offset: How many to pass over.
            limit: At most how many to read.

        Raises:
            FilterError: The filter is not well formed.
            QueryError: The offset is negative, or the limit not from 1 to 1000.
            IntegrityError: A stored row differs from its digest.
        """
        return documents_page(self._table, where, offset, limit)

    def info(self) -> dict[str, Any]:
        """What the index holds and was built with, as plain values; no path is among them."""
        return index_summary(self.manifest)

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
        return self._facts.doc_ids()

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
        return Responder(
            self.location, self.manifest, self._table, self._scan, self.asker, self._scanner
        )

    def _open_scanner(self) -> Scan:
        """What scans the codes that are open here, by workers if asked for."""
        # Workers on other machines work in other directories.
        place = str(self.location) if self.location.remote else os.path.abspath(self.location)
        opener = partial(_open_scan_copy, place, self.manifest, self._table.live)
        sharded = sharded_scan(self._executor, opener, len(self._table), self._workers)
        return partial(scan, self._scan) if sharded is None else sharded

    def _question(self, **asked: Unpack[Asked]) -> Question:
        return ask(self.asker.extractor.objective, self.manifest.inputs, **asked)

    def _stored_scores(self, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
        out = np.empty((len(vectors), len(self)))
        for positions, rows in row_blocks(self._table):
            out[:, positions] = inner_products(rows.vectors, vectors)
        return out * self.manifest.scale


def _open_scan_copy(place: str, manifest: Manifest, live: LiveRows, **options: Any) -> ScanCopy:
    """Map the scan copy, on whatever machine this is called."""
    folder = Location.of(place).folder(manifest) / SCAN_DIRECTORY
    return ScanCopy.open(folder, manifest.scan, live, **options)


def _let_go(scanner: Scan) -> None:
    if isinstance(scanner, ShardedScan):
        scanner.close()


def _is_cached(kind: type, name: str) -> bool:
    """Whether an attribute was made of others when it was first asked for."""
    return any(isinstance(vars(base).get(name), cached_property) for base in kind.__mro__)
