"""Fetching a published index, to be changed and published again."""

from __future__ import annotations

import os
from collections.abc import Collection
from hashlib import sha256
from pathlib import Path

from wherefrom.errors import IndexExistsError, IntegrityError
from wherefrom.maintenance.publish import Part, published_parts
from wherefrom.records import Progress
from wherefrom.store import DocumentTable, Location, Manifest, file_sha256, fsync_tree, state
from wherefrom.store.cache import own_file
from wherefrom.store.directory import beside
from wherefrom.store.durable import fsync_directory, storage_errors, write_bytes_atomically
from wherefrom.store.lock import LOCK_FILE, writer_lock
from wherefrom.store.remote import RemoteFolder
from wherefrom.store.versions import HINT, hint

__all__ = ["fetch"]


def fetch(
    url: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    progress: Progress | None = None,
) -> Path:
    """Make a directory of a published index, to be changed and published again.

    Args:
        url: Where it is published.
        path: The directory to make.
        progress: Called as ``progress("fetch", done, total)``, in files.

    Returns:
        The directory. A fetch that was interrupted goes on where it stopped, in a directory beside
        it.

    Raises:
        NotAnIndexError: Nothing is published there.
        IndexExistsError: There is something at ``path``.
        IntegrityError: An object is missing or damaged.
        StorageError: The store or the disk refuses.
    """
    # By a link, what it leads to; as a build does.
    place, target = Location(url), Path(os.path.realpath(Location(path).directory))
    remote = place.objects
    if state(target) not in ("absent", "empty") or os.path.ismount(target):
        raise IndexExistsError(f"{target} exists already; choose another path")
    manifest = Manifest.read(place)
    unfinished = beside(target, "fetched")
    if unfinished.is_symlink():
        raise IndexExistsError(f"{unfinished} is a link and in the way; remove it")
    with storage_errors(unfinished):
        unfinished.mkdir(parents=True, exist_ok=True)
    with writer_lock(unfinished):
        parts = published_parts(manifest)
        # What an earlier attempt fetched may have been taken down since.
        _remove_others(unfinished, {part.path for part in parts})
        for done, part in enumerate(parts):
            _download(remote, part, unfinished)
            if progress is not None:
                progress("fetch", done + 1, len(parts))
        DocumentTable.open(unfinished, manifest)
        table = unfinished / f"{manifest.store.table}.lance"
        # Lance's note of the newest version, which is not published, for it is replaced in place.
        if (newest := hint(table)) is not None:
            write_bytes_atomically(table / HINT, newest)
        manifest.write(unfinished)
        fsync_tree(unfinished)
        with storage_errors(target):
            if target.is_dir():
                with writer_lock(target):  # Unless somebody builds there just now.
                    for left in target.glob(".*.tmp"):  # By a build that was killed at once.
                        left.unlink()
            os.replace(unfinished, target)
            (target / LOCK_FILE).unlink()  # The lock moved with its folder.
            fsync_directory(target.absolute().parent)
    return target


def _remove_others(folder: Path, wanted: Collection[str]) -> None:
    """Remove all files of an unfinished fetch but those that are ``wanted``, by their paths."""
    with storage_errors(folder):
        for file in [one for one in folder.rglob("*") if not one.is_dir() or one.is_symlink()]:
            if file.relative_to(folder).as_posix() not in (*wanted, LOCK_FILE):
                file.unlink()


def _download(remote: RemoteFolder, part: Part, folder: Path) -> None:
    """Write an object into its file, unless an earlier attempt did."""
    file = own_file(folder, part.path)
    with storage_errors(file):
        if file.is_file() and file_sha256(file) == part.digest:
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f".{file.name}.part")
        found = sha256()
        with partial.open("wb") as target:
            remote.download(part.name, target, found.update)
        if found.hexdigest() != part.digest:
            raise IntegrityError(
                f"{remote.url}/{part.name} ({part.path}) differs from its SHA-256; publish the "
                "index again from where it is whole"
            )
        os.replace(partial, file)
