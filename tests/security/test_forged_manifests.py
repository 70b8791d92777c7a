"""Forged manifests: whatever they say, with the digest that fits it."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from hostile import ask, fields_of, harmless, publish
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import changed, mutated

import wherefrom as wf
from wherefrom.errors import IntegrityError, NotAnIndexError, WherefromError

pytestmark = pytest.mark.usefixtures("_kept_model")

HARMLESS_CHANGES = settings(
    max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@HARMLESS_CHANGES
@given(seed=st.integers(0, 2**32))
def test_any_change_ends_in_an_error_of_ours_or_an_answer(index_path: Path, seed: int) -> None:
    original = (index_path / "manifest.json").read_bytes()
    publish(index_path, mutated(fields_of(index_path), random.Random(seed)))
    try:
        harmless(lambda: ask(index_path))
    finally:
        (index_path / "manifest.json").write_bytes(original)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("store", "table"), "../../elsewhere"),
        (("store", "table"), "/elsewhere"),
        (("store", "next_row"), 2**62),
        (("store", "rows"), 10**30),
        (("store", "deleted"), {"file": "../secret.npy", "sha256": "0" * 64, "rows": 1}),
        (("scan", "segments", 0, "number"), "../../1"),
        (("scan", "segments", 0, "number"), -1),
        (("scan", "segments", 0, "first_row"), 5),
        (("scan", "segments", 0, "rows"), 19),
        (("scan", "segments"), []),
        (("scan", "segments", 0, "files", "../norm.npy"), "0" * 64),
        (("scan", "segments", 0, "files", "/dev/zero"), "0" * 64),
        (("scan", "segments", 0, "files", "a//b"), "0" * 64),
        (("scan", "segments", 0, "files", "norm.npy"), "../x"),
        (("store", "files", "../../outside"), "0" * 64),
        (("scan", "width"), 8),
        (("scan", "dimension"), 8),
        (("scan", "bits"), 4),
        (("encoder", "dimension"), 2**31),
        (("encoder", "dimension"), 8),
        (("encoder", "reduced"), 8),
        (("encoder", "file_sha256"), "0" * 64),
        (("scale",), 0.0),
        (("scale",), 1e308),
        (("objective", "kind"), "os.system"),
        (("objective", "options", "context"), "../../x"),
        (("curvature", "kind"), "a\nb"),
        (("model", "architecture"), "\x1b[31mred"),
        (("background", "highest"), []),
        (("background", "levels"), [0.5]),
        (("inputs",), {"dtype": "O", "shape": [1], "target_dtype": "f4,f4", "target_shape": []}),
        (("metadata",), {"year": "object"}),
        (("metadata",), {}),
    ],
    ids=str,
)
def test_contradictions_and_ways_out_are_refused(
    index_path: Path, place: tuple[str | int, ...], value: Any
) -> None:
    publish(index_path, changed(fields_of(index_path), place, value))
    assert harmless(lambda: ask(index_path)) is not None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[" * 100_000,
        b'{"format": "wherefrom-index", "a": ' + b"[" * 500 + b"]" * 500 + b"}",
        b'{"format": "wherefrom-index", "a": "\\ud800"}',
        b'{"format": "wherefrom-index", "format_version": ' + b"9" * 5000 + b"}",
        b'{"format": "wherefrom-index", "format_version": NaN}',
        b"\xff\xfe{}",
        json.dumps({"format": "wherefrom-index", "format_version": "x" * 10**6}).encode(),
    ],
    ids=range(8),
)
def test_bytes_that_are_no_manifest_are_refused(index_path: Path, data: bytes) -> None:
    (index_path / "manifest.json").write_bytes(data)
    error = harmless(lambda: ask(index_path))
    assert isinstance(error, WherefromError)


def test_a_manifest_without_end_is_not_read(
    index_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wherefrom.store.directory._LARGEST_JSON", 100)
    with pytest.raises(IntegrityError, match="larger than"):
        wf.open(index_path)


def test_a_pipe_for_a_manifest_does_not_hang(index_path: Path) -> None:
    (index_path / "manifest.json").unlink()
    os.mkfifo(index_path / "manifest.json")
    error = harmless(lambda: ask(index_path))
    assert isinstance(error, (IntegrityError, NotAnIndexError))
