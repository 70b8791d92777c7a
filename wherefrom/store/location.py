"""Where an index is: a directory, or a URL of object storage.

Everything that opens an index takes either. On object storage lies a publication of it::

    manifest.json         the published state, byte for byte the local one
    objects/<SHA-256>     the files that it names by their digests
    tables/<lineage>/     the documents tables, which Lance reads where they are

Nothing but ``manifest.json`` is ever replaced, and that by one conditional write, so who has read a
manifest goes on reading what it names. The files come into a local cache once; what is opened is a
folder there that looks like an index without its documents.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from wherefrom.errors import NotAnIndexError, StorageError
from wherefrom.store.directory import MANIFEST_FILE

if TYPE_CHECKING:
    from wherefrom.store.manifest import Manifest
    from wherefrom.store.remote import RemoteFolder

__all__ = ["OBJECTS", "TABLES", "Database", "Location", "lineage"]

OBJECTS = "objects"
TABLES = "tables"

# pathlib makes one slash of two.
_URL = re.compile(r"(?P<scheme>s3|gs|az):/{1,2}(?P<path>[^/].*)", re.DOTALL)
_OTHER_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_SEGMENT = re.compile(r"[A-Za-z0-9!_.*'()=@,+ -]+")


@dataclass(frozen=True, slots=True)
class Database:
    """Where LanceDB finds the tables of an index.

    Attributes:
        uri: A directory or a URL.
        folder: For a URL, where that is among the index's ``objects``.
        objects: For a URL, what lies under that of the index.
    """

    uri: str
    folder: str = ""
    objects: RemoteFolder | None = None

    @property
    def options(self) -> dict[str, str] | None:
        """How Lance is to reach object storage; ``None`` for a directory."""
        return None if self.objects is None else self.objects.lance_options

    def table(self, name: str) -> Location:
        """Where the files of a table are."""
        return Location(f"{self.uri}/{name}.lance")


class Location(os.PathLike[str]):
    """A directory or a URL, of which an index is read.

    Args:
        place: A path, or ``s3://bucket/name`` (``gs://`` and ``az://`` likewise).

    Raises:
        NotAnIndexError: It is a URL of another kind, or one that names no place in a bucket.
    """

    def __init__(self, place: str | os.PathLike[str]) -> None:
        text = os.fspath(place)
        found = _URL.fullmatch(text)
        if found is None and _OTHER_URL.match(text):
            raise NotAnIndexError(
                f"{text} is no place for an index; give a directory, or a URL as s3://bucket/name "
                "(gs:// and az:// likewise)"
            )
        self.remote = found is not None
        # What was compared with its digests in this process is not read for that again.
        self._made: dict[str, dict[str, str]] = {}
        self._text = text if found is None else _url(found["scheme"], found["path"])

    @classmethod
    def of(cls, place: str | os.PathLike[str]) -> Location:
        """``place`` itself if it is one, for what it has found out already; else a new one.

        Raises:
            NotAnIndexError: As of the class.
        """
        return place if isinstance(place, Location) else cls(place)

    def __fspath__(self) -> str:
        """The path or the URL."""
        return self._text

    def __str__(self) -> str:
        """The path or the URL."""
        return self._text

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Location) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    @property
    def name(self) -> str:
        """Its last part."""
        return self._text.rpartition("/")[2] if self.remote else Path(self._text).name

    @property
    def full(self) -> str:
        """The absolute path, or the URL."""
        return self._text if self.remote else str(Path(self._text).resolve())

    @property
    def directory(self) -> Path:
        """The directory, to be written to, or looked into.

        Raises:
            StorageError: It is a URL.
        """
        if self.remote:
            raise StorageError(
                f"{self} is on object storage, where an index is asked but neither changed nor "
                "verified; make a directory of it for that (wherefrom fetch, which compares all "
                "digests) and publish that again if it is changed"
            )
        return Path(self._text)

    @cached_property
    def objects(self) -> RemoteFolder:
        """What lies under the URL.

        Raises:
            StorageError: It is a directory.
            MissingExtraError: The libraries for object storage are not installed.
        """
        if not self.remote:
            raise StorageError(f"{self} is no URL; give one as s3://bucket/name")
        from wherefrom.store.remote import RemoteFolder

        return RemoteFolder(self._text)

    def read_manifest(self) -> bytes:
        """The bytes of the published manifest.

        Raises:
            NotAnIndexError: Nothing is published there.
            StorageError: The storage cannot be reached or refuses.
        """
        stored = self.objects.read(MANIFEST_FILE)
        if stored is None:
            raise NotAnIndexError(
                f"{self} is no wherefrom index (it has no {MANIFEST_FILE}); publish one there with "
                "wherefrom publish"
            )
        return stored.data

    def folder(self, manifest: Manifest, files: Mapping[str, str] | None = None) -> Path:
        """A directory that holds files of the index: itself, or one in the local cache.

        Args:
            manifest: Of the index.
            files: SHA-256 of each file, by its name in the index; all but the documents and the
                accelerators by default.

        Raises:
            IntegrityError: An object is missing or differs from its digest.
            StorageError: The storage cannot be reached or refuses, or the disk does.
        """
        if not self.remote:
            return self.directory
        from wherefrom.store.cache import snapshot

        wanted = manifest.files() if files is None else files
        made = self._made.setdefault(manifest.seal, {})
        missing = {name: digest for name, digest in wanted.items() if made.get(name) != digest}
        folder = snapshot(self.objects, manifest, missing)
        made |= missing
        return folder

    def database(self, manifest: Manifest) -> Database:
        """Where the tables of the index are."""
        if not self.remote:
            return Database(self._text)
        folder = f"{TABLES}/{lineage(manifest)}"
        return Database(f"{self}/{folder}", folder, self.objects)


def lineage(manifest: Manifest) -> str:
    """What an index has in common with all that it was and will be: the build it comes from.

    Versions of a table are numbered, so those of two builds may not lie in one place.
    """
    parts = (manifest.created, manifest.model.weights_sha256, manifest.encoder.file_sha256)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _url(scheme: str, path: str) -> str:
    segments = path.rstrip("/").split("/")
    unfit = [s for s in segments if s in (".", "..") or not _SEGMENT.fullmatch(s)]
    if unfit or len(segments) < 2:
        cause = f"{unfit[0]!r} cannot be part of it" if unfit else "it names no place in the bucket"
        raise NotAnIndexError(
            f"{scheme}://{path} is no place for an index ({cause}); give a URL as "
            f"{scheme}://bucket/name"
        )
    return f"{scheme}://{'/'.join(segments)}"
