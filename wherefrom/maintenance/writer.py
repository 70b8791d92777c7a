"""The writer of a finished index: how it goes from one state to the next, all at once.

What is published is what ``manifest.json`` says. A writer makes what is new beside what is
published, under names that no manifest knows yet, and replaces the manifest when all of it is
durable. A reader keeps to the manifest that it has read: nothing that one names is changed, and
what only earlier ones name goes with the next change but one, or at once with a purge. A writer
that dies before it publishes has changed nothing; what it left behind is removed by the next.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from wherefrom.errors import IndexBusyError, MismatchError, QueryError
from wherefrom.indexer.ledger import WORK_DIRECTORY
from wherefrom.indexer.provenance import now
from wherefrom.store import (
    SCAN_DIRECTORY,
    BackgroundRecord,
    ChangeKind,
    ChangeRecord,
    CorpusRecord,
    DriftRecord,
    Location,
    Manifest,
    ScanRecord,
    StoreRecord,
    state,
    storage_errors,
)
from wherefrom.store.directory import MANIFEST_FILE, Beside, beside
from wherefrom.store.durable import fsync_directory
from wherefrom.store.lance import take_back
from wherefrom.store.location import Database, lineage
from wherefrom.store.lock import LOCK_FILE, writer_lock

__all__ = ["Writer", "is_left_behind", "is_made_by_writers"]

_TABLE = re.compile(r"documents(-[0-9]+)?\.lance")
_DELETED = re.compile(r"deleted-[0-9a-f]+\.npy")
_HALF_WRITTEN = re.compile(r"\..+\.tmp")
_ACCELERATORS = {"faiss": "faiss", "vectors.lance": "lance"}


class Writer:
    """The one writer of an index, while it holds the lock; made by :meth:`of`.

    Attributes:
        folder: The index.
        manifest: What is published.
        discarded: Files that a power cut left of an earlier change, which were removed.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Hold what is published, and remove what bars the way to it."""
        self.folder = folder
        self.manifest = manifest
        table = f"{manifest.store.table}.lance"
        database, store = Database(os.fspath(folder)), manifest.store
        removed = take_back(database, store.table, store.table_version)
        self.discarded = tuple(f"{table}/{name}" for name in removed)

    @classmethod
    @contextmanager
    def of(cls, folder: str | os.PathLike[str], opened: Manifest | None = None) -> Iterator[Writer]:
        """Be the only writer of an index while the block runs.

        Args:
            folder: The index.
            opened: A state of it that the change was thought of with; any by default.

        Raises:
            NotAnIndexError: There is no index.
            UnfinishedIndexError: There is an interrupted build.
            MismatchError: It was built anew since it was ``opened``.
            IndexBusyError: Another writer is at work.
            StorageError: The disk refuses.
        """
        place = Location.of(folder).directory
        Manifest.read(place)  # Locks are files: none is made in a folder that is no index.
        with writer_lock(place):
            published = Manifest.read(place)
            if opened is not None and lineage(published) != lineage(opened):
                raise MismatchError(f"{place} was built anew since it was opened; open it again")
            yield cls(place, published)

    @property
    def generation(self) -> int:
        """Number of the state that comes next."""
        return self.manifest.generation + 1

    @property
    def scan_folder(self) -> Path:
        """Where the segments of the scan copy are."""
        return self.folder / SCAN_DIRECTORY

    def sweep(self, *, keep_work: bool = False) -> bool:
        """Remove what no manifest names any more, or none ever did.

        An index beside this one goes, too, that was replaced by it: the build that did so was
        killed before it could remove it.

        Args:
            keep_work: Leave the work of an interrupted change, to go on with it.

        Returns:
            Whether documents or their codes were in it.

        Raises:
            IndexBusyError: A build is removing the one beside it right now.
            StorageError: The disk refuses.
        """
        held = False
        manifest = self.manifest
        segments = {str(segment.number) for segment in manifest.scan.segments}
        deleted = manifest.store.deleted
        keep = {f"{manifest.store.table}.lance", deleted.file if deleted else ""}
        if keep_work:
            keep.add(WORK_DIRECTORY)
        kinds = {record.kind.split("-")[0] for record in manifest.accelerators}
        keep |= {name for name, kind in _ACCELERATORS.items() if kind in kinds}
        with storage_errors(self.folder):
            for entry in sorted(self.folder.iterdir()):
                if entry.name not in keep and is_made_by_writers(entry.name):
                    held |= _TABLE.fullmatch(entry.name) is not None
                    _remove(entry)
            if self.scan_folder.is_dir():
                for entry in sorted(self.scan_folder.iterdir()):
                    if entry.name not in segments:
                        held = True
                        _remove(entry)
                fsync_directory(self.scan_folder)
            fsync_directory(self.folder)
        replaced, building = beside(self.folder, "replaced"), beside(self.folder, "building")
        # With a work folder it may be a build that is done but for taking this one's place.
        spent = [replaced] if (building / WORK_DIRECTORY).exists() else [replaced, building]
        for place in spent:
            if state(place) == "finished":
                held = True
                _remove_index(place)
        return self._remove_estimate() or held

    def _remove_estimate(self) -> bool:
        """Remove what an estimate that was killed left; whether it left anything."""
        place = beside(self.folder, "estimate")
        if not place.is_dir() or place.is_symlink():
            return False
        with suppress(IndexBusyError), writer_lock(place):  # Unless it is at work.
            held = state(place / "index") not in ("absent", "foreign")
            if held:
                shutil.rmtree(place / "index")
            return held
        return False

    def left_beside(self) -> tuple[str, ...]:
        """What holds documents beside the index and is not for a writer to remove, in words.

        Raises:
            StorageError: The disk refuses.
        """
        causes: dict[Beside, str] = {
            "replaced": "a build to replace the index was interrupted; give its command again",
            "building": "a build to replace the index was interrupted; give its command again",
            "estimate": "an estimate is at work; wait until it is done",
            "fetched": "fetching an index to this place was interrupted; give its command again",
        }
        places = {beside(self.folder, role): cause for role, cause in causes.items()}
        return tuple(
            f"{place.name} beside the index may hold the same documents: {cause}, or remove that "
            "folder"
            for place, cause in places.items()
            if state(place) not in ("absent", "empty")
        )

    def publish(
        self,
        kind: ChangeKind,
        store: StoreRecord,
        scan: ScanRecord,
        corpus: CorpusRecord,
        *,
        added: int = 0,
        removed: int = 0,
        content_sha256: str,
        baseline: DriftRecord | None = None,
        drift: float | None = None,
        background: BackgroundRecord | None = None,
        warnings: tuple[str, ...] = (),
    ) -> Manifest:
        """Make a new state the published one.

        Accelerators are of the state before and leave the manifest.

        Args:
            kind: What was done.
            store: The documents table, sealed.
            scan: The scan copy.
            corpus: The documents.
            added: How many documents were appended.
            removed: How many were deleted or replaced.
            content_sha256: Digest of those.
            baseline: What appended documents were compared with, if they were.
            drift: What came of it.
            background: What was measured again, if it was.
            warnings: What to note of the change.

        Raises:
            StorageError: The disk refuses; the state before is still the published one.
        """
        change = ChangeRecord(
            kind=kind,
            generation=self.generation,
            when=now(),
            added=added,
            removed=removed,
            content_sha256=content_sha256,
            drift=drift,
            warnings=warnings,
        )
        changed = self.manifest.model_copy(
            update={
                "generation": self.generation,
                "store": store,
                "scan": scan,
                "corpus": corpus,
                "scale": 1.0 / store.rows,
                "accelerators": (),
                "drift": baseline or self.manifest.drift,
                "background": background or self.manifest.background,
                "history": (*self.manifest.history, change),
            }
        )
        changed.write(self.folder)
        self.manifest = changed
        return changed

    def require_some_left(self, removed: int) -> None:
        """Make sure that a change leaves documents.

        Raises:
            QueryError: It would leave none.
        """
        if removed >= self.manifest.store.rows:
            raise QueryError(
                f"that would delete all {removed} documents of {self.folder}; remove the folder "
                "instead, or delete fewer"
            )


def is_left_behind(name: str, manifest: Manifest) -> bool:
    """Whether an unnamed file of an index is of a state before ``manifest``'s, by its path.

    What an interrupted change has made since is not: its numbers are higher, or it lies in the work
    folder or in the table.
    """
    top, _, rest = name.partition("/")
    if top == SCAN_DIRECTORY:
        segment = rest.partition("/")[0]
        return segment.isdecimal() and int(segment) < manifest.generation
    if table := _TABLE.fullmatch(top):
        number = int((table.group(1) or "-0")[1:])
        return top != f"{manifest.store.table}.lance" and number < manifest.generation
    return top in _ACCELERATORS or _DELETED.fullmatch(top) is not None


def is_made_by_writers(name: str) -> bool:
    """Whether an entry of an index by that name, where no manifest names it, is a writer's."""
    if name in _ACCELERATORS or name == WORK_DIRECTORY:
        return True
    return any(pattern.fullmatch(name) for pattern in (_TABLE, _DELETED, _HALF_WRITTEN))


def _remove_index(folder: Path) -> None:
    """Delete an index, its manifest last: killed meanwhile, what is left of it is one still."""
    with writer_lock(folder), storage_errors(folder):
        for entry in sorted(folder.iterdir()):
            if entry.name not in (MANIFEST_FILE, LOCK_FILE):
                _remove(entry)
        fsync_directory(folder)
        (folder / MANIFEST_FILE).unlink()
        shutil.rmtree(folder)
        fsync_directory(folder.parent)


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink()
