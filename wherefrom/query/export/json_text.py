"""JSON that is harmless where it is shown, valid UTF-8 where it is written, and loses nothing.

JSON escapes the control characters of ASCII only. Those beyond it, marks that reorder what is read
and lone halves of surrogate pairs can be escaped likewise, and read back as what they were.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["as_json", "json_text"]

# Other than in strings, which take escapes, JSON has none of these.
_UNSAFE = re.compile(
    "[\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)


def json_text(value: object) -> str:
    """``value`` as JSON on one line; floats read back to the same bits.

    Raises:
        ValueError: It holds a float that JSON cannot write: an infinity or no number.
        TypeError: It holds what JSON has no form for.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def as_json(value: Any) -> Any:
    """Plain values as JSON has them: mappings as objects, tuples and (sorted) sets as lists."""
    if isinstance(value, Mapping):
        return {name: as_json(one) for name, one in value.items()}
    if isinstance(value, (set, frozenset)):
        return [as_json(one) for one in sorted(value, key=repr)]
    return [as_json(one) for one in value] if isinstance(value, (tuple, list)) else value
