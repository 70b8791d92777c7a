"""The boundary of an index: nothing outside its folder is read on behalf of what stands in it.

An index may come from anyone, and its digests with it: they tell damage from health, not friend
from foe. What could lead out of the folder is refused before it is followed: links, devices, and
the places elsewhere that a Lance table can name for its data (``base_paths``: another folder, or a
bucket), which Lance reads without asking.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from wherefrom.errors import IntegrityError
from wherefrom.store.durable import storage_errors

__all__ = ["LARGEST_VERSION", "read_regular", "require_no_bases", "require_own_files"]

LARGEST_VERSION = 1 << 28
"""Bytes of the file of a Lance table's version."""

_MAGIC = b"LANC"
_FOOTER = 16  # position of the message, two version numbers, magic
_BASE_PATHS = 18
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # protobuf's wire types; groups are not used


def require_own_files(folder: str | os.PathLike[str]) -> None:
    """Refuse an index that holds anything but plain files and folders.

    Args:
        folder: The index; may itself be reached by a link.

    Raises:
        IntegrityError: There is a link, a pipe, a socket or a device in it; the first is named.
        StorageError: The disk refuses.
    """
    with storage_errors(folder):
        for parent, folders, files in os.walk(folder, onerror=_refuse):
            for name in (*folders, *files):
                path = os.path.join(parent, name)
                try:
                    mode = os.lstat(path).st_mode
                except FileNotFoundError:
                    continue  # A writer replaced or removed it meanwhile.
                if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                    kind = "a link" if stat.S_ISLNK(mode) else "neither a file nor a folder"
                    raise IntegrityError(
                        f"{path} is {kind}, and an index reads nothing but files of its own; copy "
                        "what it stands for into its place"
                    )


def read_regular(file: Path, largest: int) -> bytes:
    """The bytes of a plain file that is not larger than such a file can be.

    Args:
        file: Its path.
        largest: In bytes.

    Raises:
        IntegrityError: It is larger, or no plain file.
        StorageError: The disk refuses.
        OSError: There is no such file.
    """
    with storage_errors(file):
        # A pipe would hang in open without O_NONBLOCK, and a device may have no end.
        handle = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(handle, "rb") as stream:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise IntegrityError(f"{file} is no plain file; put the file itself there")
            data = stream.read(largest + 1)
    if len(data) > largest:
        raise IntegrityError(
            f"{file} is larger than {largest >> 20:,} MiB, as no such file is; it was not read"
        )
    return data


def require_no_bases(data: bytes, name: str | os.PathLike[str]) -> None:
    """Refuse a version of a Lance table that names data elsewhere.

    Args:
        data: All bytes of its file in ``_versions``.
        name: What to call it in errors.

    Raises:
        IntegrityError: It does, or it is no such file.
    """
    try:
        fields = list(_fields(_message(data)))
    except (IndexError, ValueError) as error:
        raise IntegrityError(
            f"{os.fspath(name)} is no version of a Lance table ({error}); restore the index or "
            "build it again"
        ) from error
    if _BASE_PATHS in fields:
        raise IntegrityError(
            f"{os.fspath(name)} names data outside the index, which are not read; ask for a whole "
            "copy of it"
        )


def _message(data: bytes) -> bytes:
    """The protobuf message ``Manifest`` in the file of a version."""
    if len(data) < _FOOTER or data[-4:] != _MAGIC:
        raise ValueError("its end is missing")
    start = int.from_bytes(data[-_FOOTER:-8], "little")
    length = int.from_bytes(data[start : start + 4], "little")
    message = data[start + 4 : start + 4 + length]
    if start > len(data) - _FOOTER - 4 or len(message) < length:
        raise ValueError("it is cut off")
    return message


def _fields(message: bytes) -> Iterator[int]:
    """The numbers of a message's fields, in order."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        kind = key & 7
        if kind == _VARINT:
            _, position = _varint(message, position)
        elif kind == _BYTES:
            length, position = _varint(message, position)
            position += length
        elif kind in (_FIXED64, _FIXED32):
            position += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {kind}")
        yield key >> 3
    if position > len(message):
        raise ValueError("it is cut off")


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("a number without end")


def _refuse(error: OSError) -> None:
    # os.walk passes over folders that it cannot read unless told otherwise.
    if not isinstance(error, FileNotFoundError):  # A writer removed that one meanwhile.
        raise error
