"""Lance as an accelerator: a table of float32 vectors beside the documents, with an IVF index.

For corpora whose codes outgrow one machine's disk. What has to be minded:

* LanceDB reports ``1 - ⟨q, x⟩`` in float32, which for scores much below 1 is 1. So vectors are
  stored times a power of two, and queries multiplied by another, until the 1 is noise.
* Its IVF index visits 20 partitions unless told otherwise, and inner products of vectors of unequal
  length follow partitions badly: on heavy-tailed vectors a quarter of the true top 50 was missing.
  So all rows are searched unless ``probes`` asks for less, and then nothing is claimed of the rest.
* An open table follows the writes of others. Here it is pinned to the version that was verified.
* Exact search reads the rows and not the index, which is slower (twice, on 30,000 rows) when all of
  its partitions are visited.
* NaN in a query finds nothing, silently; it is refused.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from wherefrom.errors import IntegrityError, StorageError
from wherefrom.store.digests import file_sha256
from wherefrom.store.documents import DocumentTable
from wherefrom.store.durable import fsync_directory, fsync_tree, storage_errors
from wherefrom.store.float32 import (
    UNIT,
    Loss,
    Ranges,
    ScaledQuery,
    best_first,
    power_of_two,
    rounded_up,
    scaled_rows,
    with_norms,
)
from wherefrom.store.manifest_parts import AcceleratorRecord
from wherefrom.store.versions import require_own_data

if TYPE_CHECKING:
    from lancedb.table import LanceTable

__all__ = ["LANCE_DIRECTORY", "LanceIndex", "build_lance", "open_lance"]

LANCE_DIRECTORY = "vectors.lance"

_TABLE = "vectors"
_UNFINISHED = ".vectors.tmp"
_QUERY_EXPONENT = 40
_ROUNDINGS = 8  # of the sum with κ, and of 1 minus it
_ROWS_PER_PARTITION = 4096


class LanceIndex:
    """An open table of vectors; made by :func:`open_lance`.

    Attributes:
        record: What the manifest says of it.
        probes: Partitions that a search visits; ``None`` for all rows.
    """

    def __init__(self, record: AcceleratorRecord, table: LanceTable, probes: int | None) -> None:
        """Wrap an open table."""
        self.record = record
        self.probes = probes
        self._table = table

    @property
    def exhaustive(self) -> bool:
        """Whether documents that a search leaves out have no larger bounds than those found."""
        return self.probes is None

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
            count: How many; fewer come back only if there are no more in what is visited.
            sign: +1 or -1.
            ordinals: Documents to search; all by default.

        Returns:
            Ordinals int64 [m] and bounds float64 [m], best first, ties by ordinal.

        Raises:
            QueryError: The query holds NaN or infinity.
            IntegrityError: The table cannot be read.
            StorageError: The disk refuses.
        """
        asked = self._scaled(sign * query)
        count = min(count, self.record.rows if ordinals is None else len(ordinals))
        if count <= 0:
            return np.empty(0, np.int64), np.empty(0)
        values = asked.with_entries(rounded_up(asked.sum_error(_ROUNDINGS)))
        with _reading(self._table.name):
            search: Any = self._table.search(values, vector_column_name="vector")
            search = search.distance_type("dot").select(["row", "_distance"]).limit(count)
            if self.probes is None:
                search = search.bypass_vector_index()
            else:
                search = search.nprobes(self.probes)
            if ordinals is not None:
                search = search.where(f"row IN ({','.join(map(str, ordinals.tolist()))})")
            found = search.to_arrow()
        products = 1.0 - found["_distance"].to_numpy().astype(np.float64)
        return best_first(found["row"].to_numpy(), products / (self.record.scale * asked.scale))

    def error(self, query: NDArray[np.float32]) -> float:
        """How far a document's inner product can lie above its bound.

        With Q and R as in :mod:`wherefrom.store.faiss_formats`: Q R, and what the 1 costs. Infinite
        unless the search is exhaustive: of documents in partitions that are not visited nothing is
        known.

        Raises:
            QueryError: The query holds NaN or infinity.
        """
        asked = self._scaled(query)
        if not self.exhaustive:
            return np.inf
        scale = self.record.scale
        residual = self.record.residual * scale
        largest = self.record.largest * scale + residual
        bound = asked.norm * residual + UNIT * (2.0 + asked.norm * largest)
        return bound * (1.0 + 1e-9) / (scale * asked.scale)

    def _scaled(self, query: NDArray[np.float32]) -> ScaledQuery:
        return ScaledQuery.of(query, self.record.dimension, _QUERY_EXPONENT)


