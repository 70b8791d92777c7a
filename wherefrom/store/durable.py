"""Writes that survive a power cut, and refusals of the disk as one-line errors.

LanceDB renames files into place but never calls fsync, so a finished build could still vanish
with the power; everything an index claims to hold goes through :func:`fsync_tree` or
:func:`write_bytes_atomically` before the manifest names it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from wherefrom.errors import StorageError

__all__ = [
    "exchange",
    "fsync_directory",
    "fsync_tree",
    "storage_errors",
    "write_atomically",
    "write_bytes_atomically",
]

_REMEDIES = {
    errno.ENOSPC: "free some space there or choose another place",
    errno.EDQUOT: "free some of your quota there or choose another place",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f) or choose another place",
    errno.EROFS: "choose a place that can be written",
    errno.EACCES: "change its permissions or choose another place",
    errno.EPERM: "change its permissions or choose another place",
    errno.ENOTDIR: "choose a path all of whose parents are directories",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.EIO: "check the disk",
}
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
_WRAPPED_ERRNO = re.compile(r"\b(?:os error|errno) (\d+)", re.IGNORECASE)


def _errno_of(error: Exception) -> int | None:
    """The errno behind ``error``, also where LanceDB or Arrow hold it in their message only."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = _WRAPPED_ERRNO.search(str(error))
    if found:
        return int(found.group(1))
    return errno.ENOSPC if "No space left" in str(error) else None


@contextmanager
def storage_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn a disk's refusal inside the block into a one-line error; other errors pass unchanged.

    Args:
        path: What the block reads or writes; named in the error.

    Raises:
        StorageError: The disk is full, read-only, forbidden or failing, or the path impossible.
    """
    try:
        yield
    except Exception as error:
        code = _errno_of(error)
        if code not in _REMEDIES:
            raise
        message = f"cannot use {os.fspath(path)}: {os.strerror(code)}; {_REMEDIES[code]}"
        raise StorageError(message) from error


def fsync_directory(directory: str | os.PathLike[str]) -> None:
    """Make the entries of ``directory`` (creations, renames) durable.

    Raises:
        OSError: The disk refuses.
    """
    # Windows offers no handle on a directory; its file system journals renames itself.
    if os.name != "nt":
        _fsync(directory)


def exchange(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    """Let two directories change places, in one step that no reader sees the middle of.

    Returns:
        Whether that was done; not every system and file system can.

    Raises:
        OSError: The disk refuses.
    """
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    done = rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE)
    if done == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), os.fspath(other))


def fsync_tree(directory: str | os.PathLike[str]) -> None:
    """Make every file and directory under ``directory`` durable, and its entry in its parent.

    Raises:
        StorageError: The disk refuses.
        FileNotFoundError: There is no such directory.
    """
    with storage_errors(directory):
        for folder, _, names in os.walk(directory, onerror=_refuse):
            for name in names:
                _fsync(os.path.join(folder, name))
            fsync_directory(folder)
        fsync_directory(Path(directory).absolute().parent)


def write_bytes_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file so that any reader, even after a power cut, sees all of ``data`` or none of it.

    Raises:
        StorageError: The disk refuses; what stood at ``path`` before still does.
    """
    write_atomically(path, lambda temporary: temporary.write_bytes(data))


def write_atomically(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Have a file written so that any reader sees all of it or none.

    Args:
        path: The file.
        write: Called with another path, to write it there.

    Raises:
        StorageError: The disk refuses; what stood at ``path`` before still does.
    """
    target = Path(path)
    # Two workers may be at the same piece of work; each leaves the same file.
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    with storage_errors(target):
        try:
            temporary.touch()
            permissions = temporary.stat().st_mode
            write(temporary)
            # safetensors puts a file of its own in its place, which its owner alone may read.
            temporary.chmod(permissions)
            _fsync(temporary)
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        fsync_directory(target.parent)


def _refuse(error: OSError) -> None:
    # os.walk passes over directories that it cannot read unless told otherwise.
    raise error


def _fsync(path: str | os.PathLike[str]) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
