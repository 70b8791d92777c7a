"""A disk that can be watched, filled up and cut from its power, as a process that writes sees it.

What a program does to a disk is a sequence of *steps*: syncs, renames, new folders and the
commits of the documents table. The disk can end the process before any of them, or refuse it.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from lancedb.table import LanceTable

from wherefrom.indexer.executors.base import Outcome, Task
from wherefrom.indexer.workshop import Workshop

__all__ = ["Disk", "after_power_cut", "all_durable"]

_TABLE_METHODS = ("add", "set_unenforced_primary_key", "delete", "optimize", "restore")
_NOBODY = 65534


@dataclass
class Disk:
    """A context in which steps are counted.

    Attributes:
        root: What happens elsewhere does not count.
        kill_at: The process ends by SIGKILL before the step of this number, from 0.
        refuse_from: Steps of this number and later are refused ...
        refuse_count: ... so many of them; all that follow if ``None``.
        code: ... with this error number.
        largest_file: Bytes that a file may grow to.
        nobody: Whether the process is to have no rights but those of everybody.
        log: File that the tasks carried out are added to.
        journal: Folder in which what is durable is noted, for :func:`after_power_cut`.
        steps: What was done, in words.
    """

    root: str
    kill_at: int | None = None
    refuse_from: int | None = None
    refuse_count: int | None = None
    code: int = errno.ENOSPC
    largest_file: int | None = None
    nobody: bool = False
    log: str | None = None
    journal: str | None = None
    steps: list[str] = field(default_factory=list)
    _undo: list[Callable[[], None]] = field(default_factory=list)

    @classmethod
    def of(cls, asked: Mapping[str, Any] | None) -> Disk:
        """As asked for by JSON values; a disk where all goes well for ``None``."""
        return cls(**(asked or {"root": "/nowhere"}))

    def __enter__(self) -> Disk:
        if self.largest_file is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # As Python does; Rust does not.
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.largest_file, resource.RLIM_INFINITY))
        if self.nobody and os.getuid() == 0:
            os.setegid(_NOBODY)
            os.seteuid(_NOBODY)
        self._patch(os, "fsync", self._fsync)
        self._patch(os, "replace", self._renaming("replace"))
        self._patch(os, "rename", self._renaming("rename"))
        self._patch(os, "mkdir", self._mkdir)
        if self.log is not None:
            self._patch(Workshop, "perform", self._logging)
        for name in _TABLE_METHODS:
            self._patch(LanceTable, name, self._committing(name))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.largest_file is not None:
            resource.setrlimit(
                resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            )
        os.seteuid(os.getuid())
        os.setegid(os.getgid())
        while self._undo:
            self._undo.pop()()

    def _patch(self, owner: Any, name: str, wrap: Callable[[Any], Any]) -> None:
        original = getattr(owner, name)
        self._undo.append(lambda: setattr(owner, name, original))
        setattr(owner, name, wrap(original))

    def _step(self, what: str, path: object) -> None:
        """One step is about to happen."""
        name = os.path.abspath(os.fspath(path))  # type: ignore[call-overload]
        if not name.startswith(self.root):
            return
        number = len(self.steps)
        self.steps.append(f"{what} {os.path.relpath(name, self.root)}")
        if number == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        first = self.refuse_from
        if first is None or number < first:
            return
        if self.refuse_count is None or number < first + self.refuse_count:
            raise OSError(self.code, os.strerror(self.code))

    def _fsync(self, original: Callable[[int], None]) -> Callable[[int], None]:
        def fsync(handle: int) -> None:
            path = os.readlink(f"/proc/self/fd/{handle}")
            self._step("sync", path)
            original(handle)
            if self.journal is not None and path.startswith(self.root):
                _note(Path(self.journal), handle, path)

        return fsync

    def _renaming(self, word: str) -> Callable[[Any], Any]:
        def wrap(original: Any) -> Any:
            def rename(source: Any, target: Any, **named: Any) -> None:
                self._step(word, target)
                original(source, target, **named)

            return rename

        return wrap

    def _mkdir(self, original: Any) -> Any:
        def mkdir(path: Any, *arguments: Any, **named: Any) -> None:
            self._step("mkdir", path)
            original(path, *arguments, **named)
            if self.journal is not None and str(path).startswith(self.root):
                # The number of a folder that is gone may have come back for this one.
                (Path(self.journal) / f"folder-{os.stat(path).st_ino}").unlink(missing_ok=True)

        return mkdir

    def _logging(self, original: Any) -> Any:
        def perform(workshop: Workshop, task: Task) -> Outcome:
            if not workshop.work.is_done(task):
                with open(str(self.log), "a") as log:
                    log.write(f"{task.phase} {task.step} {task.level} {task.index}\n")
            outcome: Outcome = original(workshop, task)
            return outcome

        return perform

    def _committing(self, word: str) -> Callable[[Any], Any]:
        def wrap(original: Any) -> Any:
            def commit(table: Any, *arguments: Any, **named: Any) -> Any:
                self._step(word, Path(self.root) / "table")
                return original(table, *arguments, **named)

            return commit

        return wrap


def all_durable(root: Path, journal: Path) -> None:
    """Note that all that is there now is durable."""
    for parent, _, names in os.walk(root):
        for path in (parent, *(os.path.join(parent, name) for name in names)):
            handle = os.open(path, os.O_RDONLY)
            try:
                _note(journal, handle, path)
            finally:
                os.close(handle)


def _note(journal: Path, handle: int, path: str) -> None:
    """Note what a sync has made durable: a file's content, or a folder's entries.

    Contents are kept as further links to the files, so that no number of a file comes back for
    another.
    """
    about = os.fstat(handle)
    if not os.path.isdir(path):
        if not (journal / f"file-{about.st_ino}").exists():
            os.link(path, journal / f"file-{about.st_ino}")
        _write(journal / f"synced-{about.st_ino}", [about.st_size, about.st_mtime_ns])
        return
    entries = {}
    for entry in os.scandir(path):
        number = entry.inode()
        entries[entry.name] = ["folder" if entry.is_dir(follow_symlinks=False) else "file", number]
        if entry.is_file(follow_symlinks=False) and not (journal / f"file-{number}").exists():
            os.link(entry.path, journal / f"file-{number}")
    _write(journal / f"folder-{about.st_ino}", entries)


def _write(path: Path, values: object) -> None:
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(values))
    Path(temporary).rename(path)


def after_power_cut(root: Path, journal: Path, target: Path, *, entries_survive: bool) -> None:
    """Make ``target`` what ``root`` may be when the power is back.

    Args:
        root: What the process left.
        journal: What was durable.
        target: A folder that does not exist.
        entries_survive: Whether names are all there, as on file systems with ordered metadata, and
            only the contents of files that were never synced are lost; else everything is lost
            that was not synced, names included.
    """
    if entries_survive:
        _surviving(root, journal, target)
    else:
        _durable(root.stat().st_ino, journal, target)


def _surviving(folder: Path, journal: Path, target: Path) -> None:
    target.mkdir()
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            _surviving(Path(entry.path), journal, target / entry.name)
        else:
            _copy(Path(entry.path), entry.inode(), journal, target / entry.name)


def _durable(number: int, journal: Path, target: Path) -> None:
    target.mkdir()
    noted = journal / f"folder-{number}"
    if not noted.exists():
        return
    for name, (kind, inner) in json.loads(noted.read_text()).items():
        if kind == "folder":
            _durable(inner, journal, target / name)
        else:
            _copy(journal / f"file-{inner}", inner, journal, target / name)


def _copy(source: Path, number: int, journal: Path, target: Path) -> None:
    """The file if it was synced as it is; an empty one otherwise."""
    about, synced = source.stat(), journal / f"synced-{number}"
    whole = synced.exists() and json.loads(synced.read_text()) == [
        about.st_size,
        about.st_mtime_ns,
    ]
    target.write_bytes(source.read_bytes() if whole else b"")
