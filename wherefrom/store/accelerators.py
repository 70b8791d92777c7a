"""Accelerators: vector indexes of other libraries, made from the table, asked for candidates only.

Every score that a user sees is computed from the stored rows in float64, whatever proposed the
document; an accelerator ranks by upper bounds of those, and the search widens until no document it
left out can matter. An accelerator is made from one version of the table and can be
made again; it is used only while the manifest has the SHA-256 of each of its files.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from wherefrom.errors import IntegrityError, QueryError
from wherefrom.store.digests import file_sha256
from wherefrom.store.documents import DocumentTable
from wherefrom.store.faiss_index import FAISS_DIRECTORY, build_faiss, open_faiss
from wherefrom.store.lance_index import LANCE_DIRECTORY, build_lance, lance_files, open_lance
from wherefrom.store.manifest_parts import AcceleratorKind, AcceleratorRecord

__all__ = [
    "Accelerator",
    "AcceleratorKind",
    "build_accelerator",
    "find_accelerator",
    "open_accelerator",
]


class Accelerator(Protocol):
    """What proposes candidates in place of the scan of codes.

    Attributes:
        record: What the manifest says of it.
    """

    record: AcceleratorRecord

    @property
    def exhaustive(self) -> bool:
        """Whether documents that a search leaves out have no larger bounds than those found."""

    def search(
        self,
        query: NDArray[np.float32],
        count: int,
        sign: int,
        ordinals: NDArray[np.int64] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The documents with the largest bounds.

        A document's bound, plus :meth:`error`, is no less than ``sign * ⟨query, stored vector⟩``,
        and exceeds it by little. That of a document left out is no more than the last one found,
        if the search is exhaustive.

        Args:
            query: float32 [dimension].
            count: How many.
            sign: +1 or -1.
            ordinals: Documents to search; all by default.

        Returns:
            Ordinals int64 [m] and bounds float64 [m], best first, ties by ordinal.

        Raises:
            QueryError: The query holds NaN or infinity.
        """

    def error(self, query: NDArray[np.float32]) -> float:
        """How far a document's inner product can lie above its bound, for every document.

        Infinite where a search may miss documents: its results are then hints only.

        Raises:
            QueryError: The query holds NaN or infinity.
        """


def build_accelerator(
    kind: AcceleratorKind, table: DocumentTable, index_dir: str | os.PathLike[str]
) -> AcceleratorRecord:
    """Make an accelerator of the sealed ``table``, replacing an older one of its kind.

    FAISS indexes take the memory of one batch, however many documents there are. Lance sorts
    vectors into partitions in memory of its own: 1 GB was seen for 0.5 GB of them.

    Args:
        kind: ``faiss-flat`` (float32), ``faiss-sq8`` (a byte an entry), ``faiss-rabitq`` (a bit an
            entry; for one-bit codes) or ``lance-ivf`` (float32 in a Lance table).
        table: The documents.
        index_dir: Directory of the index.

    Returns:
        What the manifest is to record.

    Raises:
        QueryError: There is no such kind.
        MissingExtraError: FAISS is not installed.
        IntegrityError: A row of the table differs from its digest.
        StorageError: FAISS does not take vectors of so many entries, or the disk refuses.
    """
    _check_kind(kind)
    version = table.version
    if kind == "lance-ivf":
        return build_lance(table, Path(index_dir), version)
    return build_faiss(kind, table, Path(index_dir), version)


def find_accelerator(
    kind: str, records: tuple[AcceleratorRecord, ...], index_dir: str | os.PathLike[str]
) -> AcceleratorRecord:
    """The record of an accelerator among those of a manifest.

    Raises:
        QueryError: There is no such kind, or the index has none of it.
        IntegrityError: There are files of one, but the manifest does not know them.
    """
    _check_kind(kind)
    for record in records:
        if record.kind == kind:
            return record
    place = Path(index_dir) / _place(kind)
    if place.exists():
        raise IntegrityError(
            f"{place} is not in the manifest and so is not read; build the accelerator again"
        )
    known = ", ".join(record.kind for record in records) or "none"
    raise QueryError(
        f"the index has no accelerator {kind!r} (it has {known}); make it with "
        f"index.accelerate({kind!r}) or wherefrom accelerate"
    )


def open_accelerator(
    record: AcceleratorRecord,
    table: DocumentTable,
    index_dir: str | os.PathLike[str],
    *,
    device: str = "cpu",
    threads: int = 1,
    probes: int | None = None,
) -> Accelerator:
    """Open an accelerator after checking it against its record; this reads its files once.

    Args:
        record: From the manifest.
        table: The documents, at the version that the manifest records.
        index_dir: Directory of the index.
        device: Where FAISS may search: ``"cuda"`` takes effect for ``faiss-flat`` where the
            ``faiss-gpu`` extra and a GPU are there, and is ``"cpu"`` otherwise.
        threads: For FAISS's thread pool, which is the process's.
        probes: Partitions that ``lance-ivf`` visits, for speed without any bound; all by default.

    Raises:
        MissingExtraError: FAISS is not installed.
        IntegrityError: It was made from another version of the table, or a file is missing,
            differs or is not in the record.
        StorageError: The disk refuses.
        ValueError: ``probes`` for another kind, or not positive.
    """
    if probes is not None and (record.kind != "lance-ivf" or probes < 1):
        raise ValueError(f"probes {probes} for {record.kind}; lance-ivf takes a positive number")
    folder = Path(index_dir)
    _check_current(record, table, folder)
    _check_files(record, folder)
    if record.kind == "lance-ivf":
        return open_lance(record, folder, probes=probes)
    return open_faiss(record, folder / _place(record.kind), device=device, threads=threads)


def _check_kind(kind: str) -> None:
    if kind not in get_args(AcceleratorKind):
        known = ", ".join(get_args(AcceleratorKind))
        raise QueryError(f"no accelerator is called {kind!r}; there are {known}")


def _place(kind: str) -> Path:
    """Where in an index an accelerator lies."""
    if kind == "lance-ivf":
        return Path(LANCE_DIRECTORY)
    return Path(FAISS_DIRECTORY, f"{kind}.index")


def _check_current(record: AcceleratorRecord, table: DocumentTable, folder: Path) -> None:
    made = (record.table_version, record.rows, record.dimension)
    now = (table.version, len(table), table.layout.dimension)
    if made != now:
        names = ("version {} of the table", "{} rows", "{} entries")
        was = ", ".join(name.format(value) for name, value in zip(names, made, strict=True))
        is_now = ", ".join(name.format(value) for name, value in zip(names, now, strict=True))
        raise IntegrityError(
            f"{folder / _place(record.kind)} is stale: made from {was}, the index has {is_now}; "
            "build the accelerator again"
        )


def _check_files(record: AcceleratorRecord, folder: Path) -> None:
    place = folder / _place(record.kind)
    if not place.exists():
        raise IntegrityError(f"{place} is missing; build the accelerator again")
    present = (
        lance_files(folder) if record.kind == "lance-ivf" else [_place(record.kind).as_posix()]
    )
    unequal = sorted(set(present) ^ set(record.files))
    if unequal:
        cause = "missing" if unequal[0] in record.files else "not in the manifest"
        raise IntegrityError(f"{folder / unequal[0]} is {cause}; build the accelerator again")
    for name in present:
        if file_sha256(folder / name) != record.files[name]:
            raise IntegrityError(
                f"{folder / name} differs from its SHA-256 in the manifest; "
                "build the accelerator again"
            )
