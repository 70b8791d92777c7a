"""An index's accelerators: made, recorded in the manifest, opened when they are asked for."""

from __future__ import annotations

import os

import torch

from wherefrom.errors import IntegrityError
from wherefrom.store import DocumentTable, Location, Manifest
from wherefrom.store.accelerators import (
    Accelerator,
    AcceleratorKind,
    build_accelerator,
    find_accelerator,
    open_accelerator,
)
from wherefrom.store.lock import writer_lock

__all__ = ["Accelerators"]

SCAN = "scan"


class Accelerators:
    """What proposes candidates beside the scan.

    Args:
        path: The index.
        manifest: Its manifest.
        table: Its documents.
        device: Where the index's model runs; FAISS follows.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        manifest: Manifest,
        table: DocumentTable,
        device: str,
    ) -> None:
        self._location = Location.of(path)
        self._manifest = manifest
        self._table = table
        self._device = device
        self._opened: dict[str, Accelerator] = {}

    def open(self, backend: str) -> Accelerator | None:
        """The accelerator of that name; ``None`` for the scan.

        Raises:
            QueryError: The index has none of that name.
            IntegrityError: Its files are missing, differ from their digests, or are stale.
            MissingExtraError: Its library is not installed.
        """
        if backend == SCAN:
            return None
        if backend not in self._opened:
            record = find_accelerator(backend, self._manifest.accelerators, self._location)
            self._opened[backend] = open_accelerator(
                record,
                self._table,
                self._location.folder(self._manifest, record.files),
                device=self._device,
                threads=torch.get_num_threads(),
            )
        return self._opened[backend]

    def build(self, kind: AcceleratorKind) -> Manifest:
        """Make one from the documents table, and the manifest that records it.

        Raises:
            QueryError: There is no such kind.
            MissingExtraError: Its library is not installed.
            StorageError: The disk refuses, or the index is on object storage.
            IndexBusyError: Another writer is at work.
            IntegrityError: The index was changed since it was opened.
        """
        folder = self._location.directory
        with writer_lock(folder):
            # Others may have made one meanwhile: theirs stay recorded.
            current = Manifest.read(folder)
            if current.digest != self._manifest.digest:
                raise IntegrityError(
                    f"{folder} was changed since it was opened; open it and make the accelerator "
                    "again"
                )
            record = build_accelerator(kind, self._table, folder)
            others = tuple(r for r in current.accelerators if r.kind != kind)
            manifest = current.model_copy(update={"accelerators": (*others, record)})
            manifest.write(folder)
        return manifest
