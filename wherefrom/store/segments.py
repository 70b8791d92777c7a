"""Segments of the scan copy: consecutive rows in flat files, written once and memory-mapped.

A change of the index adds segments or leaves some out; none is ever written to again.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wherefrom.errors import IntegrityError
from wherefrom.store.codes import CodeFormat
from wherefrom.store.digests import file_sha256
from wherefrom.store.documents import DocumentTable
from wherefrom.store.durable import fsync_directory, storage_errors
from wherefrom.store.facts import FACTS_FILE, FactsWriter
from wherefrom.store.quantise import ROUNDING, Quantised, few_bits, row_norms
from wherefrom.store.rows import StoredRows
from wherefrom.store.state_parts import SegmentRecord

__all__ = ["ScanSegment", "encode_rows", "scan_columns", "scan_format", "scan_width"]

_ALIGNMENT = 64
_BYTES_PER_BATCH = 1 << 21
_TYPES: dict[str, np.dtype[Any]] = {
    "codes": np.dtype("u1"),
    "scale": np.dtype("<f8"),
    "residual": np.dtype("<f8"),
    "norm": np.dtype("<f8"),
    "lost": np.dtype("<f8"),
    "whole": np.dtype("<f8"),
}


@dataclass(frozen=True, slots=True)
class ScanSegment:
    """Rows of the scan copy, m of them, mapped from files; :class:`ScanCopy` says what each means.

    Attributes:
        first_row: Number of the first row.
        codes: [m, width] uint8.
        scale: [m] float64.
        residual: [m] float64.
        norm: [m] float64.
        lost: [m] float64.
        whole: [m] float64.
    """

    first_row: int
    codes: NDArray[np.uint8]
    scale: NDArray[np.float64]
    residual: NDArray[np.float64]
    norm: NDArray[np.float64]
    lost: NDArray[np.float64]
    whole: NDArray[np.float64]

    def __len__(self) -> int:
        """Number of rows, those of deleted documents included."""
        return len(self.codes)

    @staticmethod
    def write(
        table: DocumentTable, directory: str | os.PathLike[str], *, first_row: int, number: int
    ) -> SegmentRecord:
        """Write the rows of ``table`` from ``first_row`` on; memory does not grow with them.

        Rows of deleted documents become zeros.

        Args:
            table: The documents.
            directory: Of all segments; the files stand together in place when all are written.
            first_row: Number of the first row.
            number: Of the segment.

        Raises:
            IntegrityError: A row of the table differs from its digest.
            StorageError: The disk refuses.
        """
        folder = Path(directory, str(number))
        rows = table.live.total - first_row
        width = scan_width(table.layout.format)
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with ExitStack() as stack:
                writers = {
                    name: stack.enter_context(
                        _ArrayWriter(folder / f"{name}.npy", dtype, _shape(name, rows, width))
                    )
                    for name, dtype in _TYPES.items()
                }
                facts = stack.enter_context(FactsWriter(folder / FACTS_FILE, table.layout))
                _copy_rows(table, first_row, width, writers, facts)
                files = {f"{name}.npy": writer.finish() for name, writer in writers.items()}
                files[FACTS_FILE] = facts.finish()
                for writer in writers.values():
                    writer.publish()
                facts.publish()
            for made in (folder, folder.parent, folder.parent.parent):
                fsync_directory(made)
        return SegmentRecord(number=number, first_row=first_row, rows=rows, files=files)

    @classmethod
    def open(
        cls, directory: str | os.PathLike[str], record: SegmentRecord, width: int, *, verify: bool
    ) -> ScanSegment:
        """Map the files that ``record`` describes.

        Args:
            directory: Of all segments.
            record: What the manifest says of this one.
            width: Bytes of a code, padding included.
            verify: Whether to compare their SHA-256, which reads all of them once; sizes and
                types are always checked.

        Raises:
            IntegrityError: A file is missing or differs.
            StorageError: The disk refuses.
        """
        folder = Path(directory, str(record.number))
        arrays: dict[str, NDArray[Any]] = {}
        for name, dtype in _TYPES.items():
            path = folder / f"{name}.npy"
            arrays[name] = _map(path, dtype, _shape(name, record.rows, width))
            if verify and file_sha256(path) != record.files.get(path.name):
                raise _damaged(path, "its SHA-256 is not the manifest's")
        return cls(record.first_row, **arrays)


def encode_rows(vectors: NDArray[np.float64]) -> Quantised:
    """Codes of 8 bits for stored ``vectors`` [n, dimension] of more, with little left out."""
    code = CodeFormat(8, vectors.shape[1])
    largest = np.abs(vectors).max(axis=1)
    # Few enough bits that scale * level is exact: the residual is then off by rounding of its own
    # sum only, which ROUNDING covers, even where it is next to nothing.
    scale = few_bits(largest / code.largest)
    levels = np.rint(vectors / np.where(scale > 0, scale, 1)[:, None])
    residual = row_norms(vectors - levels * scale[:, None]) * ROUNDING
    return Quantised(code, code.pack(levels), scale, residual)


def scan_format(stored: CodeFormat) -> CodeFormat:
    """The codes that the scan copy of vectors stored as ``stored`` has."""
    return stored if stored.packed else CodeFormat(8, stored.dimension)


def scan_width(stored: CodeFormat) -> int:
    """Bytes of such a code, padding included."""
    return -(-scan_format(stored).bytes // _ALIGNMENT) * _ALIGNMENT


def _copy_rows(
    table: DocumentTable,
    first_row: int,
    width: int,
    writers: dict[str, _ArrayWriter],
    facts: FactsWriter,
) -> None:
    due = first_row
    per_batch = max(1, _BYTES_PER_BATCH // table.layout.format.bytes)
    for batch in table.batches(per_batch, start=int(table.live.ordinals(first_row))):
        columns = scan_columns(batch, width)
        numbers = batch.row_numbers
        # From one gap that deleted rows left to the next.
        for run in np.split(np.arange(len(batch)), np.flatnonzero(np.diff(numbers) != 1) + 1):
            gap = int(numbers[run[0]]) - due
            for name, writer in writers.items():
                writer.skip(gap)
                writer.write(columns[name][run[0] : run[-1] + 1])
            facts.gap(gap)
            facts.write(batch.batch.slice(run[0], len(run)))
            due += gap + len(run)
    for writer in writers.values():
        writer.skip(table.live.total - due)
    facts.gap(table.live.total - due)


def scan_columns(rows: StoredRows, width: int) -> dict[str, NDArray[Any]]:
    """The scan copy's rows of documents of the table, by the names of its files."""
    stored = rows.stored
    if stored.format.packed:
        encoded, residual = stored, np.zeros(len(rows))
        norm = stored.scales * np.sqrt(stored.format.squared_norms(stored.codes))
    else:
        encoded = encode_rows(rows.vectors)
        residual, norm = encoded.residual_norms, row_norms(rows.vectors)
    codes = np.zeros((len(rows), width), np.uint8)
    codes[:, : encoded.format.bytes] = encoded.codes
    return {
        "codes": codes,
        "scale": encoded.scales,
        "residual": residual,
        "norm": norm,
        "lost": stored.residual_norms,
        "whole": rows.norms,
    }


