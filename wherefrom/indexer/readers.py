"""Readers: a path to a corpus in, its documents out, one at a time.

Every format is first a stream of rows; :mod:`wherefrom.indexer.rows` says what a row means. No
reader holds more than a few rows of a file, and none takes a row beyond
:data:`wherefrom.indexer.limits.LARGEST_ROW`, however small the file it comes out of.
"""

from __future__ import annotations

import codecs
import gzip
import json
import os
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from wherefrom.errors import CorpusError
from wherefrom.indexer.arrow_rows import is_saved_dataset, parquet_rows, saved_dataset_rows
from wherefrom.indexer.csv_rows import csv_rows
from wherefrom.indexer.limits import LARGEST_ROW, MOST_COLUMNS, require_inside, row_too_large
from wherefrom.indexer.rows import document_from_row
from wherefrom.records import Document

__all__ = ["SUPPORTED_FORMATS", "document_from_row", "read_documents"]

SUPPORTED_FORMATS = (
    ".jsonl, .json (one object per line), .csv, .txt and .md (these also as .gz), .parquet, "
    "a folder of .txt/.md files, a folder saved by `datasets`"
)

Row = tuple[str, object]
"""Where the row stands, for messages, and the row."""

_TEXT_SUFFIXES = (".txt", ".md")


def read_documents(
    path: str | os.PathLike[str],
    *,
    metadata_columns: Collection[str] | None = None,
    text_columns: Collection[str] = (),
) -> Iterator[Document]:
    """Stream the documents of a file or a folder.

    Args:
        path: One of :data:`SUPPORTED_FORMATS`. ``folder#split`` picks one split of a saved
            ``DatasetDict``.
        metadata_columns: The columns to keep as metadata; all by default.
        text_columns: Of a CSV file, those that are text whatever their values look like.

    Returns:
        The documents in the file's order. A text file is one document, whose id is the file's
        name (its path relative to the folder, when a folder was given).

    Raises:
        CorpusError: The path is missing, unreadable, of an unknown kind, or holds no documents
            (at once); a row is malformed or too large, or a file is a link that leads out of the
            folder (when it is reached).
    """
    source, split = _located(path)
    with _reading(source):
        rows = _rows(source, split, text_columns)
    return _documents(rows, source, metadata_columns)


def _documents(
    rows: Iterator[Row], source: Path, metadata_columns: Collection[str] | None
) -> Iterator[Document]:
    stem = source.name.split(".")[0] or "document"
    ordinal, columns = -1, dict[str, None]()
    for ordinal, (where, row) in enumerate(rows):
        if isinstance(row, Mapping):
            columns.update(dict.fromkeys(row))
            if len(columns) > MOST_COLUMNS:
                raise CorpusError(
                    f"{where}: the rows have more than {MOST_COLUMNS:,} different fields in all; "
                    "put values that name things into one field"
                )
        yield document_from_row(row, where, ordinal, stem=stem, metadata_columns=metadata_columns)
    if ordinal < 0:
        raise CorpusError(f"{source} holds no documents; give a corpus of at least one")
    unknown = [name for name in metadata_columns or () if name not in columns]
    if unknown:
        raise CorpusError(
            f"{source} has no column {', '.join(map(repr, unknown))}; its columns are "
            f"{', '.join(map(repr, columns))}"
        )


def _located(path: str | os.PathLike[str]) -> tuple[Path, str | None]:
    whole = Path(path)
    with _reading(whole):
        if whole.exists():
            return whole, None
        folder, hash_mark, split = os.fspath(path).rpartition("#")
        if hash_mark and Path(folder).is_dir():
            return Path(folder), split
    raise CorpusError(f"{whole} does not exist; give a corpus: {SUPPORTED_FORMATS}")


