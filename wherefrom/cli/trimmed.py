"""Output without blanks at the ends of its lines."""

from __future__ import annotations

import re
from typing import Any, TextIO

__all__ = ["Trimmed"]

_BLANKS = re.compile(r" +(?=\n)")


class Trimmed:
    """A stream to write whole lines to, which loses the blanks at their ends.

    Args:
        stream: Where they go; whatever else is asked of it, too.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write lines; says that all of them were written, blanks and all."""
        self._stream.write(_BLANKS.sub("", text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
