"""The scan copy: codes of all documents in flat files, memory-mapped for the exhaustive scan.

It is derived from the documents table, can be rebuilt from it, and is trusted only while its files
match the digests in the manifest. Codes of 1 to 8 bits are the table's own. With y a stored vector
of 16 or 32 bits, c an int8 code of it, s the row's scale and r = ‖y - s c‖, Cauchy-Schwarz bounds
what the scan misses of an inner product: ``|⟨q, y⟩ - s ⟨q, c⟩| <= ‖q‖ r``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wherefrom.store.codes import CodeFormat
from wherefrom.store.documents import DocumentTable
from wherefrom.store.live_rows import LiveRows
from wherefrom.store.segments import ScanSegment, scan_format, scan_width
from wherefrom.store.state_parts import ScanRecord

__all__ = ["ScanChunk", "ScanCopy"]

_ARRAYS = ("codes", "scale", "residual", "norm", "lost", "whole")


@dataclass(frozen=True, slots=True)
class ScanChunk:
    """Some rows of a scan copy, m of them; not to be written to.

    Attributes:
        ordinals: Positions of the documents in the index, [m].
        codes: [m, width] uint8, packed levels, padded with zero bytes to a multiple of 64.
        scale: [m] float64 of 24 significant bits, so that ``scale * level`` is exact.
        residual: [m] float64, upper bounds of ‖y - scale * level‖ for the stored vectors y; 0 where
            the codes are the table's own.
        norm: [m] float64, norms of the stored vectors (correct to about 1e-15).
        lost: [m] float64, upper bounds of ‖x - y‖ for the vectors x before quantisation.
        whole: [m] float64, norms of the vectors before any encoding.
    """

    ordinals: NDArray[np.int64]
    codes: NDArray[np.uint8]
    scale: NDArray[np.float64]
    residual: NDArray[np.float64]
    norm: NDArray[np.float64]
    lost: NDArray[np.float64]
    whole: NDArray[np.float64]


@dataclass(frozen=True)
class ScanCopy:
    """The memory-mapped codes of n documents, read-only.

    Attributes:
        format: What the codes mean; of 1 to 8 bits.
        segments: The files they are in, one after another.
        live: The rows of documents that are not deleted.
    """

    format: CodeFormat
    segments: tuple[ScanSegment, ...]
    live: LiveRows

    @staticmethod
    def build(
        table: DocumentTable, directory: str | os.PathLike[str], *, number: int = 1
    ) -> ScanRecord:
        """Write the scan copy of ``table``, in memory that does not grow with the documents.

        Args:
            table: The documents.
            directory: Of all segments.
            number: Of the one segment that is written.

        Raises:
            IntegrityError: A row of the table differs from its digest.
            StorageError: The disk refuses.
        """
        code = scan_format(table.layout.format)
        empty = ScanRecord(
            rows=0,
            width=scan_width(table.layout.format),
            bits=code.bits,
            dimension=code.dimension,
            segments=(),
        )
        return ScanCopy.extend(empty, table, directory, number=number)

    @staticmethod
    def extend(
        record: ScanRecord,
        table: DocumentTable,
        directory: str | os.PathLike[str],
        *,
        number: int,
    ) -> ScanRecord:
        """Write the rows of ``table`` that a scan copy lacks, as a segment of their own.

        Args:
            record: The scan copy.
            table: The documents, more than the scan copy has.
            directory: Of all segments.
            number: Of the new segment.

        Raises:
            IntegrityError: A row of the table differs from its digest.
            StorageError: The disk refuses.
        """
        segment = ScanSegment.write(table, directory, first_row=record.rows, number=number)
        segments = (*record.segments, segment)
        return record.model_copy(update={"rows": record.rows + segment.rows, "segments": segments})

    @classmethod
    def open(
        cls,
        directory: str | os.PathLike[str],
        record: ScanRecord,
        live: LiveRows,
        *,
        verify: bool = True,
        within: range | None = None,
    ) -> ScanCopy:
        """Map the files that ``record`` describes.

        Args:
            directory: Of all segments.
            record: What the manifest says of them.
            live: The rows of documents that are not deleted.
            verify: Whether to compare their SHA-256, which reads all of them once; sizes and
                types are always checked.
            within: If given, only these ordinals will be visited, and segments that hold none of
                them are neither mapped nor verified.

        Raises:
            IntegrityError: A file is missing or differs.
            StorageError: The disk refuses.
        """
        wanted = record.segments
        if within:
            first, last = live.rows([within[0], within[-1]]).tolist()
            wanted = tuple(
                segment
                for segment in wanted
                if segment.first_row <= last and segment.first_row + segment.rows > first
            )
        segments = tuple(
            ScanSegment.open(directory, segment, record.width, verify=verify) for segment in wanted
        )
        return cls(CodeFormat(record.bits, record.dimension), segments, live)

    @classmethod
    def of_arrays(cls, code: CodeFormat, **arrays: NDArray[Any]) -> ScanCopy:
        """A scan copy in memory: ``codes``, ``scale``, ``residual``, ``norm``, ``lost``, ``whole``.

        See :class:`ScanChunk` for what each holds.
        """
        segment = ScanSegment(0, **arrays)
        return cls(code, (segment,), LiveRows.every(len(segment)))

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.live)

    @property
    def width(self) -> int:
        """Bytes of a code, padding included."""
        return int(self.segments[0].codes.shape[1])

    @cached_property
    def whole(self) -> NDArray[np.float64]:
        """Norms of all documents' vectors before any encoding, [n]."""
        if len(self.segments) == 1 and len(self) == self.live.total:
            return self.segments[0].whole
        return self._gathered("whole", self.live.rows(np.arange(len(self))))

    def chunks(
        self, rows_per_chunk: int, ordinals: NDArray[np.int64] | range | None = None
    ) -> Iterator[ScanChunk]:
        """Go over the documents, at most ``rows_per_chunk`` at a time.

        Args:
            rows_per_chunk: Positive.
            ordinals: The documents to visit, in this order; all by default. Those of a range (of
                step 1) are not copied where none are deleted.
        """
        if ordinals is None:
            ordinals = range(len(self))
        if isinstance(ordinals, range):
            yield from self._consecutive(rows_per_chunk, ordinals)
            return
        for start in range(0, len(ordinals), rows_per_chunk):
            some = ordinals[start : start + rows_per_chunk]
            rows = self.live.rows(some)
            yield ScanChunk(some, **{name: self._gathered(name, rows) for name in _ARRAYS})

    def _consecutive(self, rows_per_chunk: int, ordinals: range) -> Iterator[ScanChunk]:
        if not ordinals:
            return
        first, last = self.live.rows([ordinals[0], ordinals[-1]]).tolist()
        for segment in self.segments:
            begin = max(0, first - segment.first_row)
            end = min(len(segment), last + 1 - segment.first_row)
            for start in range(begin, end, rows_per_chunk):
                yield from self._chunk(segment, start, min(start + rows_per_chunk, end))

    def _chunk(self, segment: ScanSegment, start: int, stop: int) -> Iterator[ScanChunk]:
        """What lives of rows ``start`` to ``stop`` of a segment, if anything does."""
        first = segment.first_row
        dead = self.live.dead_within(first + start, first + stop)
        kept: Any = slice(start, stop)
        if len(dead):
            kept = np.setdiff1d(np.arange(start, stop), dead - first, assume_unique=True)
        count = stop - start - len(dead)
        if count:
            begin = int(self.live.ordinals(first + (int(kept[0]) if len(dead) else start)))
            yield ScanChunk(
                np.arange(begin, begin + count),
                **{name: getattr(segment, name)[kept] for name in _ARRAYS},
            )

    def _gathered(self, name: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Entries of ``name`` of live rows, in their order."""
        if len(self.segments) == 1:
            (only,) = self.segments
            values: NDArray[Any] = getattr(only, name)[rows - only.first_row]
            return values
        starts = [segment.first_row for segment in self.segments]
        places = np.searchsorted(starts, rows, side="right") - 1
        like = getattr(self.segments[0], name)
        out = np.empty((len(rows), *like.shape[1:]), like.dtype)
        for place in np.unique(places):
            here = places == place
            out[here] = getattr(self.segments[place], name)[rows[here] - starts[place]]
        return out
