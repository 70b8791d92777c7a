"""CSV rows with typed columns.

A CSV file holds nothing but text, so that a column's type has to be read off all its values: one
pass finds the types, a second one yields the rows. A column of whole numbers is int, of numbers
float, of true/false bool, of anything else text; an empty cell is a missing value.
"""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path

from wherefrom.errors import CorpusError
from wherefrom.indexer.limits import LARGEST_ROW
from wherefrom.indexer.rows import CONTENT_FIELDS, ID_FIELDS
from wherefrom.records import MetadataValue

__all__ = ["csv_rows"]

# A leading zero makes an identifier ("007", a postal code) of what looks like a number.
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]*)")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?")
_INT64 = range(-(2**63), 2**63)

_PARSERS: Mapping[str, Callable[[str], MetadataValue]] = {
    "int": int,
    "long": int,
    "float": float,
    "bool": lambda value: value.lower() == "true",
    "text": str,
}


def csv_rows(
    lines: Callable[[], Iterable[str]], path: Path, text_columns: Collection[str] = ()
) -> Iterator[tuple[str, dict[str, MetadataValue]]]:
    """Yield where each record stands and its cells by column name.

    Args:
        lines: Opens the file anew and gives its lines, ends included.
        path: The file's name, for messages.
        text_columns: Columns that are text, whatever this file's values look like.

    Raises:
        CorpusError: The header or a record is malformed.
    """
    kinds = _column_kinds(lines(), path)
    kinds |= dict.fromkeys(kinds.keys() & set(text_columns), "text")
    for where, record in _records(lines(), path):
        yield where, {name: _cell(name, value, kinds) for name, value in record.items()}


def _cell(name: str, value: str, kinds: Mapping[str, str]) -> MetadataValue:
    if name in kinds:
        return _PARSERS[kinds[name]](value) if value else None
    return value


def _column_kinds(lines: Iterable[str], path: Path) -> dict[str, str]:
    """The kind of every column but those whose cells are text by their meaning."""
    kinds: dict[str, str | None] = {}
    for _, record in _records(lines, path):
        for name, value in record.items():
            if name in CONTENT_FIELDS or name in ID_FIELDS:
                continue
            seen = kinds.setdefault(name, None)
            if value and seen != "text":
                kind = _kind(value)
                kinds[name] = kind if seen is None else _common(seen, kind)
    return {name: kind or "text" for name, kind in kinds.items()}


def _kind(value: str) -> str:
    if _INTEGER.fullmatch(value):
        # More digits than int64 holds would lose some as a float, and none as text; so would more
        # than a float holds, in a column of floats.
        if len(value) >= 21 or int(value) not in _INT64:
            return "text"
        return "int" if int(float(value)) == int(value) else "long"
    if _NUMBER.fullmatch(value) and math.isfinite(float(value)):
        return "float"
    return "bool" if value.lower() in ("true", "false") else "text"


def _common(one: str, other: str) -> str:
    if one == other:
        return one
    if {one, other} == {"int", "long"}:
        return "long"
    return "float" if {one, other} == {"int", "float"} else "text"


def _records(lines: Iterable[str], path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    # The module's default of 128 KiB is less than one long document.
    csv.field_size_limit(LARGEST_ROW)
    reader = csv.reader(lines, strict=True)
    line = 1
    try:
        header = next(reader, [])
        repeated = sorted(name for name, count in Counter(header).items() if count > 1)
        if repeated:
            names = ", ".join(map(repr, repeated))
            raise CorpusError(
                f"{path}: the header names {names} more than once; rename the columns"
            )
        while True:
            line = reader.line_num + 1
            fields = next(reader, None)
            if fields is None:
                return
            if fields and len(fields) != len(header):
                raise CorpusError(
                    f"{path} line {line}: {len(fields)} fields where the header has {len(header)}; "
                    "quote fields that hold commas or line breaks"
                )
            if fields:
                yield f"{path} line {line}", dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise CorpusError(f"{path} line {line}: malformed CSV ({error})") from None
