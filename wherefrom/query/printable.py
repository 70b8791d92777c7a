"""Text of documents made fit to be shown: it comes from anywhere and may try to pose as something.

Terminal escape sequences could repaint a screen, bidirectional controls reorder what is read, and
lone surrogates stop a program that prints them. HTML and markup are not treated here: they are
escaped, or never interpreted, where the text is shown.
"""

from __future__ import annotations

import re
import unicodedata

__all__ = ["excerpt", "printable", "printable_lines"]

_CONTROL_SEQUENCE = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]")
# Joiners shape letters in many scripts and emoji; no other format character is needed to read.
_JOINERS = "\u200c\u200d"
_REPLACEMENT = "\ufffd"


def printable_lines(text: str) -> str:
    """``text`` without control and invisible formatting characters; its lines and tabs are kept."""
    unsequenced = _CONTROL_SEQUENCE.sub("", text)
    return "".join(map(_shown, "\n".join(unsequenced.splitlines())))


def printable(text: str) -> str:
    """``text`` on one line, every run of white space a single space."""
    return " ".join(printable_lines(text).split())


def excerpt(text: str, limit: int) -> str:
    """The start of :func:`printable` text, at most ``limit`` characters, cut between words."""
    line = printable(text)
    if len(line) <= limit:
        return line
    cut = line[: limit - 1]
    words, space, _ = cut.rpartition(" ")
    return (words if space and len(words) > limit // 2 else cut) + "…"


def _shown(character: str) -> str:
    if character in "\n\t" or character in _JOINERS:
        return character
    category = unicodedata.category(character)
    if category == "Cs":
        return _REPLACEMENT
    return "" if category in ("Cc", "Cf") else character
