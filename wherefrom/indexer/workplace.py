"""Where a build happens: one writer, beside what it replaces, kept for another go or taken back."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatch
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
from wherefrom.store.directory import BUILD_FILE, MANIFEST_FILE, beside
from wherefrom.store.durable import exchange, fsync_directory
from wherefrom.store.lock import LOCK_FILE, WriterLock, writer_lock

__all__ = ["Workplace", "refuse_taken_path", "workplace"]

_MAY_GO_ON = (ExecutionError, IndexBusyError, IntegrityError, StorageError, UnfinishedIndexError)
"""What another go at the same build may overcome."""

_TAKEN = "{} holds a finished index; choose another path or say --overwrite (overwrite=True)"
_MADE = (
    *("build.json", "manifest.json", "encoder.safetensors", "work", "scan", "documents*.lance"),
    *("deleted-*.npy", "faiss", "vectors.lance", ".*.tmp"),
)
"""Names of what builds make."""
_MARKS = (MANIFEST_FILE, BUILD_FILE)


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
        """Drop the unfinished build that is there, and begin another one.

        Raises:
            IndexExistsError: What is there is finished, or has files in it that no build makes.
            StorageError: The disk refuses.
        """
        if state(self.folder) == "finished":
            raise IndexExistsError(_TAKEN.format(self.folder))
        _clear(self.folder)
        begin_build(self.folder, self._info)
        self.began = True


def refuse_taken_path(path: Path, *, overwrite: bool) -> None:
    """Make sure that an index may be built at ``path``, or that a build there may go on.

    Changes nothing: :func:`workplace` looks again when it holds the lock.

    Raises:
        IndexExistsError: Something stands there that is no index, or that may not be replaced.
    """
    found = state(path)
    if found == "foreign":
        raise IndexExistsError(
            f"{path} holds something that is no index and is left alone; choose another path"
        )
    if found == "finished" and overwrite and os.path.ismount(path):
        raise IndexExistsError(
            f"{path} is a file system of its own, which nothing can be moved into the place of; "
            "build into a folder in it, or remove what is in it first"
        )
    if found == "absent" and state(beside(path, "replaced")) == "finished":
        found = "finished"
    if found == "finished" and not overwrite and not Work(path).file(PLAN).exists():
        raise IndexExistsError(_TAKEN.format(path))


@contextmanager
def workplace(
    path: Path,
    info: Mapping[str, object],
    *,
    overwrite: bool,
    is_this: Callable[[Work], bool] = lambda work: False,
) -> Iterator[Workplace]:
    """A directory marked as a build, which nobody else writes to; in the end it stands at ``path``.

    An error that no other go would overcome takes back what this one made, and what stood at
    ``path`` before stays. Anything else, as a full disk or an interruption, leaves the work to go
    on with.

    Args:
        path: Where the index is to stand.
        info: To be noted in the mark.
        overwrite: Whether a finished index there is replaced, once the new one is done.
        is_this: Whether the work that lies in a finished index is this build's, which was
            interrupted at its very end.

    Raises:
        IndexBusyError: Another process is building there.
        IndexExistsError: Something else is in the way.
        StorageError: The disk refuses.
    """
    path = Path(os.path.realpath(path))  # What is replaced is the index, and no link to it.
    _finish_swap(path)
    refuse_taken_path(path, overwrite=overwrite)
    with ExitStack() as locks:
        keep = state(path) == "empty"
        _make(path)
        lock = locks.enter_context(writer_lock(path))
        folder = path
        if state(path) == "finished" and not is_this(Work(path)):
            if not overwrite:
                raise IndexExistsError(_TAKEN.format(path))
            folder = beside(path, "building")
            _make(folder)
            lock = locks.enter_context(writer_lock(folder))
            if state(folder) == "finished" and not is_this(Work(folder)):
                # What an earlier build replaced, or was to replace something else with.
                _clear(folder)
        if state(folder) == "foreign":
            raise IndexExistsError(f"{folder} is in the way and is no index; move it elsewhere")
        place = None
        try:
            place = Workplace(folder, info)
            yield place
            if folder != path:
                _put_in_place(folder, path, lock)
            if state(beside(path, "building")) == "finished":  # Replaced by this build.
                _remove(beside(path, "building"))
            _tidy(path)
        except Exception as error:
            began = state(folder) == "empty" if place is None else place.began
            if began and _is_in_vain(error, Work(folder)):
                _take_back(folder, keep=keep and folder == path)
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
    """Remove what was built; files that somebody put beside it meanwhile stay."""
    _clear(folder)
    if not keep and {entry.name for entry in folder.iterdir()} <= {LOCK_FILE}:
        with storage_errors(folder):
            shutil.rmtree(folder)


def _tidy(path: Path) -> None:
    """Remove what a finished build needs no more, or was killed before it could remove."""
    Work(path).remove()
    with storage_errors(path):
        for left in (path / BUILD_FILE, *path.glob(".*.tmp")):
            left.unlink(missing_ok=True)


def _clear(folder: Path) -> None:
    """Remove what a build makes, and nothing else."""
    with storage_errors(folder):
        _delete(
            entry
            for entry in folder.iterdir()
            if any(fnmatch(entry.name, pattern) for pattern in _MADE)
        )


def _delete(entries: Iterable[Path]) -> None:
    """Delete what is in a build's directory, its marks last.

    Killed in the middle, the rest is still known for what it was.
    """
    for entry in sorted(entries, key=lambda entry: entry.name in _MARKS):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)


def _put_in_place(folder: Path, path: Path, lock: WriterLock) -> None:
    """Replace the index at ``path``, in one step where the system can, and remove the old one."""
    with storage_errors(path):
        if exchange(folder, path):
            old = folder
        else:
            old = beside(path, "replaced")
            _remove(old)
            os.replace(path, old)
            try:
                os.replace(folder, path)
            except BaseException:
                os.replace(old, path)
                raise
        lock.path = path / LOCK_FILE  # It came along.
        fsync_directory(path.absolute().parent)
    _remove(old)


def _finish_swap(path: Path) -> None:
    """Complete a replacement that was interrupted between its two renames, or after them."""
    old = beside(path, "replaced")
    if state(old) != "finished":
        return
    with writer_lock(old) as lock:  # Who is replacing it right now holds this.
        if state(path) == "absent":
            new = beside(path, "building")
            with storage_errors(path):
                if state(new) == "finished":
                    os.replace(new, path)
                else:
                    os.replace(old, path)
                    lock.path = path / LOCK_FILE
                fsync_directory(path.absolute().parent)
        _remove(old)


def _remove(folder: Path) -> None:
    """Delete a directory that a build made; anything else is left alone."""
    if state(folder) == "absent":
        return
    if state(folder) == "foreign":
        raise IndexExistsError(f"{folder} is in the way and is no index; move it elsewhere")
    with storage_errors(folder):
        _delete(folder.iterdir())
        folder.rmdir()
