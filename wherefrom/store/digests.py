"""Digests of rows: Lance files carry no checksum, so each row holds its own.

A row's digest covers all its other columns by name, in a byte encoding that is unambiguous (what
has a variable length is preceded by it) and ours alone (it does not depend on how Arrow or Lance
lay bytes out), so that an index can still be verified with other versions of either.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from wherefrom.errors import CorpusError
from wherefrom.records import Document
from wherefrom.store.durable import storage_errors

__all__ = ["DIGEST_SIZE", "content_hash", "file_sha256", "row_digests", "utf8"]

DIGEST_SIZE = 16
_NULL = -1
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class _Encoded:
    """One column in canonical bytes.

    Attributes:
        tag: Its kind, for the digest's seed.
        header: [n, w] uint8, the part of fixed width (small).
        body: The rest, row after row.
        bounds: [n + 1] int64, where each row's part of ``body`` starts and ends.
    """

    tag: str
    header: NDArray[np.uint8]
    body: memoryview
    bounds: NDArray[np.int64]


def content_hash(document: Document, *tensors: bytes) -> bytes:
    """Digest (16 bytes) of what the model sees of a document; equal for duplicates.

    Args:
        document: Its text, scored spans and special tokens count; its id and metadata do not.
        *tensors: Little-endian bytes of a tensor example's input and target.

    Raises:
        CorpusError: The text is no valid Unicode, or the document a chat not rendered yet.
    """
    if document.messages is not None:
        raise CorpusError(
            f"document {document.doc_id!r} is a chat not rendered yet; "
            "render it with the tokenizer's chat template first"
        )
    text = utf8(document, document.text)
    spans = document.scored
    flags = struct.pack("<?q", document.special_tokens, _NULL if spans is None else len(spans))
    digest = hashlib.blake2b(flags, digest_size=DIGEST_SIZE)
    for start, end in spans or ():
        digest.update(struct.pack("<qq", start, end))
    for part in (text, *tensors):
        digest.update(struct.pack("<q", len(part)))
        digest.update(part)
    return digest.digest()


def utf8(document: Document, text: str) -> bytes:
    """The UTF-8 of a text that belongs to ``document``.

    Raises:
        CorpusError: It has none.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise CorpusError(
            f"document {document.doc_id!r} holds half a surrogate pair in "
            f"{text[error.start : error.end]!a}; repair the text, id or metadata"
        ) from error


def row_digests(batch: pa.RecordBatch) -> list[bytes]:
    """Digests (16 bytes) of the rows of ``batch``, over all its columns.

    Raises:
        TypeError: A column has a type that the documents table never has.
    """
    columns = [_encode(batch.column(i)) for i in range(batch.num_columns)]
    seed = hashlib.blake2b(digest_size=DIGEST_SIZE)
    for name, column in zip(batch.schema.names, columns, strict=True):
        label = f"{name}:{column.tag}".encode()
        seed.update(struct.pack("<q", len(label)) + label)
    headers = np.concatenate([column.header for column in columns], axis=1)
    parts = [_fixed("headers", headers, wide=True), *(c for c in columns if len(c.body))]
    bodies = [(part.body, part.bounds.tolist()) for part in parts]
    digests = []
    for i in range(batch.num_rows):
        digest = seed.copy()
        for body, bounds in bodies:
            digest.update(body[bounds[i] : bounds[i + 1]])
        digests.append(digest.digest())
    return digests


def _encode(column: pa.Array) -> _Encoded:
    kind = column.type
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
        values = column.fill_null(False if pa.types.is_boolean(kind) else 0)
        data = values.to_numpy(zero_copy_only=False)
        bytes_ = _as_bytes(data[:, None])
        valid = column.is_valid().to_numpy(zero_copy_only=False).astype(np.uint8)
        return _fixed(_tag(data), np.column_stack([valid, bytes_]))
    if pa.types.is_fixed_size_binary(kind):
        width = kind.byte_width
        start = column.offset * width
        data = np.frombuffer(column.buffers()[1], np.uint8)[start : start + len(column) * width]
        return _fixed(f"bytes{width}", data.reshape(len(column), width), wide=True)
    if pa.types.is_fixed_size_list(kind):
        values = column.flatten().to_numpy().reshape(len(column), kind.list_size)
        return _fixed(f"{kind.list_size}{_tag(values)}", _as_bytes(values), wide=True)
    if pa.types.is_string(kind):
        return _variable("text", pc.binary_length(column), _text_bytes(column), 1)
    if pa.types.is_list(kind):
        start, end = column.flatten().flatten()
        pairs = np.column_stack([start.to_numpy(), end.to_numpy()]).astype("<i8")
        return _variable("spans", column.value_lengths(), _as_bytes(pairs).reshape(-1), 16)
    raise TypeError(f"column of type {kind} has no canonical bytes")


def _fixed(tag: str, rows: NDArray[np.uint8], *, wide: bool = False) -> _Encoded:
    """A column of fixed width; ``wide`` ones are hashed in place, not copied into the header."""
    count, width = rows.shape
    empty = np.empty((count, 0), np.uint8)
    if not wide:
        return _Encoded(tag, rows, memoryview(b""), np.zeros(count + 1, np.int64))
    body = np.ascontiguousarray(rows).reshape(-1).data
    return _Encoded(tag, empty, body, np.arange(count + 1) * width)


def _variable(tag: str, lengths: pa.Array, body: NDArray[np.uint8], unit: int) -> _Encoded:
    """A column of variable length; nulls have length -1 and no body."""
    sizes = lengths.cast(pa.int64()).fill_null(_NULL).to_numpy()
    bounds = np.concatenate([[0], np.cumsum(np.maximum(sizes, 0) * unit)])
    return _Encoded(tag, _as_bytes(sizes[:, None]), body.data, bounds)


def _text_bytes(column: pa.StringArray) -> NDArray[np.uint8]:
    """The UTF-8 of all strings of ``column``, one after the other."""
    # A null's slot may cover bytes; dropping nulls leaves the strings side by side.
    present = column.drop_null()
    _, offsets, data = present.buffers()
    if data is None or not len(present):
        return np.empty(0, np.uint8)
    bounds = np.frombuffer(offsets, np.int32)[present.offset : present.offset + len(present) + 1]
    return np.frombuffer(data, np.uint8)[bounds[0] : bounds[-1]]


def _as_bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    """The little-endian bytes [n, w * itemsize] of ``values`` [n, w]."""
    little = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    return little.view(np.uint8)


def _tag(values: NDArray[Any]) -> str:
    return str(values.dtype.newbyteorder("<").str)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal, read a piece at a time.

    Raises:
        StorageError: The disk refuses.
        OSError: There is no such file.
    """
    digest = hashlib.sha256()
    with storage_errors(path), open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
