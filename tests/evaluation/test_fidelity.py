"""Fidelity against dense scores of each layer and figures counted by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import pearsonr, spearmanr

import wherefrom as wf
from test_index import examples
from tiny_lm import text_documents, tiny_llama, tiny_tokenizer
from wherefrom.errors import CurvatureError, EvaluationError
from wherefrom.evaluation.evidence import Evidence
from wherefrom.evaluation.fidelity import index_fidelity, layer_scores
from wherefrom.evaluation.retraining import random_halves

QUERIES = [
    wf.Query("the union of states", " shall be preserved"),
    wf.Query("gold", " silver trade ships", contrast=" peace"),
    wf.QuerySet((wf.Query("", "war or peace"), wf.Query("the army", " will end"))),
]


@pytest.fixture(scope="module")
def signs(tmp_path_factory: pytest.TempPathFactory) -> wf.Index:
    """Thirty documents under a coarse encoder."""
    return build(tmp_path_factory.mktemp("signs") / "i", bits=1, bytes_per_document=64)


def build(path: Path, **options: Any) -> wf.Index:
    return wf.build(
        tiny_llama(),
        text_documents(30),
        path,
        objective=wf.CausalLM(tiny_tokenizer()),
        layers="mlp",
        **{"encoder": "sketch", **options},
    )


def figures(evidence: Evidence, method: str) -> dict[str, float]:
    return {f.name: f.value for f in evidence.figures if f.method == method}


def test_layers_have_the_dense_scores_and_add_up(tmp_path: Path) -> None:
    case = examples((True, False, True))
    index = wf.build(case.model, (case.x, case.y), tmp_path / "i", encoder="none")
    exact, stored = layer_scores(index, index.questions(case.asked))
    truth = case.truth("expected").numpy()
    size = np.abs(truth).max()
    np.testing.assert_allclose(exact, truth, rtol=1e-7, atol=1e-9 * size)
    np.testing.assert_allclose(stored, truth, rtol=1e-4, atol=1e-5 * size)
    assert (np.abs(truth).max((1, 2)) > 0.01 * size).all()


@pytest.mark.filterwarnings("ignore:scores correlate at")  # DataInf of so few documents
@pytest.mark.parametrize(
    "options",
    [
        {"encoder": "sketch", "bits": 16, "bytes_per_document": 512},
        {"encoder": "energy", "bits": 8, "bytes_per_document": 128},
        {"encoder": "none", "curvature": "datainf"},
    ],
    ids=lambda options: f"{options['encoder']}-{options.get('curvature', 'ekfac')}",
)
def test_parts_add_up_to_the_indexs_own_scores(tmp_path: Path, options: dict[str, Any]) -> None:
    index = build(tmp_path / "i", **options)
    exact, stored = layer_scores(index, index.questions(QUERIES))
    for parts, tier in ((exact, "exact"), (stored, "stored")):
        whole = index.scores(QUERIES, tier=tier)  # type: ignore[arg-type]
        np.testing.assert_allclose(parts.sum(0), whole, rtol=1e-4, atol=1e-5 * np.abs(whole).max())
        assert (np.abs(parts).max((1, 2)) > 0.0).all()


def test_few_layers_at_a_time_give_the_same(
    signs: wf.Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = signs.questions(QUERIES)
    whole = layer_scores(signs, asked)
    monkeypatch.setattr("wherefrom.evaluation.fidelity._SOLVED_BYTES", 1)
    monkeypatch.setattr("wherefrom.evaluation.fidelity._ENCODED_BYTES", 1)
    for one, other in zip(whole, layer_scores(signs, asked), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12 * np.abs(one).max())


def test_scores_of_layers_that_do_not_fit_are_refused_first(
    signs: wf.Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = len(signs.asker.extractor.layers)
    needed = 3 * 8 * layers * len(QUERIES) * 30
    monkeypatch.setattr("wherefrom.curvature.memory._limit", lambda device: needed - 1)

    def begun(*_: Any, **__: Any) -> None:
        raise AssertionError("a solution was computed")

    monkeypatch.setattr("wherefrom.evaluation.fidelity._solved", begun)
    said = f"scores of {layers} layers, 3 queries and 30 documents would need .* --no-layers"
    with pytest.raises(CurvatureError, match=said):
        index_fidelity(signs, QUERIES)


def held(exact: NDArray[np.float64], stored: NDArray[np.float64], top: int, count: int) -> float:
    shares = []
    for sign in (1, -1):
        best = sorted(range(len(exact)), key=lambda i: -sign * exact[i])[:top]
        found = sorted(range(len(exact)), key=lambda i: -sign * stored[i])[:count]
        shares.append(len(set(best) & set(found)) / top)
    return float(np.mean(shares))


@pytest.fixture(scope="module")
def whole(signs: wf.Index) -> Evidence:
    return index_fidelity(signs, QUERIES, k=[4, 12], top=4, subsets=50, seed=3)


def test_figures_are_those_counted_by_hand(signs: wf.Index, whole: Evidence) -> None:
    exact, stored = signs.scores(QUERIES), signs.scores(QUERIES, tier="stored")
    pairs = list(zip(exact, stored, strict=True))
    halves = random_halves(30, 50, 3)
    expected = {
        "Spearman": np.mean([spearmanr(a, b).statistic for a, b in pairs]),
        "Pearson": np.mean([pearsonr(a, b).statistic for a, b in pairs]),
        "slope": np.mean([np.linalg.lstsq(a[:, None], b)[0][0] for a, b in pairs]),
        "sums over halves": np.mean(
            [
                spearmanr([a[h].sum() for h in halves], [b[h].sum() for h in halves]).statistic
                for a, b in pairs
            ]
        ),
        "top 4 in 4": np.mean([held(a, b, 4, 4) for a, b in pairs]),
        "top 4 in 12": np.mean([held(a, b, 4, 12) for a, b in pairs]),
    }
    found = figures(whole, "stored")
    assert found == pytest.approx(expected, rel=1e-5)
    assert 0.2 < found["top 4 in 4"] < 1.0
    for figure in whole.figures:
        assert figure.low is not None
        assert figure.high is not None
        assert figure.low <= figure.value <= figure.high
    parts, stored_parts = layer_scores(signs, signs.questions(QUERIES))
    for i, layer in enumerate(signs.asker.extractor.layers):
        own = figures(whole, layer.name)
        alike = [pearsonr(a, b).statistic for a, b in zip(parts[i], stored_parts[i], strict=True)]
        shares = [
            np.cov(a, b)[0, 1] / np.var(b, ddof=1) for a, b in zip(parts[i], exact, strict=True)
        ]
        assert own == pytest.approx(
            {"Pearson": np.mean(alike), "share of variance": np.mean(shares)}, rel=1e-5
        )
    shares = [f.value for f in whole.figures if f.name == "share of variance"]
    assert sum(shares) == pytest.approx(1.0)
    details: Any = json.loads(json.dumps(whole.to_json()))["details"]
    spread = details["per_query"]["stored, Pearson"]
    assert np.mean(spread) == pytest.approx(found["Pearson"])


def test_reranked_answers_of_enough_candidates_are_the_exact_top(signs: wf.Index) -> None:
    evidence = index_fidelity(signs, QUERIES, k=[30], top=5, by_layer=False)
    assert figures(evidence, "reranked") == {
        "top 5 held": 1.0,
        "lists equal": 1.0,
        "recall claimed": pytest.approx(1.0, abs=0.05),
    }
    assert not any("differ from" in note for note in evidence.notes)
    assert evidence.notes[0] == "30 of 30 documents hold 100% of any list by chance."


def test_lists_end_where_scores_change_sign(signs: wf.Index) -> None:
    """Fewer than 25 of 30 documents are proponents, and lists of all of them are complete."""
    assert ((signs.scores(QUERIES) > 0).sum(1) < 25).all()
    evidence = index_fidelity(signs, QUERIES, k=[30], top=25, by_layer=False)
    assert figures(evidence, "reranked")["lists equal"] == 1.0
    assert figures(evidence, "reranked")["top 25 held"] == 1.0


def test_lists_that_miss_or_swap_documents_are_seen(
    signs: wf.Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = signs.answers(QUERIES, k=3, rerank="recompute", candidates=30)
    first, second, third = answers
    ids, exact = signs.doc_ids(), signs.scores(QUERIES)
    for answer, own in zip(answers, exact, strict=True):
        for sign, hits in ((1, answer.proponents), (-1, answer.opponents)):
            assert [hit.doc_id for hit in hits] == [ids[i] for i in np.argsort(-sign * own)[:3]]
    worst = replace(second.proponents[2], doc_id=ids[int(np.argsort(exact[1])[len(ids) // 2])])
    spoilt = [
        replace(first, opponents=first.opponents[::-1]),
        replace(second, proponents=(*second.proponents[:2], worst)),
        replace(third, proponents=third.proponents[:1]),
    ]
    monkeypatch.setattr(signs, "answers", lambda *_, **__: spoilt)
    evidence = index_fidelity(signs, QUERIES, k=[3], top=3, by_layer=False)
    details: Any = evidence.details
    per_query = details["per_query"]
    assert per_query["reranked, lists equal"] == [0.0, 0.0, 0.0]
    assert per_query["reranked, top 3 held"] == pytest.approx([1.0, 5 / 6, 4 / 6])
    (note,) = [note for note in evidence.notes if "differ from" in note]
    assert note.startswith("3 of 3 reranked answers differ from the exact top 3")


def test_documents_with_the_same_text_may_stand_in_any_order(tmp_path: Path) -> None:
    """Texts 1 and 6 are one: which of them is listed first says nothing of the index."""
    index = build(tmp_path / "i", encoder="none")
    evidence = index_fidelity(index, [wf.Query("", text_documents(30)[1].text)], k=[10], top=1)
    assert figures(evidence, "reranked")["lists equal"] == 1.0
    assert figures(evidence, "stored")["Pearson"] == pytest.approx(1.0)
    assert figures(evidence, "stored")["slope"] == pytest.approx(1.0, abs=1e-4)
    assert all(figure.low is None for figure in evidence.figures)


def test_without_layers_the_rest_is_the_same(signs: wf.Index, whole: Evidence) -> None:
    options: dict[str, Any] = {"k": [4, 12], "top": 4, "subsets": 50, "seed": 3}
    without = index_fidelity(signs, QUERIES, by_layer=False, **options)
    methods = {figure.method for figure in without.figures}
    assert methods == {"stored", "reranked"}
    for method in methods:
        assert figures(without, method) == pytest.approx(figures(whole, method), rel=1e-6)


def test_defaults_fit_few_documents(tmp_path: Path) -> None:
    case = examples((True, True, True))  # twelve
    index = wf.build(case.model, (case.x, case.y), tmp_path / "i", encoder="none")
    found = figures(index_fidelity(index, case.asked, by_layer=False), "stored")
    assert found["top 6 in 10"] == pytest.approx(1.0)
    assert not any(name.endswith("in 100") for name in found)


@pytest.mark.parametrize(
    ("queries", "options", "message"),
    [
        ([], {}, "no query to compare by"),
        (QUERIES, {"top": 31}, "top=31 of 30 documents; give 1 to 30"),
        (QUERIES, {"top": 0}, "top=0 of 30 documents"),
        (QUERIES, {"k": []}, r"k=\[\]: the exact top 10 is looked for"),
        (QUERIES, {"k": [5]}, r"k=\[5\]: the exact top 10 is looked for"),
        (QUERIES, {"k": [10, 31]}, "give numbers from 10 to 30"),
    ],
)
def test_bad_input_is_refused(
    signs: wf.Index, queries: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(EvaluationError, match=message):
        index_fidelity(signs, queries, **options)
