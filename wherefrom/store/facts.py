"""Facts of documents: ids and metadata of all rows in flat Arrow files, for filters and look-ups.

The digest of a row tells whether the row is whole, but a row that a damaged value keeps out of a
filter, a group or a look-up is never read, and nobody would know. So whatever is asked of *all*
documents is answered from these files, each of which is checked as a whole, by its SHA-256 in the
manifest, before any of it is believed. They are copies, made from verified rows, as the rest of a
scan segment is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

from wherefrom.errors import IntegrityError
from wherefrom.records import MetadataValue
from wherefrom.store.columns import metadata_column
from wherefrom.store.digests import file_sha256
from wherefrom.store.durable import storage_errors
from wherefrom.store.filters import Comparison, Where, comparisons
from wherefrom.store.layout import TableLayout
from wherefrom.store.live_rows import LiveRows
from wherefrom.store.rows import StoredRows

__all__ = ["FACTS_FILE", "Facts", "FactsWriter"]

FACTS_FILE = "facts.arrow"

_ROWS_PER_BATCH = 1 << 16
_COMPARE: dict[str, Callable[[pa.ChunkedArray, pa.Scalar], pa.ChunkedArray]] = {
    "==": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}


class FactsWriter:
    """Streams the facts of verified rows into a file.

    Written beside its place and moved there at the end: a copy that is being read stays whole.
    """

    def __init__(self, path: Path, layout: TableLayout) -> None:
        """Write to ``path``, which need not be there yet, the facts of rows of that layout."""
        self._path = path
        self._temporary = path.with_name(f".{path.name}.tmp")
        self._schema = _schema(layout)
        self._pending: list[pa.RecordBatch] = []
        self._rows = 0

    def __enter__(self) -> FactsWriter:
        """Make the file."""
        self._file = open(self._temporary, "wb")
        self._out = pa.ipc.new_file(self._file, self._schema)
        return self

    def __exit__(self, *_: object) -> None:
        """Close it; what was not published is gone."""
        try:
            self._file.close()
        finally:
            self._temporary.unlink(missing_ok=True)

    def write(self, batch: pa.RecordBatch) -> None:
        """Add the facts of verified rows, all columns of which are given."""
        self._add(batch.select(self._schema.names))

    def gap(self, count: int) -> None:
        """Add nothing in the place of ``count`` deleted rows."""
        blank = {field.name: None if field.nullable else "" for field in self._schema}
        if count:
            self._add(pa.RecordBatch.from_pylist([blank] * count, self._schema))

    def finish(self) -> str:
        """Make the file durable; its SHA-256."""
        self._write()
        self._out.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        return file_sha256(self._temporary)

    def publish(self) -> None:
        """Move the file to its place."""
        self._file.close()
        os.replace(self._temporary, self._path)

    def _add(self, batch: pa.RecordBatch) -> None:
        self._pending.append(batch)
        self._rows += len(batch)
        if self._rows >= _ROWS_PER_BATCH:
            self._write()

    def _write(self) -> None:
        table = pa.Table.from_batches(self._pending, self._schema).combine_chunks()
        self._out.write_table(table)
        self._pending, self._rows = [], 0


class Facts:
    """The facts of an index's documents, mapped into memory.

    Documents are named by their ordinals, 0 to n - 1 over those that are not deleted.
    """

    def __init__(self, layout: TableLayout, table: pa.Table, live: LiveRows) -> None:
        """Wrap facts of all rows, of which some live."""
        self._layout = layout
        self._table = table
        self._live = live

    @classmethod
    def open(cls, files: Mapping[Path, str], layout: TableLayout, live: LiveRows) -> Facts:
        """Compare files with their digests, and map them.

        Args:
            files: SHA-256 of the files of all segments, in order.
            layout: Of the documents table.
            live: Which of their rows live.

        Raises:
            IntegrityError: A file is missing, differs from its digest, or does not fit the layout.
            StorageError: The disk refuses.
        """
        schema = _schema(layout)
        tables = [_map(path, sha256, schema) for path, sha256 in files.items()]
        table = pa.concat_tables(tables) if tables else schema.empty_table()
        if len(table) != live.total:
            raise IntegrityError(
                f"the index's {FACTS_FILE} hold {len(table)} rows, the manifest says {live.total}; "
                "run wherefrom verify --repair, which makes them again from the documents"
            )
        return cls(layout, table, live)

    def __len__(self) -> int:
        """Number of documents."""
        return len(self._live)

    def where(self, where: Where) -> NDArray[np.int64]:
        """Ordinals, ascending, of the documents whose metadata pass a filter.

        Args:
            where: See :mod:`wherefrom.store.filters`; empty lets all pass.

        Raises:
            FilterError: The filter names an unknown column or operator, or a value of a wrong type.
        """
        passing = np.ones(len(self._table), np.bool_)
        for comparison in comparisons(where, self._layout.metadata):
            column = self._table.column(metadata_column(comparison.column))
            passing &= _passes(column, comparison)
        return self._ordinals(passing)

    def find(self, doc_ids: Sequence[str]) -> dict[str, int]:
        """Ordinals of those of ``doc_ids`` that the index holds."""
        found = self._ordinals(self._among("doc_id", doc_ids))
        return dict(zip(self._taken("doc_id", found), found.tolist(), strict=True))

    def passages(self, parent_ids: Sequence[str]) -> NDArray[np.int64]:
        """Ordinals, ascending, of the passages of any of these documents."""
        return self._ordinals(self._among("parent_id", parent_ids))

    def parents_of(self, ordinals: ArrayLike) -> list[str | None]:
        """Documents that the passages at ``ordinals`` were cut from; ``None`` for whole ones."""
        return self._taken("parent_id", ordinals)

    def doc_ids(self, ordinals: ArrayLike | None = None) -> list[str]:
        """Ids of the documents at ``ordinals``; of all, in order, by default."""
        return self._taken("doc_id", ordinals)

    def repeated(self) -> list[str]:
        """Ids that more than one document has, which must not be."""
        ids = self._column("doc_id", None)
        if pc.count_distinct(ids).as_py() == len(ids):
            return []
        counted = pc.value_counts(ids)
        several = pc.greater(counted.field("counts"), 1)
        found: list[str] = counted.field("values").filter(several).to_pylist()
        return found

    def differing(self, rows: StoredRows) -> list[str]:
        """Ids of those among verified ``rows`` whose facts are other ones than the table's."""
        same = np.ones(len(rows), np.bool_)
        for name in self._table.schema.names:
            facts, stored = self._column(name, rows.ordinals), rows.batch.column(name)
            equal = _truths(pc.equal(facts, stored))
            same &= equal | _truths(pc.and_(facts.is_null(), pa.chunked_array([stored.is_null()])))
        return [rows.doc_ids[i] for i in np.flatnonzero(~same)]

    def column(self, name: str, ordinals: ArrayLike | None = None) -> list[MetadataValue]:
        """One metadata value a document, ``None`` where it is missing.

        Args:
            name: Of the column.
            ordinals: Which documents, [n], in this order; all by default.

        Raises:
            FilterError: There is no such column.
        """
        comparisons({name: None}, self._layout.metadata)
        return self._taken(metadata_column(name), ordinals)

    def _taken(self, name: str, ordinals: ArrayLike | None) -> list[Any]:
        values: list[Any] = self._column(name, ordinals).to_pylist()
        return values

    def _column(self, name: str, ordinals: ArrayLike | None) -> pa.ChunkedArray:
        column = self._table.column(name)
        if ordinals is None and not len(self._live.deleted):
            return column
        wanted = np.arange(len(self)) if ordinals is None else ordinals
        return column.take(pa.array(self._live.rows(wanted)))

    def _among(self, name: str, ids: Sequence[str]) -> NDArray[np.bool_]:
        wanted = pa.array(ids, pa.string())
        return _truths(pc.is_in(self._table.column(name), value_set=wanted))

    def _ordinals(self, passing: NDArray[np.bool_]) -> NDArray[np.int64]:
        passing[self._live.deleted] = False
        return self._live.ordinals(np.flatnonzero(passing))