def build_lance(table: DocumentTable, index_dir: Path, table_version: int) -> AcceleratorRecord:
    """Write the table of all stored vectors and its IVF index, replacing what was there.

    Args:
        table: The sealed documents table.
        index_dir: Directory of the index; the table goes to ``vectors.lance`` in it.
        table_version: Version of the documents table.

    Raises:
        IntegrityError: A row of the table differs from its digest.
        StorageError: The disk refuses.
    """
    import lancedb
    from lancedb.index import IvfFlat

    dimension = table.layout.dimension
    entries = dimension + 1  # the norm
    scale = power_of_two(Ranges(table).largest, 0)
    schema = pa.schema(
        [
            pa.field("row", pa.int64(), nullable=False),
            pa.field("vector", pa.list_(pa.float32(), entries), nullable=False),
        ]
    )
    loss = Loss()

    def batches() -> Iterator[pa.RecordBatch]:
        for ordinals, exact, rounded in scaled_rows(table, scale):
            loss.add(exact, rounded)
            flat = pa.array(with_norms(exact, rounded).reshape(-1))
            vectors = pa.FixedSizeListArray.from_arrays(flat, entries)
            yield pa.RecordBatch.from_arrays([pa.array(ordinals), vectors], schema=schema)

    unfinished, path = index_dir / _UNFINISHED, index_dir / LANCE_DIRECTORY
    with storage_errors(path):
        shutil.rmtree(unfinished, ignore_errors=True)
        made = lancedb.connect(str(unfinished)).create_table(_TABLE, schema=schema)
        if len(table):
            made.add(pa.RecordBatchReader.from_batches(schema, batches()))
            partitions = -(-len(table) // _ROWS_PER_PARTITION)
            made.create_index(
                "vector", config=IvfFlat(distance_type="dot", num_partitions=partitions)
            )
        fsync_tree(unfinished)
        if path.exists():
            shutil.rmtree(path)
        (unfinished / LANCE_DIRECTORY).rename(path)
        unfinished.rmdir()
        fsync_directory(index_dir)
        files = {name: file_sha256(index_dir / name) for name in lance_files(index_dir)}
    return AcceleratorRecord(
        kind="lance-ivf",
        table_version=table_version,
        rows=len(table),
        dimension=dimension,
        scale=scale,
        residual=loss.residual / scale,
        largest=loss.largest / scale,
        files=files,
        library=f"lancedb {lancedb.__version__}",
    )


def lance_files(index_dir: Path) -> list[str]:
    """The files of the table of vectors, by their paths in the index, in order."""
    files = (index_dir / LANCE_DIRECTORY).rglob("*")
    return sorted(file.relative_to(index_dir).as_posix() for file in files if file.is_file())


def open_lance(
    record: AcceleratorRecord, index_dir: Path, *, probes: int | None = None
) -> LanceIndex:
    """Open a table whose files were verified already, at its present version.

    Args:
        record: What the manifest says of it.
        index_dir: Directory of the index.
        probes: How many of the IVF index's partitions to visit; all rows by default.

    Raises:
        IntegrityError: It is not such a table as ``record`` describes, or names data elsewhere.
        StorageError: The disk refuses.
    """
    import lancedb

    path = index_dir / LANCE_DIRECTORY
    require_own_data(path, None)
    with _reading(str(path)):
        table = cast("LanceTable", lancedb.connect(str(index_dir)).open_table(_TABLE))
        table.checkout(table.version)
        rows, vector = table.count_rows(), table.schema.field("vector").type
    if (rows, vector.list_size) != (record.rows, record.dimension + 1):
        raise _unreadable(str(path), f"it holds {rows} vectors of {vector.list_size} entries")
    return LanceIndex(record, table, probes)


@contextmanager
def _reading(path: str) -> Iterator[None]:
    """Turn what LanceDB raises over damaged files into one-line errors."""
    try:
        with storage_errors(path):
            yield
    except StorageError:
        raise
    except Exception as error:  # damaged metadata make Lance's Rust panic, an error of its own kind
        raise _unreadable(path, str(error).splitlines()[0]) from error


def _unreadable(path: str, cause: str) -> IntegrityError:
    return IntegrityError(f"Lance cannot use {path} ({cause}); build the accelerator again")
