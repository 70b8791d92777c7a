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

__all__ = ["LOCK_FILE", "writer_lock"]

LOCK_FILE = "writer.lock"


@contextmanager
def writer_lock(directory: str | os.PathLike[str]) -> Iterator[None]:
    """Be the only writer of the index in ``directory`` while the block runs.

    The lock is the operating system's: a writer that is killed lets go of it, and nothing has to
    be cleaned up. It holds between processes of one machine, and between
    machines where the shared file system has locks (NFS 4 has).

    Raises:
        IndexBusyError: Another process, or another thread of this one, is writing.
        StorageError: The disk refuses.
    """
    path = Path(directory) / LOCK_FILE
    handle = _locked(path)
    try:
        holder = json.dumps({"process": os.getpid(), "host": socket.gethostname()})
        with storage_errors(path):
            os.ftruncate(handle, 0)
            os.pwrite(handle, holder.encode(), 0)
        yield
    finally:
        # While it is held: who opened it meanwhile finds that it is no longer the one that counts.
        path.unlink(missing_ok=True)
        os.close(handle)


def _locked(path: Path) -> int:
    """A handle on the lock's file, locked."""
    while True:
        with storage_errors(path):
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            with storage_errors(path):
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        except BlockingIOError:
            os.close(handle)
            raise IndexBusyError(_busy(path)) from None
        except FileNotFoundError:  # Its holder let go of it between the two calls.
            pass
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _busy(path: Path) -> str:
    try:
        holder = json.loads(path.read_bytes())
        who = f"process {holder['process']} on {holder['host']}"
    except (OSError, ValueError, KeyError, TypeError):  # It has only just taken the lock.
        who = "another process"
    return f"{path.parent} is being written by {who}; wait until it is done"
