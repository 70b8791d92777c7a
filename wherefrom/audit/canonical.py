"""JSON whose bytes depend on its values only, and a reader that takes nothing else for granted."""

from __future__ import annotations

import hashlib
import json
from typing import Any, NoReturn

from wherefrom.errors import IntegrityError

__all__ = ["canonical_json", "read_strictly", "sha256"]


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
        IntegrityError: It is no JSON, is nested without end, has a key twice, or holds NaN or
            infinity.
    """
    try:
        return json.loads(data, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{name} is no JSON: {error}") from error


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