def _schema(layout: TableLayout) -> pa.Schema:
    names = ["doc_id", "parent_id", *map(metadata_column, layout.metadata)]
    return pa.schema([layout.schema.field(name) for name in names])


def _map(path: Path, sha256: str, schema: pa.Schema) -> pa.Table:
    try:
        if file_sha256(path) != sha256:
            raise _damaged(path, "its SHA-256 is not the manifest's")
        with storage_errors(path):
            table = pa.ipc.open_file(pa.memory_map(os.fspath(path))).read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, str(error).splitlines()[0]) from error
    if not table.schema.equals(schema):
        raise _damaged(path, "it has other columns")
    return table


def _damaged(path: Path, cause: str) -> IntegrityError:
    return IntegrityError(
        f"{path} is missing or damaged ({cause}); run wherefrom verify --repair, which makes it "
        "again from the documents"
    )


def _passes(column: pa.ChunkedArray, comparison: Comparison) -> NDArray[np.bool_]:
    """Which values pass; missing ones pass nothing but ``== None``."""
    name, value = comparison.operator, comparison.value
    if value is None:
        return _truths(column.is_null() if name == "==" else column.is_valid())
    if isinstance(value, tuple):
        found = _truths(pc.is_in(column, value_set=pa.array(value, column.type)))
        return found if name == "in" else ~found & _truths(column.is_valid())
    if name == "contains":
        return _truths(pc.match_substring(column, str(value)))
    return _truths(_COMPARE[name](column, pa.scalar(value, column.type)))


def _truths(values: pa.ChunkedArray) -> NDArray[np.bool_]:
    return np.array(values.fill_null(False).to_numpy(), np.bool_)
