"""The documents table: the source of truth of an index, one row per document, in LanceDB.

A document's row number is its ordinal: it never changes, and it is its position in the scan files.
Readers are pinned to the table version that the manifest records, so rows appended later by
others stay invisible to them. LanceDB's own scores are never used.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from wherefrom.errors import IndexExistsError, IntegrityError, StorageError
from wherefrom.records import Bits, Document
from wherefrom.store.directory import TABLE_DIRECTORY, TABLE_NAME
from wherefrom.store.durable import fsync_tree, storage_errors
from wherefrom.store.filters import Where, compile_where
from wherefrom.store.layout import TableLayout
from wherefrom.store.manifest import Manifest
from wherefrom.store.manifest_parts import ColumnType, InputRecord, StoreRecord
from wherefrom.store.quantise import quantise
from wherefrom.store.rows import StoredRows, stored_columns

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lancedb.db import DBConnection
    from lancedb.table import LanceTable

__all__ = ["DocumentTable"]

_DOC_IDS_PER_READ = 65536


class DocumentTable:
    """The documents of one index: made by :meth:`create` or :meth:`open`.

    Attributes:
        path: The table's directory.
        layout: Its columns.
    """

    def __init__(
        self, path: Path, layout: TableLayout, table: LanceTable, rows: int, *, read_only: bool
    ) -> None:
        """Wrap an open LanceDB table of ``rows`` rows."""
        self.path = path
        self.layout = layout
        self._table = table
        self._rows = rows
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
    ) -> DocumentTable:
        """Make an empty table in the directory of an index.

        Args:
            index_dir: The index.
            metadata: Metadata columns and their types, in order; any names.
            dimension: Entries of a vector.
            bits: Per stored entry.
            inputs: Types and shapes of tensor examples, if the documents are such.

        Raises:
            IndexExistsError: There is a table already.
            StorageError: The disk refuses.
        """
        path = Path(index_dir) / TABLE_DIRECTORY
        layout = TableLayout(dict(metadata), dimension, bits, inputs)
        if path.exists():
            raise IndexExistsError(f"{path} exists already; choose another path for the index")
        with storage_errors(path):
            made = _connect(index_dir).create_table(TABLE_NAME, schema=layout.schema)
            table = cast("LanceTable", made)
            # Undeclared, keys merged by two writers at once come out double, without an error.
            table.set_unenforced_primary_key(["doc_id"])
        return cls(path, layout, table, 0, read_only=False)

    @classmethod
    def resume(cls, index_dir: str | os.PathLike[str], layout: TableLayout) -> DocumentTable:
        """Open the table of an unfinished build, to go on where it stopped.

        Raises:
            IntegrityError: The table cannot be read, or has other columns than ``layout``.
            StorageError: The disk refuses.
        """
        path = Path(index_dir) / TABLE_DIRECTORY
        with _reading(path):
            table = cast("LanceTable", _connect(index_dir).open_table(TABLE_NAME))
            rows, schema = table.count_rows(), table.schema
        if not schema.equals(layout.schema):
            raise IntegrityError(
                f"{path} has other columns than the build had; build the index again with overwrite"
            )
        table.set_unenforced_primary_key(["doc_id"])
        return cls(path, layout, table, rows, read_only=False)

    @classmethod
    def open(cls, index_dir: str | os.PathLike[str], manifest: Manifest) -> DocumentTable:
        """Open the table of a finished index, read-only, at the version that its manifest records.

        Raises:
            IntegrityError: The table, that version of it or rows of it are missing.
            StorageError: The disk refuses.
        """
        path = Path(index_dir) / TABLE_DIRECTORY
        encoder, recorded = manifest.encoder, manifest.store
        layout = TableLayout(manifest.metadata, encoder.dimension, encoder.bits, manifest.inputs)
        with _reading(path):
            table = cast("LanceTable", _connect(index_dir).open_table(TABLE_NAME))
            table.checkout(recorded.table_version)
            rows = table.count_rows()
            names = table.schema.names
        if rows != recorded.rows or names != layout.schema.names:
            raise IntegrityError(
                f"{path} holds {rows} rows of {len(names)} columns, the manifest says "
                f"{recorded.rows} of {len(layout.schema)}; restore the index or build it again"
            )
        return cls(path, layout, table, rows, read_only=True)

    def __len__(self) -> int:
        """Number of documents."""
        return self._rows

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
        if self._read_only:
            raise ValueError(f"{self.path} was opened to be read; append while building")
        norms = np.asarray(norms, np.float64)
        tokens = np.asarray(tokens)
        expected = (len(documents), self.layout.dimension)
        if vectors.shape != expected or vectors.dtype != np.float32:
            raise ValueError(
                f"vectors: got {vectors.dtype} of shape {vectors.shape}; "
                f"expected float32 of shape {expected}"
            )
        if norms.shape != expected[:1] or tokens.shape != expected[:1]:
            raise ValueError(f"norms and tokens: expected one of each for {expected[0]} documents")
        if not documents:
            return
        finite = np.isfinite(vectors).all(axis=1) & np.isfinite(norms)
        if not finite.all():
            doc_id = documents[int(np.argmin(finite))].doc_id
            raise IntegrityError(
                f"the vector of document {doc_id!r} holds NaN or infinity; "
                "check the model's loss on it or leave it out"
            )
        given = {"input": inputs, "target": targets}
        tensors = {name: values for name, values in given.items() if values is not None}
        if tensors.keys() != self.layout.tensors.keys():
            raise ValueError(f"the table holds tensors {list(self.layout.tensors)}")
        stored = quantise(vectors, self.layout.bits)
        self.add([self.layout.encode(self._rows, documents, stored, norms, tokens, tensors)])

    def add(self, batches: Sequence[pa.RecordBatch]) -> None:
        """Add finished rows, the next ones in order, all of them or nothing.

        Args:
            batches: Rows as :meth:`TableLayout.encode` makes them.

        Raises:
            StorageError: The disk refuses.
            ValueError: They are not the rows that come next.
        """
        count = sum(batch.num_rows for batch in batches)
        numbers = [batch.column("row").to_numpy() for batch in batches]
        due = np.arange(self._rows, self._rows + count)
        if self._read_only or not np.array_equal(np.concatenate([due[:0], *numbers]), due):
            raise ValueError(f"{self.path}: rows {self._rows} to {self._rows + count - 1} are due")
        with storage_errors(self.path):
            self._table.add(pa.Table.from_batches(batches, schema=self.layout.schema))
        self._rows += count

    def seal(self) -> StoreRecord:
        """Make all that was appended durable; what the manifest is to record of it.

        Raises:
            StorageError: The disk refuses.
        """
        fsync_tree(self.path)
        return StoreRecord(table_version=self.version, rows=self._rows)

    def rows(self, ordinals: ArrayLike, *, fields: Collection[str] | None = None) -> StoredRows:
        """Read documents, in the order of ``ordinals`` (which may repeat).

        Args:
            ordinals: Positions in the index, [n].
            fields: The fields of :class:`StoredRows` to read; all by default. Only then are the
                rows checked against their digests.

        Raises:
            IntegrityError: A row is missing, or differs from its digest.
            IndexError: An ordinal is out of range.
            StorageError: The disk refuses.
        """
        wanted = np.asarray(ordinals, np.int64).reshape(-1)
        unique, inverse = np.unique(wanted, return_inverse=True)
        if len(unique) and not (unique[0] >= 0 and unique[-1] < self._rows):
            raise IndexError(f"ordinals lie in 0..{self._rows - 1}; got {unique[[0, -1]].tolist()}")
        read = self._take(unique, fields)
        if np.array_equal(unique, wanted):
            return read
        return StoredRows(read.batch.take(pa.array(inverse)), self.layout)

    def batches(self, size: int, *, fields: Collection[str] | None = None) -> Iterator[StoredRows]:
        """Read all documents in order, ``size`` at a time, in memory that does not grow with them.

        Args:
            size: Rows per batch.
            fields: As in :meth:`rows`.

        Raises:
            IntegrityError: A row is missing, or differs from its digest.
            StorageError: The disk refuses.
        """
        # Lance's own scanner reads ahead by hundreds of megabytes; taking ranges does not.
        for start in range(0, self._rows, size):
            yield self._take(np.arange(start, min(start + size, self._rows)), fields)

    def where(self, where: Where) -> NDArray[np.int64]:
        """Ordinals, ascending, of the documents whose metadata pass a filter.

        Args:
            where: See :mod:`wherefrom.store.filters`; empty lets all pass.

        Raises:
            FilterError: The filter names an unknown column or operator, or a value of a wrong type.
            IntegrityError: The table cannot be read.
            StorageError: The disk refuses.
        """
        condition = compile_where(where, self.layout.metadata)
        if condition is None:
            return np.arange(self._rows)
        with _reading(self.path):
            found = self._table.search().where(condition).select(["row"]).to_arrow()
        return np.sort(found.column("row").to_numpy())

    def find(self, doc_ids: Sequence[str]) -> dict[str, int]:
        """Ordinals of those of ``doc_ids`` that the table holds.

        Raises:
            IntegrityError: The table cannot be read.
            StorageError: The disk refuses.
        """
        if not doc_ids:
            return {}
        from lancedb.expr import col, lit

        condition = col("doc_id").isin([lit(doc_id) for doc_id in doc_ids])
        with _reading(self.path):
            found = self._table.search().where(condition).select(["row", "doc_id"]).to_arrow()
        ordinals = found.column("row").to_pylist()
        return dict(zip(found.column("doc_id").to_pylist(), ordinals, strict=True))

    def doc_ids(self) -> list[str]:
        """Ids of all documents, in order.

        Raises:
            IntegrityError: The table cannot be read.
            StorageError: The disk refuses.
        """
        batches = self.batches(_DOC_IDS_PER_READ, fields=["doc_ids"])
        return [doc_id for batch in batches for doc_id in batch.doc_ids]

    def _take(self, ordinals: NDArray[np.int64], fields: Collection[str] | None) -> StoredRows:
        """Read ascending ``ordinals`` and make sure that the rows are those asked for."""
        columns = stored_columns(self.layout, fields)
        if not len(ordinals):
            schema = pa.schema([self.layout.schema.field(name) for name in columns])
            return StoredRows(pa.RecordBatch.from_pylist([], schema=schema), self.layout)
        with _reading(self.path):
            taken = self._table.take_offsets(ordinals.tolist()).select(columns).to_arrow()
        batch = taken.select(columns).combine_chunks().to_batches()[0]
        rows = StoredRows(batch, self.layout)
        if not np.array_equal(rows.ordinals, ordinals):
            raise IntegrityError(
                f"{self.path} does not hold its rows in order; it was changed by another program: "
                "restore the index or build it again"
            )
        if fields is None:
            rows.verify()
        return rows


def _connect(index_dir: str | os.PathLike[str]) -> DBConnection:
    # Importing LanceDB takes seconds; only who touches a table should wait.
    import lancedb

    return lancedb.connect(os.fspath(index_dir), read_consistency_interval=timedelta(0))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what LanceDB raises over missing or damaged files into one-line errors."""
    try:
        with storage_errors(path):
            yield
    except (IntegrityError, StorageError):
        raise
    except Exception as error:  # damaged metadata make Lance's Rust panic, an error of its own kind
        cause = str(error).splitlines()[0]
        raise IntegrityError(
            f"{path} cannot be read ({cause}); restore the index from a copy or build it again"
        ) from error
