"""Answers explained, compared and summed: what an index adds to them, against its own scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import wherefrom as wf
from small_models import mlp
from tiny_lm import text_documents, tiny_llama, tiny_tokenizer
from wherefrom.errors import CurvatureError, FilterError, QueryError

QUERY = wf.Query("the union of states", " shall be preserved")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> wf.Index:
    return wf.build(
        tiny_llama(),
        text_documents(),
        tmp_path_factory.mktemp("interpreted") / "i",
        objective=wf.CausalLM(tiny_tokenizer()),
        encoder="sketch",
        bits=8,
        bytes_per_document=256,
    )


def ask(index: wf.Index, **options: Any) -> wf.Answer:
    return index.query(prompt=QUERY.prompt, completion=QUERY.completion, **options)


@pytest.mark.parametrize("tier", ["stored", "exact"])
@pytest.mark.parametrize("where", [None, {"year": ("<", 1900)}])
def test_groups_are_sums_of_the_scores_of_all_documents(
    index: wf.Index, tier: Any, where: Any
) -> None:
    scores = index.scores([QUERY], tier=tier)[0]
    totals: dict[Any, list[float]] = {}
    for document, score in zip(text_documents(), scores, strict=True):
        year = document.metadata["year"]
        if where is None or (isinstance(year, int) and year < 1900):
            totals.setdefault(document.metadata["party"], []).append(float(score))
    grouping = index.groups(ask(index, k=1, where=where), "party", tier=tier)
    assert grouping == index.groups(QUERY, "party", tier=tier, where=where)
    assert (grouping.column, grouping.tier) == ("party", tier)
    assert {group.value for group in grouping.groups} == set(totals)
    scale = np.abs(scores).sum()
    for group in grouping.groups:
        assert group.documents == len(totals[group.value])
        assert group.total == pytest.approx(sum(totals[group.value]), abs=1e-9 * scale)


def test_groups_are_asked_as_the_answer_was(index: wf.Index) -> None:
    damped = ask(index, damping=5.0)
    scores = index.scores([QUERY], tier="stored", damping=5.0)[0]
    assert sum(g.total for g in index.groups(damped, "party").groups) == pytest.approx(scores.sum())
    assert index.groups(damped, "party") == index.groups(QUERY, "party", damping=5.0)
    ids = [hit.doc_id for hit in damped.hits]
    assert index.explain(damped) == index.explain(QUERY, doc_ids=ids, damping=5.0)
    with pytest.raises(QueryError, match="asked with its own"):
        index.explain(damped, damping=1.0)
    refined = ask(index, refine=2, k=20, rerank="recompute")
    exact = index.groups(refined, "party", tier="exact")
    shown = sum(hit.score for hit in refined.hits)
    assert sum(group.total for group in exact.groups) == pytest.approx(shown)


def test_what_cannot_be_summed_is_refused(index: wf.Index) -> None:
    with pytest.raises(FilterError, match="no metadata column 'color'"):
        index.groups(QUERY, "color")
    with pytest.raises(FilterError, match="no metadata column 'color'"):
        index.groups(QUERY, "party", where={"color": 1})
    with pytest.raises(QueryError, match="tier='guessed' is unknown"):
        index.groups(QUERY, "party", tier="guessed")  # type: ignore[arg-type]
    with pytest.raises(CurvatureError):
        index.explain(ask(index, damping=-1.0))


def test_the_most_similar_documents_have_exact_scores(index: wf.Index) -> None:
    answer = ask(index, damping=0.7, where={"year": ("<", 1980)})
    exact = index.scores([QUERY], damping=0.7)[0]
    similarity = index.similarity(answer, most_similar=4)
    assert [one.doc_id for one in similarity.hits] == [hit.doc_id for hit in answer.hits]
    assert similarity.documents == answer.certificate.documents < len(index)
    assert 0 < len(similarity.most_similar) <= 4
    found = {hit.doc_id: hit for hit in ask(index, damping=0.7, k=20, rerank="recompute").hits}
    for one in similarity.most_similar:
        position = index.doc_ids().index(one.doc_id)
        assert one.score == pytest.approx(exact[position], rel=1e-9)
        assert one.cosine == pytest.approx(found[one.doc_id].cosine, rel=1e-9)


def test_no_hit_is_called_uninfluential(index: wf.Index) -> None:
    """Its cosine may be like any other's, where its score is large for its length."""
    flags = index.similarity(ask(index, k=1, sign="proponents"), most_similar=20).most_similar
    assert any(one.flag for one in flags)
    flags = index.similarity(ask(index, k=20), most_similar=20).most_similar
    assert not any(one.flag for one in flags)


def test_an_annotated_answer_holds_all_three(index: wf.Index) -> None:
    plain = ask(index, k=3, rerank="recompute")
    answer = index.annotate(plain, group_by=("party", "year"))
    assert answer.explanation == index.explain(plain)
    assert answer.similarity == index.similarity(plain)
    assert [one.column for one in answer.groups] == ["party", "year"]
    assert (answer.hits, answer.certificate) == (plain.hits, plain.certificate)
    told = json.loads(answer.to_json())
    assert told["explanation"]["hits"][0]["doc_id"] == plain.hits[0].doc_id
    assert told["groups"][0]["column"] == "party"
    cut = index.annotate(plain, explain=False, similarity=False, group_by={"year": 3})
    assert cut.groups == (index.groups(plain, "year", bins=3),)
    bare = index.annotate(plain, explain=False, similarity=False)
    assert bare == plain
    assert json.loads(bare.to_json())["explanation"] is None


def test_tensors_have_no_words_to_compare(tmp_path: Path) -> None:
    x = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.arange(8) % 3
    index = wf.build(
        mlp((True, True, True)), (x, y), tmp_path / "i", curvature="identity", encoder="none"
    )
    answer = index.query(inputs=x[0], target=0)
    with pytest.raises(QueryError, match="tensors"):
        index.similarity(answer)
    annotated = index.annotate(answer, inputs=x[0], target=0)
    assert annotated.similarity is None
    assert annotated.explanation is not None
    assert annotated.explanation.hits[0].score == pytest.approx(answer.hits[0].score)
