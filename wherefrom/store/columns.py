"""Metadata columns: their stored names, their types and the values that fit them.

A column's name is free text, while Lance trips over backticks and dots and folds case in places; so
it is stored under an escaped name and the manifest keeps the user's.
"""

from __future__ import annotations

import math

import pyarrow as pa

from wherefrom.store.manifest_parts import ColumnType

__all__ = ["ARROW_TYPES", "fit_value", "metadata_column"]

ARROW_TYPES: dict[ColumnType, pa.DataType] = {
    "string": pa.string(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
}
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyz0123456789")


def metadata_column(name: str) -> str:
    """The stored name of a metadata column: ASCII letters, digits and ``_``, one to one.

    Every character but a-z and 0-9 becomes its code point in hexadecimal between underscores.
    """
    return "meta_" + "".join(c if c in _PLAIN else f"_{ord(c):x}_" for c in name)


def fit_value(kind: ColumnType, value: object) -> str | int | float | bool | None:
    """``value`` as a column of type ``kind`` holds it; ``None`` if it does not fit.

    Integers fit a float64 column; truth values are no numbers; NaN fits nowhere, for it would be
    neither a value nor missing, nor does infinity, which JSON cannot tell.
    """
    if kind == "string":
        return value if isinstance(value, str) else None
    if kind == "bool" or isinstance(value, bool):
        return value if kind == "bool" and isinstance(value, bool) else None
    if kind == "int64":
        return value if isinstance(value, int) and -(2**63) <= value < 2**63 else None
    if not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    # Arrow orders -0.0 before 0.0; with one zero only, filters agree with arithmetic.
    return number + 0.0 if math.isfinite(number) else None
