"""Where reports and exports go: a file in a directory that exists, written as a whole or not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from wherefrom.errors import StorageError
from wherefrom.store import write_atomically

__all__ = ["write_file"]


def write_file(path: str | os.PathLike[str], write: Callable[[Path], object]) -> Path:
    """Have a file written so that any reader sees all of it or none.

    Args:
        path: The file; one that is there already is replaced, a link is written through.
        write: Called with another path, to write it there.

    Returns:
        The path, absolute.

    Raises:
        StorageError: The file cannot be written.
    """
    target = Path(path).resolve()
    if not target.parent.is_dir():
        raise StorageError(
            f"cannot write {target}: {target.parent} is no directory; make it first or choose "
            "another path"
        )
    if target.exists() and not target.is_file():
        raise StorageError(f"cannot write {target}: it is not a file; choose another path")
    write_atomically(target, write)
    return target
