"""FAISS as an accelerator: an index file made from the table and mapped into memory.

FAISS builds an index in memory only; here its file is written a batch at a time, around codes that
FAISS itself encodes, so that building takes the memory of one batch. Searching maps the file.
``faiss.read_index`` trusts what it reads (files made to harm have written beyond its buffers as
late as 1.15), and a manifest from someone else has the digests of whatever came with it. So
:func:`open_faiss` first compares all that FAISS would act on with what it writes itself for an
index of that kind and size: only numbers are left to whoever made the file, and of those FAISS
makes no more than wrong candidates.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wherefrom.errors import IntegrityError, StorageError
from wherefrom.store.documents import DocumentTable
from wherefrom.store.durable import storage_errors, write_atomically
from wherefrom.store.faiss_formats import FORMATS, import_faiss
from wherefrom.store.float32 import (
    Loss,
    Ranges,
    ScaledQuery,
    best_first,
    power_of_two,
    scaled_rows,
)
from wherefrom.store.manifest_parts import AcceleratorKind, AcceleratorRecord

__all__ = ["FAISS_DIRECTORY", "FaissIndex", "build_faiss", "open_faiss"]

FAISS_DIRECTORY = "faiss"

_MOST_DIMENSIONS = 1 << 20
_MOST_ON_GPU = 2048
_ROWS_AT = 8  # after the file's tag and the dimension, four bytes each


class FaissIndex:
    """An open FAISS index; made by :func:`open_faiss`.

    Attributes:
        record: What the manifest says of it.
        exhaustive: Whether documents that a search leaves out have no larger bounds than those
            found; always true: these indexes are scanned as a whole.
        on_gpu: Whether searches run on a GPU.
    """

    exhaustive = True

    def __init__(self, record: AcceleratorRecord, index: Any, gpu_index: Any | None = None) -> None:
        """Wrap an index read by FAISS, and its copy on a GPU if there is one."""
        self.record = record
        self.on_gpu = gpu_index is not None
        self._format = FORMATS[record.kind]
        self._index = index
        self._gpu_index = gpu_index

    def search(
        self,
        query: NDArray[np.float32],
        count: int,
        sign: int,
        ordinals: NDArray[np.int64] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The documents with the largest bounds, as :class:`Accelerator` has it.

        Args:
            query: float32 [dimension].
            count: How many; fewer come back only if there are no more.
            sign: +1 or -1.
            ordinals: Documents to search; all by default.

        Returns:
            Ordinals int64 [m] and bounds float64 [m], best first, ties by ordinal.

        Raises:
            QueryError: The query holds NaN or infinity.
        """
        asked = self._scaled(sign * query)
        count = min(count, self.record.rows if ordinals is None else len(ordinals))
        if count <= 0:
            return np.empty(0, np.int64), np.empty(0)
        index, parameters = self._index, None
        if ordinals is not None:
            searched = np.zeros(self.record.rows, np.bool_)
            searched[ordinals] = True
            bits = np.packbits(searched, bitorder="little")
            faiss = import_faiss()
            parameters = faiss.SearchParameters(sel=faiss.IDSelectorBitmap(bits))
        elif self._gpu_index is not None and count <= _MOST_ON_GPU:
            index = self._gpu_index
        scores, found = index.search(self._format.asked(asked)[None], count, params=parameters)
        kept = found[0] >= 0
        unscaled = scores[0, kept].astype(np.float64) / (self.record.scale * asked.scale)
        return best_first(found[0, kept], unscaled)

    def error(self, query: NDArray[np.float32]) -> float:
        """How far a document's inner product can lie above its bound.

        Raises:
            QueryError: The query holds NaN or infinity.
        """
        asked = self._scaled(query)
        scale = self.record.scale
        residual = self.record.residual * scale
        largest = self.record.largest * scale + residual
        bound = asked.norm * residual + self._format.slack(asked, largest, self._index)
        return bound * (1.0 + 1e-9) / (scale * asked.scale)

    def _scaled(self, query: NDArray[np.float32]) -> ScaledQuery:
        return ScaledQuery.of(query, self.record.dimension, 0)


def build_faiss(
    kind: AcceleratorKind, table: DocumentTable, index_dir: Path, table_version: int
) -> AcceleratorRecord:
    """Write the FAISS index of all stored vectors, in memory that does not grow with them.

    Args:
        kind: ``faiss-flat``, ``faiss-sq8`` or ``faiss-rabitq``.
        table: The sealed table.
        index_dir: Directory of the index; the file goes to ``faiss/`` in it.
        table_version: Version of the table.

    Raises:
        MissingExtraError: ``faiss`` is not installed.
        StorageError: The vectors have more entries than FAISS reads back, or the disk refuses.
        IntegrityError: A row of the table differs from its digest.
    """
    faiss = import_faiss()
    dimension = table.layout.dimension
    chosen = FORMATS[kind]
    further = chosen.further(dimension)
    if dimension + further > _MOST_DIMENSIONS:
        raise StorageError(
            f"faiss reads back vectors of at most {_MOST_DIMENSIONS - further:,} entries "
            f"({kind} adds {further}), these have {dimension:,}; "
            "use the lance-ivf accelerator or none"
        )
    ranges = Ranges(table)
    scale = power_of_two(ranges.largest, chosen.exponent)
    index = chosen.empty(faiss, ranges.low * scale, ranges.high * scale)
    frame = _Frame.of(faiss, index)
    loss, digest = Loss(), hashlib.sha256()

    def pieces() -> Iterator[bytes]:
        yield frame.head(len(table))
        for _, exact, rounded in scaled_rows(table, scale):
            codes = chosen.clean(index.sa_encode(chosen.extended(exact, rounded)))
            loss.add(exact, index.sa_decode(codes)[:, :dimension])
            yield codes.tobytes()
        yield frame.tail

    def write(path: Path) -> None:
        with open(path, "wb") as file:
            for piece in pieces():
                digest.update(piece)
                file.write(piece)

    path = index_dir / FAISS_DIRECTORY / f"{kind}.index"
    with storage_errors(path):
        path.parent.mkdir(exist_ok=True)
    write_atomically(path, write)
    return AcceleratorRecord(
        kind=kind,
        table_version=table_version,
        rows=len(table),
        dimension=dimension,
        scale=scale,
        residual=loss.residual / scale,
        largest=loss.largest / scale,
        files={f"{FAISS_DIRECTORY}/{path.name}": digest.hexdigest()},
        library=f"faiss {faiss.__version__}",
    )


