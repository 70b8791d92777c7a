"""The manifest, and telling finished indexes from unfinished and foreign directories."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydantic
import pytest

from wherefrom.errors import (
    IndexExistsError,
    NotAnIndexError,
    StorageError,
    UnfinishedIndexError,
)
from wherefrom.store import (
    AcceleratorRecord,
    BackgroundRecord,
    ChoiceRecord,
    CorpusRecord,
    EncoderRecord,
    FidelityRecord,
    Manifest,
    TriedRecord,
    begin_build,
    build_info,
    state,
)

Build = Callable[..., Any]


def test_a_manifest_comes_back_as_it_was_written(build_index: Build) -> None:
    index = build_index(3)
    data = (index.path / "manifest.json").read_bytes()
    assert Manifest.read(index.path) == index.manifest
    assert data == index.manifest.to_bytes()
    assert f'"sha256": "{index.manifest.seal}"'.encode() in data.replace(b'":"', b'": "')
    assert list(Manifest.read(index.path).metadata) == ["year", "party", "share", "war"]
    assert not (index.path / "build.json").exists()
    changed = index.manifest.model_copy(update={"scale": 0.25})
    assert changed.digest != index.manifest.digest


def test_what_was_measured_comes_back_too(build_index: Build) -> None:
    index = build_index(3)
    measured = {"recall": 0.99, "correlation": 0.98, "noise": 0.1}
    tried = TriedRecord(encoder="sketch", bytes_per_document=512.5, chosen=True, **measured)
    encoder = index.manifest.encoder.model_copy(
        update={
            "fidelity": FidelityRecord(documents=90, queries=8, among=18, slope=0.5, **measured),
            "choice": ChoiceRecord(
                bytes_per_document=2048, fidelity=None, documents=90, queries=8, tried=(tried,)
            ),
        }
    )
    background = BackgroundRecord(
        pairs=100,
        queries=8,
        documents=90,
        seed=0,
        levels=(0.5, 0.99),
        quantiles=(0.0, 0.1),
        highest=(0.2, 0.3),
        lowest=(-0.2, -0.1),
    )
    accelerator = AcceleratorRecord(
        kind="faiss-flat",
        table_version=1,
        rows=3,
        dimension=5,
        scale=2.0**-20,
        residual=0.0,
        largest=1e6,
        files={"faiss/flat": "00" * 32},
        library="faiss 1",
    )
    added = {
        "encoder": encoder,
        "background": background,
        "accelerators": (accelerator,),
        "seconds_per_position": 1e-4,
    }
    manifest = index.manifest.model_copy(update=added)
    manifest.write(index.path)
    assert Manifest.read(index.path) == manifest
    for wrong in ({"bits": 3}, {"reduce": "hash"}, {"dimension": 0}):
        with pytest.raises(pydantic.ValidationError):
            EncoderRecord.model_validate(encoder.model_dump() | wrong)


def test_records_are_frozen_and_strict(build_index: Build) -> None:
    manifest = build_index(1).manifest
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        manifest.scale = 2.0
    fields = manifest.model_dump()
    for wrong in ({"colour": "red"}, {"scale": float("nan")}, {"metadata": {"day": "date"}}):
        with pytest.raises(pydantic.ValidationError):
            Manifest.model_validate(fields | wrong)
    with pytest.raises(pydantic.ValidationError):
        CorpusRecord(documents=1, parents=1, tokens=1, content_sha256="", skipped=("id",) * 1001)


def test_states(tmp_path: Path, build_index: Build) -> None:
    folder = tmp_path / "index"
    assert state(folder) == "absent"
    folder.mkdir()
    assert state(folder) == "empty"
    begin_build(folder, {"model": "m"})
    assert state(folder) == "unfinished"
    index = build_index(1)
    assert state(index.path) == "finished"
    (index.path / "manifest.json").unlink()
    assert state(index.path) == "foreign"  # A build of ours has its mark until it has a manifest.
    file = tmp_path / "file"
    file.write_text("text")
    assert state(file) == "foreign"


@pytest.mark.parametrize("name", ["notes.txt", "manifest.json", "build.json"])
@pytest.mark.parametrize("text", ["", "{}", '{"name": "web app"}', "[1]", "{"])
def test_other_peoples_directories_are_foreign(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert state(tmp_path) == "foreign"
    with pytest.raises(NotAnIndexError):
        Manifest.read(tmp_path)
    with pytest.raises(IndexExistsError):
        begin_build(tmp_path, {})


def test_a_build_leaves_word_of_itself(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    begin_build(folder, {"model": "small", "documents": 12})
    told = build_info(folder)
    assert (told["model"], told["documents"]) == ("small", 12)
    assert "started" in told
    with pytest.raises(UnfinishedIndexError, match="unfinished build"):
        Manifest.read(folder)
    with pytest.raises(IndexExistsError, match="unfinished build"):
        begin_build(folder, {})


def test_no_word_of_a_build_is_no_error(build_index: Build) -> None:
    assert build_info(build_index(1).path) == {}


def test_a_manifest_wins_over_a_marker_left_by_a_power_cut(build_index: Build) -> None:
    index = build_index(1)
    (index.path / "build.json").write_text('{"format": "wherefrom-index"}')
    assert state(index.path) == "finished"
    assert Manifest.read(index.path) == index.manifest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda fields: fields | {"format_version": 2}, "format version 2, this wherefrom reads 1"),
        (lambda fields: fields | {"format": "other"}, "not the manifest of a wherefrom index"),
        (lambda fields: fields | {"scale": "big"}, "field 'scale'"),
        (lambda fields: {k: v for k, v in fields.items() if k != "store"}, "field 'store'"),
        (lambda fields: [fields], "not a JSON object"),
    ],
    ids=["version", "format", "type", "missing", "list"],
)
def test_broken_manifests_are_explained(
    build_index: Build, change: Callable[[Any], Any], message: str
) -> None:
    index = build_index(1)
    file = index.path / "manifest.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    with pytest.raises(NotAnIndexError, match=message) as caught:
        Manifest.read(index.path)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_torn_manifests_are_explained(build_index: Build) -> None:
    index = build_index(1)
    file = index.path / "manifest.json"
    for data in (file.read_bytes()[:-20], b"\xff\xfe"):
        file.write_bytes(data)
        with pytest.raises(NotAnIndexError, match="broken"):
            Manifest.read(index.path)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "no wherefrom index"),
        (lambda path: path.write_text("text"), "no wherefrom index"),
    ],
    ids=["absent", "empty", "file"],
)
def test_paths_without_an_index_are_explained(
    tmp_path: Path, prepare: Callable[[Path], Any], message: str
) -> None:
    prepare(tmp_path / "index")
    with pytest.raises(NotAnIndexError, match=message):
        Manifest.read(tmp_path / "index")


def test_a_build_that_cannot_be_begun_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    for path in (tmp_path / "file" / "index", tmp_path / ("x" * 300)):
        with pytest.raises(StorageError, match="choose"):
            begin_build(path, {})
