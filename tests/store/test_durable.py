"""Writes are whole or absent, and the disk's refusals become one-line errors."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wherefrom.errors import StorageError
from wherefrom.records import Document
from wherefrom.store import (
    DocumentTable,
    ScanCopy,
    begin_build,
    fsync_tree,
    state,
    storage_errors,
    write_bytes_atomically,
)

Build = Callable[..., Any]


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte, where the tests may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("no right to mount a file system")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(table: DocumentTable, shards: int) -> None:
    vectors = np.random.default_rng(0).standard_normal((50, 1024)).astype(np.float32)
    for shard in range(shards):
        documents = [Document(f"{shard}.{i}") for i in range(50)]
        table.append(documents, vectors, norms=np.ones(50), tokens=np.ones(50, np.int64))


def test_a_full_disk_stops_the_build_unfinished(tiny_disk: Path) -> None:
    index = tiny_disk / "index"
    begin_build(index, {})
    table = DocumentTable.create(index, metadata={}, dimension=1024, bits=32)
    with pytest.raises(StorageError, match="No space left") as caught:
        fill(table, shards=10)
    assert str(index) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert state(index) == "unfinished"


def test_a_full_disk_leaves_no_half_scan_copy(tiny_disk: Path, tmp_path: Path) -> None:
    table = DocumentTable.create(tmp_path, metadata={}, dimension=1024, bits=32)
    fill(table, shards=24)
    with pytest.raises(StorageError, match="No space left"):
        ScanCopy.build(table, tiny_disk / "scan")
    assert list((tiny_disk / "scan" / "1").iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("lance error: LanceError(IO): No space left on device (os error 28), x.rs:1"),
        OSError("[Errno 28] Error writing bytes to file"),
        RuntimeError("object store: No space left on device"),
    ],
)
def test_full_disks_are_recognised_in_other_libraries_errors(error: Exception) -> None:
    message = r"cannot use my\.index: .*; free some space"
    with pytest.raises(StorageError, match=message) as caught, storage_errors("my.index"):
        raise error
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EIO])
def test_refusals_of_the_disk_are_storage_errors(code: int) -> None:
    with pytest.raises(StorageError, match=os.strerror(code)), storage_errors("my.index"):
        raise OSError(code, os.strerror(code))


@pytest.mark.parametrize(
    "error", [ValueError("no"), FileNotFoundError(errno.ENOENT, "no"), RuntimeError("os error 2")]
)
def test_other_errors_pass_unchanged(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, storage_errors("my.index"):
        raise error
    assert caught.value is error


def test_a_failed_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_bytes_atomically(path, b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError):
            write_bytes_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    write_bytes_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def test_every_file_is_synced_before_the_manifest(
    build_index: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def record(handle: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{handle}"))
        fsync(handle)

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("no way to tell files by their handles")
    monkeypatch.setattr(os, "fsync", record)
    index = build_index(6)
    (manifest,) = (i for i, path in enumerate(synced) if "/.manifest.json." in path)
    stored = [path for path in (index.path / "documents.lance").rglob("*")]
    assert len(stored) > 5
    assert {str(path) for path in stored} <= set(synced[:manifest])
    assert str(index.path / "scan" / "1" / ".codes.npy.tmp") in synced[:manifest]
    assert synced[-1] == str(index.path)


def test_syncing_what_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        fsync_tree(tmp_path / "nothing")
