"""Rows as they are read back: columns of an answer, decoded when they are asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from wherefrom.errors import IntegrityError
from wherefrom.records import Document, MetadataValue, Span
from wherefrom.store.columns import metadata_column
from wherefrom.store.digests import row_digests
from wherefrom.store.layout import TableLayout
from wherefrom.store.quantise import Quantised

__all__ = ["StoredRows"]


@dataclass(frozen=True)
class StoredRows:
    """Documents as they are stored, n of them, in the order they were asked for.

    Attributes:
        batch: The stored columns.
        layout: What they mean.
        ordinals: Positions of the documents in the index, [n].
    """

    batch: pa.RecordBatch
    layout: TableLayout
    ordinals: NDArray[np.int64]

    def __len__(self) -> int:
        """Number of rows."""
        return int(self.batch.num_rows)

    def verify(self) -> None:
        """Check every row against its digest.

        Raises:
            IntegrityError: A row differs; the first such document is named if that can be read.
        """
        try:
            # What is made of damaged files may point outside of itself: before anything reads it.
            self.batch.validate(full=True)
        except pa.ArrowInvalid as error:
            raise IntegrityError(
                f"stored rows are damaged ({str(error).splitlines()[0]}); restore the index from "
                "a copy or build it again"
            ) from error
        covered = self.batch.select(self.layout.schema.names[:-1])
        stored = self.batch.column("digest").to_pylist()
        for i, (expected, digest) in enumerate(zip(stored, row_digests(covered), strict=True)):
            if expected != digest:
                doc_id = self.batch.column("doc_id")[i].as_py()
                raise IntegrityError(
                    f"the stored row of document {doc_id!r} differs from its digest; restore the "
                    "index from a copy, or delete the document and append it again"
                )

    @cached_property
    def row_numbers(self) -> NDArray[np.int64]:
        """The numbers that the rows were written under, [n]; deleted rows leave gaps."""
        return self._numbers("row")

    @cached_property
    def doc_ids(self) -> list[str]:
        """Ids of the documents."""
        return self._values("doc_id")

    @cached_property
    def content_hashes(self) -> list[bytes]:
        """Digests of what the model sees of each document; equal for duplicates."""
        return self._values("content_hash")

    @cached_property
    def texts(self) -> list[str]:
        """Texts of the documents."""
        return self._values("text")

    @cached_property
    def scored(self) -> list[tuple[Span, ...] | None]:
        """Character spans that carry the loss; ``None`` = all of the text."""
        return [
            None if spans is None else tuple((span["start"], span["end"]) for span in spans)
            for spans in self._values("scored")
        ]

    @cached_property
    def special_tokens(self) -> NDArray[np.bool_]:
        """Whether the tokenizer may add its start and end tokens, [n]."""
        return self._numbers("special_tokens")

    @cached_property
    def parent_ids(self) -> list[str | None]:
        """Documents that the passages were cut from."""
        return self._values("parent_id")

    @cached_property
    def char_starts(self) -> NDArray[np.int64]:
        """Where the passages start in their parents, in characters, [n]."""
        return self._numbers("char_start")

    @cached_property
    def tokens(self) -> NDArray[np.int32]:
        """Numbers of scored tokens, [n]."""
        return self._numbers("tokens")

    @cached_property
    def norms(self) -> NDArray[np.float64]:
        """Norms of the vectors before any encoding, [n]."""
        return self._numbers("norm")

    @cached_property
    def residual_norms(self) -> NDArray[np.float64]:
        """Norms of the encoded vectors minus the stored ones, [n]."""
        return self._numbers("residual_norm")

    @cached_property
    def stored(self) -> Quantised:
        """The vectors as they are stored."""
        scales, residual_norms = self._numbers("scale"), self.residual_norms
        return Quantised(self.layout.format, self._codes(), scales, residual_norms)

    @cached_property
    def vectors(self) -> NDArray[np.float64]:
        """The stored vectors, decoded (exactly), [n, dimension]."""
        return self.layout.format.decode(self._codes(), self._numbers("scale"))

    @cached_property
    def metadata(self) -> list[dict[str, MetadataValue]]:
        """Metadata of the documents, all columns in order, ``None`` where missing."""
        names = list(self.layout.metadata)
        if not names:
            return [{} for _ in range(len(self))]
        columns = [self._values(metadata_column(name)) for name in names]
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]

    @cached_property
    def inputs(self) -> NDArray[Any] | None:
        """Inputs of tensor examples, [n, ...]; ``None`` if the documents are none."""
        return self._tensor("input")

    @cached_property
    def targets(self) -> NDArray[Any] | None:
        """Targets of tensor examples, [n, ...]; ``None`` if the documents are none."""
        return self._tensor("target")

    def alone(self, position: int) -> StoredRows:
        """One of the rows, without its vector, in memory of its own."""
        names = [name for name in self.batch.schema.names if name not in ("scale", "code")]
        row = self.batch.select(names).take(pa.array([position]))
        return StoredRows(row, self.layout, self.ordinals[[position]])

    def documents(self) -> list[Document]:
        """The documents, rebuilt."""
        fields = zip(
            self.doc_ids,
            self.texts,
            self.metadata,
            self.scored,
            self.special_tokens.tolist(),
            self.parent_ids,
            self.char_starts.tolist(),
            strict=True,
        )
        return [
            Document(
                doc_id=doc_id,
                text=text,
                metadata=metadata,
                scored=scored,
                special_tokens=special_tokens,
                parent_id=parent_id,
                char_start=char_start,
            )
            for doc_id, text, metadata, scored, special_tokens, parent_id, char_start in fields
        ]

    def _column(self, name: str) -> pa.Array:
        if name not in self.batch.schema.names:
            raise KeyError(f"the column {name!r} was not read")
        return self.batch.column(name)

    def _values(self, name: str) -> list[Any]:
        values: list[Any] = self._column(name).to_pylist()
        return values

    def _numbers(self, name: str) -> NDArray[Any]:
        return np.asarray(self._column(name).to_numpy(zero_copy_only=False))

    def _tensor(self, name: str) -> NDArray[Any] | None:
        if name not in self.layout.tensors:
            return None
        dtype, shape = self.layout.tensors[name]
        data = self._fixed_bytes(name, dtype.itemsize * math.prod(shape))
        return np.frombuffer(data, dtype).reshape(len(self), *shape)

    def _codes(self) -> NDArray[Any]:
        code = self.layout.format
        if code.packed:
            data = self._fixed_bytes("code", code.bytes)
            return np.frombuffer(data, np.uint8).reshape(len(self), code.bytes)
        entries = self._column("code").flatten().to_numpy()
        return np.asarray(entries.reshape(len(self), code.dimension))

    def _fixed_bytes(self, name: str, width: int) -> pa.Buffer:
        column = self._column(name)
        return column.buffers()[1][column.offset * width : (column.offset + len(column)) * width]
