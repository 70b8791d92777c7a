"""Corpora as they come: every character, many values, many columns, columns that disagree."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest

import wherefrom as wf
from tiny_lm import WORDS, tiny_llama, tiny_tokenizer
from wherefrom.errors import CorpusError

QUESTION: dict[str, Any] = {"prompt": "gold", "completion": " silver trade", "rerank": "stored"}
HARD = [
    "\x00",
    "gold\x00silver",
    "e\u0301\u202egold",  # a combining accent, and a change of direction
    "\ufffe\uffff\ufeff",
    "\U0001f600\U0010ffff",
    "\r\n\t\v\f",
    "\u2028gold\u2029",
    "`gold` \"silver\" 'trade'; -- %s {x} [red]",
    "\\x00\\u0000",
    " ",
    "NULL",
    "nan",
    "a" * 5000,
]


def build(path: Path, documents: Any, **options: Any) -> wf.Index:
    return wf.build(
        tiny_llama(),
        documents,
        path,
        objective=wf.CausalLM(tiny_tokenizer()),
        curvature="identity",
        encoder="none",
        **options,
    )


def assert_all_there(index: wf.Index, documents: list[wf.Document]) -> None:
    """Every document as it was given: by its id, its text, each of its values and by filters."""
    assert index.doc_ids() == [document.doc_id for document in documents]
    reopened = wf.open(index.path, model=tiny_llama(), objective=wf.CausalLM(tiny_tokenizer()))
    answer = reopened.query(**QUESTION, k=len(documents), sign="both")
    given = {document.doc_id: document for document in documents}
    hits = {hit.doc_id: hit for hit in answer.hits}
    assert hits.keys() <= given.keys()
    assert len(hits) >= len(documents) // 2  # Zero scores are neither proponent nor opponent.
    for doc_id, hit in hits.items():
        assert hit.text == given[doc_id].text
        assert {n: v for n, v in hit.metadata.items() if v is not None} == given[doc_id].metadata
    told = json.loads(json.dumps(answer.to_dict()))
    assert {hit["doc_id"] for side in ("proponents", "opponents") for hit in told[side]} == {*hits}


def test_every_character_comes_back(tmp_path: Path) -> None:
    rng = random.Random(0)
    points = [p for p in range(0x110000) if not 0xD800 <= p < 0xE000]
    texts = HARD + ["".join(map(chr, rng.sample(points, 6))) for _ in range(30)]
    documents = [
        wf.Document(f"{text}{i}", f"{text} the union", {text: text, "number": i, "text": text})
        for i, text in enumerate(texts[:12] + texts[13:])
    ]
    index = build(tmp_path / "i", documents)
    assert_all_there(index, documents)
    for document in documents[::5]:
        (name, value), *_ = document.metadata.items()
        answer = index.query(**QUESTION, k=50, where={name: value})
        assert {hit.doc_id for hit in answer.hits} <= {document.doc_id}
        answer = index.query(**QUESTION, k=50, where={"text": ("!=", value)})
        assert document.doc_id not in {hit.doc_id for hit in answer.hits}


def test_every_character_comes_through_files(tmp_path: Path) -> None:
    documents = [
        wf.Document(f"{i} {text}", f"{text} the union", {"value": text})
        for i, text in enumerate(HARD[:-1])
    ]
    corpus = tmp_path / "corpus.jsonl"
    rows = [{"doc_id": d.doc_id, "text": d.text, **d.metadata} for d in documents]
    for escaped in (True, False):
        lines = [json.dumps(row, ensure_ascii=escaped) for row in rows]
        corpus.write_text("\n".join(lines), encoding="utf-8")
        assert_all_there(build(tmp_path / f"{escaped}", corpus), documents)


def test_ten_thousand_values_of_metadata(tmp_path: Path) -> None:
    documents = [
        wf.Document(
            f"{i}",
            f"{WORDS[i % 30]} gold union",
            {f"c{j}": f"value {i} {j}" for j in range(6)} | {"n": i, "share": i / 7},
        )
        for i in range(1700)
    ]
    index = build(tmp_path / "i", documents, batch_size=256)
    assert_all_there(index, documents)
    for where in ({"c3": "value 1234 3"}, {"n": 1234}, {"share": 1234 / 7}):
        assert {hit.doc_id for hit in index.query(**QUESTION, where=where).hits} == {"1234"}
    half = [f"value {i} 0" for i in range(0, 1700, 2)]
    answer = index.query(**QUESTION, k=2000, where={"c0": ("in", half)})
    assert {int(hit.doc_id) % 2 for hit in answer.hits} == {0}


def test_four_hundred_columns(tmp_path: Path) -> None:
    names = [f"column {j}" for j in range(400)]
    documents = [
        wf.Document(f"{i}", f"{WORDS[i]} gold union", dict.fromkeys(names[i::3], i))
        for i in range(12)
    ]
    index = build(tmp_path / "i", documents)
    assert_all_there(index, documents)
    answer = index.query(**QUESTION, where={"column 399": ("<", 5)})
    assert {hit.doc_id for hit in answer.hits} <= {"0", "3"}


KINDS = {"string": "x", "int64": 7, "float64": 0.5, "bool": True}


@pytest.mark.parametrize(("one", "other"), list(itertools.permutations(KINDS, 2)))
def test_columns_that_change_their_type(tmp_path: Path, one: str, other: str) -> None:
    """Whole numbers and fractions go together; all else names the column and two documents."""
    documents = [wf.Document(f"{i}", f"{WORDS[i % 30]} gold") for i in range(300)]
    documents[5] = wf.Document("five", "gold and silver", {"value": KINDS[one]})
    documents[295] = wf.Document("last", "gold and silver", {"value": KINDS[other]})
    if {one, other} == {"int64", "float64"}:
        index = build(tmp_path / "i", documents, batch_size=256)
        assert index.manifest.metadata == {"value": "float64"}
        assert {hit.doc_id for hit in index.query(**QUESTION, where={"value": 7}).hits} <= {
            "five",
            "last",
        }
        return
    with pytest.raises(CorpusError, match=r"'value'.*'five'.*'last'") as caught:
        build(tmp_path / "i", documents)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "i").exists()


def test_a_number_beyond_64_bits_names_its_document(tmp_path: Path) -> None:
    documents = [wf.Document("big", "gold and silver", {"value": 2**63})]
    with pytest.raises(CorpusError, match="'value' of document 'big'"):
        build(tmp_path / "i", documents)
    assert not (tmp_path / "i").exists()