def _shape(name: str, rows: int, width: int) -> tuple[int, ...]:
    return (rows, width) if name == "codes" else (rows,)


class _ArrayWriter:
    """Streams an array into an ``.npy`` file, hashing as it goes.

    Written beside its place and moved there at the end: a copy that is being read stays whole.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.tmp")
        self._dtype = dtype
        self._shape = shape
        self._sha256 = hashlib.sha256()

    def __enter__(self) -> _ArrayWriter:
        self._file = open(self._temporary, "wb")
        header = _header(self._dtype, self._shape)
        self._file.write(header)
        self._sha256.update(header)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._file.close()  # Writes what is buffered still: a full disk may refuse.
        finally:
            self._temporary.unlink(missing_ok=True)

    def write(self, values: NDArray[Any]) -> None:
        data = np.ascontiguousarray(values, self._dtype).reshape(-1).view(np.uint8).data
        self._file.write(data)
        self._sha256.update(data)

    def skip(self, rows: int) -> None:
        """Write ``rows`` rows of zeros."""
        if rows:
            self.write(np.zeros((rows, *self._shape[1:]), self._dtype))

    def finish(self) -> str:
        """Make the file durable; its SHA-256."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._sha256.hexdigest()

    def publish(self) -> None:
        """Move the file to its place."""
        self._file.close()
        os.replace(self._temporary, self._path)


def _map(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    # Only the one header that there can be is taken: numpy's reader evaluates what it finds there.
    header = _header(dtype, shape)
    size = len(header) + dtype.itemsize * math.prod(shape)
    try:
        with storage_errors(path), open(path, "rb") as file:
            found = file.read(len(header))
            if found != header or os.fstat(file.fileno()).st_size != size:
                raise _damaged(path, f"it is not a file of {dtype} of shape {shape}")
            if not math.prod(shape):
                return np.empty(shape, dtype)
            return np.asarray(np.memmap(file, dtype, "r", len(header), shape))
    except OSError as error:
        raise _damaged(path, error.strerror or "it cannot be read") from error


def _header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    header = io.BytesIO()
    fields = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, fields)
    return header.getvalue()


def _damaged(path: Path, cause: str) -> IntegrityError:
    return IntegrityError(
        f"{path} is missing or damaged ({cause}); run wherefrom verify --repair, which makes it "
        "again from the documents"
    )
