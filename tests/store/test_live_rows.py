"""Ordinals over the rows that live, whatever was deleted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherefrom.errors import IntegrityError
from wherefrom.records import Document
from wherefrom.store import DocumentTable, LiveRows, Manifest, ScanCopy, StoreRecord

Build = Callable[..., Any]
ARRAYS = ("codes", "scale", "residual", "norm", "lost", "whole")

live_rows = st.integers(1, 30).flatmap(
    lambda total: st.sets(st.integers(0, total - 1)).map(
        lambda gone: LiveRows(total, np.array(sorted(gone), np.int64))
    )
)


@given(live=live_rows)
def test_ordinals_are_ranks_among_the_rows_that_live(live: LiveRows) -> None:
    left = [row for row in range(live.total) if row not in live.deleted]
    assert len(live) == len(left)
    ordinals = np.arange(len(left))
    assert live.rows(ordinals).tolist() == left
    assert live.ordinals(left).tolist() == ordinals.tolist()
    assert live.rows(ordinals[::-1]).tolist() == left[::-1]


@given(live=live_rows, data=st.data())
def test_deleting_and_appending(live: LiveRows, data: st.DataObject) -> None:
    more = data.draw(st.integers(0, 5))
    longer = live.followed_by(more)
    ordinals = data.draw(st.sets(st.integers(0, len(longer) - 1))) if len(longer) else set()
    rows = longer.rows(sorted(ordinals))
    fewer = longer.without(rows)
    assert len(fewer) == len(live) + more - len(ordinals)
    assert set(fewer.deleted.tolist()) == {*live.deleted.tolist(), *rows.tolist()}
    start, stop = sorted(data.draw(st.tuples(st.integers(0, 30), st.integers(0, 30))))
    within = [row for row in fewer.deleted.tolist() if start <= row < stop]
    assert fewer.dead_within(start, stop).tolist() == within


def record(live: LiveRows, folder: Path) -> StoreRecord:
    return StoreRecord(
        table_version=1, rows=len(live), next_row=live.total, deleted=live.write(folder)
    )


def test_files_are_named_by_their_digest_and_checked(tmp_path: Path) -> None:
    every = LiveRows.every(9)
    assert record(every, tmp_path).deleted is None
    assert not list(tmp_path.iterdir())
    some = every.without([1, 4])
    store = record(some, tmp_path)
    assert store.deleted is not None
    assert LiveRows.read(tmp_path, store).deleted.tolist() == [1, 4]
    file = tmp_path / store.deleted.file
    with pytest.raises(IntegrityError, match="are not 8"):
        LiveRows.read(tmp_path, store.model_copy(update={"rows": 8}))
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(IntegrityError, match="SHA-256"):
        LiveRows.read(tmp_path, store)
    file.unlink()
    with pytest.raises(IntegrityError, match="missing"):
        LiveRows.read(tmp_path, store)


def changed(index: Any, deleted: list[int], added: list[Document]) -> Manifest:
    """The manifest after deleting ordinals and appending documents."""
    manifest: Manifest = index.manifest
    table = DocumentTable.open(index.path, manifest, write=True)
    table.delete(deleted)
    vectors = np.full((len(added), table.layout.dimension), len(table), np.float32)
    counts = np.ones(len(added), np.int64)
    table.append(added, vectors, norms=counts, tokens=counts)
    scan = manifest.scan
    if added:
        scan = ScanCopy.extend(scan, table, index.path / "scan", number=manifest.generation + 1)
    store = table.seal()
    return manifest.model_copy(
        update={"store": store, "scan": scan, "generation": manifest.generation + 1}
    )


@pytest.mark.parametrize("bits", [2, 16])
def test_table_and_scan_copy_present_the_live_rows(build_index: Build, bits: Any) -> None:
    index = build_index(12, bits=bits)
    before = index.open()
    new = [Document(f"new {i}", "brand new", {"year": 2000 + i}) for i in range(3)]
    index.manifest = changed(index, [0, 3, 4, 11], new)
    index.manifest = changed(index, [9, 2], [])
    index.manifest = changed(index, [], [Document("last")])
    expected = [d.doc_id for d in index.documents]
    expected = [d for i, d in enumerate(expected) if i not in (0, 3, 4, 11)]
    expected += [d.doc_id for d in new]
    expected = [d for i, d in enumerate(expected) if i not in (9, 2)] + ["last"]

    table = index.open()
    assert table.facts.doc_ids() == expected
    assert table.facts.find([*expected, "speech 3"]) == {d: i for i, d in enumerate(expected)}
    some = [5, 0, 8, 5]
    assert table.rows(some).doc_ids == [expected[i] for i in some]
    assert table.rows(some).ordinals.tolist() == some
    assert [d for b in table.batches(2, start=3) for d in b.doc_ids] == expected[3:]
    years = [row["year"] for row in table.rows(range(len(table))).metadata]
    passing = [i for i, year in enumerate(years) if year is not None and year > 1794]
    assert table.facts.where({"year": (">", 1794)}).tolist() == passing

    copy = ScanCopy.open(index.path / "scan", index.manifest.scan, table.live)
    fresh = ScanCopy.build(table, index.path / "fresh")
    (plain,) = ScanCopy.open(index.path / "fresh", fresh, table.live).segments
    assert [segment.number for segment in index.manifest.scan.segments] == [1, 2, 4]
    assert len(copy) == len(table) == len(expected)
    rows = table.live.rows(np.arange(len(table)))
    assert np.array_equal(copy.whole, table.rows(range(len(table))).norms)
    asked = np.array([7, 1, 8, 0, 7])
    for size in (1, 2, 5, 100):
        for ordinals in (None, asked):
            chunks = list(copy.chunks(size, ordinals))
            visited = np.arange(len(table)) if ordinals is None else ordinals
            assert all(0 < len(chunk.ordinals) <= size for chunk in chunks)
            assert np.concatenate([c.ordinals for c in chunks]).tolist() == visited.tolist()
            for name in ARRAYS:
                read = np.concatenate([getattr(chunk, name) for chunk in chunks])
                assert np.array_equal(read, getattr(plain, name)[rows[visited]]), name
    dead = table.live.deleted
    assert not any(getattr(plain, name)[dead].any() for name in ARRAYS)

    assert before.facts.doc_ids() == [d.doc_id for d in index.documents]


def test_what_a_dead_writer_left_is_taken_back(build_index: Build) -> None:
    index = build_index(6)
    changed(index, [1], [Document("never published")])
    assert len(index.open()) == 6
    table = DocumentTable.open(index.path, index.manifest, write=True)
    assert table.rows(range(len(table))).doc_ids == [d.doc_id for d in index.documents]
    assert table.version > index.manifest.store.table_version
    index.manifest = changed(index, [0], [Document("published")])
    assert index.open().facts.doc_ids() == [*(d.doc_id for d in index.documents[1:]), "published"]


def test_files_of_the_table_are_known_by_their_digests(build_index: Build) -> None:
    index = build_index(6)
    files = index.manifest.store.files
    assert any(name.startswith("data/") for name in files)
    later = changed(index, [1], []).store.files
    assert files.items() < later.items()
    assert any(name.startswith("_deletions/") for name in later)
