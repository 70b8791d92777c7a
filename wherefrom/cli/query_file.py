"""Questions from a file: JSON Lines with ``prompt``, ``completion`` and ``contrast``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from wherefrom.errors import QueryError
from wherefrom.records import Query

__all__ = ["read_queries"]

_FIELDS = ("prompt", "completion", "contrast")


def read_queries(path: Path) -> list[Query]:
    """The questions of a file, in order; empty lines are passed over.

    Args:
        path: A UTF-8 file with a JSON object a line; ``-`` is standard input.

    Raises:
        QueryError: The file cannot be read or holds no question, or a line is no question.
    """
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
    queries = [_query(line, place) for line, place in _lines(text, name)]
    if not queries:
        raise QueryError(f'{name} holds no query; give lines as {{"prompt": "", "completion": ""}}')
    return queries


def _lines(text: str, name: str) -> Iterator[tuple[str, str]]:
    """Lines and what to call them; JSON's own line breaks only, for strings may hold others."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield line, f"{name}, line {number}"


def _query(line: str, place: str) -> Query:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise QueryError(f"{place} is not JSON; give one object a line") from error
    if not isinstance(row, dict):
        raise QueryError(f"{place} is no JSON object; give prompt, completion and contrast")
    for field, value in row.items():
        if field not in _FIELDS:
            raise QueryError(
                f"{place} has an unknown field {field!r}; give prompt, completion and contrast"
            )
        _require_text(field, value, place)
    if not isinstance(row.get("completion"), str):
        raise QueryError(f"{place} has no completion; give the text that the model said")
    return Query(row.get("prompt") or "", row["completion"], row.get("contrast"))


def _require_text(field: str, value: object, place: str) -> None:
    if value is None:
        return
    if not isinstance(value, str):
        raise QueryError(f"{place}: {field} is {json.dumps(value)[:40]}; give text, in quotes")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise QueryError(f"{place}: {field} holds half a character; give whole ones") from error
