"""The command that asks an answer's question again, for a POSIX shell."""

from __future__ import annotations

import csv
import io
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from wherefrom.errors import FilterError
from wherefrom.query.answer import Answer
from wherefrom.query.export.json_text import json_text
from wherefrom.query.options import QueryOptions
from wherefrom.query.printable import printable_lines
from wherefrom.records import Query, QuerySet
from wherefrom.store import parse_where
from wherefrom.store.manifest_parts import ColumnType

__all__ = ["replay_command"]

_FLAGS = (
    *("sign", "normalise", "damping", "rerank", "candidates"),
    *("refine", "refine_damping", "refine_documents", "backend"),
)
_MISSING = {"==": "is missing", "!=": "is present"}
_COLUMN_TYPES: dict[type, ColumnType] = {bool: "bool", int: "int64", float: "float64"}
_UNWRITABLE = re.compile("[\0\ud800-\udfff]")
_MOST_QUESTIONS = 100


def replay_command(
    answer: Answer,
    *,
    explain: bool | None = None,
    similarity: bool | None = None,
    group_by: Mapping[str, int | None] | None = None,
) -> str | None:
    """A command line that asks the same question again, of the index where it was.

    It holds whatever decides the answer, and nothing that is the default. Text that a terminal
    would obey is written in escapes (``$'...'``, which bash, zsh and ksh know).

    Args:
        answer: Whose question to ask.
        explain: Whether to ask for shares; if the answer holds them, by default.
        similarity: The same of similarity.
        group_by: Metadata columns to sum by, each with a number of bins or ``None``; those that the
            answer holds sums by, by default.

    Returns:
        The command; ``None`` where there is none: for tensors, for sets too large for a command
        line, and for texts and filters that no command line can hold.
    """
    if answer.query is None:
        return None
    clauses = [_clause(*condition) for condition in _conditions(answer.where)]
    before, words = _question(answer.query)
    words += _options(answer)
    for clause in clauses:
        words += ["--where", clause or ""]
    if group_by is None:
        group_by = {grouping.column: grouping.bins for grouping in answer.groups}
    words += ["--explain"] * (answer.explanation is not None if explain is None else explain)
    words += ["--similar"] * (answer.similarity is not None if similarity is None else similarity)
    for column, bins in group_by.items():
        words += ["--group-by", column if bins is None else f"{column}:{bins}"]
    words = ["wherefrom", "query", str(answer.index["path"]), *words]
    if None in clauses or before is None or any(map(_UNWRITABLE.search, words)):
        return None
    return before + " ".join(map(_quoted, words))


def _question(query: Query | QuerySet) -> tuple[str | None, list[str]]:
    """What stands before the command (``None`` if nothing would do), and its first arguments."""
    if isinstance(query, Query):
        prompt = ["--prompt", query.prompt] if query.prompt else []
        contrast = [] if query.contrast is None else ["--contrast", query.contrast]
        return "", [*prompt, "--completion", query.completion, *contrast]
    whole = [text for one in query.queries for text in asdict(one).values() if text is not None]
    if len(query.queries) > _MOST_QUESTIONS or any(re.search("[\ud800-\udfff]", t) for t in whole):
        return None, []
    lines = " ".join(shlex.quote(json_text(asdict(one))) for one in query.queries)
    return f"printf '%s\\n' {lines} | ", ["--queries", "-", "--reduce", query.reduce]


def _options(answer: Answer) -> Iterator[str]:
    """Choices that are not the default. The tier is the one that was reached, not ``auto``."""
    exact = answer.certificate.tier == "exact"
    asked = {
        **answer.options,
        "sign": answer.sign,
        "normalise": answer.normalise,
        "rerank": "recompute" if exact else "stored",
        "refine": answer.refined,
        "refine_damping": answer.damping if answer.refined else None,
    }
    if not exact:
        asked.pop("candidates", None)
    if not answer.refined and answer.damping != answer.index["damping"]:
        asked["damping"] = answer.damping
    yield from ("-k", str(asked.get("k", max(1, len(answer.proponents), len(answer.opponents)))))
    defaults = asdict(QueryOptions())
    for name in _FLAGS:
        value = asked.get(name, defaults[name])
        if value != defaults[name]:
            yield from ("--" + name.replace("_", "-"), str(value))


def _conditions(where: Mapping[str, Any]) -> Iterator[tuple[str, str, object]]:
    """The conditions of a filter, in any of its written forms, as (column, operator, value)."""
    for column, condition in where.items():
        if not isinstance(condition, (list, tuple)):
            yield column, "==", condition
        elif len(condition) == 2 and isinstance(condition[0], str):
            yield column, condition[0], condition[1]
        else:
            for operator, value in condition:
                yield column, operator, value


def _clause(column: str, operator: str, value: object) -> str | None:
    """A condition as ``--where`` reads it; ``None`` if that cannot hold it."""
    listed = list(value) if isinstance(value, (list, tuple, set, frozenset)) else None
    sample = value if listed is None else next(iter(listed), None)
    if value is None:
        clause = f"{column} {_MISSING[operator]}"
    elif listed is None:
        clause = f"{column} {operator} {_written(value)}"
    else:
        line = io.StringIO()
        csv.writer(line, lineterminator="").writerow(map(_written, listed))
        clause = f"{column} {operator} {line.getvalue()}"
    # What reads it is what knows: spaces at the ends of a value, say, do not come back.
    try:
        read = parse_where(clause, {column: _COLUMN_TYPES.get(type(sample), "string")})
    except FilterError:
        return None
    return clause if read == (column, (operator, value if listed is None else listed)) else None


def _written(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _quoted(word: str) -> str:
    """A word for the shell, on one line, that shows whatever is in it."""
    if all(printable_lines(character) == character for character in word):
        return shlex.quote(word)
    return f"$'{''.join(map(_escaped, word))}'"


def _escaped(character: str) -> str:
    if character in "\\'":
        return "\\" + character
    if character == "\n":
        return "\\n"
    if printable_lines(character) == character:
        return character
    return "".join(f"\\x{byte:02x}" for byte in character.encode())
