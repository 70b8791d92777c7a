"""The local cache of what is published on object storage: files by their SHA-256.

``$XDG_CACHE_HOME/wherefrom`` (``~/.cache/wherefrom``) holds ``objects/<SHA-256>``, each fetched
once, and ``snapshots/<manifest>/``, folders that look like an index without its documents, made of
hard links to them. All of it may be removed at any time: what is open stays readable.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from wherefrom.errors import IntegrityError
from wherefrom.store.digests import file_sha256
from wherefrom.store.directory import MANIFEST_FILE
from wherefrom.store.durable import fsync_directory, storage_errors
from wherefrom.store.location import OBJECTS

if TYPE_CHECKING:
    from wherefrom.store.manifest import Manifest
    from wherefrom.store.remote import RemoteFolder

__all__ = ["cache_folder", "own_file", "snapshot"]

_DIGEST = re.compile(r"[0-9a-f]{64}")


def cache_folder() -> Path:
    """Where what was fetched is kept."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "wherefrom"


def snapshot(remote: RemoteFolder, manifest: Manifest, files: Mapping[str, str]) -> Path:
    """A folder of the cache that holds files of a published index under their names.

    What the cache has is compared with its digest; what it has not, or damaged, is fetched.

    Args:
        remote: The index.
        manifest: Its manifest.
        files: SHA-256 of each file wanted, by its name in the index.

    Returns:
        The folder, the manifest in it.

    Raises:
        IntegrityError: An object is missing or differs from its digest.
        StorageError: The store or the disk refuses.
    """
    data = manifest.to_bytes()
    folder = cache_folder() / "snapshots" / hashlib.sha256(data).hexdigest()
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name, sha256 in files.items():
        place = own_file(folder, name)
        while not _holds(place, sha256):
            # Linking what another process replaces just then fails, as if it were not there.
            with suppress(FileNotFoundError):
                _link(_cached(remote, name, sha256), place)
    if not (folder / MANIFEST_FILE).is_file():
        _replace(folder / MANIFEST_FILE, lambda temporary: temporary.write_bytes(data))
    return folder


def own_file(folder: Path, name: str) -> Path:
    """The path of a file of an index, whose manifest may be of anyone's making.

    Raises:
        IntegrityError: It would lie outside ``folder``.
    """
    parts = PurePosixPath(name).parts
    if not parts or PurePosixPath(name).is_absolute() or {"..", "\\", ":", "\0"} & {*parts, *name}:
        raise IntegrityError(
            f"the manifest names {name!r}, which is no file of an index; do not use that index"
        )
    return folder / name


def _cached(remote: RemoteFolder, name: str, sha256: str) -> Path:
    """The cached file of a digest, fetched if need be."""
    if not _DIGEST.fullmatch(sha256):
        raise IntegrityError(f"the manifest gives {name} the SHA-256 {sha256!r}, which is none")
    kept = cache_folder() / OBJECTS / sha256
    if not _holds(kept, sha256):
        with storage_errors(kept):
            kept.parent.mkdir(parents=True, exist_ok=True)
        _replace(kept, lambda temporary: _fetch(remote, name, sha256, temporary))
    return kept


def _fetch(remote: RemoteFolder, name: str, sha256: str, target: Path) -> None:
    found = hashlib.sha256()
    with target.open("wb") as file:
        remote.download(f"{OBJECTS}/{sha256}", file, found.update)
        file.flush()
        os.fsync(file.fileno())
    if found.hexdigest() != sha256:
        raise IntegrityError(
            f"{remote.url}/{OBJECTS}/{sha256} ({name}) differs from its SHA-256; remove it and "
            "publish the index again"
        )


def _link(file: Path, place: Path) -> None:
    with storage_errors(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        _replace(place, lambda temporary: os.link(file, temporary))


def _replace(place: Path, make: Callable[[Path], object]) -> None:
    """Have a file made beside ``place`` and moved there; others may do the same meanwhile."""
    temporary = place.with_name(f".{place.name[:32]}.{secrets.token_hex(8)}")
    with storage_errors(place):
        try:
            make(temporary)
            os.replace(temporary, place)
        finally:
            # Of two links to one file, replacing one by the other leaves both.
            with suppress(FileNotFoundError):
                temporary.unlink()
        fsync_directory(place.parent)


def _holds(file: Path, sha256: str) -> bool:
    with storage_errors(file):
        return file.is_file() and file_sha256(file) == sha256
