"""What a corpus may ask of a machine: how long one row may be, and where its files may lie.

A corpus may come from anyone. A compressed file of a kilobyte can unpack to a single line of a
gigabyte, and a folder can hold links to files that its sender could not read, but its reader can.
"""

from __future__ import annotations

from pathlib import Path

from wherefrom.errors import CorpusError

__all__ = ["LARGEST_ROW", "MOST_COLUMNS", "require_inside", "row_too_large"]

LARGEST_ROW = 1 << 28
"""Bytes of a line, a field or a whole text."""

MOST_COLUMNS = 1 << 14
"""Fields that the rows of a corpus may have in all."""


def row_too_large(where: str) -> CorpusError:
    """What to raise for a row beyond :data:`LARGEST_ROW`."""
    return CorpusError(
        f"{where}: longer than {LARGEST_ROW >> 20} MiB, which no document may be; cut it into "
        "several"
    )


def require_inside(folder: Path, path: Path) -> None:
    """Refuse a file that a link leads out of the folder to.

    Raises:
        CorpusError: It is elsewhere.
        OSError: It cannot be found.
    """
    if not path.resolve().is_relative_to(folder.resolve()):
        raise CorpusError(f"{path} is a link that leads out of {folder}; put the file itself there")
