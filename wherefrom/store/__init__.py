"""The store: documents, their codes and the manifest on disk. Knows nothing of models; no torch.

An index is a directory::

    build.json           marks a build in progress; removed once the manifest stands
    manifest.json        what the index was built from and with; written last, atomically
    encoder.safetensors  the fitted encoder (written by others, its digest is in the manifest)
    documents.lance/     the source of truth: one row per document, each with its own digest
    scan/                int8 copy of the codes for the scan; rebuildable, digests in the manifest
"""

from __future__ import annotations

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
from wherefrom.store.manifest import (
    AdapterRecord,
    CorpusRecord,
    CurvatureRecord,
    EncoderRecord,
    InputRecord,
    LayerRecord,
    Manifest,
    ModelRecord,
    ObjectiveRecord,
    ScanRecord,
    StoreRecord,
)
from wherefrom.store.rows import StoredRows
from wherefrom.store.scan import ScanChunk, ScanCopy

__all__ = [
    "SCAN_DIRECTORY",
    "AdapterRecord",
    "Condition",
    "CorpusRecord",
    "CurvatureRecord",
    "DocumentTable",
    "EncoderRecord",
    "InputRecord",
    "LayerRecord",
    "Manifest",
    "ModelRecord",
    "ObjectiveRecord",
    "ScanChunk",
    "ScanCopy",
    "ScanRecord",
    "StoreRecord",
    "StoredRows",
    "Where",
    "begin_build",
    "build_info",
    "content_hash",
    "file_sha256",
    "fsync_tree",
    "parse_where",
    "parse_wheres",
    "state",
    "storage_errors",
    "write_atomically",
    "write_bytes_atomically",
]
