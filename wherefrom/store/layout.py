"""The columns of the documents table: which there are, and how documents are written to them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from wherefrom.errors import CorpusError, IntegrityError
from wherefrom.records import Bits, Document, MetadataValue
from wherefrom.store.codes import CodeFormat
from wherefrom.store.columns import ARROW_TYPES, fit_value, metadata_column
from wherefrom.store.digests import DIGEST_SIZE, content_hash, row_digests, utf8
from wherefrom.store.manifest_parts import ColumnType, InputRecord
from wherefrom.store.quantise import Quantised, quantise

__all__ = ["TableLayout"]

_SPANS = pa.list_(pa.struct([("start", pa.int64()), ("end", pa.int64())]))


@dataclass(frozen=True)
class TableLayout:
    """The columns of one index's table.

    Attributes:
        metadata: Metadata columns and their types, in order.
        dimension: Entries of a stored vector.
        bits: Per entry.
        inputs: Types and shapes of tensor examples, if the documents are such.
    """

    metadata: Mapping[str, ColumnType]
    dimension: int
    bits: Bits
    inputs: InputRecord | None = None

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            ValueError: A type is unknown, or there are no such codes.
        """
        unknown = {kind for kind in self.metadata.values() if kind not in get_args(ColumnType)}
        if unknown:
            raise ValueError(f"metadata types {sorted(unknown)}; use {get_args(ColumnType)}")
        CodeFormat(self.bits, self.dimension)

    @property
    def format(self) -> CodeFormat:
        """The layout of a code."""
        return CodeFormat(self.bits, self.dimension)

    @cached_property
    def schema(self) -> pa.Schema:
        """The Arrow schema; ``row`` is a document's ordinal and its position in the scan files."""
        fields = [
            pa.field("row", pa.int64(), nullable=False),
            pa.field("doc_id", pa.string(), nullable=False),
            pa.field("content_hash", pa.binary(DIGEST_SIZE), nullable=False),
            pa.field("text", pa.string(), nullable=False),
            pa.field("scored", _SPANS),
            pa.field("special_tokens", pa.bool_(), nullable=False),
            pa.field("parent_id", pa.string()),
            pa.field("char_start", pa.int64(), nullable=False),
            pa.field("tokens", pa.int32(), nullable=False),
            pa.field("norm", pa.float64(), nullable=False),
            pa.field("residual_norm", pa.float64(), nullable=False),
            pa.field("scale", pa.float64(), nullable=False),
            pa.field("code", self._code_type, nullable=False),
        ]
        for name, (dtype, shape) in self.tensors.items():
            width = dtype.itemsize * math.prod(shape)
            fields.append(pa.field(name, pa.binary(width), nullable=False))
        for name, kind in self.metadata.items():
            fields.append(pa.field(metadata_column(name), ARROW_TYPES[kind]))
        fields.append(pa.field("digest", pa.binary(DIGEST_SIZE), nullable=False))
        return pa.schema(fields)

    @property
    def tensors(self) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
        """Little-endian type and shape of the columns that hold an example's tensors."""
        if self.inputs is None:
            return {}
        record = self.inputs
        return {
            "input": (np.dtype(record.dtype).newbyteorder("<"), record.shape),
            "target": (np.dtype(record.target_dtype).newbyteorder("<"), record.target_shape),
        }

    def quantise(
        self,
        documents: Sequence[Document],
        vectors: NDArray[np.float32],
        norms: NDArray[np.float64],
        tokens: NDArray[np.integer[Any]],
    ) -> Quantised:
        """The vectors of ``documents`` as they are stored.

        Args:
            documents: n documents.
            vectors: [n, dimension] float32.
            norms: Of the vectors before any encoding, [n].
            tokens: Scored tokens, [n].

        Raises:
            IntegrityError: A vector or norm is not finite; the document is named.
            ValueError: Shapes or types are not those of the table.
        """
        expected = (len(documents), self.dimension)
        if vectors.shape != expected or vectors.dtype != np.float32:
            raise ValueError(
                f"vectors: got {vectors.dtype} of shape {vectors.shape}; "
                f"expected float32 of shape {expected}"
            )
        if norms.shape != expected[:1] or tokens.shape != expected[:1]:
            raise ValueError(f"norms and tokens: expected one of each for {expected[0]} documents")
        finite = np.isfinite(vectors).all(axis=1) & np.isfinite(norms)
        if not finite.all():
            doc_id = documents[int(np.argmin(finite))].doc_id
            raise IntegrityError(
                f"the vector of document {doc_id!r} holds NaN or infinity; "
                "check the model's loss on it or leave it out"
            )
        return quantise(vectors, self.bits)

    def encode(
        self,
        first_row: int,
        documents: Sequence[Document],
        stored: Quantised,
        norms: NDArray[np.float64],
        tokens: NDArray[np.integer[Any]],
        tensors: Mapping[str, NDArray[Any]],
    ) -> pa.RecordBatch:
        """The rows of ``documents``, in the columns of :attr:`schema`, each with its digest.

        Args:
            first_row: Ordinal of the first document.
            documents: n documents.
            stored: Their n vectors as they are stored.
            norms: Norms of the vectors before any encoding, [n].
            tokens: Scored tokens, [n].
            tensors: ``input`` and ``target``, [n, ...], for tensor examples.

        Raises:
            CorpusError: A document's metadata does not fit its columns, its text is no valid
                Unicode, or it is a chat not rendered yet.
        """
        columns: dict[str, pa.Array] = {}
        for name, (dtype, shape) in self.tensors.items():
            columns[name] = _encode_tensor(name, tensors.get(name), len(documents), dtype, shape)
        columns["content_hash"] = pa.array(
            [
                content_hash(document, *(columns[name][i].as_py() for name in self.tensors))
                for i, document in enumerate(documents)
            ],
            pa.binary(DIGEST_SIZE),
        )
        for document in documents:
            utf8(document, document.doc_id + (document.parent_id or ""))
        columns["row"] = pa.array(np.arange(first_row, first_row + len(documents)), pa.int64())
        columns["doc_id"] = pa.array([d.doc_id for d in documents], pa.string())
        columns["text"] = pa.array([d.text for d in documents], pa.string())
        columns["scored"] = pa.array([_encode_spans(d) for d in documents], _SPANS)
        columns["special_tokens"] = pa.array([d.special_tokens for d in documents], pa.bool_())
        columns["parent_id"] = pa.array([d.parent_id for d in documents], pa.string())
        columns["char_start"] = pa.array([d.char_start for d in documents], pa.int64())
        columns["tokens"] = pa.array(tokens, pa.int32())
        columns["norm"] = pa.array(norms, pa.float64())
        columns["residual_norm"] = pa.array(stored.residual_norms, pa.float64())
        columns["scale"] = pa.array(stored.scales, pa.float64())
        columns["code"] = self._encode_codes(stored.codes)
        columns.update(self._encode_metadata(documents))
        names = self.schema.names[:-1]
        batch = pa.RecordBatch.from_arrays(
            [columns[name] for name in names], schema=pa.schema(list(self.schema)[:-1])
        )
        return self._digested(batch)

    def numbered(self, batch: pa.RecordBatch, first_row: int) -> pa.RecordBatch:
        """The same rows under other numbers, from ``first_row`` on, with digests for those."""
        numbers = pa.array(np.arange(first_row, first_row + batch.num_rows), pa.int64())
        columns = {name: batch.column(name) for name in self.schema.names[:-1]} | {"row": numbers}
        schema = pa.schema(list(self.schema)[:-1])
        return self._digested(pa.RecordBatch.from_arrays(list(columns.values()), schema=schema))

    def _digested(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        digests = pa.array(row_digests(batch), pa.binary(DIGEST_SIZE))
        return pa.RecordBatch.from_arrays([*batch.columns, digests], schema=self.schema)

    @property
    def _code_type(self) -> pa.DataType:
        code = self.format
        if code.packed:
            return pa.binary(code.bytes)
        return pa.list_(pa.from_numpy_dtype(code.dtype), code.dimension)

    def _encode_codes(self, codes: NDArray[Any]) -> pa.Array:
        if self.format.packed:
            return _fixed_bytes(codes, self.format.bytes)
        return pa.FixedSizeListArray.from_arrays(pa.array(codes.reshape(-1)), self.dimension)

    def _encode_metadata(self, documents: Sequence[Document]) -> dict[str, pa.Array]:
        for document in documents:
            unknown = sorted(document.metadata.keys() - self.metadata.keys())
            if unknown:
                raise CorpusError(
                    f"document {document.doc_id!r} has metadata {unknown}; "
                    f"the index has the columns {list(self.metadata)}"
                )
        return {
            metadata_column(name): pa.array(
                [_encode_value(document, name, kind) for document in documents],
                ARROW_TYPES[kind],
            )
            for name, kind in self.metadata.items()
        }


def _encode_tensor(
    name: str,
    values: NDArray[Any] | None,
    count: int,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
) -> pa.Array:
    if values is None or values.shape != (count, *shape) or values.dtype != dtype:
        given = "nothing" if values is None else f"{values.dtype} of shape {values.shape}"
        raise ValueError(f"{name}s: got {given}; expected {dtype} of shape {(count, *shape)}")
    return _fixed_bytes(values.astype(dtype, copy=False), dtype.itemsize * math.prod(shape))


def _fixed_bytes(rows: NDArray[Any], width: int) -> pa.Array:
    """The ``width`` bytes of each of ``rows``."""
    data = pa.py_buffer(np.ascontiguousarray(rows))
    return pa.Array.from_buffers(pa.binary(width), len(rows), [None, data])


def _encode_spans(document: Document) -> list[dict[str, int]] | None:
    if document.scored is None:
        return None
    return [{"start": start, "end": end} for start, end in document.scored]


def _encode_value(document: Document, name: str, kind: ColumnType) -> MetadataValue:
    value = document.metadata.get(name)
    if value is None:
        return None
    if isinstance(value, str):
        utf8(document, value)
    fitting = fit_value(kind, value)
    if fitting is not None:
        return fitting
    raise CorpusError(
        f"document {document.doc_id!r} has {name!r} = {value!r}; the column holds {kind} "
        "(None where the value is missing)"
    )
