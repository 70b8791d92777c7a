"""Typed filters over metadata, compiled to LanceDB expressions, never to SQL text.

A filter maps columns to conditions, all of which must hold::

    {"president": "Abraham Lincoln"}                    equal
    {"year": ("<", 1900), "party": ("in", ["Whig", "Democratic"])}
    {"year": [(">=", 1861), ("<=", 1865)]}              a list: all of them
    {"party": None}, {"party": ("!=", None)}            missing, present

On the command line: ``year < 1900``, ``party in Whig,Democratic``, ``party is missing``.
A missing value passes no comparison, ``!=`` and ``not in`` included. Strings are compared by code
point, case counts.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import and_, eq, ge, gt, le, lt, ne
from typing import TYPE_CHECKING, Any

from wherefrom.errors import FilterError
from wherefrom.records import MetadataValue
from wherefrom.store.columns import fit_value, metadata_column
from wherefrom.store.manifest_parts import ColumnType

if TYPE_CHECKING:
    from lancedb.expr import Expr

__all__ = ["Comparison", "Condition", "Where", "comparisons", "compile_where"]
__all__ += ["parse_where", "parse_wheres"]

Condition = MetadataValue | tuple[str, object] | list[tuple[str, object]]
Where = Mapping[str, Condition]

_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "==": eq,
    "!=": ne,
    "<": lt,
    "<=": le,
    ">": gt,
    ">=": ge,
}
_OPERATORS = (*_COMPARE, "in", "not in", "contains")
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
        FilterError: It names an unknown column or operator, or a value of a wrong type.
    """
    checked = []
    for column, condition in where.items():
        kind = _column_type(column, columns)
        for operator, value in _pairs(column, condition):
            checked.append(_check(column, kind, operator, value))
    return tuple(checked)


def compile_where(where: Where, columns: Mapping[str, ColumnType]) -> Expr | None:
    """The LanceDB expression of a filter; ``None`` if it lets all documents pass.

    Raises:
        FilterError: As :func:`comparisons`.
    """
    compiled = [_compile(comparison) for comparison in comparisons(where, columns)]
    return reduce(and_, compiled) if compiled else None


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
            raise FilterError(f"filter {clause!r}: nothing may follow {operator!r}")
        operator, value = ("==" if operator == "is missing" else "!="), None
    elif operator in ("in", "not in"):
        items = next(csv.reader([text], skipinitialspace=True), [])
        value = [_read_value(column, kind, item.strip()) for item in items]
    else:
        value = _read_value(column, kind, text)
    operator = "==" if operator == "=" else operator
    _check(column, kind, operator, value)
    return column, (operator, value)


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
        f"cannot read the filter {clause!r}; write COLUMN OPERATOR VALUE with a column of "
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
            f"filter on {column!r}: got {condition!r}; give a value, (operator, value) or a list "
            "of such pairs"
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
            f"filter on {column!r}: no operator {operator!r}; use one of {', '.join(_OPERATORS)}"
        )
    if operator in ("in", "not in"):
        if not isinstance(value, (list, tuple, set, frozenset)) or not value:
            raise FilterError(
                f"filter on {column!r}: {operator!r} needs a list of one or more {kind} values; "
                f"got {value!r}"
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
    return fitting


def _wrong_type(column: str, kind: ColumnType, value: object) -> FilterError:
    return FilterError(f"filter on {column!r}: got {value!r}; the column holds {kind}")


def _column_type(column: str, columns: Mapping[str, ColumnType]) -> ColumnType:
    if column not in columns:
        raise FilterError(f"no metadata column {column!r}; the index has {_listed(columns)}")
    return columns[column]


def _listed(columns: Mapping[str, ColumnType]) -> str:
    return ", ".join(columns) or "none"


def _compile(comparison: Comparison) -> Expr:
    from lancedb.expr import col, func, lit

    stored = col(metadata_column(comparison.column))
    operator, value = comparison.operator, comparison.value
    if value is None:
        # LanceDB's expressions have no IS NULL. x = x is null where x is, and concat, which skips
        # nulls, then gives "".
        known = func("concat", (stored == stored).cast("string"))
        return known == lit("") if operator == "==" else known != lit("")
    if isinstance(value, tuple):
        found = stored.isin([lit(item) for item in value if item is not None])
        return ~found if operator == "not in" else found
    if operator == "contains":
        return stored.contains(lit(value))
    compiled: Expr = _COMPARE[operator](stored, lit(value))
    return compiled
