"""Which rows of an index live: row numbers with gaps on disk, ordinals without gaps above.

Rows are numbered as they are written and keep their numbers; a deleted one leaves a gap. A
document's ordinal, which is all that the rest knows it by, is its rank among the rows that live.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wherefrom.errors import IntegrityError
from wherefrom.store.boundary import read_regular
from wherefrom.store.durable import write_bytes_atomically
from wherefrom.store.state_parts import DeletedRecord, StoreRecord

__all__ = ["LiveRows"]

_HEADER = 1 << 10


@dataclass(frozen=True)
class LiveRows:
    """The rows 0 to ``total - 1`` but for some, in memory proportional to those.

    Attributes:
        total: Rows numbered so far.
        deleted: Numbers of those deleted, ascending.
    """

    total: int
    deleted: NDArray[np.int64]

    @classmethod
    def every(cls, total: int) -> LiveRows:
        """All of ``total`` rows."""
        return cls(total, np.empty(0, np.int64))

    def __len__(self) -> int:
        """How many rows live."""
        return self.total - len(self.deleted)

    def rows(self, ordinals: ArrayLike) -> NDArray[np.int64]:
        """Numbers of the rows at ``ordinals``, in their order."""
        wanted = np.asarray(ordinals, np.int64)
        return wanted + np.searchsorted(self._live_before, wanted, side="right")

    def ordinals(self, rows: ArrayLike) -> NDArray[np.int64]:
        """Ordinals of live ``rows``, in their order; for others, of the next row that lives."""
        numbers = np.asarray(rows, np.int64)
        return numbers - np.searchsorted(self.deleted, numbers)

    def dead_within(self, start: int, stop: int) -> NDArray[np.int64]:
        """Deleted rows from ``start`` up to but without ``stop``."""
        first, last = np.searchsorted(self.deleted, [start, stop])
        return self.deleted[first:last]

    def without(self, rows: ArrayLike) -> LiveRows:
        """The same with ``rows`` deleted, too."""
        return LiveRows(self.total, np.union1d(self.deleted, np.asarray(rows, np.int64)))

    def followed_by(self, count: int) -> LiveRows:
        """The same with ``count`` rows more."""
        return LiveRows(self.total + count, self.deleted)

    def write(self, folder: Path) -> DeletedRecord | None:
        """Write the deleted rows' numbers, if any, under a name that is their digest's.

        Raises:
            StorageError: The disk refuses.
        """
        if not len(self.deleted):
            return None
        buffer = io.BytesIO()
        np.save(buffer, self.deleted.astype("<i8"), allow_pickle=False)
        digest = sha256(buffer.getvalue()).hexdigest()
        record = DeletedRecord(
            file=f"deleted-{digest[:16]}.npy", sha256=digest, rows=len(self.deleted)
        )
        write_bytes_atomically(folder / record.file, buffer.getvalue())
        return record

    @classmethod
    def read(cls, folder: Path, store: StoreRecord) -> LiveRows:
        """The rows that a manifest says live.

        Raises:
            IntegrityError: The file of deleted rows is missing or differs from its digest, or the
                numbers do not add up.
            StorageError: The disk refuses.
        """
        live = cls.every(store.next_row)
        if store.deleted is not None:
            file = folder / store.deleted.file
            live = cls(store.next_row, _read_deleted(file, store.deleted, store.next_row))
        if len(live) != store.rows:
            raise IntegrityError(
                f"{folder}: {store.next_row} rows less {len(live.deleted)} deleted are not "
                f"{store.rows}; restore the index from a copy or build it again"
            )
        return live

    @cached_property
    def _live_before(self) -> NDArray[np.int64]:
        """How many rows live before each deleted one."""
        return self.deleted - np.arange(len(self.deleted))


def _read_deleted(path: Path, record: DeletedRecord, rows: int) -> NDArray[np.int64]:
    """Numbers of deleted rows, of ``rows`` in all."""
    try:
        data = read_regular(path, 8 * record.rows + _HEADER)
    except FileNotFoundError as error:
        raise _damaged(path, "missing") from error
    if sha256(data).hexdigest() != record.sha256:
        raise _damaged(path, "damaged (its SHA-256 is not the manifest's)")
    try:
        deleted = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise _damaged(path, f"damaged ({str(error).splitlines()[0]})") from error
    if deleted.dtype != np.dtype("<i8") or deleted.shape != (record.rows,):
        raise _damaged(path, f"damaged (it holds {deleted.dtype} of shape {deleted.shape})")
    if not (deleted[0] >= 0 and deleted[-1] < rows and (np.diff(deleted) > 0).all()):
        raise _damaged(path, f"damaged (its numbers do not ascend from 0 to below {rows})")
    return np.asarray(deleted)


def _damaged(path: Path, cause: str) -> IntegrityError:
    return IntegrityError(f"{path} is {cause}; restore the index from a copy or build it again")
