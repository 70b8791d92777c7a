"""An index's accelerators: made, recorded in the manifest, opened when they are asked for."""

from __future__ import annotations

from pathlib import Path

import torch

from wherefrom.errors import IntegrityError
from wherefrom.store import DocumentTable, Manifest
from wherefrom.store.accelerators import (
    Accelerator,
    AcceleratorKind,
    build_accelerator,
    find_accelerator,
    open_accelerator,
)

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

    def __init__(self, path: Path, manifest: Manifest, table: DocumentTable, device: str) -> None:
        self._path = path
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
            record = find_accelerator(backend, self._manifest.accelerators, self._path)
            self._opened[backend] = open_accelerator(
                record,
                self._table,
                self._path,
                device=self._device,
                threads=torch.get_num_threads(),
            )
        return self._opened[backend]

    def build(self, kind: AcceleratorKind) -> Manifest:
        """Make one from the documents table, and the manifest that records it.

        Raises:
            QueryError: There is no such kind.
            MissingExtraError: Its library is not installed.
            StorageError: The disk refuses.
        """
        record = build_accelerator(kind, self._table, self._path)
        # Others may have made one meanwhile: theirs stay recorded.
        current = Manifest.read(self._path)
        if current.digest != self._manifest.digest:
            raise IntegrityError(
                f"{self._path} was built anew meanwhile; open it and make the accelerator again"
            )
        others = tuple(r for r in current.accelerators if r.kind != kind)
        manifest = current.model_copy(update={"accelerators": (*others, record)})
        manifest.write(self._path)
        return manifest
