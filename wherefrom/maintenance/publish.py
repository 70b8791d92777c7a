"""Publication of an index on object storage.

Whoever asks the published index reads one manifest and what that names. So everything new is
written first, under names that nothing has yet, and the manifest last, by one write that succeeds
only if the published manifest is still the one this publication follows. Killed anywhere before, a
publication leaves what was published as it was; the same call then goes on.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from wherefrom.errors import IndexExistsError, IntegrityError, WherefromError
from wherefrom.records import Progress
from wherefrom.store import DocumentTable, Location, Manifest, file_sha256, state
from wherefrom.store.cache import cache_folder, own_file
from wherefrom.store.directory import MANIFEST_FILE
from wherefrom.store.durable import storage_errors
from wherefrom.store.location import OBJECTS, TABLES, lineage
from wherefrom.store.lock import writer_lock
from wherefrom.store.remote import RemoteFolder, Stored

__all__ = [
    "Part",
    "Publication",
    "building_folder",
    "built_at",
    "publish",
    "published_parts",
]

_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Publication:
    """What a publication did.

    Attributes:
        url: Where the index is published.
        generation: Of the index, as published.
        manifest_sha256: Identifies the index.
        changed: Whether another state was published before, or none.
        uploaded: Objects written.
        uploaded_bytes: Their bytes.
        kept: Objects that were there already.
        removed: Objects removed that no published manifest names any more.
    """

    url: str
    generation: int
    manifest_sha256: str
    changed: bool
    uploaded: int
    uploaded_bytes: int
    kept: int
    removed: int


def publish(
    path: str | os.PathLike[str],
    url: str | os.PathLike[str],
    *,
    replace: bool = False,
    prune: bool = False,
    progress: Progress | None = None,
) -> Publication:
    """Publish an index on object storage, where :func:`wherefrom.open` reads it.

    Readers see the former state or this one, whole. Only what the former one has not is uploaded.

    Args:
        path: The index's directory.
        url: Where to, as ``s3://bucket/name`` (``gs://``, ``az://``).
        replace: Publish it even if what is published there is another index, or a later state or
            another branch of this one.
        prune: Remove what earlier publications left, also those that were interrupted or replaced;
            readers that still hold one of these lose it. Give it when nobody else is publishing
            there.
        progress: Called as ``progress("publish", done, total)``, in objects.

    Raises:
        IndexExistsError: What is published there is no earlier state of this index.
        IndexBusyError: Somebody else published there meanwhile, or a writer is at work here.
        IntegrityError: A file of the index differs from its digest, or a table there does.
        MissingExtraError: The libraries for object storage are not installed.
        StorageError: The store or the disk refuses.
    """
    folder, place = Location(path).directory, Location(url)
    remote = place.objects
    DocumentTable.open(folder, Manifest.read(folder))  # Locks are files: none without an index.
    # A writer at work, purging say, could take away a file that is being uploaded.
    with writer_lock(folder):
        manifest = Manifest.read(folder)
        former = remote.read(MANIFEST_FILE)
        known: Mapping[str, str] = {}
        if former is not None and not replace:
            known = _required_predecessor(place, former, manifest)
        named = _named(former) if prune else None
        upload = _Upload(folder, manifest, remote, known, named, progress)
        upload.run()
        data = manifest.to_bytes()
        changed = former is None or former.data != data
        if changed:
            remote.write(MANIFEST_FILE, data, former)
            # Somebody who pruned meanwhile could have taken what this upload found there.
            upload.run()
        removed = upload.prune() if prune else 0
    return Publication(
        url=str(place),
        generation=manifest.generation,
        manifest_sha256=manifest.digest,
        changed=changed,
        uploaded=upload.uploaded,
        uploaded_bytes=upload.uploaded_bytes,
        kept=len(upload.files) - upload.uploaded,
        removed=removed,
    )


def building_folder(url: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """Where an index that is to be published is built: in the cache, always in the same place.

    Args:
        url: Where it is to be published.
        overwrite: Whether it may replace what is published there.

    Raises:
        IndexExistsError: An index is published there, or is built already and only to be published.
        MissingExtraError: The libraries for object storage are not installed.
        StorageError: The store or the disk refuses.
    """
    place = Location(url)
    if place.objects.read(MANIFEST_FILE) is not None and not overwrite:
        raise IndexExistsError(
            f"{place} holds an index already; choose another URL, or replace it (--overwrite)"
        )
    folder = built_at(place)
    if state(folder) == "finished" and not overwrite:
        raise IndexExistsError(
            f"the index for {place} is built already, in {folder}, and only to be published "
            f"(wherefrom publish {folder} {place}); to build it again give --overwrite"
        )
    return folder


def built_at(url: str | os.PathLike[str]) -> Path:
    """The directory that :func:`building_folder` gives, whatever is there or is published."""
    place = Location(url)
    key = sha256(str(place).encode()).hexdigest()[:16]
    return cache_folder() / "builds" / f"{place.name}-{key}"


class _Upload:
    """The objects of one state of an index, on their way.

    Attributes:
        files: Name of each object, and the file and its digest.
        uploaded: How many were written.
        uploaded_bytes: Their bytes.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        remote: RemoteFolder,
        known: Mapping[str, str],
        named: Collection[str] | None,
        progress: Progress | None,
    ) -> None:
        """Prepare to upload.

        Args:
            folder: The index.
            manifest: Its state.
            remote: Where to.
            known: SHA-256 of objects that are there.
            named: Objects of the state that is published; any others may be replaced. ``None``: no
                object may.
            progress: Told of each object.
        """
        parts = published_parts(manifest)
        self.files = {part.name: (own_file(folder, part.path), part.digest) for part in parts}
        self._known = known
        self._named = named
        # The newest last, for by it Lance finds all else.
        self._versions = sorted((n for n in self.files if "/_versions/" in n), reverse=True)
        self._folders = (OBJECTS, f"{TABLES}/{lineage(manifest)}")
        self._remote = remote
        self._progress = progress
        self.uploaded = self.uploaded_bytes = 0

    def run(self) -> None:
        """Write what is not there, the table's versions last.

        Raises:
            IntegrityError: A file differs from its digest.
            StorageError: The store or the disk refuses.
        """
        there = {name: size for f in self._folders for name, size in self._remote.sizes(f).items()}
        sizes = {name: self._size(name) for name in self.files.keys() - set(self._versions)}
        missing = sorted(name for name, size in sizes.items() if there.get(name) != size)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for done, name in enumerate(pool.map(self._write, missing)):
                self._count(sizes[name])
                if self._progress is not None:
                    self._progress("publish", done + 1, len(missing))
        for name in self._versions:
            if name not in there:
                data = self._checked(name).read_bytes()
                self._remote.write(name, data, None)
                self._count(len(data))
            elif self._known.get(name) != self.files[name][1]:
                self._write_over(name)

    def prune(self) -> int:
        """Remove what earlier publications left; how many objects that were."""
        there = {*self._remote.sizes(OBJECTS), *self._remote.sizes(TABLES)}
        old = sorted(there - self.files.keys())
        self._remote.remove(old)
        return len(old)

    def _write(self, name: str) -> str:
        self._remote.upload(name, self._checked(name))
        return name

    def _write_over(self, name: str) -> None:
        """Replace a version of a table that has the number of one of this index and is another."""
        stored = self._remote.read(name)
        if stored is not None and sha256(stored.data).hexdigest() == self.files[name][1]:
            return
        if self._named is None or name in self._named:
            begun = "was" if self._named is not None else "was, or was begun to be"
            remedy = "" if self._named is not None else ", or say --prune if nobody else publishes"
            raise IntegrityError(
                f"{self._remote.url}/{name} is not the one to be published: another branch of the "
                f"index {begun}; publish to another URL{remedy}"
            )
        data = self._checked(name).read_bytes()
        self._remote.write(name, data, stored)
        self._count(len(data))

    def _size(self, name: str) -> int:
        file, _ = self.files[name]
        try:
            with storage_errors(file):
                return file.stat().st_size
        except FileNotFoundError as error:
            raise _unfit(file) from error

    def _count(self, size: int) -> None:
        self.uploaded += 1
        self.uploaded_bytes += size

    def _checked(self, name: str) -> Path:
        """The file of an object, if it is still what the manifest says."""
        file, digest = self.files[name]
        with storage_errors(file):
            if file_sha256(file) != digest:
                raise _unfit(file)
        return file


