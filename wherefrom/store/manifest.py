"""The manifest: what an index was built from and with; its presence means the build finished.

``manifest.json`` is the last file that a build writes, so a directory without one is no index yet.
It is the published state of an index: what it names never changes under that name, and a change of
the index replaces it as a whole, under the next generation. So a reader that keeps to the manifest
it has read is right whatever writers do. What it is made of stands in
:mod:`wherefrom.store.manifest_parts` and :mod:`wherefrom.store.state_parts`.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from wherefrom.errors import IntegrityError, NotAnIndexError, UnfinishedIndexError
from wherefrom.store.boundary import require_own_files
from wherefrom.store.directory import (
    BUILD_FILE,
    ENCODER_FILE,
    FORMAT,
    FORMAT_VERSION,
    MANIFEST_FILE,
    SCAN_DIRECTORY,
    json_bytes,
    json_object,
    read_json_bytes,
    state,
)
from wherefrom.store.durable import fsync_directory, storage_errors, write_bytes_atomically
from wherefrom.store.location import Location
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
)
from wherefrom.store.state_parts import (
    ChangeRecord,
    DriftRecord,
    ScanRecord,
    StoreRecord,
)

__all__ = ["Manifest"]

_DIGEST = "sha256"


class Manifest(Record):
    """Everything needed to open an index, to check it and to build it again.

    Attributes:
        generation: Counts the published states of the index, from 1.
        created: ISO 8601 time at which the build finished.
        scale: 1/N, N being the documents of the index.
        metadata: Metadata columns and their types, in order.
        inputs: Only for indexes over tensor examples.
        background: What scores of unrelated pairs look like.
        drift: What appended documents are compared with; made with the first of them.
        accelerators: The vector indexes made from the table.
        seconds_per_document: What one document of average length takes to be scored exactly, alone.
        versions: Versions of wherefrom and of the libraries that built the index.
        replay: The command that builds it again.
        warnings: What the build warned of.
        history: What changed since the build, oldest first.
    """

    format: Literal["wherefrom-index"] = "wherefrom-index"
    format_version: Literal[1] = 1
    generation: Annotated[int, Field(gt=0)] = 1
    created: str
    model: ModelRecord
    layers: tuple[LayerRecord, ...]
    objective: ObjectiveRecord
    curvature: CurvatureRecord
    encoder: EncoderRecord
    corpus: CorpusRecord
    scale: Annotated[float, Field(gt=0.0, le=1.0)]
    metadata: dict[str, ColumnType]
    inputs: InputRecord | None = None
    store: StoreRecord
    scan: ScanRecord
    background: BackgroundRecord | None = None
    drift: DriftRecord | None = None
    accelerators: tuple[AcceleratorRecord, ...] = ()
    seconds_per_document: float | None = None
    versions: dict[str, str]
    replay: str
    warnings: tuple[str, ...] = ()
    history: tuple[ChangeRecord, ...] = ()

    def to_bytes(self) -> bytes:
        """The bytes of ``manifest.json``: UTF-8 JSON, keys in order, its own digest last."""
        return json_bytes({**self.model_dump(mode="json"), _DIGEST: self.seal})

    @property
    def digest(self) -> str:
        """SHA-256 of all that decides an answer, as canonical JSON, in hexadecimal.

        It identifies the index: accelerators, which come and go, are left out, and so are the files
        of the table, whose names are random and whose rows have digests of their own.
        """
        fields = self.model_dump(mode="json", exclude={"accelerators": True, "store": {"files"}})
        return hashlib.sha256(json_bytes(fields)).hexdigest()

    @property
    def seal(self) -> str:
        """SHA-256 of all fields: what the file is checked against."""
        return hashlib.sha256(json_bytes(self.model_dump(mode="json"))).hexdigest()

    def files(self) -> dict[str, str]:
        """SHA-256 of each file that the index cannot be asked without, by its path in the index.

        Documents, whose rows have digests of their own, and accelerators are not among them.
        """
        found = {ENCODER_FILE: self.encoder.file_sha256}
        for segment in self.scan.segments:
            folder = f"{SCAN_DIRECTORY}/{segment.number}"
            found |= {f"{folder}/{name}": digest for name, digest in segment.files.items()}
        if self.store.deleted is not None:
            found[self.store.deleted.file] = self.store.deleted.sha256
        return found

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

        Args:
            directory: The index, a directory or a URL of object storage.

        Raises:
            NotAnIndexError: No such directory, no index, a broken manifest or another format.
            UnfinishedIndexError: The build there was interrupted.
            IntegrityError: The manifest was changed after the build, or the directory holds links.
            StorageError: The directory cannot be read.
        """
        location = Location.of(directory)
        if location.remote:
            return cls.parse(location.read_manifest(), f"{location}/{MANIFEST_FILE}")
        folder = location.directory
        found = state(folder)
        if found == "unfinished":
            raise UnfinishedIndexError(
                f"{folder} holds an unfinished build; run the command that began it again to go on"
            )
        manifest_file = folder / MANIFEST_FILE
        if found == "absent":
            raise NotAnIndexError(f"{folder} does not exist; give the directory of an index")
        if found == "empty" or not manifest_file.is_file():
            raise NotAnIndexError(
                f"{folder} is no wherefrom index (it has no {MANIFEST_FILE}); "
                "give the directory of an index"
            )
        require_own_files(folder)
        return cls.parse(read_json_bytes(manifest_file), manifest_file)

    @classmethod
    def parse(cls, data: bytes, place: str | os.PathLike[str]) -> Manifest:
        """The manifest in the bytes of ``manifest.json``.

        Args:
            data: The bytes.
            place: Where they are from, for messages.

        Raises:
            NotAnIndexError: They hold none, or one of another format.
            IntegrityError: They were changed after the build, or contradict each other.
        """
        file = os.fspath(place)
        fields = json_object(data)
        if fields is None:
            raise NotAnIndexError(f"{file} is broken (not a JSON object); build the index again")
        if fields.get("format") != FORMAT:
            raise NotAnIndexError(
                f"{file} is not the manifest of a wherefrom index; give the directory of an index"
            )
        version = fields.get("format_version")
        if version != FORMAT_VERSION:
            raise NotAnIndexError(
                f"{file} has format version {version!r:.40}, this wherefrom reads "
                f"{FORMAT_VERSION}; install the version that built it or build it again"
            )
        recorded = fields.pop(_DIGEST, None)
        try:
            manifest = cls.model_validate(fields)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise NotAnIndexError(
                f"{file} is broken (field {where!r}: {first['msg']}); build the index again"
            ) from error
        # Equal bytes, not only equal values: 1e5 turned into 1E5 is damage, too.
        if manifest.seal != recorded or manifest.to_bytes() != data:
            raise IntegrityError(
                f"{file} was changed after the build (its own SHA-256 does not fit); "
                "restore it from a copy or build the index again"
            )
        contradiction = manifest._contradiction()
        if contradiction is not None:
            raise IntegrityError(
                f"{file} contradicts itself ({contradiction} does not fit the rest); restore it "
                "from a copy or build the index again"
            )
        return manifest

    def _contradiction(self) -> str | None:
        """The first number that does not agree with others: those who read one rely on them."""
        encoder, scan, background = self.encoder, self.scan, self.background
        levels = [] if background is None else background.levels
        quantiles = [] if background is None else background.quantiles
        starts = [segment.first_row for segment in scan.segments]
        ends = [segment.first_row + segment.rows for segment in scan.segments]
        contradicts = {
            "encoder.dimension": encoder.dimension != (encoder.pca or encoder.reduced),
            "scan.dimension": scan.dimension != encoder.dimension,
            "scan.bits": scan.bits != (encoder.bits if encoder.bits <= 8 else 8),
            "scan.width": scan.width * 8 < scan.dimension * scan.bits,
            "scan.rows": scan.rows != self.store.next_row,
            "scan.segments": [0, *ends] != [*starts, scan.rows],
            "store.rows": self.store.rows > self.store.next_row,
            "background.quantiles": len(levels) != len(quantiles),
        }
        return next((name for name, does in contradicts.items() if does), None)
