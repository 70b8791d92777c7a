"""The versions of a Lance table as files, and those that a power cut left of a commit.

Lance syncs nothing. What it wrote is durable when we have synced the table; the version of a
commit that the power failed in may be there by name and hold nothing. Lance reads the newest
version first, whichever is asked for, so that one bars the way to all others until it is removed:
by whoever opens the index next, as databases take back what a crash left of a transaction.
"""

from __future__ import annotations

import json
import re
import time
from contextlib import suppress
from pathlib import Path

from wherefrom.errors import IndexBusyError, IntegrityError, StorageError
from wherefrom.store.boundary import LARGEST_VERSION, read_regular, require_no_bases
from wherefrom.store.durable import fsync_directory, storage_errors, write_bytes_atomically
from wherefrom.store.lock import writer_lock
from wherefrom.store.manifest import Manifest

__all__ = [
    "HINT",
    "VERSION_FILE",
    "discard_torn",
    "hint",
    "require_own_data",
    "require_own_versions",
    "take_back",
    "torn_versions",
    "version_files",
    "version_name",
]

HINT = "_versions/latest_version_hint.json"
"""Lance's note of the newest version, which may not be the published one."""

VERSION_FILE = re.compile(r"[0-9]{20}\.manifest")
"""Names of the files of versions, as every table of ours has them: the newest sorts first."""

_VERSIONS = "_versions"
_LAST_VERSION = (1 << 64) - 1
_ATTEMPTS, _PAUSE = 50, 0.1  # Another reader may be at it.


def version_name(version: int) -> str:
    """The file of a table's version, by its path within the table: the newest sorts first."""
    return f"{_VERSIONS}/{_LAST_VERSION - version:020}.manifest"


def version_files(table: Path) -> dict[int, Path]:
    """The versions of a table on disk, newest first.

    Raises:
        IntegrityError: There is a version named as in no table of ours.
        StorageError: The disk refuses.
    """
    folder = table / _VERSIONS
    with storage_errors(folder):
        files = sorted(folder.glob("*.manifest"))
    for file in files:
        if not VERSION_FILE.fullmatch(file.name):
            raise IntegrityError(
                f"{file} is no version of a table of ours; restore the index from a copy"
            )
    return {_LAST_VERSION - int(file.stem): file for file in files}


def hint(table: Path) -> bytes | None:
    """What the note of the newest version must be; ``None`` without versions."""
    versions = version_files(table)
    return (
        json.dumps({"version": max(versions)}, separators=(",", ":")).encode() if versions else None
    )


def torn_versions(table: Path, after: int) -> list[Path]:
    """The files of versions later than ``after`` that hold no version.

    Raises:
        StorageError: The disk refuses.
    """
    later = [file for version, file in version_files(table).items() if version > after]
    return [file for file in later if _is_torn(file)]


def discard_torn(table: Path, after: int) -> list[str]:
    """Remove versions of commits that the power failed in; for the holder of the index's lock.

    Args:
        table: Its directory.
        after: The last version that is durable.

    Returns:
        The files, within the table.

    Raises:
        StorageError: The disk refuses.
    """
    torn = torn_versions(table, after)
    if torn:
        with storage_errors(table):
            for file in torn:
                file.unlink()
            fsync_directory(table / _VERSIONS)
        newest = hint(table)
        if newest is not None and (table / HINT).exists():
            write_bytes_atomically(table / HINT, newest)
    return [file.relative_to(table).as_posix() for file in torn]


def require_own_data(table: Path, version: int | None) -> None:
    """Refuse a table on disk, a version of which to be read names data elsewhere.

    Args:
        table: Its directory.
        version: The one to be read; ``None`` for the newest, which Lance reads in any case.

    Raises:
        IntegrityError: One does, or cannot be read.
        StorageError: The disk refuses.
    """
    versions = version_files(table)
    newest = max(versions, default=0)
    for number in sorted({newest, version or newest} & versions.keys()):
        file = versions[number]
        if version is not None and number > version and _is_torn(file):
            raise IntegrityError(
                f"{file} was left by a change that was cut short, and Lance reads nothing beside "
                "it; what was published is whole: open the index once, or run 'wherefrom verify "
                "INDEX --repair', as a user who may write to its folder"
            )
        _require_own(file)


def require_own_versions(table: Path) -> None:
    """Refuse a table on disk, any version of which names data elsewhere: cleaning reads them all.

    Raises:
        IntegrityError: One does, or cannot be read.
        StorageError: The disk refuses.
    """
    for file in version_files(table).values():
        _require_own(file)


def take_back(folder: Path, manifest: Manifest) -> None:
    """Remove what the power, failing in a change, left in the way of what is published.

    Where that cannot be done, nothing is: opening the table says so then.

    Args:
        folder: The index.
        manifest: Its manifest, as a reader knows it.
    """
    for attempt in range(_ATTEMPTS):
        store = manifest.store
        if not torn_versions(folder / f"{store.table}.lance", store.table_version):
            return
        if attempt:
            time.sleep(_PAUSE)
        try:
            with writer_lock(folder):
                # Meanwhile another change may have been published.
                manifest = Manifest.read(folder)
                store = manifest.store
                discard_torn(folder / f"{store.table}.lance", store.table_version)
        except StorageError:  # The folder may not be written.
            return
        except IndexBusyError:
            continue


def _require_own(file: Path) -> None:
    with suppress(FileNotFoundError):  # A version that nobody needs, cleaned up meanwhile.
        require_no_bases(read_regular(file, LARGEST_VERSION), file)


def _is_torn(file: Path) -> bool:
    try:
        require_no_bases(read_regular(file, LARGEST_VERSION), file)
    except FileNotFoundError:  # A version that nobody needs, cleaned up meanwhile.
        return False
    except IntegrityError as error:
        # One that names data elsewhere is a version, and stays to be refused.
        return error.__cause__ is not None
    return False
