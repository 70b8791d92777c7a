"""Staged shards: finished rows of the documents table, each shard a file, until they are committed.

Shards are encoded in any order, by any process; the table takes them strictly in order, so the rows
it holds say which shards are in it. Staging and committing again what is there already is harmless.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from wherefrom.errors import IntegrityError
from wherefrom.store.durable import storage_errors, write_atomically
from wherefrom.store.layout import TableLayout
from wherefrom.store.rows import StoredRows

__all__ = ["read_staged", "write_staged"]


def write_staged(path: str | os.PathLike[str], batch: pa.RecordBatch) -> None:
    """Write the rows of a shard, durably, all of them or nothing.

    Args:
        path: The file.
        batch: Rows as :meth:`~wherefrom.store.layout.TableLayout.encode` makes them.

    Raises:
        StorageError: The disk refuses.
    """

    def write(temporary: Path) -> None:
        with (
            pa.OSFile(os.fspath(temporary), "wb") as file,
            pa.ipc.new_file(file, batch.schema) as out,
        ):
            out.write_batch(batch)

    write_atomically(path, write)


def read_staged(paths: Sequence[Path], layout: TableLayout) -> Iterator[pa.RecordBatch]:
    """The rows of staged shards, in the order of ``paths``, each compared with its digest.

    Args:
        paths: The files.
        layout: Of the table that they are for.

    Raises:
        IntegrityError: A file or a row is damaged, or has other columns.
        StorageError: The disk refuses.
    """
    for path in paths:
        try:
            with storage_errors(path), pa.OSFile(os.fspath(path)) as file:
                table = pa.ipc.open_file(file).read_all()
        # Of what fails in a damaged file's structure, Arrow calls some plain OSErrors.
        except (pa.ArrowException, OSError) as error:
            raise _damaged(path, str(error).splitlines()[0]) from error
        if not table.schema.equals(layout.schema):
            raise _damaged(path, "it has other columns")
        for batch in table.to_batches():
            try:
                StoredRows(batch, layout, batch.column("row").to_numpy()).verify()
            except IntegrityError as error:
                raise _damaged(path, "a row differs from its digest") from error
            yield batch


def _damaged(path: Path, cause: str) -> IntegrityError:
    return IntegrityError(
        f"{path} is damaged ({cause}); remove it and run the same command again, which makes it "
        "anew"
    )
