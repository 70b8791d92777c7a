"""Rows of Parquet files and of folders saved by ``datasets``, which hold Arrow streams.

Both formats refer: one cell of a few bytes may stand for many long values, a folder names its files
itself, and what ``datasets`` would decode (images, audio) may be the address of something on the
network. So rows are read a few at a time, from files of the folder only, and nothing is decoded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from wherefrom.errors import CorpusError
from wherefrom.indexer.limits import LARGEST_ROW, require_inside, row_too_large
from wherefrom.store.directory import read_json

__all__ = ["is_saved_dataset", "parquet_rows", "saved_dataset_rows"]

_STATE_FILE = "state.json"
_SPLITS_FILE = "dataset_dict.json"
# Few, because each of them can be as large as all that its column's dictionary holds.
_ROWS_PER_BATCH = 4


def parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Where each row of a Parquet file stands, and the row.

    Raises:
        CorpusError: The file cannot be read, or a row is too large.
    """
    try:
        with pq.ParquetFile(path) as table:
            yield from _rows(table.iter_batches(batch_size=_ROWS_PER_BATCH), path)
    except (pa.ArrowException, ValueError, MemoryError) as error:
        raise CorpusError(f"{path} is not a readable Parquet file ({_reason(error)})") from None


def is_saved_dataset(folder: Path) -> bool:
    """Whether ``datasets`` has saved something there."""
    return any((folder / name).is_file() for name in (_STATE_FILE, _SPLITS_FILE))


def saved_dataset_rows(folder: Path, split: str | None) -> Iterator[tuple[str, Any]]:
    """Where each row of a saved ``Dataset`` stands, and the row.

    Args:
        folder: It, or a saved ``DatasetDict``.
        split: Which one of the latter.

    Raises:
        CorpusError: The folder cannot be read, or has no such split (at once); a row is too large,
            or its file damaged (when it is reached).
    """
    if (folder / _SPLITS_FILE).is_file():
        splits = _names(folder, _SPLITS_FILE, "splits")
        if split not in splits:
            asked = "" if split is None else f", not {split!r}"
            raise CorpusError(
                f"{folder} holds the splits {', '.join(map(repr, splits))}{asked}; "
                f"name one as {folder}#{next(iter(splits), 'train')}"
            )
        require_inside(folder, folder / split)
        folder = folder / split
    elif split is not None:
        raise CorpusError(f"{folder} holds one dataset without splits; leave out #{split}")
    files = [folder / name for name in _names(folder, _STATE_FILE, "_data_files")]
    for file in files:
        require_inside(folder, file)
        if not file.is_file():
            raise _unreadable(folder, f"{file.name} is missing")
    return _streamed_rows(folder, files)


def _streamed_rows(folder: Path, files: list[Path]) -> Iterator[tuple[str, Any]]:
    def batches() -> Iterator[pa.RecordBatch]:
        for file in files:
            with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as stream:
                for batch in stream:
                    # Offsets beyond the data would be read without it.
                    batch.validate(full=True)
                    for start in range(0, batch.num_rows, _ROWS_PER_BATCH):
                        yield batch.slice(start, _ROWS_PER_BATCH)

    try:
        yield from _rows(batches(), folder)
    except (pa.ArrowException, ValueError, MemoryError) as error:
        raise _unreadable(folder, _reason(error)) from None


def _rows(batches: Iterator[pa.RecordBatch], path: Path) -> Iterator[tuple[str, Any]]:
    number = 0
    for batch in batches:
        if batch.nbytes > _ROWS_PER_BATCH * LARGEST_ROW:
            raise row_too_large(f"{path} row {number + 1}")
        for row in batch.to_pylist():
            number += 1
            yield f"{path} row {number}", row


def _names(folder: Path, file: str, field: str) -> list[str]:
    """The plain names that a description of ``datasets`` lists."""
    listed = (read_json(folder / file) or {}).get(field)
    if not isinstance(listed, list):
        raise _unreadable(folder, f"{file} lists no {field}")
    names = [one.get("filename") if isinstance(one, Mapping) else one for one in listed]
    for name in names:
        if not isinstance(name, str) or name in ("", ".", "..") or Path(name).name != name:
            raise _unreadable(folder, f"{file} names {name!r}, which is no name of a file in it")
    return [str(name) for name in names]


def _unreadable(folder: Path, reason: str) -> CorpusError:
    return CorpusError(f"{folder} is not a readable saved dataset ({reason})")


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
