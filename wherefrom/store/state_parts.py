"""The parts of a manifest that a change of the index changes: documents, scan copy, history."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from wherefrom.records import Bits
from wherefrom.store.manifest_parts import Count, Dimension, Files, Record, Size

__all__ = [
    "ChangeKind",
    "ChangeRecord",
    "DeletedRecord",
    "DriftRecord",
    "ScanRecord",
    "SegmentRecord",
    "StoreRecord",
]

ChangeKind = Literal["append", "delete", "purge", "compact", "repair"]


class DeletedRecord(Record):
    """The file that holds the numbers of deleted rows: its name, its SHA-256 and how many."""

    file: Annotated[str, Field(pattern=r"^deleted-[0-9a-f]{16}\.npy$")]
    sha256: str
    rows: Size


class StoreRecord(Record):
    """The version of the documents table that the index consists of, and its rows.

    Attributes:
        table: Name of the table; compaction writes another.
        table_version: Its version.
        rows: Documents.
        next_row: Rows numbered so far, those of deleted documents included.
        deleted: Which of them were deleted, if any were.
        files: SHA-256 of the table's files, by their paths within it.
    """

    table: Annotated[str, Field(pattern=r"^documents(-[1-9][0-9]*)?$")] = "documents"
    table_version: Count
    rows: Count
    next_row: Count
    deleted: DeletedRecord | None = None
    files: Files = Field(default_factory=dict)


class SegmentRecord(Record):
    """Consecutive rows of the scan copy, in files that never change.

    Attributes:
        number: Names its directory: the generation that it came with.
        first_row: Number of its first row.
        rows: How many, those of deleted documents included.
        files: SHA-256 of each of its files.
    """

    number: Size
    first_row: Count
    rows: Count
    files: Files


class ScanRecord(Record):
    """The scan copy.

    Attributes:
        rows: Rows of all segments.
        width: Bytes of a code, padding included.
        bits: Per entry of a code, at most 8.
        dimension: Entries of a code.
        segments: Their rows follow one another.
    """

    rows: Count
    width: Size
    bits: Bits
    dimension: Dimension
    segments: tuple[SegmentRecord, ...]


class ChangeRecord(Record):
    """One change of a finished index.

    Attributes:
        kind: What was done.
        generation: That it led to.
        when: ISO 8601 time.
        added: Documents appended.
        removed: Documents deleted or replaced.
        content_sha256: Digest of their ids and contents.
        drift: Whitened energy of those appended, as a multiple of what documents of the build have.
        warnings: What the change warned of.
    """

    kind: ChangeKind
    generation: Size
    when: str
    added: Count = 0
    removed: Count = 0
    content_sha256: str
    drift: float | None = None
    warnings: tuple[str, ...] = ()


class DriftRecord(Record):
    """Whitened energy of the documents that an index was built from, to compare others with.

    The logarithm of a document's squared whitened norm is, but for ``spread``, ``intercept +
    slope * log(tokens)``.

    Attributes:
        documents: It was fitted to.
        intercept: At one token.
        slope: For each unit of the logarithm of the scored tokens.
        spread: Standard deviation of what remains.
        built: Documents of the build that are there still; they come first in the index.
        appended: Documents appended since that are there still and have any energy.
        offset: Their mean distance from the line.
    """

    documents: Count
    intercept: float
    slope: float
    spread: float
    built: Count
    appended: Count = 0
    offset: float = 0.0
