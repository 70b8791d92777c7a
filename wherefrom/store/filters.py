"""Typed filters over metadata: values to compare with, never text that a database reads.

A filter maps columns to conditions, all of which must hold::

    {"president": "Abraham Lincoln"}                    equal
    {"year": ("<", 1900), "party": ("in", ["Whig", "Democratic"])}
    {"year": [(">=", 1861), ("<=", 1865)]}              a list: all of them
    {"party": None}, {"party": ("!=", None)}            missing, present

On the command line: ``year < 1900``, ``party in Whig,Democratic``, ``party is missing``.
A filter may hold :data:`MOST_CONDITIONS`, and a list :data:`MOST_VALUES`: anyone may send one.
A missing value passes no comparison, ``!=`` and ``not in`` included. Strings are compared by code
point, case counts.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from wherefrom.errors import FilterError
from wherefrom.records import MetadataValue
from wherefrom.store.columns import fit_value
from wherefrom.store.manifest_parts import ColumnType

__all__ = ["MOST_CONDITIONS", "MOST_VALUES", "Comparison", "Condition", "Where", "comparisons"]
__all__ += ["parse_where", "parse_wheres"]

Condition = MetadataValue | tuple[str, object] | list[tuple[str, object]]
Where = Mapping[str, Condition]

MOST_CONDITIONS = 1000
"""Conditions of a filter, over all columns."""

MOST_VALUES = 100_000
"""Values of one ``in`` or ``not in``."""

_LONGEST_SHOWN = 200
_COMPARISONS = ("==", "!=", "<", "<=", ">", ">=")
_OPERATORS = (*_COMPARISONS, "in", "not in", "contains")
_TRUTHS = {"true": True, "false": False}
_EQUALITY = ("==", "!=")
# Longest first, so that "<=" is not read as "<" with the value "= ...".
_WRITTEN: tuple[str, ...] = ("is missing", "is present", "contains", "not in", "in")
_WRITTEN += ("==", "!=", "<=", ">=", "=", "<", ">")


@dataclass(frozen=True, slots=True)
class Comparison:
    """One checked condition: the value has the column's type (a tuple of them for ``in``)."""

    column: str
    operator: str
    value: MetadataValue | tuple[MetadataValue, ...]


def comparisons(where: Where, columns: Mapping[str, ColumnType]) -> tuple[Comparison, ...]:
    """Check a filter against the metadata columns of an index.

    Raises:
        FilterError: It names an unknown column or operator, or a value of a wrong type, or is too
            long.
    """
    checked = []
    for column, condition in where.items():
        kind = _column_type(column, columns)
        for operator, value in _pairs(column, condition):
            checked.append(_check(column, kind, operator, value))
            if len(checked) > MOST_CONDITIONS:
                raise FilterError(
                    f"the filter has more than {MOST_CONDITIONS} conditions; give fewer, or 'in' "
                    "with a list of values"
                )
    return tuple(checked)


def parse_wheres(
    clauses: Iterable[str], columns: Mapping[str, ColumnType]
) -> dict[str, list[tuple[str, object]]]:
    """Read filters written as on the command line; several on one column must all hold.

    Raises:
        FilterError: As :func:`parse_where`.
    """
    where: dict[str, list[tuple[str, object]]] = {}
    for clause in clauses:
        column, condition = parse_where(clause, columns)
        where.setdefault(column, []).append(condition)
    return where


def parse_where(clause: str, columns: Mapping[str, ColumnType]) -> tuple[str, tuple[str, object]]:
    """Read one filter written as on the command line.

    Args:
        clause: ``COLUMN OPERATOR VALUE`` with one of the operators ``= == != < <= > >=``,
            ``contains``, ``in`` and ``not in`` (values separated by commas, quoted like CSV where
            they hold one); or ``COLUMN is missing``, ``COLUMN is present``.
        columns: Metadata columns of the index and their types.

    Returns:
        The column and its condition, an entry of a filter.

    Raises:
        FilterError: It cannot be read, or does not fit the columns.
    """
    column, operator, text = _split(clause.strip(), columns)
    kind = columns[column]
    value: object
    if operator in ("is missing", "is present"):
        if text:
            raise FilterError(f"filter {_shown(clause)}: nothing may follow {operator!r}")
        operator, value = ("==" if operator == "is missing" else "!="), None
    elif operator in ("in", "not in"):
        value = [_read_value(column, kind, item.strip()) for item in _items(column, text)]
    else:
        value = _read_value(column, kind, text)
    operator = "==" if operator == "=" else operator
    _check(column, kind, operator, value)
    return column, (operator, value)


