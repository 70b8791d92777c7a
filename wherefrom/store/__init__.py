"""The store: documents, their codes and the manifest on disk. Knows nothing of models; no torch.

An index is a directory::

    build.json           marks a build in progress; removed once the manifest stands
    manifest.json        what the index was built from and with; written last, atomically
    encoder.safetensors  the fitted encoder (written by others, its digest is in the manifest)
    documents.lance/     the source of truth: one row per document, each with its own digest
    scan/                copy of the codes for the scan, in segments; rebuildable, digests in the
                         manifest
    deleted-*.npy        which rows are deleted, if any are; likewise
    faiss/               FAISS indexes, if any were built; likewise
    vectors.lance/       vectors in an indexed Lance table, if that was built; likewise
"""

from __future__ import annotations

from wherefrom.records import Bits
from wherefrom.store.accelerators import (
    Accelerator,
    build_accelerator,
    find_accelerator,
    open_accelerator,
)
from wherefrom.store.codes import CodeFormat
from wherefrom.store.digests import content_hash, file_sha256
from wherefrom.store.directory import SCAN_DIRECTORY, begin_build, build_info, state
from wherefrom.store.documents import DocumentTable
from wherefrom.store.durable import (
    fsync_tree,
    storage_errors,
    write_atomically,
    write_bytes_atomically,
)
from wherefrom.store.filters import Condition, Where, parse_where, parse_wheres
from wherefrom.store.live_rows import LiveRows
from wherefrom.store.location import Location
from wherefrom.store.manifest import Manifest
from wherefrom.store.manifest_parts import (
    AcceleratorKind,
    AcceleratorRecord,
    AdapterRecord,
    BackgroundRecord,
    ChoiceRecord,
    CorpusRecord,
    CurvatureRecord,
    EncoderRecord,
    FidelityRecord,
    InputRecord,
    LayerRecord,
    ModelRecord,
    ObjectiveRecord,
    TriedRecord,
)
from wherefrom.store.quantise import Quantised
from wherefrom.store.rows import StoredRows
from wherefrom.store.scan import ScanChunk, ScanCopy
from wherefrom.store.state_parts import (
    ChangeKind,
    ChangeRecord,
    DeletedRecord,
    DriftRecord,
    ScanRecord,
    SegmentRecord,
    StoreRecord,
)

__all__ = [
    "SCAN_DIRECTORY",
    "Accelerator",
    "AcceleratorKind",
    "AcceleratorRecord",
    "AdapterRecord",
    "BackgroundRecord",
    "Bits",
    "ChangeKind",
    "ChangeRecord",
    "ChoiceRecord",
    "CodeFormat",
    "Condition",
    "CorpusRecord",
    "CurvatureRecord",
    "DeletedRecord",
    "DocumentTable",
    "DriftRecord",
    "EncoderRecord",
    "FidelityRecord",
    "InputRecord",
    "LayerRecord",
    "LiveRows",
    "Location",
    "Manifest",
    "ModelRecord",
    "ObjectiveRecord",
    "Quantised",
    "ScanChunk",
    "ScanCopy",
    "ScanRecord",
    "SegmentRecord",
    "StoreRecord",
    "StoredRows",
    "TriedRecord",
    "Where",
    "begin_build",
    "build_accelerator",
    "build_info",
    "content_hash",
    "file_sha256",
    "find_accelerator",
    "fsync_tree",
    "open_accelerator",
    "parse_where",
    "parse_wheres",
    "state",
    "storage_errors",
    "write_atomically",
    "write_bytes_atomically",
]
