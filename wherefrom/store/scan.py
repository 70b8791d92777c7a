"""The scan copy: codes of all documents in flat files, memory-mapped for the exhaustive scan.

It is derived from the documents table, can be rebuilt from it, and is trusted only while its files
match the digests in the manifest. Codes of 1 to 8 bits are the table's own. With y a stored vector
of 16 or 32 bits, c an int8 code of it, s the row's scale and r = ‖y - s c‖, Cauchy-Schwarz bounds
what the scan misses of an inner product: ``|⟨q, y⟩ - s ⟨q, c⟩| <= ‖q‖ r``.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
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
from wherefrom.store.manifest_parts import ScanRecord
from wherefrom.store.quantise import ROUNDING, Quantised, few_bits, row_norms
from wherefrom.store.rows import StoredRows

__all__ = ["ScanChunk", "ScanCopy", "encode_rows"]

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
class ScanChunk:
    """Some rows of a scan copy, m of them, as described there; not to be written to.

    Attributes:
        ordinals: Positions of the documents in the index, [m].
        codes: [m, width] uint8.
        scale: [m] float64.
        residual: [m] float64.
        norm: [m] float64.
        lost: [m] float64.
        whole: [m] float64.
    """

    ordinals: NDArray[np.int64]
    codes: NDArray[np.uint8]
    scale: NDArray[np.float64]
    residual: NDArray[np.float64]
    norm: NDArray[np.float64]
    lost: NDArray[np.float64]
    whole: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ScanCopy:
    """The memory-mapped files of n documents, read-only.

    Attributes:
        format: What the codes mean; of 1 to 8 bits.
        codes: [n, width] uint8, packed levels, padded with zero bytes to a multiple of 64.
        scale: [n] float64 of 24 significant bits, so that ``scale * level`` is exact.
        residual: [n] float64, upper bounds of ‖y - scale * level‖ for the stored vectors y; 0 where
            the codes are the table's own.
        norm: [n] float64, norms of the stored vectors (correct to about 1e-15).
        lost: [n] float64, upper bounds of ‖x - y‖ for the vectors x before quantisation.
        whole: [n] float64, norms of the vectors before any encoding.
    """

    format: CodeFormat
    codes: NDArray[np.uint8]
    scale: NDArray[np.float64]
    residual: NDArray[np.float64]
    norm: NDArray[np.float64]
    lost: NDArray[np.float64]
    whole: NDArray[np.float64]

    @staticmethod
    def build(table: DocumentTable, directory: str | os.PathLike[str]) -> ScanRecord:
        """Write the scan copy of ``table``, in memory that does not grow with the documents.

        Files of an older copy are replaced when all of the new one is written.

        Raises:
            IntegrityError: A row of the table differs from its digest.
            StorageError: The disk refuses.
        """
        folder = Path(directory)
        rows, code = len(table), _scan_format(table.layout.format)
        width = -(-code.bytes // _ALIGNMENT) * _ALIGNMENT
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with ExitStack() as stack:
                writers = {
                    name: stack.enter_context(
                        _ArrayWriter(folder / f"{name}.npy", dtype, _shape(name, rows, width))
                    )
                    for name, dtype in _TYPES.items()
                }
                for batch in table.batches(max(1, _BYTES_PER_BATCH // table.layout.format.bytes)):
                    for name, values in _columns(batch, width).items():
                        writers[name].write(values)
                files = {f"{name}.npy": writer.finish() for name, writer in writers.items()}
                for writer in writers.values():
                    writer.publish()
            fsync_directory(folder)
        return ScanRecord(
            rows=rows, width=width, bits=code.bits, dimension=code.dimension, files=files
        )

    @classmethod
    def open(
        cls, directory: str | os.PathLike[str], record: ScanRecord, *, verify: bool = True
    ) -> ScanCopy:
        """Map the files that ``record`` describes.

        Args:
            directory: Where they are.
            record: What the manifest says of them.
            verify: Whether to compare their SHA-256, which reads all of them once; sizes and
                types are always checked.

        Raises:
            IntegrityError: A file is missing or differs.
            StorageError: The disk refuses.
        """
        folder = Path(directory)
        arrays: dict[str, NDArray[Any]] = {}
        for name, dtype in _TYPES.items():
            path = folder / f"{name}.npy"
            arrays[name] = _map(path, dtype, _shape(name, record.rows, record.width))
            if verify and file_sha256(path) != record.files.get(path.name):
                raise _damaged(path, "its SHA-256 is not the manifest's")
        return cls(format=CodeFormat(record.bits, record.dimension), **arrays)

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.codes)

    def chunks(
        self, rows_per_chunk: int, ordinals: NDArray[np.int64] | None = None
    ) -> Iterator[ScanChunk]:
        """Go over the rows, at most ``rows_per_chunk`` at a time.

        Args:
            rows_per_chunk: Positive.
            ordinals: The rows to visit, in this order; all by default, then without a copy.
        """
        count = len(self) if ordinals is None else len(ordinals)
        for start in range(0, count, rows_per_chunk):
            stop = min(start + rows_per_chunk, count)
            if ordinals is None:
                rows: Any = slice(start, stop)
                visited = np.arange(start, stop)
            else:
                rows = visited = ordinals[start:stop]
            yield ScanChunk(visited, **{name: getattr(self, name)[rows] for name in _TYPES})


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


def _scan_format(stored: CodeFormat) -> CodeFormat:
    return stored if stored.packed else CodeFormat(8, stored.dimension)


def _columns(rows: StoredRows, width: int) -> dict[str, NDArray[Any]]:
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
        self._file = open(self._temporary, "wb+")
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": self._shape}
        np.lib.format.write_array_header_1_0(self._file, header)
        self._file.seek(0)
        self._sha256.update(self._file.read())
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
    try:
        with storage_errors(path):
            array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _damaged(path, str(error).splitlines()[0]) from error
    if array.dtype != dtype or array.shape != shape:
        found = f"{array.dtype} of shape {array.shape}"
        raise _damaged(path, f"it holds {found}, not {dtype} of shape {shape}")
    return np.asarray(array)


def _damaged(path: Path, cause: str) -> IntegrityError:
    return IntegrityError(f"{path} is missing or damaged ({cause}); build the index again")