def open_faiss(
    record: AcceleratorRecord, path: Path, *, device: str = "cpu", threads: int = 1
) -> FaissIndex:
    """Map an index file whose SHA-256 was compared with the manifest's already.

    Args:
        record: What the manifest says of it.
        path: The file.
        device: ``"cuda"`` or ``"cuda:1"`` to search flat indexes on that GPU where the installed
            FAISS can (the ``faiss-gpu`` extra); :attr:`FaissIndex.on_gpu` says whether.
        threads: For FAISS's thread pool, which is the process's.

    Raises:
        MissingExtraError: ``faiss`` is not installed.
        IntegrityError: The file is not such an index as ``record`` describes.
    """
    faiss = import_faiss()
    faiss.omp_set_num_threads(threads)
    _require_own_frame(faiss, record, path)
    try:
        with storage_errors(path):
            index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise _unreadable(path, str(error).strip().splitlines()[-1]) from error
    entries = record.dimension + FORMATS[record.kind].further(record.dimension)
    if (index.ntotal, index.d) != (record.rows, entries):
        raise _unreadable(path, f"it holds {index.ntotal} vectors of {index.d} entries")
    return FaissIndex(record, index, _on_gpu(faiss, index, record.kind, device))


def _require_own_frame(faiss: Any, record: AcceleratorRecord, path: Path) -> None:
    """Refuse a file in which anything but codes and learnt ranges differs from FAISS's own.

    Raises:
        IntegrityError: It does.
        StorageError: The disk refuses.
    """
    kind = FORMATS[record.kind]
    if record.dimension + kind.further(record.dimension) > _MOST_DIMENSIONS:
        raise _unreadable(path, f"no index has vectors of {record.dimension:,} entries")
    # Ranges that no other bytes of the file are likely to look like.
    low = -np.random.default_rng(0).random(record.dimension) - 1.0
    index = kind.empty(faiss, low, -low)
    frame, trained = _Frame.of(faiss, index), kind.trained(index)
    head, codes = frame.head(record.rows), frame.code_bytes * record.rows
    with storage_errors(path), open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size != len(head) + codes + len(frame.tail):
            raise _unreadable(path, f"{size} bytes cannot be {record.rows} vectors")
        found_head = file.read(len(head))
        file.seek(codes, os.SEEK_CUR)
        found_tail = file.read()
    for expected, found in ((head, found_head), (frame.tail, found_tail)):
        start = expected.find(trained) if trained else -1
        stop = start + len(trained) if start >= 0 else (start := len(expected))
        if (found[:start], found[stop:]) != (expected[:start], expected[stop:]):
            raise _unreadable(path, "it is laid out as this faiss would not write it")


def _on_gpu(faiss: Any, index: Any, kind: AcceleratorKind, device: str) -> Any | None:
    """A copy of ``index`` on a GPU, where device, wheel, machine and format have it so."""
    name, _, number = device.partition(":")
    able = hasattr(faiss, "StandardGpuResources") and FORMATS[kind].on_gpu
    if name != "cuda" or not able or int(number or 0) >= faiss.get_num_gpus():
        return None
    return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), int(number or 0), index)


def _unreadable(path: Path, cause: str) -> IntegrityError:
    return IntegrityError(
        f"faiss cannot use {path} ({cause}); build the accelerator again with this faiss"
    )


@dataclass(frozen=True, slots=True)
class _Frame:
    """The bytes of an index file around its codes.

    Attributes:
        before: Ends with a little-endian uint64, the size of the codes.
        tail: What comes after them.
        size_per_row: That size for one row, in FAISS's unit for it.
        code_bytes: Bytes of one row's code.
    """

    before: bytes
    tail: bytes
    size_per_row: int
    code_bytes: int

    @classmethod
    def of(cls, faiss: Any, index: Any) -> _Frame:
        """Learn it from the bytes that FAISS gives ``index``, which is empty, with a few rows.

        Raises:
            IntegrityError: This FAISS lays its files out in another way.
        """
        width = index.sa_code_size()
        rows = -(-64 // width)
        mark = hashlib.shake_256(b"wherefrom").digest(rows * width)
        index.add_sa_codes(np.frombuffer(mark, np.uint8).reshape(rows, width))
        data = faiss.serialize_index(index).tobytes()
        index.reset()
        before, found, tail = data.partition(mark)
        size = int.from_bytes(before[-8:], "little")
        counted = int.from_bytes(before[_ROWS_AT : _ROWS_AT + 8], "little")
        if not found or counted != rows or not size or size % rows:
            raise IntegrityError(
                f"faiss {faiss.__version__} lays its files out in a way that is not known; "
                "install faiss-cpu==1.15.1"
            )
        return cls(before, tail, size // rows, width)

    def head(self, rows: int) -> bytes:
        """What comes before the codes of ``rows`` vectors."""
        total, size = rows.to_bytes(8, "little"), (rows * self.size_per_row).to_bytes(8, "little")
        return self.before[:_ROWS_AT] + total + self.before[_ROWS_AT + 8 : -8] + size
