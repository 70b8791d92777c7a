"""Where a build happens: beside what it replaces, taken back if it fails, swapped in when done."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from wherefrom.errors import IndexExistsError
from wherefrom.store import begin_build, state, storage_errors

__all__ = ["refuse_taken_path", "workplace"]


def refuse_taken_path(path: Path, *, overwrite: bool) -> None:
    """Make sure that an index may be built at ``path``.

    Raises:
        IndexExistsError: Something stands there that is no index, or that may not be replaced.
    """
    found = state(path)
    if found == "foreign":
        raise IndexExistsError(
            f"{path} holds something that is no index and is left alone; choose another path"
        )
    if found in ("finished", "unfinished") and not overwrite:
        raise IndexExistsError(
            f"{path} holds {'an' if found == 'unfinished' else 'a'} {found} index; choose another "
            "path or say --overwrite (overwrite=True)"
        )


@contextmanager
def workplace(path: Path, info: Mapping[str, object]) -> Iterator[Path]:
    """A directory marked as a build; it stands at ``path`` when the block is left.

    An error takes back what was made, and what stood at ``path`` before stays. An interruption
    (KeyboardInterrupt is no Exception) leaves the directory, marked as unfinished.

    Args:
        path: Where the index is to stand; an index there is replaced, once the new one is done.
        info: To be noted in the mark.

    Raises:
        IndexExistsError: Something else is in the way.
        StorageError: The disk refuses.
    """
    before = state(path)
    replacing = before in ("finished", "unfinished")
    folder = path.with_name(f".{path.name}.building") if replacing else path
    if replacing:
        _remove(folder)
    try:
        begin_build(folder, info)
    except IndexExistsError:
        raise  # another build got there first, and what stands there is its own
    except Exception:
        _take_back(folder, before == "empty")
        raise
    try:
        yield folder
        if replacing:
            _put_in_place(folder, path)
    except Exception:
        _take_back(folder, before == "empty")
        raise


def _take_back(folder: Path, was_empty: bool) -> None:
    _remove(folder)
    if was_empty:
        folder.mkdir()


def _put_in_place(folder: Path, path: Path) -> None:
    old = path.with_name(f".{path.name}.replaced")
    _remove(old)
    with storage_errors(path):
        os.replace(path, old)
        try:
            os.replace(folder, path)
        except BaseException:
            os.replace(old, path)
            raise
    _remove(old)


def _remove(folder: Path) -> None:
    """Delete a directory that a build made; anything else is left alone."""
    if state(folder) == "foreign":
        raise IndexExistsError(f"{folder} is in the way and is no index; move it elsewhere")
    with storage_errors(folder):
        if folder.exists():
            shutil.rmtree(folder)
