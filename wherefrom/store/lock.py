"""One writer at a time: a lock on an index's directory that dies with the process that holds it."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wherefrom.errors import IndexBusyError
from wherefrom.store.durable import storage_errors

__all__ = ["LOCK_FILE", "WriterLock", "writer_lock"]

LOCK_FILE = "writer.lock"


class WriterLock:
    """A lock that is held.

    Attributes:
        path: Its file; to be changed by who moves the directory that it is in.
    """

    def __init__(self, path: Path) -> None:
        self.path = path


@contextmanager
def writer_lock(directory: str | os.PathLike[str]) -> Iterator[WriterLock]:
    """Be the only writer of the index in ``directory`` while the block runs.

    The lock is the operating system's: a writer that is killed lets go of it, and nothing has to
    be cleaned up. It holds between processes of one machine, and between machines where the shared
    file system has locks (NFS 4 has).

    Raises:
        IndexBusyError: Another process, or another thread of this one, is writing.
        StorageError: The disk refuses.
    """
    lock = WriterLock(Path(directory) / LOCK_FILE)
    handle = _locked(lock.path)
    try:
        holder = json.dumps({"process": os.getpid(), "host": socket.gethostname()})
        with storage_errors(lock.path):
            os.ftruncate(handle, 0)
            os.pwrite(handle, holder.encode(), 0)
        yield lock
    finally:
        # While it is held: who opened it meanwhile finds that it is no longer the one that counts.
        if _is_at(handle, lock.path):
            lock.path.unlink()
        os.close(handle)


def _locked(path: Path) -> int:
    """A handle on the lock's file, locked."""
    while True:
        with storage_errors(path):
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            with storage_errors(path):
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise IndexBusyError(_busy(path)) from None
        except BaseException:
            os.close(handle)
            raise
        if _is_at(handle, path):
            return handle
        os.close(handle)  # Its holder let go of it between the two calls.


def _is_at(handle: int, path: Path) -> bool:
    """Whether an open file is the one that is at ``path`` now."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _busy(path: Path) -> str:
    try:
        holder = json.loads(path.read_bytes())
        who = f"process {holder['process']} on {holder['host']}"
    except (OSError, ValueError, KeyError, TypeError):  # It has only just taken the lock.
        who = "another process"
    return f"{path.parent} is being written by {who}; wait until it is done"
