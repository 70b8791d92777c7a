"""JSON whose bytes depend on its values only, and a reader that takes nothing else for granted."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any, NoReturn

from wherefrom.errors import IntegrityError

__all__ = ["DEEPEST", "canonical_json", "read_strictly", "sha256"]


DEEPEST = 100
"""Levels of arrays and objects; what walks them is not to run out of stack."""


def canonical_json(value: object) -> bytes:
    """ASCII, keys sorted, no white space, finite numbers only; one line without its end.

    Floats are written with the fewest digits that read back to the same bits.
    """
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )
    return text.encode()


def read_strictly(data: bytes | str, name: str) -> Any:
    """JSON without what different readers take for different things.

    Args:
        data: UTF-8.
        name: What to call it in errors.

    Raises:
        IntegrityError: It is no JSON, is nested deeper than :data:`DEEPEST`, has a key twice, or
            holds NaN, infinity or a number that is read as such.
    """
    try:
        value = json.loads(
            data,
            object_pairs_hook=_object,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
        _require_depth(value, DEEPEST)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{name} is not JSON: {error}") from error
    return value


def sha256(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return fields


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits} is beyond all numbers")
    return number


def _require_depth(value: Any, left: int) -> None:
    inner = value.values() if isinstance(value, dict) else value
    if not isinstance(value, (dict, list)):
        return
    if left == 0:
        raise ValueError(f"nested deeper than {DEEPEST} levels")
    for one in inner:
        _require_depth(one, left - 1)
