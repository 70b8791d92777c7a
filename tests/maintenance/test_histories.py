"""After any history of changes an index is, to the bit, the one of the documents that are left."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

import wherefrom as wf
from maintenance.work import BUILT, POOL, QUESTIONS, build, contents, opened
from wherefrom.maintenance.delete import compact
from wherefrom.store import DocumentTable, LiveRows, Manifest, ScanCopy

ASKED = {"prompt": "gold", "completion": " silver trade ships", "rerank": "stored"}
documents = st.sets(st.integers(0, 21), min_size=1, max_size=6)


@pytest.fixture(scope="module", params=["none", "signs"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "my.index"
    few: dict[str, Any] = {"encoder": "sketch", "bits": 1, "bytes_per_document": 64}
    build(path, **(few if request.param == "signs" else {}))
    return path


def version(number: int, edition: int) -> wf.Document:
    """A document of the pool, as it was or changed."""
    document = POOL[number]
    return wf.Document(document.doc_id, document.text + " peace" * edition, document.metadata)


class Histories(RuleBasedStateMachine):
    """Random changes, beside a list of what the index should hold."""

    source: Path

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.path = Path(shutil.copytree(self.source, self.folder / "my.index"))
        self.index = opened(self.path)
        self.reader, self.read = None, None
        names = [d.doc_id for d in POOL]
        self.held = [(d, 0) for d in names[:BUILT]]
        self.rest = [d for d in self.index.doc_ids() if d not in names]
        self.index.delete(self.rest)

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)

    @rule(numbers=documents, edition=st.integers(0, 1))
    def append(self, numbers: set[int], edition: int) -> None:
        given = [version(number, edition) for number in sorted(numbers)]
        ids = {d.doc_id for d in given}
        new = [(d.doc_id, edition) for d in given if (d.doc_id, edition) not in self.held]
        change = self.index.append(given, replace=True)
        replaced = [one for one in self.held if one[0] in {d for d, _ in new}]
        self.held = [one for one in self.held if one not in replaced] + new
        assert (change.added, change.removed) == (len(new), len(replaced))
        assert change.same == len(ids) - len(new)

    @rule(numbers=documents, purge=st.booleans())
    def delete(self, numbers: set[int], purge: bool) -> None:
        ids = [POOL[number].doc_id for number in numbers]
        left = [one for one in self.held if one[0] not in ids]
        if left:
            self.index.delete(ids, purge=purge, missing_ok=True)
            self.held = left
            if purge:
                self.reader = None

    @rule()
    def compact(self) -> None:
        self.index.compact()
        self.reader = None

    @rule()
    def open_reader(self) -> None:
        self.reader = opened(self.path)
        self.read = contents(self.reader)

    @invariant()
    def holds_what_it_should(self) -> None:
        if not hasattr(self, "index"):
            return
        found = contents(self.index)
        assert found["doc_ids"] == found["read"] == [doc_id for doc_id, _ in self.held]
        editions = [
            text.count(" peace") > POOL_PEACE[d]
            for d, text in zip(found["read"], found["texts"], strict=True)
        ]
        assert editions == [bool(edition) for _, edition in self.held]
        assert found["ordinals"] == list(range(len(self.held)))
        manifest = self.index.manifest
        assert manifest.scale == 1 / len(self.held)
        assert manifest.corpus.documents == manifest.corpus.parents == len(self.held)
        rows = self.index.table.rows(range(len(self.index)))
        assert manifest.corpus.tokens == rows.tokens.sum()
        if self.reader is not None:
            assert contents(self.reader) == self.read

    @invariant()
    def answers_like_a_fresh_index(self) -> None:
        if not hasattr(self, "index"):
            return
        fresh = self.folder / "fresh.index"
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.copytree(self.path, fresh)
        table = _rebuilt(self.index.table, fresh)
        assert contents(self.index) == contents(fresh)
        answers = [i.query(**ASKED, k=6) for i in (self.index, opened(fresh))]
        hits = [
            [(h.doc_id, h.score, h.cosine) for h in (*a.proponents, *a.opponents)] for a in answers
        ]
        assert hits[0] == hits[1]
        assert answers[0].certificate == answers[1].certificate
        assert len(table) == len(self.index)


def _rebuilt(table: DocumentTable, path: Path) -> DocumentTable:
    """A table and scan copy made of the same documents from nothing, published at ``path``."""
    layout, rows = table.layout, table.rows(range(len(table)))
    new = DocumentTable.create(
        path,
        metadata=layout.metadata,
        dimension=layout.dimension,
        bits=layout.bits,
        name="documents-999",
    )
    new.add([layout.encode(0, rows.documents(), rows.stored, rows.norms, rows.tokens, {})])
    scan = ScanCopy.build(new, path / "scan", number=999)
    Manifest.read(path).model_copy(update={"store": new.seal(), "scan": scan}).write(path)
    return new


POOL_PEACE = {document.doc_id: document.text.count(" peace") for document in POOL}


def test_any_history_ends_as_a_fresh_index(source: Path) -> None:
    Histories.source = source
    run_state_machine_as_test(
        Histories,
        settings=settings(
            max_examples=3,
            stateful_step_count=7,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_vectors_do_not_depend_on_when_they_came(source: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(source, tmp_path / "my.index"))
    index = opened(path)
    index.append(POOL[BUILT:22])
    scores = dict(zip(index.doc_ids(), index.scores(QUESTIONS, tier="stored")[0], strict=True))
    again = [d.doc_id for d in POOL[3:9]]
    index.delete(again)
    compact(path)
    index.refresh()
    index.append(POOL[3:9])
    now = dict(zip(index.doc_ids(), index.scores(QUESTIONS, tier="stored")[0], strict=True))
    assert now.keys() == scores.keys()
    names = sorted(scores)
    np.testing.assert_allclose(
        [now[n] for n in names], [scores[n] for n in names], rtol=1e-4, atol=1e-9
    )
    assert LiveRows.read(path, index.manifest.store).deleted.tolist() == []
