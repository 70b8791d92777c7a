from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from wherefrom.errors import IndexBusyError, IntegrityError, MissingExtraError
from wherefrom.records import Document
from wherefrom.store import DocumentTable
from wherefrom.store.fragments import commit_fragments, stage_fragment
from wherefrom.store.quantise import quantise

lance = pytest.importorskip("lance")


class Shards:
    """An empty table, and shards of three documents for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.table = DocumentTable.create(folder, metadata={"year": "int64"}, dimension=8, bits=8)

    @property
    def path(self) -> Path:
        return self.table.path

    def batch(self, shard: int, size: int = 3) -> pa.RecordBatch:
        first = shard * 3
        documents = [Document(f"d{first + i}", "é" * i, {"year": i or None}) for i in range(size)]
        vectors = np.random.default_rng(shard).standard_normal((size, 8)).astype(np.float32)
        return self.table.layout.encode(
            first, documents, quantise(vectors, 8), np.ones(size), np.arange(size), {}
        )

    def stage(self, shard: int) -> Path:
        receipt = self.folder / f"receipt-{shard}"
        stage_fragment(receipt, self.path, self.batch(shard))
        return receipt

    def rows(self) -> pa.Table:
        return lance.dataset(str(self.path)).to_table()

    def data_files(self) -> set[str]:
        return {file.name for file in (self.path / "data").iterdir()}


@pytest.fixture
def shards(tmp_path: Path) -> Shards:
    return Shards(tmp_path)


def test_fragments_are_the_rows_that_add_writes(shards: Shards, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Shards(tmp_path / "other")
    other.table.add([other.batch(i) for i in range(3)])
    receipts = [shards.stage(i) for i in (2, 0, 1)]
    assert commit_fragments(shards.path, [receipts[1], receipts[2], receipts[0]]) == 9
    assert shards.rows().equals(other.rows())
    assert shards.rows().schema.equals(other.rows().schema, check_metadata=True)


def test_staged_rows_are_not_seen_before_their_commit(shards: Shards) -> None:
    receipt = shards.stage(0)
    assert shards.rows().num_rows == 0
    commit_fragments(shards.path, [receipt])
    assert shards.rows()["row"].to_pylist() == [0, 1, 2]


def test_committing_again_adds_nothing(shards: Shards) -> None:
    first, second = shards.stage(0), shards.stage(1)
    assert commit_fragments(shards.path, [first]) == 3
    version = lance.dataset(str(shards.path)).version
    assert commit_fragments(shards.path, [first]) == 3
    assert lance.dataset(str(shards.path)).version == version
    assert commit_fragments(shards.path, [first, second]) == 6
    assert commit_fragments(shards.path, [first, second]) == 6
    assert shards.rows()["row"].to_pylist() == [0, 1, 2, 3, 4, 5]


def test_a_shard_staged_twice_is_committed_once(shards: Shards) -> None:
    shards.stage(0)
    receipt = shards.stage(0)
    assert len(shards.data_files()) == 2
    commit_fragments(shards.path, [receipt])
    shards.stage(0)  # A worker that was given up comes back late.
    assert commit_fragments(shards.path, [receipt]) == 3
    assert shards.rows()["row"].to_pylist() == [0, 1, 2]


def test_the_table_goes_on_either_way(shards: Shards) -> None:
    commit_fragments(shards.path, [shards.stage(0)])
    table = DocumentTable.resume(shards.folder, shards.table.layout, None)
    table.add([shards.batch(1)])
    assert commit_fragments(shards.path, [shards.stage(2)]) == 9
    assert shards.rows()["row"].to_pylist() == list(range(9))
    numbers = [f.fragment_id for f in lance.dataset(str(shards.path)).get_fragments()]
    assert numbers == [0, 1, 2]


def test_rows_that_come_later_are_refused(shards: Shards) -> None:
    receipts = [shards.stage(i) for i in range(3)]
    with pytest.raises(IntegrityError, match=r"rows 3 to 5 and row 0 is due"):
        commit_fragments(shards.path, receipts[1:])
    with pytest.raises(IntegrityError, match=r"rows 6 to 8 and row 3 is due"):
        commit_fragments(shards.path, [receipts[0], receipts[2]])
    assert shards.rows().num_rows == 0
    # After rows that were deleted for good, numbers have a gap.
    assert commit_fragments(shards.path, receipts[1:], first_row=3) == 9


def test_of_two_drivers_one_is_refused(shards: Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    receipt = shards.stage(0)
    commit = lance.LanceDataset.commit

    def commit_after_another(*args: object, **kwargs: object) -> object:
        monkeypatch.setattr(lance.LanceDataset, "commit", commit)
        commit_fragments(shards.path, [receipt])
        return commit(*args, **kwargs)

    monkeypatch.setattr(lance.LanceDataset, "commit", commit_after_another)
    with pytest.raises(IndexBusyError, match="by another process at the same time"):
        commit_fragments(shards.path, [receipt])
    assert shards.rows()["row"].to_pylist() == [0, 1, 2]


def test_one_who_adds_meanwhile_is_noticed(shards: Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    receipt = shards.stage(0)
    commit = lance.LanceDataset.commit

    def commit_after_another(*args: object, **kwargs: object) -> object:
        shards.table.add([shards.batch(0)])
        return commit(*args, **kwargs)

    monkeypatch.setattr(lance.LanceDataset, "commit", commit_after_another)
    with pytest.raises(IndexBusyError):
        commit_fragments(shards.path, [receipt])
    assert shards.rows()["row"].to_pylist() == [0, 1, 2]


@pytest.mark.parametrize(
    "damage", ["file gone", "file short", "no json", "not ours", "other rows", "path out of it"]
)
def test_damaged_receipts_are_named(shards: Shards, damage: str) -> None:
    receipt = shards.stage(0)
    (file,) = (shards.path / "data").iterdir()
    fields = json.loads(receipt.read_text())
    if damage == "file gone":
        file.unlink()
    elif damage == "file short":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "no json":
        receipt.write_bytes(b"\0")
    elif damage == "not ours":
        receipt.write_text("{}")
    elif damage == "other rows":
        receipt.write_text(json.dumps({**fields, "rows": 4}))
    else:
        shutil.copy(file, shards.folder / "elsewhere")
        fields["fragments"][0]["files"][0]["path"] = "../../elsewhere"
        receipt.write_text(json.dumps(fields))
    with pytest.raises(IntegrityError, match=r"receipt-0 cannot be used \(.*remove it and run"):
        commit_fragments(shards.path, [receipt])
    assert shards.rows().num_rows == 0


def test_cleaning_removes_what_a_dead_worker_left_and_nothing_else(shards: Shards) -> None:
    shards.stage(0)
    commit_fragments(shards.path, [shards.stage(0), shards.stage(1)])
    assert len(shards.data_files()) == 3
    DocumentTable.resume(shards.folder, shards.table.layout, None).clean()
    assert len(shards.data_files()) <= 2
    assert shards.rows()["row"].to_pylist() == [0, 1, 2, 3, 4, 5]


def test_what_is_staged_outlives_a_resumption(shards: Shards) -> None:
    empty = shards.table.sync()
    receipts = [shards.stage(0), shards.stage(1)]
    commit_fragments(shards.path, receipts[:1])  # And then the driver dies.
    table = DocumentTable.resume(shards.folder, shards.table.layout, empty)
    assert len(table) == 0
    table.adopt(commit_fragments(shards.path, receipts))
    assert len(table) == 6
    assert [i for rows in table.batches(4) for i in rows.doc_ids] == [f"d{i}" for i in range(6)]


def test_without_a_table_there_is_one_line(shards: Shards, tmp_path: Path) -> None:
    receipt = shards.stage(0)
    with pytest.raises(IntegrityError, match="nowhere cannot be used") as caught:
        commit_fragments(tmp_path / "nowhere", [receipt])
    assert "\n" not in str(caught.value)


def test_pylance_is_asked_for(shards: Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lance", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'wherefrom\[ray\]'"):
        stage_fragment(shards.folder / "receipt", shards.path, shards.batch(0))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to name open files")
def test_rows_are_durable_before_their_receipt(
    shards: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def record(handle: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", record)
    receipt = shards.stage(0)
    (data,) = shards.data_files()
    assert synced[:3] == [data, "data", "documents.lance"]
    assert synced[3].startswith(f".{receipt.name}")
