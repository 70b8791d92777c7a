"""Hostile folders: an index from anyone reads nothing outside its folder, and runs nothing."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hostile import ask, fields_of, harmless, publish, with_base_path

import wherefrom as wf
from wherefrom.errors import IntegrityError
from wherefrom.store.boundary import require_no_bases
from wherefrom.store.digests import file_sha256
from wherefrom.store.live_rows import LiveRows
from wherefrom.store.state_parts import DeletedRecord, StoreRecord
from wherefrom.store.versions import require_own_data

CHILD = Path(__file__).with_name("watched.py")


@pytest.mark.usefixtures("_kept_model")
@pytest.mark.parametrize(
    "name", ["manifest.json", "encoder.safetensors", "scan", "scan/1/codes.npy", "documents.lance"]
)
def test_links_are_refused(index_path: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    (index_path / name).rename(outside)
    (index_path / name).symlink_to(outside)
    error = harmless(lambda: ask(index_path))
    assert isinstance(error, IntegrityError)
    assert "is a link" in str(error)
    assert not wf.verify(index_path, digests_only=True).ok


@pytest.mark.usefixtures("_kept_model")
def test_an_index_may_itself_be_reached_by_a_link(index_path: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(index_path)
    ask(tmp_path / "link")


@pytest.mark.usefixtures("_kept_model")
def test_pipes_are_refused(index_path: Path) -> None:
    os.mkfifo(index_path / "scan" / "more")
    assert "neither a file nor a folder" in str(harmless(lambda: ask(index_path)))


@pytest.mark.usefixtures("_kept_model")
@pytest.mark.parametrize("place", ["/etc", "file:///etc", "s3://bucket/key", "../../outside"])
def test_tables_that_name_data_elsewhere_are_refused(index_path: Path, place: str) -> None:
    for version in (index_path / "documents.lance" / "_versions").glob("*.manifest"):
        version.write_bytes(with_base_path(version.read_bytes(), place))
    error = harmless(lambda: ask(index_path))
    assert isinstance(error, IntegrityError)
    assert "names data outside the index" in str(error)


def test_lance_would_read_data_elsewhere(tmp_path: Path) -> None:
    """Why such tables are refused."""
    lance = pytest.importorskip("lance")
    import lancedb
    import pyarrow as pa

    (tmp_path / "outside").mkdir()
    lance.write_dataset(
        pa.table({"a": [1, 2]}),
        tmp_path / "in" / "t.lance",
        initial_bases=[lance.DatasetBasePath(str(tmp_path / "outside"), name="o")],
        target_bases=["o"],
    )
    assert lancedb.connect(str(tmp_path / "in")).open_table("t").count_rows() == 2
    with pytest.raises(IntegrityError, match="names data outside the index"):
        require_own_data(tmp_path / "in" / "t.lance", None)


def test_versions_that_are_none_are_refused(built: Path) -> None:
    (version, *_) = (built / "documents.lance" / "_versions").glob("*.manifest")
    data = version.read_bytes()
    require_no_bases(data, "t")
    message = int.from_bytes(data[-16:-8], "little") + 4
    for broken in (
        b"",
        data[:-1],
        data[:-16] + b"\xff" * 8 + data[-8:],
        data[: message - 4] + b"\xff" * 4 + data[message:],
        data[:message] + b"\xff" * 12 + data[message + 12 :],
        data[:message] + b"\x0b" + data[message + 1 :],
    ):
        with pytest.raises(IntegrityError, match="no version of a Lance table"):
            require_no_bases(broken, "t")
    # The same field by a longer number, as other readers take it, too.
    base = with_base_path(data, "/x").replace(b"\x92\x01", b"\x92\x81\x00")
    with pytest.raises(IntegrityError):
        require_no_bases(base, "t")


@pytest.mark.usefixtures("_kept_model")
@pytest.mark.parametrize("kind", ["zip", "pickle", "object", "empty", "other"])
def test_arrays_that_are_something_else_are_refused(index_path: Path, kind: str) -> None:
    file = index_path / "scan" / "1" / "norm.npy"
    if kind == "zip":
        with file.open("wb") as out:
            np.savez(out, a=np.zeros(2))
    elif kind == "pickle":
        file.write_bytes(b"\x80\x04cos\nsystem\n(S'exit 1'\ntR.")
    elif kind == "object":
        np.save(file, np.array([{}], object), allow_pickle=True)
    else:
        file.write_bytes(b"" if kind == "empty" else b"\x93NUMPY\x01\x00\xff\xff{")
    fields = fields_of(index_path)
    fields["scan"]["segments"][0]["files"]["norm.npy"] = file_sha256(file)
    publish(index_path, fields)
    error = harmless(lambda: ask(index_path))
    assert isinstance(error, IntegrityError)


@pytest.mark.parametrize("numbers", [[-1], [20], [3, 3], [5, 4], [2**62], b"PK", b""], ids=str)
def test_deleted_rows_that_there_are_not_are_refused(
    tmp_path: Path, numbers: list[int] | bytes
) -> None:
    file = tmp_path / "made.npy"
    if isinstance(numbers, bytes):
        file.write_bytes(numbers)
    else:
        np.save(file, np.array(numbers, "<i8"))
    digest, rows = hashlib.sha256(file.read_bytes()).hexdigest(), max(1, len(numbers))
    record = DeletedRecord(file=f"deleted-{digest[:16]}.npy", sha256=digest, rows=rows)
    file.rename(tmp_path / record.file)
    store = StoreRecord(table_version=1, rows=20 - rows, next_row=20, deleted=record)
    with pytest.raises(IntegrityError, match=r"is damaged \("):
        LiveRows.read(tmp_path, store)


@pytest.mark.parametrize("kind", ["faiss-flat", "faiss-sq8", "faiss-rabitq"])
def test_faiss_gets_no_bytes_to_act_on_but_its_own(index_path: Path, kind: str) -> None:
    """Right digests of hostile files: all that FAISS would act on is compared with its own."""
    pytest.importorskip("faiss")
    with wf.open(index_path) as index:
        index.accelerate(kind)
    place = f"faiss/{kind}.index"
    data = (index_path / place).read_bytes()
    for position in (0, 4, 8, 15, 24, 30):
        broken = bytearray(data)
        broken[position] ^= 0x10
        for hostile in (bytes(broken), data[:-1], data + b"\0"):
            (index_path / place).write_bytes(hostile)
            fields = fields_of(index_path)
            (record,) = fields["accelerators"]
            record["files"][place] = hashlib.sha256(hostile).hexdigest()
            publish(index_path, fields)
            with wf.open(index_path) as index:
                error = harmless(
                    lambda: index.query(
                        prompt="a", completion=" b", backend=kind, k=2, rerank="stored"
                    )
                )
            assert "faiss cannot use" in str(error), (position, error)


def test_nothing_else_is_opened_run_or_connected_to(
    built: Path, model_path: Path, tmp_path: Path
) -> None:
    """A child watches itself by audit events; strace, where it is there, what Rust opens."""
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "canary").write_text("never read")
    hostile = []
    for name, source in {
        "own": str(model_path),
        "hub": "evil/model",
        "elsewhere": str(secret),
        "code": str(tmp_path / "code" / "model"),
        "kernel": str(tmp_path / "kernel" / "model"),
    }.items():
        path = tmp_path / name
        shutil.copytree(built, path)
        fields = fields_of(path)
        fields["model"]["source"] = source
        if name in ("code", "kernel"):
            shutil.copytree(model_path, path / "model")
            config = json.loads((path / "model" / "config.json").read_bytes())
            config |= (
                {"auto_map": {"AutoModelForCausalLM": "evil.Model"}, "model_type": "evil"}
                if name == "code"
                else {"attn_implementation": "evil/kernel"}
            )
            (path / "model" / "config.json").write_text(json.dumps(config))
            (path / "model" / "evil.py").write_text(f"open({str(secret / 'canary')!r}).read()")
        publish(path, fields)
        hostile.append(str(path))
    allowed = [str(model_path), *hostile]
    command = [sys.executable, str(CHILD), *allowed]
    trace = tmp_path / "trace"
    strace = shutil.which("strace")
    if strace is not None:
        command = [
            strace,
            "-f",
            "--seccomp-bpf",
            "-qq",
            "-o",
            str(trace),
            "-e",
            "trace=open,openat",
            *command,
        ]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert finished.returncode == 0, finished.stderr
    told = json.loads(finished.stdout.splitlines()[-1])
    assert told["odd"] == []
    assert told["answered"] == [str(tmp_path / "own")]
    if trace.exists():
        assert str(secret) not in trace.read_text(errors="replace")
