"""Documents read by id, or page by page through a filter, and a summary of the index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wherefrom.errors import QueryError
from wherefrom.records import SCORE_CONTRACT, MetadataValue
from wherefrom.store import DocumentTable, Manifest, StoredRows, Where

__all__ = [
    "INDEX_SCHEMA",
    "DocumentPage",
    "StoredDocument",
    "documents_page",
    "index_summary",
    "ordinals_of",
    "rows_of",
    "stored_documents",
]

INDEX_SCHEMA = "wherefrom-index/1"
_MOST_PER_PAGE = 1000


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """A document as the index holds it.

    Attributes:
        doc_id: Its id.
        position: Where it stands in the index, from 0.
        text: Its text; empty for tensor examples.
        metadata: Its metadata.
        parent_id: The document that this passage was cut from.
        char_start: Where the passage starts in its parent.
        tokens: Number of scored tokens.
        content_hash: Digest of what the model sees, 16 bytes in hexadecimal; equal for duplicates.
    """

    doc_id: str
    position: int
    text: str
    metadata: Mapping[str, MetadataValue]
    parent_id: str | None
    char_start: int
    tokens: int
    content_hash: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "metadata": dict(self.metadata)}


@dataclass(frozen=True, slots=True)
class DocumentPage:
    """Some of the documents that pass a filter, in the order of the index.

    Attributes:
        total: How many pass.
        offset: How many were passed over.
        documents: Those that follow.
    """

    total: int
    offset: int
    documents: tuple[StoredDocument, ...]


def rows_of(table: DocumentTable, ordinals: Sequence[int] | NDArray[np.int64]) -> list[StoredRows]:
    """Documents with all that is stored of them but their vectors, one row each."""
    read = table.rows(ordinals)
    return [read.alone(i) for i in range(len(read))]


def ordinals_of(table: DocumentTable, doc_ids: Sequence[str]) -> NDArray[np.int64]:
    """Positions of documents, in the order of their ids.

    Raises:
        QueryError: There is no such document.
    """
    found = table.facts.find(doc_ids)
    for doc_id in doc_ids:
        if doc_id not in found:
            raise QueryError(f"the index holds no document {doc_id!r}; give the id of one it holds")
    return np.array([found[doc_id] for doc_id in doc_ids], np.int64)


def documents_page(
    table: DocumentTable, where: Where | None, offset: int, limit: int
) -> DocumentPage:
    """Documents that pass a filter, ``limit`` at most after the first ``offset``.

    Raises:
        FilterError: The filter is not well formed.
        QueryError: The offset is negative, or the limit not from 1 to 1000.
    """
    for name, value, least, most in (
        ("offset", offset, 0, None),
        ("limit", limit, 1, _MOST_PER_PAGE),
    ):
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or value < least or (most is not None and value > most):
            allowed = f"at least {least}" if most is None else f"from {least} to {most}"
            raise QueryError(f"{name}={value!r} is not allowed; give a whole number {allowed}")
    passing = table.facts.where(where) if where else np.arange(len(table))
    rows = table.rows(passing[offset : offset + limit])
    return DocumentPage(len(passing), offset, stored_documents(rows))


def stored_documents(rows: StoredRows) -> tuple[StoredDocument, ...]:
    """Rows as documents."""
    return tuple(
        StoredDocument(
            document.doc_id,
            position,
            document.text,
            document.metadata,
            document.parent_id,
            document.char_start,
            tokens,
            digest.hex(),
        )
        for document, position, tokens, digest in zip(
            rows.documents(),
            rows.ordinals.tolist(),
            rows.tokens.tolist(),
            rows.content_hashes,
            strict=True,
        )
    )


def index_summary(manifest: Manifest) -> dict[str, Any]:
    """What a user of an index needs to know of it; no path of the machine that built it."""
    model, curvature, encoder = manifest.model, manifest.curvature, manifest.encoder
    return {
        "schema": INDEX_SCHEMA,
        "contract": SCORE_CONTRACT,
        "manifest_sha256": manifest.digest,
        "created": manifest.created,
        "generation": manifest.generation,
        "documents": manifest.corpus.documents,
        "parents": manifest.corpus.parents,
        "tokens": manifest.corpus.tokens,
        "metadata": dict(manifest.metadata),
        "text": manifest.inputs is None,
        "objective": manifest.objective.kind,
        "context": manifest.objective.options.get("context"),
        "model": {
            "architecture": model.architecture,
            "dtype": model.dtype,
            "weights_sha256": model.weights_sha256,
            "adapter_sha256": None if model.adapter is None else model.adapter.sha256,
            "tokenizer_sha256": model.tokenizer_sha256,
            "layers": len(manifest.layers),
            "weights": sum(one.d_out * (one.d_in + one.bias) for one in manifest.layers),
        },
        "curvature": curvature.kind,
        "damping": curvature.damping,
        "fisher": curvature.fisher,
        "encoder": encoder.name,
        "bytes_per_document": encoder.bytes_per_document,
        "fidelity": None if encoder.fidelity is None else encoder.fidelity.model_dump(mode="json"),
        "seconds_per_document": manifest.seconds_per_document,
        "corpus_sha256": manifest.corpus.content_sha256,
        "versions": dict(manifest.versions),
        "warnings": list(manifest.warnings),
    }
