"""Tables of LanceDB: opened at a version, and their failures as one-line errors."""

from __future__ import annotations

import os
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, cast

from wherefrom.errors import IndexBusyError, IntegrityError, StorageError
from wherefrom.store.boundary import require_no_bases
from wherefrom.store.digests import file_sha256
from wherefrom.store.durable import (
    fsync_directory,
    fsync_tree,
    storage_errors,
    write_bytes_atomically,
)
from wherefrom.store.location import Database, Location
from wherefrom.store.lock import writer_lock
from wherefrom.store.manifest import Manifest
from wherefrom.store.remote import remote_errors
from wherefrom.store.versions import (
    HINT,
    VERSION_FILE,
    hint,
    later_versions,
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
    "open_published",
    "open_table",
    "table_errors",
    "table_files",
    "take_back",
    "unreadable_versions",
]

_VERSIONS = "_versions"
_ATTEMPTS, _PAUSE = 50, 0.1


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


def open_published(folder: Path, manifest: Manifest) -> LanceTable:
    """The table of an index on disk, to be read; what bars the way to it is taken back.

    Args:
        folder: The index.
        manifest: Its manifest, as a reader knows it.

    Raises:
        IntegrityError: It cannot be read, or what bars the way may not be removed by this user.
        StorageError: The disk refuses.
    """
    database, store = Database(os.fspath(folder)), manifest.store
    try:
        return open_table(database, store.table, store.table_version)
    except IntegrityError as error:
        barred = unreadable_versions(database, store.table, store.table_version)
        if not barred:
            raise
        cause = error
    for attempt in range(_ATTEMPTS):
        time.sleep(_PAUSE if attempt else 0)
        try:
            with writer_lock(folder):
                # Meanwhile another change may have been published.
                now = Manifest.read(folder).store
                take_back(database, now.table, now.table_version)
                break
        except IndexBusyError:  # Another reader may be at it.
            continue
        except StorageError as refusal:
            raise IntegrityError(
                f"{barred[0]} was left by a change that was cut short, and Lance reads nothing "
                "beside it; what was published is whole: open the index once, or run 'wherefrom "
                f"verify INDEX --repair', as a user who may write to its folder ({refusal})"
            ) from cause
    return open_table(database, store.table, store.table_version)


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


def unreadable_versions(database: Database, name: str, after: int) -> list[Path]:
    """Versions later than ``after`` that bar the way to a table, the newest first.

    Lance syncs nothing. What it wrote is durable when we have synced the table; the version of a
    commit that the power failed in may be there by name and hold nothing. Lance reads the newest
    version first, whichever is asked for, so that one bars the way to all others.

    Args:
        database: A directory.
        name: Of the table.
        after: The last version that counts.

    Raises:
        StorageError: The disk refuses.
    """
    later = later_versions(Path(database.uri, f"{name}.lance"), after)
    try:
        if later:
            open_table(database, name, None)
    except IntegrityError:
        return later
    return []


def take_back(database: Database, name: str, after: int) -> list[str]:
    """Remove versions that bar the way to a table, as databases do with what a crash left.

    Only for the holder of the index's lock.

    Args:
        database: A directory.
        name: Of the table.
        after: The last version that counts.

    Returns:
        The files, within the table.

    Raises:
        StorageError: The disk refuses.
    """
    table, removed = Path(database.uri, f"{name}.lance"), list[str]()
    while later := unreadable_versions(database, name, after):
        with storage_errors(table):
            later[0].unlink()
            fsync_directory(later[0].parent)
        removed.append(later[0].relative_to(table).as_posix())
    if removed and (newest := hint(table)) is not None and (table / HINT).exists():
        write_bytes_atomically(table / HINT, newest)
    return removed


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