def _items(column: str, text: str) -> list[str]:
    """The values of a list, as CSV has them."""
    try:
        return next(csv.reader([text], skipinitialspace=True), [])
    except csv.Error as error:
        raise FilterError(
            f"filter on {column!r}: cannot read the list {_shown(text)} ({error}); separate values "
            "by commas and quote those that hold one"
        ) from error


def _shown(value: object) -> str:
    """A value in a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def _split(clause: str, columns: Mapping[str, ColumnType]) -> tuple[str, str, str]:
    """Column, operator and value of a clause; the longest known column name wins."""
    for column in sorted(columns, key=len, reverse=True):
        if not clause.startswith(column):
            continue
        rest = clause[len(column) :]
        for operator in _WRITTEN:
            after = rest.lstrip()
            is_word = operator[0].isalpha()
            if not after.startswith(operator) or (is_word and after == rest):
                continue
            value = after[len(operator) :]
            if not is_word or not value or value[0].isspace():
                return column, operator, value.strip()
    raise FilterError(
        f"cannot read the filter {_shown(clause)}; write COLUMN OPERATOR VALUE with a column of "
        f"{_listed(columns)} and an operator of {', '.join(_WRITTEN)}"
    )


def _read_value(column: str, kind: ColumnType, text: str) -> MetadataValue:
    if kind == "string":
        return text
    if kind == "bool":
        return _typed(column, kind, _TRUTHS.get(text.lower(), text))
    try:
        return int(text) if kind == "int64" else float(text)
    except ValueError as error:
        raise _wrong_type(column, kind, text) from error


def _pairs(column: str, condition: object) -> list[tuple[str, object]]:
    """The (operator, value) pairs of a condition; JSON writes pairs as lists, so both will do."""
    if not isinstance(condition, (list, tuple)):
        return [("==", condition)]
    pairs = [_pair(condition)] if _pair(condition) else [_pair(item) for item in condition]
    found = [pair for pair in pairs if pair is not None]
    if not found or len(found) < len(pairs):
        raise FilterError(
            f"filter on {column!r}: got {_shown(condition)}; give a value, (operator, value) or a "
            "list of such pairs"
        )
    return found


def _pair(condition: object) -> tuple[str, object] | None:
    if isinstance(condition, (list, tuple)) and len(condition) == 2:
        operator, value = condition
        return (operator, value) if isinstance(operator, str) else None
    return None


def _check(column: str, kind: ColumnType, operator: str, value: object) -> Comparison:
    if operator not in _OPERATORS:
        raise FilterError(
            f"filter on {column!r}: no operator {_shown(operator)}; use one of "
            f"{', '.join(_OPERATORS)}"
        )
    if operator in ("in", "not in"):
        if not isinstance(value, (list, tuple, set, frozenset)) or not value:
            raise FilterError(
                f"filter on {column!r}: {operator!r} needs a list of one or more {kind} values; "
                f"got {_shown(value)}"
            )
        if len(value) > MOST_VALUES:
            raise FilterError(
                f"filter on {column!r}: {operator!r} has {len(value):,} values; give at most "
                f"{MOST_VALUES:,}"
            )
        return Comparison(column, operator, tuple(_typed(column, kind, item) for item in value))
    if value is None and operator in _EQUALITY:
        return Comparison(column, operator, None)
    if operator == "contains" and kind != "string":
        raise FilterError(f"filter on {column!r}: 'contains' is for strings; the column is {kind}")
    if kind == "bool" and operator not in _EQUALITY:
        raise FilterError(f"filter on {column!r}: {operator!r} has no meaning for bool; use ==")
    return Comparison(column, operator, _typed(column, kind, value))


def _typed(column: str, kind: ColumnType, value: object) -> str | int | float | bool:
    fitting = fit_value(kind, value)
    if fitting is None:
        raise _wrong_type(column, kind, value)
    if isinstance(fitting, str):
        _require_unicode(column, fitting)
    return fitting


def _require_unicode(column: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise FilterError(
            f"filter on {column!r}: {_shown(text)} holds half a surrogate pair, which no stored "
            "text does; give valid Unicode"
        ) from error


def _wrong_type(column: str, kind: ColumnType, value: object) -> FilterError:
    return FilterError(f"filter on {column!r}: got {_shown(value)}; the column holds {kind}")


def _column_type(column: str, columns: Mapping[str, ColumnType]) -> ColumnType:
    if column not in columns:
        raise FilterError(f"no metadata column {_shown(column)}; the index has {_listed(columns)}")
    return columns[column]


def _listed(columns: Mapping[str, ColumnType]) -> str:
    return ", ".join(columns) or "none"
