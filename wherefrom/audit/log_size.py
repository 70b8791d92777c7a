"""How large a log of Inspect may be, packed or not: logs are read from whoever sends one."""

from __future__ import annotations

import copy
import zipfile
from pathlib import Path

__all__ = ["LARGEST_LOG", "require_size"]

LARGEST_LOG = 1 << 31
"""Bytes of a log, unpacked."""

_PIECE = 1 << 20


def require_size(path: Path) -> None:
    """Refuse a log that takes more memory than any should.

    Inspect unpacks members whole, whatever size the archive says they have; so that is not believed
    here either.

    Args:
        path: A log, ``.eval`` (a zip file) or ``.json``.

    Raises:
        ValueError: It is larger than :data:`LARGEST_LOG`.
        zipfile.BadZipFile: It is a broken archive.
    """
    left = LARGEST_LOG - path.stat().st_size
    if path.suffix == ".eval" and left >= 0:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                unbounded = copy.copy(entry)
                unbounded.file_size = left + 2 * _PIECE  # Reading stops before, at the limit.
                with archive.open(unbounded) as member:
                    while left >= 0 and (piece := member.read(_PIECE)):
                        left -= len(piece)
    if left < 0:
        raise ValueError(f"it holds more than {LARGEST_LOG >> 20:,} MiB")
