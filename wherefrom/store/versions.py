"""The versions of a Lance table as files: which there are, and that none leads elsewhere."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path

from wherefrom.errors import IntegrityError
from wherefrom.store.boundary import LARGEST_VERSION, read_regular, require_no_bases
from wherefrom.store.durable import storage_errors

__all__ = [
    "HINT",
    "VERSION_FILE",
    "hint",
    "later_versions",
    "require_own_data",
    "require_own_versions",
    "version_files",
    "version_name",
]

HINT = "_versions/latest_version_hint.json"
"""Lance's note of the newest version, which may not be the published one."""

VERSION_FILE = re.compile(r"[0-9]{20}\.manifest")
"""Names of the files of versions, as every table of ours has them: the newest sorts first."""

_VERSIONS = "_versions"
_LAST_VERSION = (1 << 64) - 1


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


def later_versions(table: Path, after: int) -> list[Path]:
    """The files of versions later than ``after``, the newest first.

    Raises:
        IntegrityError: There is a version named as in no table of ours.
        StorageError: The disk refuses.
    """
    return [file for version, file in version_files(table).items() if version > after]


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
        _require_own(file)


def require_own_versions(table: Path) -> None:
    """Refuse a table on disk, any version of which names data elsewhere: cleaning reads them all.

    Raises:
        IntegrityError: One does, or cannot be read.
        StorageError: The disk refuses.
    """
    for file in version_files(table).values():
        _require_own(file)


def _require_own(file: Path) -> None:
    with suppress(FileNotFoundError):  # A version that nobody needs, cleaned up meanwhile.
        require_no_bases(read_regular(file, LARGEST_VERSION), file)
