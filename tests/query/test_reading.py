"""What an index holds, read by id, page by page, and in summary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import wherefrom as wf
from small_models import mlp
from tiny_lm import text_documents, tiny_llama, tiny_tokenizer
from wherefrom.errors import FilterError, QueryError
from wherefrom.store import content_hash as digest_of

DOCUMENTS = text_documents()


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> wf.Index:
    return wf.build(
        tiny_llama(),
        [*DOCUMENTS, wf.Document('it\'s "odd" / ../\u2028', "gold silver ships", {"year": 7})],
        tmp_path_factory.mktemp("read") / "i",
        objective=wf.CausalLM(tiny_tokenizer()),
        curvature="identity",
        encoder="none",
    )


def test_a_document_is_found_by_its_id(index: wf.Index) -> None:
    for document in DOCUMENTS:
        found = index.document(document.doc_id)
        assert (found.doc_id, found.text) == (document.doc_id, document.text)
        assert found.metadata == document.metadata
        assert found.tokens > 0
        assert index.doc_ids()[found.position] == document.doc_id
    one, same = index.document(DOCUMENTS[1].doc_id), index.document(DOCUMENTS[6].doc_id)
    assert one.text == same.text
    assert one.content_hash == same.content_hash
    assert index.document('it\'s "odd" / ../\u2028').text == "gold silver ships"
    json.dumps(one.to_dict(), allow_nan=False)


@pytest.mark.parametrize("doc_id", ["", "nowhere", "speech 0", "' OR 1=1 --", "speech 00\x00"])
def test_an_unknown_document_is_named(index: wf.Index, doc_id: str) -> None:
    with pytest.raises(QueryError, match="holds no document"):
        index.document(doc_id)


@pytest.mark.parametrize(("offset", "limit"), [(0, 50), (0, 3), (4, 2), (19, 5), (21, 5), (99, 1)])
def test_pages_are_slices_in_the_order_of_the_index(
    index: wf.Index, offset: int, limit: int
) -> None:
    page = index.documents(offset=offset, limit=limit)
    assert page.total == len(index) == 21
    assert page.offset == offset
    assert [one.doc_id for one in page.documents] == index.doc_ids()[offset : offset + limit]


def test_pages_hold_what_passes_the_filter(index: wf.Index) -> None:
    where: dict[str, Any] = {"party": ("in", ["Whig", "d'Or"]), "year": (">", 1800)}
    expected = [
        d.doc_id
        for d in DOCUMENTS
        if d.metadata["party"] in ("Whig", "d'Or") and (d.metadata["year"] or 0) > 1800
    ]
    page = index.documents(where, limit=2)
    assert page.total == len(expected)
    assert [one.doc_id for one in page.documents] == expected[:2]
    with pytest.raises(FilterError, match="no metadata column 'color'"):
        index.documents({"color": "red"})


@pytest.mark.parametrize(
    ("name", "value"),
    [("offset", -1), ("offset", 1.0), ("limit", 0), ("limit", 1001), ("limit", True)],
)
def test_what_is_no_page_is_refused(index: wf.Index, name: str, value: Any) -> None:
    with pytest.raises(QueryError, match=f"{name}={value!r} is not allowed"):
        index.documents(**{name: value})


def test_the_summary_tells_no_path(index: wf.Index) -> None:
    summary = index.info()
    assert summary["schema"] == "wherefrom-index/1"
    assert summary["documents"] == 21
    assert summary["metadata"] == {"year": "int64", "party": "string"}
    assert summary["manifest_sha256"] == index.manifest.digest
    assert "positive = proponent" in summary["contract"]
    written = json.dumps(summary, allow_nan=False)
    assert str(index.path) not in written
    assert str(index.path.parent) not in written


def test_tensor_examples_have_no_text(tmp_path: Path) -> None:
    x = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    index = wf.build(
        mlp((True, True, True)),
        (x, torch.tensor([0, 1, 2, 0, 1])),
        tmp_path / "i",
        curvature="identity",
        encoder="none",
    )
    assert index.document("3").text == ""
    assert index.info()["text"] is False


def test_the_digest_is_that_of_the_content(index: wf.Index) -> None:
    document = DOCUMENTS[0]
    assert index.document(document.doc_id).content_hash == digest_of(document).hex()