def _unfit(file: Path) -> IntegrityError:
    return IntegrityError(
        f"{file} is missing or differs from its SHA-256; nothing was published: see what wherefrom "
        "verify says of the index"
    )


class Part(NamedTuple):
    """One file of a published index: its object, its path in the index and its SHA-256."""

    name: str
    path: str
    digest: str


def published_parts(manifest: Manifest) -> list[Part]:
    """All files of a published index but the manifest; those alike are one object."""
    files = manifest.files()
    for accelerator in manifest.accelerators:
        files |= accelerator.files
    parts = [Part(f"{OBJECTS}/{digest}", path, digest) for path, digest in files.items()]
    for name, digest in manifest.store.files.items():
        path = f"{manifest.store.table}.lance/{name}"
        parts.append(Part(f"{TABLES}/{lineage(manifest)}/{path}", path, digest))
    return parts


def _named(former: Stored | None) -> set[str]:
    """The objects of the state that is published; none where there is none, or a damaged one."""
    if former is None:
        return set()
    try:
        published = Manifest.parse(former.data, MANIFEST_FILE)
    except WherefromError:
        return set()
    return {part.name for part in published_parts(published)}


def _required_predecessor(place: Location, former: Stored, manifest: Manifest) -> dict[str, str]:
    """SHA-256 of the published objects, if they are an earlier state of the index."""
    published = Manifest.parse(former.data, f"{place}/{MANIFEST_FILE}")
    if lineage(published) != lineage(manifest):
        raise IndexExistsError(
            f"{place} holds another index (built {published.created}, "
            f"{published.corpus.documents:,} documents); publish to another URL, or replace it "
            "(--replace)"
        )
    if manifest.history[: len(published.history)] == published.history:
        return {part.name: part.digest for part in published_parts(published)}
    if published.history[: len(manifest.history)] == manifest.history:
        cause = f"a later state, generation {published.generation} and not {manifest.generation}"
    else:
        cause = "what somebody else made of it, changed in another place"
    raise IndexExistsError(
        f"{place} holds {cause}; fetch that (wherefrom fetch) and go on from there, or replace it "
        "(--replace)"
    )
