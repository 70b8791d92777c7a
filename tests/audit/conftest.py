"""A tiny index and a bundle of answers from it, for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers

import wherefrom as wf
from tiny_lm import save_tiny_lm, text_documents
from wherefrom.audit.asking import BatchQuery, ask_all
from wherefrom.audit.bundle import write_bundle
from wherefrom.audit.entries import Entry, Wanted
from wherefrom.records import Query, QuerySet

QUESTIONS = [
    BatchQuery("union", Query("the union of states", " shall be preserved"), {"topic": "law"}),
    BatchQuery("contrast", Query("the war", " will end", " will not end")),
    BatchQuery("nothing", Query("the", "")),
    BatchQuery("set", QuerySet((Query("gold", " and silver"), Query("the", " army")), "sum")),
]


@pytest.fixture(scope="session")
def index_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audited")
    save_tiny_lm(folder / "model")
    transformers.utils.logging.disable_progress_bar()
    wf.build(str(folder / "model"), text_documents(20), folder / "my.index", seed=3)
    return folder / "my.index"


@pytest.fixture(scope="session")
def index(index_path: Path) -> wf.Index:
    return wf.open(index_path)


@pytest.fixture(scope="session")
def entries(index: wf.Index) -> list[Entry]:
    """Three answers and a failure."""
    asked = {"k": 3, "where": {"year": ("<", 2000)}}
    wanted = Wanted(explain=True, similarity=True, group_by={"party": None})
    conditions = ("proponent.party == 'Whig'", "answer.tier == 'stored'")
    return list(ask_all(index, QUESTIONS, asked, wanted=wanted, fail_if=conditions))


@pytest.fixture(scope="session")
def evidence(
    index: wf.Index, entries: list[Entry], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A bundle; tests copy it before they change it."""
    path = tmp_path_factory.mktemp("bundles") / "evidence"
    write_bundle(path, entries, index.manifest, command=["wherefrom", "bundle"], index=index)
    return path
