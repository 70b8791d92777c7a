"""The ledger of a build: its work folder, in which every finished piece of work is a durable file.

Whatever is there under its name is whole, because files are written elsewhere, made durable and
moved into place; so a build that was interrupted goes on with what is not there yet. Each holds or
is named with a digest, so what was damaged meanwhile is not gone on with::

    work/plan.json              what is built, and how it is divided
    work/corpus.*               the documents
    work/fit-1/00-00003         statistics of the first pass over shard 3
    work/fit-1/02-00000         those of shards 0 to 3, merged
    work/fit-1.safetensors      the fit after its first pass
    work/curvature.safetensors  the fitted curvature
    work/encoder.json           the encoder chosen; itself beside the index's manifest
    work/encode/00000002        rows of shard 2, not yet in the documents table
    work/committed.json         the version of the table that is durable
    work/measured.json          what was measured of the index
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from wherefrom.errors import IntegrityError
from wherefrom.indexer.executors.base import Task
from wherefrom.indexer.sealed import load_fields, save_fields
from wherefrom.store import storage_errors
from wherefrom.store.durable import fsync_directory
from wherefrom.store.manifest_parts import (
    BackgroundRecord,
    ColumnType,
    CurvatureRecord,
    EncoderRecord,
    Record,
)

__all__ = [
    "COMMITTED",
    "CURVATURE",
    "CURVATURE_FILE",
    "ENCODER",
    "MEASURED",
    "WORK_DIRECTORY",
    "Committed",
    "EncoderPlan",
    "Measured",
    "Work",
]

WORK_DIRECTORY = "work"
CURVATURE = "curvature.json"
CURVATURE_FILE = "curvature.safetensors"
ENCODER = "encoder.json"
COMMITTED = "committed.json"
MEASURED = "measured.json"

_Record = TypeVar("_Record", bound=Record)


class EncoderPlan(Record):
    """The encoder of the rows to come.

    Attributes:
        encoder: Its stages and the digest of its file.
        curvature: The curvature that is in it.
        metadata: Columns of the documents table.
        shard: Documents that are encoded by one task.
        notes: What to warn of.
    """

    encoder: EncoderRecord
    curvature: CurvatureRecord
    metadata: dict[str, ColumnType]
    shard: int
    notes: tuple[str, ...] = ()


class Committed(Record):
    """The version of the documents table that is durable, and its rows."""

    table_version: int
    rows: int


class Measured(Record):
    """What was measured of the index; see :class:`~wherefrom.store.manifest.Manifest`."""

    background: BackgroundRecord | None
    seconds_per_document: float


class Work:
    """The work folder of one build.

    Args:
        folder: The directory of the build.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.path = Path(folder) / WORK_DIRECTORY

    def make(self) -> None:
        """Make the folder, and remove what a writer that is no more left half-written.

        Only under the writer's lock.

        Raises:
            StorageError: The disk refuses.
        """
        with storage_errors(self.path):
            self.path.mkdir(exist_ok=True)
            for half_written in (*self.path.parent.glob(".*.tmp"), *self.path.rglob(".*.tmp")):
                half_written.unlink()
            fsync_directory(self.path.parent)

    def file(self, name: str) -> Path:
        """Where a file of the work is, or is to be."""
        return self.path / name

    def read(self, name: str, kind: type[_Record]) -> _Record | None:
        """A record that was written; ``None`` if it was not.

        Raises:
            IntegrityError: It is damaged.
            StorageError: The disk refuses.
        """
        path = self.file(name)
        if not path.exists():
            return None
        try:
            return kind.model_validate(load_fields(path))
        except ValidationError as error:
            raise IntegrityError(
                f"{path} is damaged; begin anew with --no-resume (resume=False)"
            ) from error

    def write(self, name: str, record: Record) -> None:
        """Write a record, durably.

        Raises:
            StorageError: The disk refuses.
        """
        save_fields(self.file(name), record.model_dump(mode="json"))

    def task_file(self, task: Task) -> Path:
        """The file that a task leaves."""
        if task.phase == "encode":
            return self.path / "encode" / f"{task.index:08d}"
        return self.path / f"fit-{task.step + 1}" / f"{task.level:02d}-{task.index:05d}"

    def fit_file(self, step: int) -> Path:
        """The file of a fit with ``step`` passes done."""
        return self.path / f"fit-{step}.safetensors"

    def passes_done(self) -> int:
        """How many passes of the fit the ledger has the state of."""
        found = [path.stem for path in self.path.glob("fit-*.safetensors")]
        return max((int(stem.removeprefix("fit-")) for stem in found), default=0)

    def is_done(self, task: Task) -> bool:
        """Whether a task is carried out."""
        return self.task_file(task).exists()

    def has_rows(self) -> bool:
        """Whether any document is encoded yet."""
        encoded = self.path / "encode"
        return self.file(COMMITTED).exists() or (encoded.is_dir() and any(encoded.iterdir()))

    def folder_of(self, task: Task) -> None:
        """Make the folder that a task's file is to be in.

        Raises:
            StorageError: The disk refuses.
        """
        folder = self.task_file(task).parent
        with storage_errors(folder):
            if not folder.exists():
                folder.mkdir(parents=True, exist_ok=True)
                fsync_directory(self.path)

    def forget(self, name: str) -> None:
        """Remove a file or a folder of the work that is needed no more.

        Raises:
            StorageError: The disk refuses.
        """
        path = self.file(name)
        with storage_errors(path):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the folder.

        Raises:
            StorageError: The disk refuses.
        """
        with storage_errors(self.path):
            if self.path.exists():
                shutil.rmtree(self.path)
                fsync_directory(self.path.parent)
