"""Questions from a file: JSON Lines with ``prompt``, ``completion`` and ``contrast``.

To be asked as one (:func:`read_queries`), or each by itself (:func:`read_batch`): lines may then
have an ``id`` and further fields, which are carried through.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from wherefrom.audit.asking import BatchQuery
from wherefrom.audit.canonical import read_strictly
from wherefrom.errors import IntegrityError, QueryError
from wherefrom.records import Query

__all__ = ["read_batch", "read_queries"]

_FIELDS = ("prompt", "completion", "contrast")


def read_queries(path: Path) -> list[Query]:
    """The questions of a file, in order; empty lines are passed over.

    Args:
        path: A UTF-8 file with a JSON object a line; ``-`` is standard input.

    Raises:
        QueryError: The file cannot be read or holds no question, or a line is no question.
    """
    return [_query(_known(row, place), place) for row, place in _rows(path)]


def read_batch(path: Path) -> list[BatchQuery]:
    """The questions of a file, to be asked one by one, with their ids and further fields.

    Args:
        path: As in :func:`read_queries`. Lines without ``id`` have their number for one; what is
            neither part of the question nor its id is a tag.

    Raises:
        QueryError: As in :func:`read_queries`, or an id stands twice.
    """
    batch = []
    lines: dict[str, str] = {}
    for number, (row, place) in enumerate(_rows(path), start=1):
        named = _named(row, place, number)
        if named in lines:
            raise QueryError(f"{place} has the id {named!r} of {lines[named]}; give each its own")
        lines[named] = place
        tags = {key: value for key, value in row.items() if key not in (*_FIELDS, "id")}
        for key in tags:
            _require_no_slip(key, place)
        question = {key: value for key, value in row.items() if key in _FIELDS}
        batch.append(BatchQuery(named, _query(question, place), tags))
    return batch


def _rows(path: Path) -> list[tuple[dict[str, Any], str]]:
    """The objects of a file, and what to call each."""
    name = "standard input" if str(path) == "-" else str(path)
    try:
        content = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise QueryError(
            f"cannot read {name}: {error.strerror}; give a .jsonl file of queries"
        ) from error
    except UnicodeDecodeError as error:
        raise QueryError(f"{name} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    rows = [(_row(line, place), place) for line, place in _lines(text, name)]
    if not rows:
        raise QueryError(f'{name} holds no query; give lines as {{"prompt": "", "completion": ""}}')
    return rows


def _lines(text: str, name: str) -> Iterator[tuple[str, str]]:
    """Lines and what to call them; JSON's own line breaks only, for strings may hold others."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield line, f"{name}, line {number}"


def _row(line: str, place: str) -> dict[str, Any]:
    try:
        row = read_strictly(line, place)
    except IntegrityError as error:
        raise QueryError(f"{error}; give one object a line") from error
    if not isinstance(row, dict):
        raise QueryError(f"{place} is no JSON object; give prompt, completion and contrast")
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise QueryError(f"{place} holds half a character; give whole ones") from error
    return row


def _known(row: dict[str, Any], place: str) -> dict[str, Any]:
    for field in row:
        if field not in _FIELDS:
            raise QueryError(
                f"{place} has an unknown field {field!r}; give prompt, completion and contrast"
            )
    return row


def _named(row: dict[str, Any], place: str, number: int) -> str:
    named = row.get("id", number)
    if isinstance(named, bool) or not isinstance(named, (str, int)) or named == "":
        raise QueryError(f"{place}: id is {json.dumps(named)[:40]}; give text or a whole number")
    return str(named)


def _require_no_slip(field: str, place: str) -> None:
    """Refuse a tag that looks like a slip of the keyboard, which would change the question."""
    meant = get_close_matches(field.lower(), (*_FIELDS, "id"), n=1, cutoff=0.8)
    if meant:
        raise QueryError(
            f"{place} has a field {field!r}, which is nearly {meant[0]!r}; write that, or give "
            "the tag another name"
        )


def _query(row: dict[str, Any], place: str) -> Query:
    for field, value in row.items():
        if value is not None and not isinstance(value, str):
            raise QueryError(f"{place}: {field} is {json.dumps(value)[:40]}; give text, in quotes")
    if not isinstance(row.get("completion"), str):
        raise QueryError(f"{place} has no completion; give the text that the model said")
    return Query(row.get("prompt") or "", row["completion"], row.get("contrast"))
