"""Where a build happens: one writer, beside what it replaces, kept for another go or taken back."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from wherefrom.errors import (
    CorpusError,
    CurvatureError,
    ExecutionError,
    IndexBusyError,
    IndexExistsError,
    IntegrityError,
    ModelError,
    StorageError,
    UnfinishedIndexError,
    WherefromError,
)
from wherefrom.indexer.ledger import Work
from wherefrom.indexer.plan import PLAN
from wherefrom.store import begin_build, state, storage_errors
from wherefrom.store.durable import fsync_directory
from wherefrom.store.lock import LOCK_FILE, writer_lock

__all__ = ["Workplace", "refuse_taken_path", "workplace"]

_MAY_GO_ON = (ExecutionError, IndexBusyError, IntegrityError, StorageError, UnfinishedIndexError)
"""What another go at the same build may overcome."""


class Workplace:
    """The directory of a build, whose lock is held.

    Attributes:
        folder: The directory.
        began: Whether the build was begun by this process, and is not one that it goes on with.
    """

    def __init__(self, folder: Path, info: Mapping[str, object]) -> None:
        self.folder = folder
        self.began = state(folder) == "empty"
        self._info = info
        if self.began:
            begin_build(folder, info)

    def begin_anew(self) -> None:
        """Drop what is there, and begin another build.

        Raises:
            StorageError: The disk refuses.
        """
        _clear(self.folder)
        begin_build(self.folder, self._info)
        self.began = True


def refuse_taken_path(path: Path, *, overwrite: bool) -> None:
    """Make sure that an index may be built at ``path``, or that a build there may go on.

    Raises:
        IndexExistsError: Something stands there that is no index, or that may not be replaced.
    """
    _finish_swap(path)
    found = state(path)
    if found == "foreign":
        raise IndexExistsError(
            f"{path} holds something that is no index and is left alone; choose another path"
        )
    if found == "finished" and not overwrite and not Work(path).file(PLAN).exists():
        raise IndexExistsError(
            f"{path} holds a finished index; choose another path or say --overwrite "
            "(overwrite=True)"
        )


@contextmanager
def workplace(path: Path, info: Mapping[str, object], *, overwrite: bool) -> Iterator[Workplace]:
    """A directory marked as a build, which nobody else writes to; in the end it stands at ``path``.

    An error that no other go would overcome takes back what this one made, and what stood at
    ``path`` before stays. Anything else, as a full disk or an interruption, leaves the work to go
    on with.

    Args:
        path: Where the index is to stand.
        info: To be noted in the mark.
        overwrite: Whether a finished index there is replaced, once the new one is done.

    Raises:
        IndexBusyError: Another process is building there.
        IndexExistsError: Something else is in the way.
        StorageError: The disk refuses.
    """
    before = state(path)
    replacing = before == "finished" and overwrite
    folder = path.with_name(f".{path.name}.building") if replacing else path
    with ExitStack() as locks:
        if replacing:
            locks.enter_context(writer_lock(path))
            if state(folder) == "foreign":
                raise IndexExistsError(f"{folder} is in the way and is no index; move it elsewhere")
        _make(folder)
        locks.enter_context(writer_lock(folder))
        place = None
        try:
            place = Workplace(folder, info)
            yield place
            if replacing:
                _put_in_place(folder, path)
            Work(path).remove()
        except Exception as error:
            began = state(folder) == "empty" if place is None else place.began
            if began and _is_in_vain(error, Work(folder)):
                _take_back(folder, keep=before == "empty")
            elif isinstance(error, (ExecutionError, StorageError)):
                raise type(error)(
                    f"{error}; then run the same command again, which goes on from here"
                ) from error
            raise


def _is_in_vain(error: Exception, work: Work) -> bool:
    """Whether going on would end the same way: what was asked for is at fault."""
    if not work.file(PLAN).exists():
        return not isinstance(error, IndexBusyError)
    at_fault = isinstance(error, (CorpusError, CurvatureError, ModelError)) or (
        isinstance(error, WherefromError) and not isinstance(error, _MAY_GO_ON)
    )
    return at_fault and not work.has_rows()


def _make(folder: Path) -> None:
    """Make a folder, durably, with those above it."""
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for made in missing:
            fsync_directory(made.parent)


def _take_back(folder: Path, *, keep: bool) -> None:
    _clear(folder)
    if not keep:
        with storage_errors(folder):
            shutil.rmtree(folder)


def _clear(folder: Path) -> None:
    with storage_errors(folder):
        for entry in folder.iterdir():
            if entry.name == LOCK_FILE:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()


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
        fsync_directory(path.absolute().parent)
        (path / LOCK_FILE).unlink(missing_ok=True)  # It came along.
    _remove(old)


def _finish_swap(path: Path) -> None:
    """Complete a replacement that was interrupted between its two renames, or after them."""
    old = path.with_name(f".{path.name}.replaced")
    if state(old) != "finished":
        return
    if state(path) == "absent":
        new = path.with_name(f".{path.name}.building")
        with storage_errors(path):
            os.replace(new if state(new) == "finished" else old, path)
            fsync_directory(path.absolute().parent)
    _remove(old)


def _remove(folder: Path) -> None:
    """Delete a directory that a build made; anything else is left alone."""
    if state(folder) == "foreign":
        raise IndexExistsError(f"{folder} is in the way and is no index; move it elsewhere")
    with storage_errors(folder):
        if folder.exists():
            shutil.rmtree(folder)
