"""The files of a bundle, in a directory or a zip file, read without trusting any of it.

A bundle is flat. Nothing is ever unpacked: what is read stays in memory, under a limit.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from wherefrom.errors import IntegrityError, NotAnIndexError, StorageError
from wherefrom.store.durable import storage_errors, write_bytes_atomically

__all__ = [
    "LARGEST",
    "Contents",
    "Oddity",
    "read_contents",
    "require_free",
    "write_directory",
    "write_zip",
]

LARGEST = 1 << 30
"""Bytes that all files of a bundle may have together."""

_BROKEN_ZIP = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
)
"""What zipfile raises for bytes that are not what they should be."""

_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The first time that a zip file can hold: the same for all, for it decides nothing."""


@dataclass(frozen=True, slots=True)
class Oddity:
    """Something that no bundle holds.

    Attributes:
        name: Of the file.
        what: Is wrong with it.
    """

    name: str
    what: str


@dataclass(frozen=True, slots=True)
class Contents:
    """What a bundle holds.

    Attributes:
        files: Bytes of each plain file.
        oddities: All else.
    """

    files: Mapping[str, bytes]
    oddities: tuple[Oddity, ...]


def read_contents(path: Path) -> Contents:
    """Read a bundle.

    Raises:
        NotAnIndexError: There is neither a directory nor a zip file.
        IntegrityError: The zip file is broken, or all is larger than any bundle.
        StorageError: The disk refuses.
    """
    with storage_errors(path):
        if path.is_dir():
            return _from_directory(path)
        if not path.exists():
            raise NotAnIndexError(f"{path} does not exist; give a bundle, or the zip file of one")
        if not path.is_file() or not zipfile.is_zipfile(path):
            raise NotAnIndexError(
                f"{path} is neither a directory nor a zip file; give what wherefrom bundle wrote"
            )
        _require_room(path, LARGEST - path.stat().st_size)
        data = path.read_bytes()
    # From memory, so that whatever fails from here on is the zip file's fault and not the disk's.
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _from_zip(archive, path)
    except _BROKEN_ZIP as error:
        raise IntegrityError(f"{path} is a broken zip file: {error}") from error


def write_directory(path: Path, files: Mapping[str, bytes]) -> None:
    """Write a bundle as a directory, the files in their order.

    Raises:
        StorageError: There is something already, or the disk refuses.
    """
    require_free(path)
    with storage_errors(path):
        path.mkdir()
        for name, data in files.items():
            write_bytes_atomically(path / name, data)


def write_zip(path: Path, files: Mapping[str, bytes]) -> None:
    """Write a bundle as a zip file; the same files make the same bytes.

    Raises:
        StorageError: There is something already, or the disk refuses.
    """
    require_free(path)
    with storage_errors(path):
        try:
            with zipfile.ZipFile(path, "x") as archive:
                for name, data in sorted(files.items()):
                    # Stored, for what compression makes of it depends on the library.
                    entry = zipfile.ZipInfo(name, _EPOCH)
                    entry.create_system = 3
                    entry.external_attr = (stat.S_IFREG | 0o644) << 16
                    archive.writestr(entry, data)
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def require_free(path: Path) -> None:
    """Refuse a path at which no bundle can be made.

    Raises:
        StorageError: There is something already, or no directory to put it in.
    """
    if os.path.lexists(path):
        raise StorageError(f"{path} exists already; choose another path or remove it")
    if not path.parent.is_dir():
        raise StorageError(f"cannot write {path}: {path.parent} is no directory; make it first")


def _from_directory(path: Path) -> Contents:
    files: dict[str, bytes] = {}
    oddities = []
    left = LARGEST
    for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
        if entry.is_symlink():
            oddities.append(Oddity(entry.name, "is a link; a bundle holds the files themselves"))
        elif not entry.is_file(follow_symlinks=False):
            oddities.append(Oddity(entry.name, "is no plain file"))
        else:
            left -= entry.stat(follow_symlinks=False).st_size
            _require_room(path, left)
            files[entry.name] = Path(entry.path).read_bytes()
    return Contents(files, tuple(oddities))


def _from_zip(archive: zipfile.ZipFile, path: Path) -> Contents:
    files: dict[str, bytes] = {}
    oddities = []
    left = LARGEST
    for entry in archive.infolist():
        name = entry.filename
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if name in files:
            oddities.append(Oddity(name, "stands twice in the zip file"))
        elif "/" in name or "\\" in name or name in ("", ".", ".."):
            oddities.append(Oddity(name, "leads out of the bundle, which has no folders"))
        elif kind not in (0, stat.S_IFREG):
            oddities.append(Oddity(name, "is no plain file"))
        elif entry.flag_bits & 1:
            oddities.append(Oddity(name, "is encrypted"))
        elif entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            oddities.append(Oddity(name, "is packed in a way that bundles are not"))
        else:
            # More than the directory says of a file is never unpacked of it.
            left -= entry.file_size
            _require_room(path, left)
            files[name] = archive.read(entry)
    return Contents(files, tuple(oddities))


def _require_room(path: Path, left: int) -> None:
    if left < 0:
        raise IntegrityError(
            f"{path} holds more than {LARGEST >> 20:,} MiB, as no bundle does; it was not read"
        )
