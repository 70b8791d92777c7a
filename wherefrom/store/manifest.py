"""The manifest: what an index was built from and with; its presence means the build finished.

``manifest.json`` is the last file that a build writes, so a directory without one is no index yet.
All records are frozen, refuse unknown keys and hold finite numbers only.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from wherefrom.errors import IntegrityError, NotAnIndexError, UnfinishedIndexError
from wherefrom.store.directory import (
    BUILD_FILE,
    FORMAT,
    FORMAT_VERSION,
    MANIFEST_FILE,
    json_bytes,
    read_json,
    state,
)
from wherefrom.store.durable import fsync_directory, storage_errors, write_bytes_atomically

__all__ = [
    "MAX_SKIPPED_LISTED",
    "AdapterRecord",
    "CodeType",
    "ColumnType",
    "CorpusRecord",
    "CurvatureRecord",
    "EncoderRecord",
    "InputRecord",
    "LayerRecord",
    "Manifest",
    "ModelRecord",
    "ObjectiveRecord",
    "ScanRecord",
    "StoreRecord",
]

MAX_SKIPPED_LISTED = 1000
_DIGEST = "sha256"

ColumnType = Literal["string", "int64", "float64", "bool"]
CodeType = Literal["float16", "float32"]
_Count = Annotated[int, Field(ge=0)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class AdapterRecord(_Record):
    """The LoRA adapter on a model.

    Attributes:
        source: Absolute path or hub id; ``None`` for one that was handed over with its model.
        sha256: Fingerprint of its weights and scaling.
    """

    source: str | None
    sha256: str


class ModelRecord(_Record):
    """The model whose gradients are indexed.

    Attributes:
        kind: Where it comes from: a model or an adapter loaded from disk, or a module handed over.
        source: Absolute path or hub id, of the base where there is an adapter; ``None`` for a
            module.
        task: What it was trained for, where that is known.
        dtype: Precision of its weights.
        weights_sha256: Fingerprint of the weights, of the base where there is an adapter.
        tokenizer_sha256: Fingerprint of the tokenizer, if there is one.
        architecture: Name of the model's class, of the base where there is an adapter.
        adapter: The adapter, if there is one.
    """

    kind: Literal["huggingface", "adapter", "module"]
    source: str | None
    task: Literal["causal_lm", "sequence_classification", "masked_lm"] | None
    dtype: Literal["float32", "bfloat16", "float16", "float64"]
    weights_sha256: str
    tokenizer_sha256: str | None
    architecture: str
    adapter: AdapterRecord | None


class LayerRecord(_Record):
    """One indexed layer: its module name, its kind and the shape of its weight."""

    name: str
    kind: str
    d_in: _Count
    d_out: _Count
    bias: bool


class ObjectiveRecord(_Record):
    """What is differentiated.

    Attributes:
        kind: Name of the objective.
        options: What else it takes to make it again, as plain values.
    """

    kind: str
    options: dict[str, JsonValue] = {}


class CurvatureRecord(_Record):
    """The fitted curvature.

    Attributes:
        kind: Its name.
        damping: In units of a layer's mean eigenvalue.
        fisher: Where the labels of pseudo-gradients came from; ``None`` without pseudo-gradients.
        fit_documents: Number of documents it was fitted on.
        seed: Of sampled labels, and of the choice of these documents.
        report: What the fit measured about itself (``residual``, ``iterations``).
        whitened: Whether documents and queries are whitened alike, so that squared norms are
            self-influences.
    """

    kind: str
    damping: float
    whitened: bool
    fisher: str | None
    fit_documents: _Count
    seed: int
    report: dict[str, float] = {}


class EncoderRecord(_Record):
    """The encoder and the form in which its vectors are stored."""

    kind: str
    dimension: Annotated[int, Field(gt=0)]
    dtype: CodeType
    bytes_per_document: _Count
    seed: int
    file_sha256: str


class CorpusRecord(_Record):
    """The indexed documents.

    Attributes:
        documents: Rows of the index (passages count one each).
        parents: Documents before they were cut into passages.
        tokens: Scored tokens in all.
        skipped: Ids of the documents left out, the first 1000.
        skipped_count: How many were left out.
        content_sha256: Digest of the corpus as it was read.
    """

    documents: _Count
    parents: _Count
    tokens: _Count
    skipped: Annotated[tuple[str, ...], Field(max_length=MAX_SKIPPED_LISTED)] = ()
    skipped_count: _Count = 0
    content_sha256: str


class InputRecord(_Record):
    """Types (numpy names) and shapes (of one example) of tensor inputs and targets."""

    dtype: str
    shape: tuple[_Count, ...]
    target_dtype: str
    target_shape: tuple[_Count, ...]


class StoreRecord(_Record):
    """The version of the documents table that the index consists of, and its rows."""

    table_version: _Count
    rows: _Count


class ScanRecord(_Record):
    """The scan copy: ``rows`` codes of ``width`` int8 entries; SHA-256 of each of its files."""

    rows: _Count
    width: _Count
    files: dict[str, str]


class Manifest(_Record):
    """Everything needed to open an index, to check it and to build it again.

    Attributes:
        created: ISO 8601 time at which the build finished.
        scale: 1/N, N being the documents that the curvature stands for.
        metadata: Metadata columns and their types, in order.
        inputs: Only for indexes over tensor examples.
        versions: Versions of wherefrom and of the libraries that built the index.
        replay: The command that builds it again.
        warnings: What the build warned of.
    """

    format: Literal["wherefrom-index"] = "wherefrom-index"
    format_version: Literal[1] = 1
    created: str
    model: ModelRecord
    layers: tuple[LayerRecord, ...]
    objective: ObjectiveRecord
    curvature: CurvatureRecord
    encoder: EncoderRecord
    corpus: CorpusRecord
    scale: float
    metadata: dict[str, ColumnType]
    inputs: InputRecord | None = None
    store: StoreRecord
    scan: ScanRecord
    versions: dict[str, str]
    replay: str
    warnings: tuple[str, ...] = ()

    def to_bytes(self) -> bytes:
        """The bytes of ``manifest.json``: UTF-8 JSON, keys in order, its own digest last."""
        return json_bytes({**self.model_dump(mode="json"), _DIGEST: self.digest})

    @property
    def digest(self) -> str:
        """SHA-256 of all fields as canonical JSON, in hexadecimal."""
        return hashlib.sha256(json_bytes(self.model_dump(mode="json"))).hexdigest()

    def write(self, directory: str | os.PathLike[str]) -> None:
        """Finish the build in ``directory``: write the manifest, then drop the build marker.

        Raises:
            StorageError: The disk refuses; the build stays unfinished.
        """
        folder = Path(directory)
        write_bytes_atomically(folder / MANIFEST_FILE, self.to_bytes())
        with storage_errors(folder):
            (folder / BUILD_FILE).unlink(missing_ok=True)
            fsync_directory(folder)

    @classmethod
    def read(cls, directory: str | os.PathLike[str]) -> Manifest:
        """Read the manifest of a finished index.

        Raises:
            NotAnIndexError: No such directory, no index, a broken manifest or another format.
            UnfinishedIndexError: The build there was interrupted.
            IntegrityError: The manifest was changed after the build.
            StorageError: The directory cannot be read.
        """
        folder = Path(directory)
        found = state(folder)
        if found == "unfinished":
            raise UnfinishedIndexError(
                f"{folder} holds an unfinished build; build it again with overwrite"
            )
        manifest_file = folder / MANIFEST_FILE
        if found == "absent":
            raise NotAnIndexError(f"{folder} does not exist; give the directory of an index")
        if found == "empty" or not manifest_file.is_file():
            raise NotAnIndexError(
                f"{folder} is no wherefrom index (it has no {MANIFEST_FILE}); "
                "give the directory of an index"
            )
        return cls._parse(manifest_file)

    @classmethod
    def _parse(cls, manifest_file: Path) -> Manifest:
        fields = read_json(manifest_file)
        if fields is None:
            raise NotAnIndexError(
                f"{manifest_file} is broken (not a JSON object); build the index again"
            )
        if fields.get("format") != FORMAT:
            raise NotAnIndexError(
                f"{manifest_file} is not the manifest of a wherefrom index; "
                "give the directory of an index"
            )
        version = fields.get("format_version")
        if version != FORMAT_VERSION:
            raise NotAnIndexError(
                f"{manifest_file} has format version {version!r}, this wherefrom reads "
                f"{FORMAT_VERSION}; install the version that built it or build it again"
            )
        recorded = fields.pop(_DIGEST, None)
        try:
            manifest = cls.model_validate(fields)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise NotAnIndexError(
                f"{manifest_file} is broken (field {where!r}: {first['msg']}); "
                "build the index again"
            ) from error
        if manifest.digest != recorded:
            raise IntegrityError(
                f"{manifest_file} was changed after the build (its own SHA-256 does not fit); "
                "restore it from a copy or build the index again"
            )
        return manifest