def _rows(source: Path, split: str | None, text_columns: Collection[str]) -> Iterator[Row]:
    if source.is_dir():
        if is_saved_dataset(source):
            return saved_dataset_rows(source, split)
        if split is None:
            return _folder_rows(source)
    if split is not None:
        raise CorpusError(f"{source} has no split {split!r}: only a saved DatasetDict has splits")
    if not source.is_file():
        raise CorpusError(f"{source} is neither a file nor a folder; give {SUPPORTED_FORMATS}")
    name = source.name.lower()
    suffix = Path(name.removesuffix(".gz")).suffix
    reader = _READERS.get(suffix)
    if reader is None or (suffix == ".parquet" and name.endswith(".gz")):
        raise CorpusError(
            f"{source}: files of kind {Path(name).suffix or 'without suffix'!r} are not read; "
            f"give {SUPPORTED_FORMATS}"
        )
    return _csv_rows(source, text_columns) if reader is _csv_rows else reader(source)


def _json_rows(path: Path) -> Iterator[Row]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            yield where, json.loads(line)
        except json.JSONDecodeError as error:
            raise CorpusError(
                f"{where}: malformed JSON ({error.msg}, column {error.colno}); "
                "write one whole JSON object per line"
            ) from None
        except (ValueError, RecursionError) as error:
            raise CorpusError(f"{where}: JSON that cannot be read ({error})") from None


def _csv_rows(path: Path, text_columns: Collection[str] = ()) -> Iterator[Row]:
    return csv_rows(lambda: (line for _, line in _lines(path)), path, text_columns)


def _parquet_rows(path: Path) -> Iterator[Row]:
    with _reading(path):
        yield from parquet_rows(path)


def _text_rows(path: Path) -> Iterator[Row]:
    text = _whole_text(path)
    if text:
        yield str(path), {"doc_id": path.name, "text": text}


def _folder_rows(folder: Path) -> Iterator[Row]:
    names = sorted(
        (Path(parent) / name).relative_to(folder).as_posix()
        for parent, _, files in os.walk(folder, onerror=_refuse)
        for name in files
        if Path(name).suffix.lower() in _TEXT_SUFFIXES
    )
    if not names:
        raise CorpusError(f"{folder} holds no .txt or .md file; give {SUPPORTED_FORMATS}")
    return (
        (str(folder / name), {"doc_id": name, "text": _text_within(folder, folder / name)})
        for name in names
    )


def _text_within(folder: Path, path: Path) -> str:
    with _reading(path):
        require_inside(folder, path)
        if not path.is_file():
            raise CorpusError(f"{path} is no plain file; put the file itself there")
    return _whole_text(path)


def _refuse(error: OSError) -> None:
    """Stop at a folder that cannot be listed, which ``os.walk`` would pass over in silence."""
    raise error


_READERS: Mapping[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _json_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
    **dict.fromkeys(_TEXT_SUFFIXES, _text_rows),
}


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Name the file in what the operating system or the decompressor complains about."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise CorpusError(f"{path} is not a whole gzip file ({error}); compress it anew") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise CorpusError(
            f"{path} cannot be read ({reason}); check the path and its rights"
        ) from None


def _open(path: Path) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path)) if path.suffix.lower() == ".gz" else path.open("rb")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    offset = 0
    with _reading(path), _open(path) as stream:
        for number, line in enumerate(iter(lambda: stream.readline(LARGEST_ROW + 1), b""), start=1):
            if len(line) > LARGEST_ROW:
                raise row_too_large(f"{path} line {number}")
            yield number, _decoded(line, f"{path} line {number}", offset)
            offset += len(line)


def _whole_text(path: Path) -> str:
    with _reading(path), _open(path) as stream:
        data = stream.read(LARGEST_ROW + 1)
    if len(data) > LARGEST_ROW:
        raise row_too_large(str(path))
    return _decoded(data, str(path), 0)


def _decoded(data: bytes, where: str, offset: int) -> str:
    if b"\0" in data:
        position = offset + data.index(b"\0")
        raise CorpusError(
            f"{where}: a NUL byte at offset {position}: a binary file; give UTF-8 text"
        )
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        position = offset + error.start
        raise CorpusError(
            f"{where}: not UTF-8 (byte 0x{data[error.start]:02x} at offset {position}); "
            "convert the file to UTF-8"
        ) from None
    mark = codecs.BOM_UTF8.decode()
    return text.removeprefix(mark) if offset == 0 else text
