"""Facts: ids and metadata of all documents, read from files that are checked as a whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fact_files import stored, written
from wherefrom.errors import FilterError, IntegrityError
from wherefrom.records import Document
from wherefrom.store import file_sha256
from wherefrom.store.facts import FACTS_FILE, Facts, FactsWriter
from wherefrom.store.layout import TableLayout
from wherefrom.store.live_rows import LiveRows

COLUMNS: dict[str, Any] = {"year": "int64", "party": "string", "war": "bool"}
LAYOUT = TableLayout(COLUMNS, 3, 32)
DOCUMENTS = [
    Document(
        f"speech {i}",
        metadata={
            "year": None if i % 7 == 3 else 1790 + i,
            "party": ["Whig", "", None, "d'Or 🗳"][i % 4],
            "war": [True, False, None][i % 3],
        },
        parent_id=None if i % 3 else f"parent {i}",
    )
    for i in range(30)
]


@pytest.fixture
def facts(tmp_path: Path) -> Facts:
    return Facts.open(
        written(tmp_path, LAYOUT, DOCUMENTS[:12], DOCUMENTS[12:]), LAYOUT, LiveRows.every(30)
    )


def test_facts_are_those_of_the_documents(facts: Facts) -> None:
    assert len(facts) == 30
    assert facts.doc_ids() == [document.doc_id for document in DOCUMENTS]
    for name in COLUMNS:
        assert facts.column(name) == [document.metadata[name] for document in DOCUMENTS]
    assert facts.column("year", [7, 2, 2]) == [1797, 1792, 1792]
    assert facts.find(["speech 20", "speech 3", "none"]) == {"speech 3": 3, "speech 20": 20}
    assert facts.find([]) == {}
    assert facts.passages(["parent 3", "parent 18", "speech 1"]).tolist() == [3, 18]
    assert facts.where({}).tolist() == list(range(30))
    with pytest.raises(FilterError, match="no metadata column"):
        facts.column("month")


def test_deleted_rows_are_in_no_answer(tmp_path: Path) -> None:
    live = np.array([i for i in range(30) if i % 4])
    left = [DOCUMENTS[i] for i in live]
    files = written(tmp_path, LAYOUT, DOCUMENTS[:12], DOCUMENTS[12:])
    whole = Facts.open(files, LAYOUT, LiveRows(30, np.arange(0, 30, 4)))
    (tmp_path / "left").mkdir()
    fresh = Facts.open(written(tmp_path / "left", LAYOUT, left), LAYOUT, LiveRows.every(len(left)))
    ids = [document.doc_id for document in DOCUMENTS]
    parents = [f"parent {i}" for i in range(30)]
    assert whole.parents_of([0, 1, 2]) == [None, None, "parent 3"]
    wheres: list[Any] = [{}, {"year": (">", 1800)}, {"party": None}, {"war": True}]
    for asked in (whole, fresh):
        assert len(asked) == len(left)
        assert asked.doc_ids() == [document.doc_id for document in left]
    assert whole.find(ids) == fresh.find(ids)
    assert whole.passages(parents).tolist() == fresh.passages(parents).tolist()
    assert whole.column("year", [3, 1]) == fresh.column("year", [3, 1])
    assert whole.column("party") == fresh.column("party")
    for where in wheres:
        assert whole.where(where).tolist() == fresh.where(where).tolist()


def test_no_documents_have_no_facts(tmp_path: Path) -> None:
    for files in ({}, written(tmp_path, LAYOUT, [])):
        empty = Facts.open(files, LAYOUT, LiveRows.every(0))
        assert len(empty) == 0
        assert empty.doc_ids() == []
        assert empty.where({"year": 1}).tolist() == []
        assert empty.find(["speech 1"]) == {}


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    files = written(tmp_path, LAYOUT, DOCUMENTS)
    (path,) = files
    with pytest.raises(IntegrityError, match="hold 30 rows, the manifest says 31"):
        Facts.open(files, LAYOUT, LiveRows.every(31))
    with pytest.raises(IntegrityError, match="other columns"):
        Facts.open(files, TableLayout({"year": "float64"}, 3, 32), LiveRows.every(30))
    whole = path.read_bytes()
    for data in (bytes([whole[0] ^ 1]) + whole[1:], whole[: len(whole) // 2], b""):
        path.write_bytes(data)
        with pytest.raises(IntegrityError, match="its SHA-256 is not the manifest's"):
            Facts.open(files, LAYOUT, LiveRows.every(30))
    for data in (whole[: len(whole) // 2], b"", b"{}"):
        path.write_bytes(data)
        with pytest.raises(IntegrityError, match="missing or damaged"):
            Facts.open({path: file_sha256(path)}, LAYOUT, LiveRows.every(30))
    path.unlink()
    with pytest.raises(IntegrityError, match="missing or damaged"):
        Facts.open(files, LAYOUT, LiveRows.every(30))


def test_a_gap_holds_the_place_of_deleted_rows(tmp_path: Path) -> None:
    layout = TableLayout({"year": "int64", "war": "bool", "share": "float64"}, 3, 32)
    documents = [Document(f"speech {i}", metadata={"year": 1790 + i}) for i in range(8)]
    with FactsWriter(tmp_path / FACTS_FILE, layout) as writer:
        writer.write(stored(documents[:3], layout).batch)
        writer.gap(2)
        writer.write(stored(documents[5:], layout).batch)
        digest = writer.finish()
        writer.publish()
    live = LiveRows(8, np.array([3, 4]))
    facts = Facts.open({tmp_path / FACTS_FILE: digest}, layout, live)
    assert facts.doc_ids() == [f"speech {i}" for i in (0, 1, 2, 5, 6, 7)]
    assert facts.where({"year": (">=", 1792)}).tolist() == [2, 3, 4, 5]
    assert facts.where({"war": None}).tolist() == [0, 1, 2, 3, 4, 5]
    assert facts.find([""]) == {}


def test_facts_are_compared_with_rows(tmp_path: Path) -> None:
    changed = list(DOCUMENTS)
    changed[4] = replace(changed[4], metadata={**changed[4].metadata, "party": None})
    changed[5] = replace(changed[5], parent_id="another")
    changed[6] = replace(changed[6], doc_id="speech 7")
    facts = Facts.open(written(tmp_path, LAYOUT, changed), LAYOUT, LiveRows.every(30))
    assert facts.differing(stored(DOCUMENTS, LAYOUT)) == ["speech 4", "speech 5", "speech 6"]
    assert facts.differing(stored(changed, LAYOUT)) == []
    assert facts.repeated() == ["speech 7"]


def test_no_ids_repeat(facts: Facts) -> None:
    assert facts.repeated() == []
