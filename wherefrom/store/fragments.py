"""Fragments: rows that many workers write into one table's directory, committed together.

A worker writes a fragment, which no version of the table names yet, and then a receipt for it; the
rows never pass through the driver. Only the driver commits, in order, and a commit names the
version that it builds on: Lance lets a stale ``Append`` through, which doubles its rows, but
refuses a stale ``Merge``. So committing what is committed already is harmless, and two drivers at
once cannot both succeed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from wherefrom.errors import IndexBusyError, IntegrityError, MissingExtraError
from wherefrom.store.directory import json_bytes, read_json
from wherefrom.store.durable import fsync_directory, storage_errors, write_bytes_atomically

if TYPE_CHECKING:
    import types

__all__ = ["commit_fragments", "stage_fragment"]

_FORMAT = "wherefrom-fragment"
_DATA = "data"


def stage_fragment(receipt: Path, table: Path, batch: pa.RecordBatch) -> None:
    """Write the rows of a shard into a table's directory, durably, and a receipt for them.

    Nobody sees the rows until :func:`commit_fragments` is given the receipt. Staging a shard again
    writes other files and replaces the receipt.

    Args:
        receipt: The file to write last.
        table: The table's directory; it exists, with the columns of ``batch``.
        batch: At least one row, as :meth:`~wherefrom.store.layout.TableLayout.encode` makes them.

    Raises:
        MissingExtraError: pylance is not installed.
        IntegrityError: The table cannot be read.
        StorageError: The disk refuses.
    """
    lance = _import_lance()
    with _lance_errors(table):
        written = lance.fragment.write_fragments(pa.Table.from_batches([batch]), str(table))
    fragments = [fragment.to_json() for fragment in written]
    with storage_errors(table):
        for name in _data_files(fragments):
            with (table / _DATA / name).open("rb") as file:
                os.fsync(file.fileno())
        fsync_directory(table / _DATA)
        fsync_directory(table)
    fields = {
        "format": _FORMAT,
        "first_row": batch.column("row")[0].as_py(),
        "rows": batch.num_rows,
        "fragments": fragments,
    }
    write_bytes_atomically(receipt, json_bytes(fields))


def commit_fragments(table: Path, receipts: Sequence[Path], *, first_row: int = 0) -> int:
    """Make staged rows part of the table, all of them in one commit.

    Args:
        table: The table's directory.
        receipts: Of consecutive shards, in order. Those whose rows the table holds are passed over.
        first_row: Number of the first row that is written this way; all before it are there.

    Returns:
        Number of the row that comes next.

    Raises:
        MissingExtraError: pylance is not installed.
        IndexBusyError: Somebody else committed to the table at the same time; nothing was.
        IntegrityError: A receipt or its fragment is damaged or missing, or the table lacks the rows
            before it.
        StorageError: The disk refuses.
    """
    lance = _import_lance()
    with _lance_errors(table):
        dataset = lance.dataset(str(table))
        before = int(dataset.count_rows())
        last = dataset.take([before - 1], columns=["row"])["row"][0].as_py() if before else -1
    begin = due = max(last + 1, first_row)
    staged: list[dict[str, Any]] = []
    for path in receipts:
        receipt = _read_receipt(path)
        end = receipt.first_row + receipt.rows
        if end <= begin:
            continue
        if receipt.first_row != due:
            raise IntegrityError(
                f"{path} is for rows {receipt.first_row} to {end - 1} and row {due} is due in "
                f"{table}; begin anew with --no-resume"
            )
        _require_files(receipt, path, table / _DATA)
        staged.extend(receipt.fragments)
        due = end
    if not staged:
        return due
    committed = [fragment.metadata for fragment in dataset.get_fragments()]
    # Numbered 0, as they were written: Lance gives them numbers that no fragment ever had.
    added = [lance.fragment.FragmentMetadata.from_json(json.dumps(fields)) for fields in staged]
    transaction = lance.Transaction(
        dataset.version,
        lance.LanceOperation.Merge([*committed, *added], dataset.lance_schema),
        transaction_properties={"wherefrom.rows": f"{begin}-{due - 1}"},
    )
    with _lance_errors(table):
        try:
            dataset = lance.LanceDataset.commit(dataset, transaction, max_retries=0)
        except lance.commit.CommitConflictError as error:
            raise IndexBusyError(
                f"{table.parent} was written by another process at the same time; wait until it is "
                "done and run the same command again"
            ) from error
        added_rows = int(dataset.count_rows()) - before
    if added_rows != due - begin:
        raise IntegrityError(
            f"{table} gained {added_rows} rows by a commit of {due - begin}; build the index again "
            "with --no-resume"
        )
    return due


@dataclass(frozen=True, slots=True)
class _Receipt:
    first_row: int
    rows: int
    fragments: list[dict[str, Any]]


def _read_receipt(path: Path) -> _Receipt:
    fields: dict[str, Any] = read_json(path) or {}
    try:
        receipt = _Receipt(fields["first_row"], fields["rows"], fields["fragments"])
        rows = sum(fragment["physical_rows"] for fragment in receipt.fragments)
        whole = fields["format"] == _FORMAT and rows == receipt.rows > 0
        _data_files(receipt.fragments)
    except (KeyError, TypeError) as error:
        raise _damaged(path, "it is no receipt for a fragment") from error
    if not whole:
        raise _damaged(path, "it is no receipt for a fragment")
    return receipt


def _require_files(receipt: _Receipt, path: Path, folder: Path) -> None:
    """Make sure that the files of a receipt are there, whole."""
    for name, size in _data_files(receipt.fragments).items():
        file = folder / name
        if Path(name).name != name or not file.is_file():
            raise _damaged(path, f"its file {name} is missing")
        if file.stat().st_size != size:
            raise _damaged(path, f"its file {name} has {file.stat().st_size} bytes, not {size}")


def _data_files(fragments: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Names of the files of fragments, each with its size in bytes."""
    return {
        file["path"]: file["file_size_bytes"]
        for fragment in fragments
        for file in fragment["files"]
    }


def _damaged(path: Path, cause: str) -> IntegrityError:
    return IntegrityError(
        f"{path} cannot be used ({cause}); remove it and run the same command again, which makes "
        "it anew"
    )


def _import_lance() -> types.ModuleType:
    try:
        import lance
    except ImportError as error:
        raise MissingExtraError(
            "writing fragments needs pylance; pip install 'wherefrom[ray]'"
        ) from error
    return lance


@contextmanager
def _lance_errors(table: Path) -> Iterator[None]:
    """Turn what Lance raises over missing or damaged files into one-line errors."""
    try:
        with storage_errors(table):
            yield
    except (ValueError, OSError) as error:
        cause = str(error).splitlines()[0]
        raise IntegrityError(
            f"{table} cannot be used ({cause}); begin anew with --no-resume"
        ) from error
