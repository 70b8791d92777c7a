"""The documents table: the source of truth of an index, one row per document, in LanceDB.

A row's number never changes and is its position in the scan files; a document's ordinal is its rank
among the rows that live (:mod:`wherefrom.store.live_rows`). Readers are pinned to the version that
the manifest records, blind to what others change later. LanceDB's own scores are never used.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from wherefrom.errors import IndexExistsError, IntegrityError
from wherefrom.records import Bits, Document
from wherefrom.store.directory import SCAN_DIRECTORY, TABLE_NAME
from wherefrom.store.durable import fsync_tree, storage_errors
from wherefrom.store.facts import FACTS_FILE, Facts
from wherefrom.store.lance import (
    at_version,
    clean_table,
    connect,
    open_published,
    open_table,
    table_errors,
    table_files,
)
from wherefrom.store.layout import TableLayout
from wherefrom.store.live_rows import LiveRows
from wherefrom.store.location import Database, Location
from wherefrom.store.manifest import Manifest
from wherefrom.store.manifest_parts import ColumnType, InputRecord
from wherefrom.store.rows import StoredRows
from wherefrom.store.state_parts import StoreRecord

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lancedb.table import LanceTable

__all__ = ["DocumentTable"]

_RANGES_PER_DELETE = 1000


class DocumentTable:
    """The documents of one index: made by :meth:`create` or :meth:`open`.

    Attributes:
        path: The table's directory; for one on object storage, where it would be in the cache.
        layout: Its columns.
        live: Its rows.
    """

    def __init__(
        self,
        path: Path,
        layout: TableLayout,
        table: LanceTable,
        live: LiveRows,
        *,
        known: Mapping[str, str] | None = None,
        read_only: bool,
    ) -> None:
        """Wrap an open LanceDB table of rows ``live``; of its ``known`` files, the SHA-256."""
        self.path = path
        self._place = Location(path)
        self.layout = layout
        self.live = live
        self._table = table
        self._known = known or {}
        self._facts: dict[Path, str] | None = None
        self._published = live
        self._read_only = read_only

    @classmethod
    def create(
        cls,
        index_dir: str | os.PathLike[str],
        *,
        metadata: Mapping[str, ColumnType],
        dimension: int,
        bits: Bits,
        inputs: InputRecord | None = None,
        name: str = TABLE_NAME,
    ) -> DocumentTable:
        """Make an empty table in the directory of an index.

        Args:
            index_dir: The index.
            metadata: Metadata columns and their types, in order; any names.
            dimension: Entries of a vector.
            bits: Per stored entry.
            inputs: Types and shapes of tensor examples, if the documents are such.
            name: Of the table.

        Raises:
            IndexExistsError: There is a table already.
            StorageError: The disk refuses.
        """
        path = Path(index_dir, f"{name}.lance")
        layout = TableLayout(dict(metadata), dimension, bits, inputs)
        if path.exists():
            raise IndexExistsError(f"{path} exists already; choose another path for the index")
        with storage_errors(path):
            database = connect(Database(os.fspath(index_dir)))
            table = cast("LanceTable", database.create_table(name, schema=layout.schema))
            # Undeclared, keys merged by two writers at once come out double, without an error.
            table.set_unenforced_primary_key(["doc_id"])
        return cls(path, layout, table, LiveRows.every(0), read_only=False)

    @classmethod
    def resume(
        cls, index_dir: str | os.PathLike[str], layout: TableLayout, version: int | None
    ) -> DocumentTable:
        """Open the table of an unfinished build, to go on where it stopped.

        Args:
            index_dir: The build.
            layout: Of the table.
            version: The last that is durable, later ones are taken back; ``None`` for the latest.

        Raises:
            IntegrityError: The table cannot be read, or has other columns than ``layout``.
            StorageError: The disk refuses.
        """
        path = Path(index_dir, f"{TABLE_NAME}.lance")
        table = at_version(Database(os.fspath(index_dir)), TABLE_NAME, version)
        with table_errors(path):
            rows, schema = table.count_rows(), table.schema
        if not schema.equals(layout.schema):
            raise IntegrityError(
                f"{path} has other columns than the build had; begin anew with --no-resume "
                "(resume=False)"
            )
        return cls(path, layout, table, LiveRows.every(rows), read_only=False)

    @classmethod
    def open(
        cls,
        index_dir: str | os.PathLike[str],
        manifest: Manifest,
        *,
        write: bool = False,
        version: int | None = None,
    ) -> DocumentTable:
        """Open the table of a finished index at the version that its manifest records.

        Args:
            index_dir: The index, a directory or a URL of object storage.
            manifest: Its manifest.
            write: Whether to change it; what a writer that died left beyond that version is then
                taken back. For the holder of the index's lock only.
            version: A later one, to write on from: rows were appended to it that no manifest knows.

        Raises:
            IntegrityError: The table, that version of it or rows of it are missing.
            StorageError: The disk refuses.
        """
        recorded, encoder = manifest.store, manifest.encoder
        location = Location.of(index_dir)
        folder = location.directory if write else location.folder(manifest)
        database = location.database(manifest)
        place = database.table(recorded.table)
        layout = TableLayout(manifest.metadata, encoder.dimension, encoder.bits, manifest.inputs)
        if write or location.remote:
            table = open_table(database, recorded.table, recorded.table_version)
        else:
            table = open_published(folder, manifest)
        with table_errors(place):
            rows, names = table.count_rows(), table.schema.names
        if rows != recorded.rows or names != layout.schema.names:
            raise IntegrityError(
                f"{place} holds {rows} rows and the columns {names}, the manifest says "
                f"{recorded.rows} and {layout.schema.names}; restore the index or build it again"
            )
        published = live = LiveRows.read(folder, recorded)
        if write:
            table = at_version(database, recorded.table, version or recorded.table_version)
            live = live.followed_by(table.count_rows() - rows)
        made = cls(folder / place.name, layout, table, live, known=recorded.files, read_only=True)
        made._read_only = not write
        made._place, made._published = place, published
        made._facts = {
            folder / SCAN_DIRECTORY / str(one.number) / FACTS_FILE: one.files.get(FACTS_FILE, "")
            for one in manifest.scan.segments
        }
        return made

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.live)

    @property
    def version(self) -> int:
        """Version of the table; a table opened to be read stays at the manifest's."""
        return int(self._table.version)

    def append(
        self,
        documents: Sequence[Document],
        vectors: NDArray[np.float32],
        *,
        norms: ArrayLike,
        tokens: ArrayLike,
        inputs: NDArray[Any] | None = None,
        targets: NDArray[Any] | None = None,
    ) -> None:
        """Add one shard of documents, all of it or nothing.

        Args:
            documents: n documents.
            vectors: Their encoded whitened gradients, [n, dimension] float32.
            norms: Norms of the vectors before any encoding, [n].
            tokens: Scored tokens, [n].
            inputs: Inputs of tensor examples, [n, ...].
            targets: Their targets, [n, ...].

        Raises:
            IntegrityError: A vector or norm is not finite; the document is named.
            CorpusError: A document's metadata does not fit the columns.
            StorageError: The disk refuses.
            ValueError: Shapes or types are not those of the table, or it was opened to be read.
        """
        norms, tokens = np.asarray(norms, np.float64), np.asarray(tokens)
        stored = self.layout.quantise(documents, vectors, norms, tokens)
        given = (("input", inputs), ("target", targets))
        tensors = {name: values for name, values in given if values is not None}
        if tensors.keys() != self.layout.tensors.keys():
            raise ValueError(f"the table holds tensors {list(self.layout.tensors)}")
        if documents:
            first = self.live.total
            self.add([self.layout.encode(first, documents, stored, norms, tokens, tensors)])

    def add(self, batches: Sequence[pa.RecordBatch]) -> None:
        """Add finished rows, the next ones in order, all of them or nothing.

        Args:
            batches: Rows as :meth:`TableLayout.encode` makes them.

        Raises:
            IntegrityError: The table is damaged.
            StorageError: The disk refuses.
            ValueError: They are not the rows that come next.
        """
        numbers = [batch.column("row").to_numpy() for batch in batches]
        first, count = self.live.total, sum(batch.num_rows for batch in batches)
        due = np.arange(first, first + count)
        if self._read_only:
            raise ValueError(f"{self.path} was opened to be read")
        if not np.array_equal(np.concatenate([due[:0], *numbers]), due):
            raise ValueError(f"{self.path}: rows {first} to {first + count - 1} are due")
        with table_errors(self.path):
            self._table.add(pa.Table.from_batches(batches, schema=self.layout.schema))
        self.live = self.live.followed_by(count)

    def delete(self, ordinals: ArrayLike) -> None:
        """Delete documents; the ordinals of those after them move up.

        Their rows are hidden, not overwritten: readers of earlier versions still see them.

        Args:
            ordinals: Positions in the index, each once, [n].

        Raises:
            IntegrityError: The table is damaged.
            StorageError: The disk refuses.
            ValueError: The table was opened to be read.
        """
        if self._read_only:
            raise ValueError(f"{self.path} was opened to be read")
        rows = np.sort(self.live.rows(ordinals))
        runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1) if len(rows) else []
        ranges = [f"(row >= {run[0]} AND row <= {run[-1]})" for run in runs]
        for start in range(0, len(ranges), _RANGES_PER_DELETE):
            with table_errors(self.path):
                self._table.delete(" OR ".join(ranges[start : start + _RANGES_PER_DELETE]))
        self.live = self.live.without(rows)

    def adopt(self, next_row: int) -> None:
        """Take in rows that others wrote and committed to this table, up to ``next_row``.

        Raises:
            StorageError: The disk refuses.
        """
        with table_errors(self.path):
            cast("Any", self._table).checkout_latest()
        self.live = self.live.followed_by(next_row - self.live.total)

    def sync(self) -> int:
        """Make all changes durable; the version that is.

        Raises:
            StorageError: The disk refuses.
        """
        fsync_tree(self.path)
        return self.version

    def clean(self) -> None:
        """Remove what only earlier versions need; no reader may be at one.

        Raises:
            StorageError: The disk refuses.
        """
        clean_table(self._table, self.path)

    def seal(self) -> StoreRecord:
        """Make all changes durable; what the manifest is to record of the table.

        Raises:
            StorageError: The disk refuses.
        """
        fsync_tree(self.path)
        self._known = table_files(self.path, self._known)
        return StoreRecord(
            table=self.path.stem,
            table_version=self.version,
            rows=len(self),
            next_row=self.live.total,
            deleted=self.live.write(self.path.parent),
            files=dict(self._known),
        )

    def rows(self, ordinals: ArrayLike) -> StoredRows:
        """Read documents, in the order of ``ordinals`` (which may repeat).

        Rows are read whole, and each is checked: no part of one leaves the store unverified.

        Args:
            ordinals: Positions in the index, [n].

        Raises:
            IntegrityError: A row is missing, or differs from its digest.
            IndexError: An ordinal is out of range.
            StorageError: The disk refuses.
        """
        wanted = np.asarray(ordinals, np.int64).reshape(-1)
        unique, inverse = np.unique(wanted, return_inverse=True)
        if len(unique) and not (unique[0] >= 0 and unique[-1] < len(self)):
            raise IndexError(f"ordinals lie in 0..{len(self) - 1}; got {unique[[0, -1]].tolist()}")
        read = self._take(unique)
        if np.array_equal(unique, wanted):
            return read
        return StoredRows(read.batch.take(pa.array(inverse)), self.layout, wanted)

    def batches(self, size: int, *, start: int = 0) -> Iterator[StoredRows]:
        """Read all documents in order, ``size`` at a time, in memory that does not grow with them.

        Args:
            size: Rows per batch.
            start: Ordinal of the first one to read.

        Raises:
            IntegrityError: A row is missing, or differs from its digest.
            StorageError: The disk refuses.
        """
        # Lance's own scanner reads ahead by hundreds of megabytes; taking ranges does not.
        for first in range(start, len(self), size):
            yield self._take(np.arange(first, min(first + size, len(self))))

    @cached_property
    def facts(self) -> Facts:
        """Ids and metadata of all documents that the manifest knows, whatever was changed since.

        Raises:
            IntegrityError: A file of them is missing or differs from its digest.
            StorageError: The disk refuses.
            ValueError: The index is being built; there are none yet.
        """
        if self._facts is None:
            raise ValueError(f"{self.path}: facts are written at the end of a build")
        return Facts.open(self._facts, self.layout, self._published)

    def _take(self, ordinals: NDArray[np.int64]) -> StoredRows:
        """Read ascending ``ordinals`` and make sure that the rows are those asked for."""
        schema = self.layout.schema
        if not len(ordinals):
            return StoredRows(pa.RecordBatch.from_pylist([], schema=schema), self.layout, ordinals)
        with table_errors(self._place):
            taken = self._table.take_offsets(ordinals.tolist()).select(schema.names).to_arrow()
            batch = taken.select(schema.names).combine_chunks().to_batches()[0]
        rows = StoredRows(batch, self.layout, ordinals)
        in_order = np.array_equal(rows.row_numbers, self.live.rows(ordinals))
        if not in_order or not batch.schema.equals(schema):
            raise IntegrityError(
                f"{self._place} does not hold its rows in order, or in other columns; another "
                "program changed it: restore the index or build it again"
            )
        rows.verify()
        return rows
