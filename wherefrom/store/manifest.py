"""The manifest: what an index was built from and with; its presence means the build finished.

``manifest.json`` is the last file that a build writes, so a directory without one is no index yet.
What it is made of stands in :mod:`wherefrom.store.manifest_parts`.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

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
from wherefrom.store.manifest_parts import (
    AcceleratorRecord,
    BackgroundRecord,
    ColumnType,
    CorpusRecord,
    CurvatureRecord,
    EncoderRecord,
    InputRecord,
    LayerRecord,
    ModelRecord,
    ObjectiveRecord,
    Record,
    ScanRecord,
    StoreRecord,
)

__all__ = ["Manifest"]

_DIGEST = "sha256"


class Manifest(Record):
    """Everything needed to open an index, to check it and to build it again.

    Attributes:
        created: ISO 8601 time at which the build finished.
        scale: 1/N, N being the documents that the curvature stands for.
        metadata: Metadata columns and their types, in order.
        inputs: Only for indexes over tensor examples.
        background: What scores of unrelated pairs look like.
        accelerators: The vector indexes made from the table.
        seconds_per_document: What one document of average length takes to be scored exactly, alone.
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
    background: BackgroundRecord | None = None
    accelerators: tuple[AcceleratorRecord, ...] = ()
    seconds_per_document: float | None = None
    versions: dict[str, str]
    replay: str
    warnings: tuple[str, ...] = ()

    def to_bytes(self) -> bytes:
        """The bytes of ``manifest.json``: UTF-8 JSON, keys in order, its own digest last."""
        return json_bytes({**self.model_dump(mode="json"), _DIGEST: self.seal})

    @property
    def digest(self) -> str:
        """SHA-256 of all that decides an answer, as canonical JSON, in hexadecimal.

        It identifies the index: accelerators, which come and go, are left out.
        """
        fields = self.model_dump(mode="json", exclude={"accelerators"})
        return hashlib.sha256(json_bytes(fields)).hexdigest()

    @property
    def seal(self) -> str:
        """SHA-256 of all fields: what the file is checked against."""
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
        if manifest.seal != recorded:
            raise IntegrityError(
                f"{manifest_file} was changed after the build (its own SHA-256 does not fit); "
                "restore it from a copy or build the index again"
            )
        return manifest
