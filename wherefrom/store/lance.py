"""Tables of LanceDB: opened at a version, and their failures as one-line errors."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, cast

from wherefrom.errors import IntegrityError, StorageError
from wherefrom.store.boundary import require_no_bases
from wherefrom.store.digests import file_sha256
from wherefrom.store.durable import fsync_tree, storage_errors
from wherefrom.store.location import Database, Location
from wherefrom.store.remote import remote_errors
from wherefrom.store.versions import (
    HINT,
    VERSION_FILE,
    require_own_data,
    require_own_versions,
    version_name,
)

if TYPE_CHECKING:
    from lancedb.db import DBConnection
    from lancedb.table import LanceTable

__all__ = [
    "at_version",
    "clean_table",
    "connect",
    "drop_table",
    "open_table",
    "table_errors",
    "table_files",
]

_VERSIONS = "_versions"


def connect(database: Database) -> DBConnection:
    """What LanceDB makes of a database."""
    # Importing LanceDB takes seconds; only who touches a table should wait.
    import lancedb

    return lancedb.connect(
        database.uri, read_consistency_interval=timedelta(0), storage_options=database.options
    )


def open_table(database: Database, name: str, version: int | None) -> LanceTable:
    """A table at a version, read-only, or at its latest, to be written to.

    Raises:
        IntegrityError: There is no such table or version, it is damaged, or names data elsewhere.
        StorageError: The disk refuses.
    """
    _require_own_data(database, name, version)
    with table_errors(database.table(name)):
        table = cast("LanceTable", connect(database).open_table(name))
        if version is not None:
            table.checkout(version)
    return table


def at_version(database: Database, name: str, version: int | None) -> LanceTable:
    """A table to write to; versions later than ``version`` are taken back.

    Raises:
        IntegrityError: As :func:`open_table`.
        StorageError: The disk refuses.
    """
    table = open_table(database, name, None)
    if version is not None and table.version != version:
        with table_errors(database.table(name)):
            table.restore(version)
    return table


@contextmanager
def table_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what LanceDB raises over missing or damaged files into one-line errors.

    Args:
        path: The table's directory or URL; named in the error.

    Raises:
        IntegrityError: The table cannot be used.
        StorageError: The disk refuses, or object storage does.
    """
    place = Location(path)
    refused = remote_errors(place) if place.remote else storage_errors(path)
    try:
        with refused:
            yield
    except (IntegrityError, StorageError, MemoryError):
        raise
    except Exception as error:  # damaged metadata make Lance's Rust panic, an error of its own kind
        if not place.remote and not os.path.exists(path):
            raise IntegrityError(
                f"{path} cannot be read (it is not there); open the index again if it was purged "
                "or compacted since, else restore it from a copy or build it again"
            ) from error
        cause = str(error).splitlines()[0]
        raise IntegrityError(
            f"{path} cannot be read ({cause}); restore the index from a copy or build it again"
        ) from error


def drop_table(path: Path) -> None:
    """Remove a table, if there is any.

    Raises:
        StorageError: The disk refuses.
    """
    with storage_errors(path):
        if path.exists():
            shutil.rmtree(path)


def clean_table(table: LanceTable, path: Path) -> None:
    """Remove what only earlier versions of a table need, and what a killed writer left of it.

    Raises:
        IntegrityError: The table is damaged, or names data elsewhere.
        StorageError: The disk refuses.
    """
    require_own_versions(path)
    with table_errors(path), warnings.catch_warnings():
        # Compacting makes two versions in no time: any age but none would leave one of them.
        warnings.simplefilter("ignore", UserWarning)
        # What replaces earlier versions is durable before they go.
        table.optimize()
        fsync_tree(path)
        table.optimize(cleanup_older_than=timedelta(0), delete_unverified=True)
        # Lance does not know its own half-written files again.
        for half_written in path.rglob(".tmp*"):
            half_written.unlink()


def table_files(path: Path, known: Mapping[str, str]) -> dict[str, str]:
    """SHA-256 of the files of a table, by their paths within it; Lance never writes to one twice.

    Args:
        path: The table's directory.
        known: Digests of some, which are not computed again.

    Raises:
        StorageError: The disk refuses.
    """
    # Names that begin with a dot are what a killed writer left half-written.
    files = sorted(
        file
        for file in path.rglob("*")
        if file.is_file() and file.name != Path(HINT).name and not file.name.startswith(".")
    )
    names = {file.relative_to(path).as_posix(): file for file in files}
    return {name: known.get(name) or file_sha256(file) for name, file in names.items()}


def _require_own_data(database: Database, name: str, version: int | None) -> None:
    """Refuse a table, a version of which to be read names data elsewhere."""
    if database.objects is None:
        require_own_data(Path(database.uri, f"{name}.lance"), version)
        return
    folder = f"{database.folder}/{name}.lance"
    versions = set(database.objects.sizes(f"{folder}/{_VERSIONS}"))
    for file in sorted(versions):
        if not VERSION_FILE.fullmatch(file.rpartition("/")[2]):
            raise IntegrityError(
                f"{database.objects.url}/{file} is no version of a table as they are published; "
                "ask for a whole copy of the index"
            )
    # Lance opens the newest, which sorts first, then the one that is asked for.
    newest = min(versions, default=None)
    asked = None if version is None else f"{folder}/{version_name(version)}"
    for wanted in {file for file in (newest, asked) if file is not None}:
        stored = database.objects.read(wanted)
        if stored is not None:
            require_no_bases(stored.data, f"{database.objects.url}/{wanted}")
