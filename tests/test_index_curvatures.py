"""Truth 7 for every curvature, and questions of every form, against dense float64 operators."""

from __future__ import annotations

import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import dense
import wherefrom as wf
from test_index import assert_hits, class_log_likelihood, examples, pair_norms
from tiny_lm import text_documents, tiny_llama, tiny_tokenizer
from wherefrom.curvature import datainf, lissa
from wherefrom.curvature.kinds import CURVATURE_KINDS
from wherefrom.errors import CurvatureError, MismatchError, QueryError
from wherefrom.gradients.layers import select_layers

CASE = examples((True, False, True))


@lru_cache
def pseudo_gradients(layer: str) -> list[Tensor]:
    """``[class, D]`` of each document, weighted by the root of the class's probability."""
    found = []
    for x in CASE.x:
        p = torch.softmax(CASE.model(x[None]), 1)[0].detach()
        gradients = [
            dense.weight_gradient(CASE.model, layer, class_log_likelihood(x, c)).reshape(-1)
            for c in range(3)
        ]
        found.append(torch.stack([w.sqrt() * g for w, g in zip(p, gradients, strict=True)]))
    return found


def own_gradients(layer: str, x: Tensor, y: Tensor) -> Tensor:
    return torch.stack(
        [
            dense.weight_gradient(CASE.model, layer, class_log_likelihood(a, b)).reshape(-1)
            for a, b in zip(x, y.tolist(), strict=True)
        ]
    )


@lru_cache
def inverse_of(kind: str, layer: Any, damping: float) -> Tensor:
    """The explicit damped inverse of a layer's block, ``[D, D]``."""
    pseudo = pseudo_gradients(layer.name)
    exact = sum(g.T @ g for g in pseudo) / len(pseudo)
    eye = torch.eye(len(exact), dtype=torch.float64)
    if kind == "identity":
        return eye / (1.0 + damping)
    if kind == "datainf":
        own = own_gradients(layer.name, CASE.x, CASE.y)
        lam = damping * own.square().sum(1).mean() / own.shape[1]
        return sum(torch.linalg.inv(torch.outer(g, g) + lam * eye) for g in own) / len(own)
    if kind == "diagonal":
        block = torch.diag(exact.diagonal())
    elif kind in ("ekfac", "kfac"):
        a, s = 0.0, 0.0
        for x in CASE.x:
            p = torch.softmax(CASE.model(x[None]), 1)[0].detach()
            for c in range(3):
                score = class_log_likelihood(x, c)
                activation, delta = dense.tokens_of(CASE.model, layer.modules, score)
                s = s + p[c] * delta.T @ delta
            a = a + activation.T @ activation
        if kind == "kfac":
            block = torch.kron(s / 12, a / 12)
        else:
            squares = [list(g.reshape(3, *layer.shape)) for g in pseudo]
            block, _ = dense.ekfac_matrix([_root(a)], [_root(s)], squares)
    else:
        block = exact
    return torch.linalg.inv(block + damping * block.diagonal().mean() * eye)


def _root(matrix: Tensor) -> Tensor:
    """``R`` with ``R^T R`` the positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0.0).sqrt()).T


def truth(kind: str, damping: float | None = None) -> NDArray[np.float64]:
    """Dense scores ``[query, document]``."""
    if damping is None:
        damping = 0.0 if kind == "identity" else 0.1
    total = torch.zeros(4, 12, dtype=torch.float64)
    for layer in select_layers(CASE.model, "linear"):
        documents = own_gradients(layer.name, CASE.x, CASE.y)
        queries = own_gradients(layer.name, CASE.asked_x, CASE.asked_y)
        total += queries @ inverse_of(kind, layer, damping) @ documents.T / 12
    return total.numpy()


def close(kind: str) -> float:
    """How close to the truth, in units of the largest score: LiSSA stops at a residual of 1e-6."""
    return 1e-4 if kind == "lissa" else 1e-9


def build(kind: str, path: Path, **options: Any) -> wf.Index:
    options = {"encoder": "none", **options}
    with warnings.catch_warnings():
        if kind == "datainf":
            # On so few documents it is next to the gradient dot, and the build says so.
            warnings.simplefilter("ignore")
        return wf.build(CASE.model, (CASE.x, CASE.y), path, curvature=kind, **options)


@pytest.fixture(scope="module", params=[*CURVATURE_KINDS, "datainf-scan"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``(kind, index)``; DataInf in both of its forms."""
    kind = request.param.removesuffix("-scan")
    with pytest.MonkeyPatch.context() as patch:
        if kind != request.param:
            patch.setattr(datainf, "LARGEST_WHITENED_BLOCK", 0)
        if kind == "lissa":
            patch.setattr(lissa.LiSSA, "_begin", _patient(lissa.LiSSA._begin))
        yield kind, build(kind, tmp_path_factory.mktemp(request.param) / "i")


def _patient(original: Any) -> Any:
    def begin(self: lissa.LiSSA, *arguments: Any) -> Any:
        return original(lissa.LiSSA(self.damping, 1e-6, 5_000), *arguments)

    return begin


def test_an_index_equals_the_dense_route(built: Any) -> None:
    kind, index = built
    expected = truth(kind)
    largest = np.abs(expected).max()
    norms = pair_norms(index, CASE.asked)
    np.testing.assert_allclose(
        index.scores(CASE.asked), expected, rtol=1e-6, atol=close(kind) * largest
    )
    if kind == "lissa":
        expected = index.scores(CASE.asked)
    stored = index.scores(CASE.asked, tier="stored")
    assert (np.abs(stored - expected) <= 1e-6 * norms).all()
    for row, scores in enumerate(expected):
        for sign in ("both", "proponents", "opponents"):
            answer = index.query(
                inputs=CASE.asked_x[row], target=int(CASE.asked_y[row]), k=5, sign=sign
            )
            assert_hits(answer, scores, index.doc_ids(), 5, sign, norms[row])
            assert answer.certificate.certified


def test_another_damping_needs_no_new_index(built: Any) -> None:
    kind, index = built
    before = index.scores(CASE.asked, tier="stored")
    for damping in (0.1, 0.3, 3.0):
        expected = truth(kind, damping)
        scale = np.abs(expected).max()
        exact = index.scores(CASE.asked, damping=damping)
        np.testing.assert_allclose(exact, expected, rtol=1e-6, atol=close(kind) * scale)
        stored = index.scores(CASE.asked, tier="stored", damping=damping)
        expected = exact if kind == "lissa" else expected
        asked = np.linalg.norm(index.encode(CASE.asked, damping=damping), axis=1)
        rows = np.linalg.norm(index.vectors(), axis=1)
        assert (np.abs(stored - expected) <= 1e-6 * np.outer(asked, rows) / 12).all()
        answer = index.query(inputs=CASE.asked_x[0], target=0, k=12, damping=damping)
        assert answer.damping == damping
        assert answer.index["damping"] == index.manifest.curvature.damping
    assert np.array_equal(index.scores(CASE.asked, tier="stored"), before)


def test_self_influence_is_the_diagonal(built: Any) -> None:
    _, index = built
    diagonal = index.scores((CASE.x, CASE.y)).diagonal()
    found = index.self_influence()
    assert (found >= 0.0).all()
    np.testing.assert_allclose(found, diagonal, rtol=1e-5, atol=1e-9 * diagonal.max())


def test_an_index_opens_with_the_same_bits(built: Any) -> None:
    kind, index = built
    again = wf.open(index.path, model=CASE.model)
    assert again.curvature.kind == kind
    assert np.array_equal(again.encode(CASE.asked), index.encode(CASE.asked))
    assert np.array_equal(again.scores(CASE.asked), index.scores(CASE.asked))
    assert index.manifest.curvature.fisher == {"identity": None, "datainf": "empirical"}.get(
        kind, "expected"
    )


def test_residuals_are_told(built: Any) -> None:
    kind, index = built
    report = index.manifest.curvature.report
    answer = index.query(inputs=CASE.asked_x[0], target=0)
    if kind == "lissa":
        assert 0.0 < report["residual"] <= 1e-6
        assert report["iterations"] >= 1.0
        assert answer.residual is not None
        assert 0.0 < answer.residual <= 1e-6
    elif kind == "exact":
        assert 0.0 <= report["residual"] < 1e-10
        assert answer.residual is None
    else:
        assert report == {}
        assert answer.residual is None


def test_a_sweep_compares_rankings(built: Any) -> None:
    kind, index = built
    dampings = [0.1, 0.3, 1.0, 100.0]
    sweep = index.sweep_damping(
        inputs=CASE.asked_x[1], target=int(CASE.asked_y[1]), dampings=dampings, k=3
    )
    own = truth(kind)[1]
    for row, damping in zip(sweep.rows, dampings, strict=True):
        scores = truth(kind, damping)[1]
        assert row.damping == damping
        a, b = np.argsort(np.argsort(own)), np.argsort(np.argsort(scores))
        assert row.spearman == pytest.approx(np.corrcoef(a, b)[0, 1], abs=0.03)
    if kind != "identity":
        assert sweep.rows[0].overlap == 1.0
        assert sweep.rows[0].spearman == 1.0
        assert min(row.spearman for row in sweep.rows) < 1.0
    assert sweep.least_overlap == min(row.overlap for row in sweep.rows)
    assert sweep.to_dict()["schema"] == "wherefrom-damping-sweep/1"


def test_a_sample_of_documents_for_datainf(tmp_path: Path) -> None:
    index = build("datainf", tmp_path / "i", fit_documents=5)
    assert index.manifest.curvature.fit_documents == 5
    assert len(index) == 12


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> wf.Index:
    return wf.build(
        tiny_llama(),
        text_documents(),
        tmp_path_factory.mktemp("questions") / "i",
        objective=wf.CausalLM(tiny_tokenizer()),
        encoder="none",
    )


class TestQuestions:
    """Contrasts and sets are sums of measurements, whatever the tier."""

    A = wf.Query("the union of states", " shall be preserved")
    B = wf.Query("the union of states", " will end now")
    C = wf.Query("gold", " silver trade")

    @pytest.mark.parametrize("tier", ["exact", "stored"])
    def test_a_contrast_is_a_difference(self, index: wf.Index, tier: Any) -> None:
        a, b, both = index.scores(
            [self.A, self.B, wf.Query(self.A.prompt, self.A.completion, self.B.completion)],
            tier=tier,
        )
        np.testing.assert_allclose(both, a - b, rtol=1e-5, atol=1e-6 * np.abs(a).max())

    @pytest.mark.parametrize("tier", ["exact", "stored"])
    @pytest.mark.parametrize(("reduce", "share"), [("mean", 1 / 3), ("sum", 1.0)])
    def test_a_set_is_a_mean_or_a_sum(
        self, index: wf.Index, tier: Any, reduce: Any, share: float
    ) -> None:
        queries = (self.A, self.B, self.C)
        single = index.scores(queries, tier=tier)
        (together,) = index.scores([wf.QuerySet(queries, reduce)], tier=tier)
        expected = share * single.sum(0)
        np.testing.assert_allclose(together, expected, rtol=1e-5, atol=1e-6 * np.abs(single).max())

    def test_answers_to_them(self, index: wf.Index) -> None:
        stored: Any = {"rerank": "stored"}
        answer = index.query(prompt="gold", completion=" silver trade", contrast=" army", **stored)
        plain = index.query(prompt="gold", completion=" silver trade")
        other = index.query(prompt="gold", completion=" army")
        assert answer.query == wf.Query("gold", " silver trade", " army")
        assert answer.log_likelihood == pytest.approx(plain.log_likelihood - other.log_likelihood)
        assert answer.scored_tokens == plain.scored_tokens + other.scored_tokens
        (scores,) = index.scores([wf.Query("gold", " silver trade", " army")], tier="stored")
        assert answer.proponents[0].score == scores.max()
        assert answer.opponents[0].score == scores.min()
        queries = [self.A, self.C]
        both = index.query(queries=queries, reduce="sum", k=3, **stored)
        assert both.query == wf.QuerySet((self.A, self.C), "sum")
        (scores,) = index.scores([wf.QuerySet((self.A, self.C), "sum")], tier="stored")
        assert [hit.score for hit in both.proponents] == sorted(scores, reverse=True)[:3]

    def test_a_set_may_be_asked_as_it_is(self, index: wf.Index) -> None:
        queries = wf.QuerySet((self.A, self.C), "sum")
        answer = index.query(queries=queries, k=3)
        assert answer.query == queries
        other = index.query(queries=[self.A, self.C], reduce="sum", k=3)
        assert answer.proponents == other.proponents
        with pytest.raises(QueryError, match="single queries only"):
            index.query(queries=[self.A, queries])

    def test_tensor_contrasts(self, tmp_path: Path) -> None:
        index = build("ekfac", tmp_path / "i")
        x = CASE.asked_x[0]
        answer = index.query(inputs=x, target=0, contrast=1, k=12)
        a, b = index.scores((torch.stack([x, x]), torch.tensor([0, 1])), tier="stored")
        by_id = {h.doc_id: h.score for h in (*answer.proponents, *answer.opponents)}
        found = [by_id.get(doc_id, 0.0) for doc_id in index.doc_ids()]
        np.testing.assert_allclose(found, a - b, rtol=1e-4, atol=1e-5 * np.abs(a).max())
        several = index.query(queries=CASE.asked, reduce="mean", k=12)
        assert several.query is None
        mean = index.scores(CASE.asked, tier="stored").mean(0)
        assert several.proponents[0].score == pytest.approx(mean.max(), rel=1e-4)

    @pytest.mark.parametrize(
        ("asked", "message"),
        [
            ({}, "give prompt="),
            ({"completion": " a", "queries": [wf.Query("b", " c")]}, "one of these only"),
            ({"queries": []}, "empty"),
            ({"queries": [wf.Query("b", " c")], "reduce": "max"}, "'max' is unknown"),
            ({"queries": [wf.Query("b", " c")], "contrast": " d"}, "goes with one query"),
            ({"queries": wf.Query("b", " c")}, r"give a list: \[query\]"),
            ({"completion": " war", "damping": 1e16}, "from 0 to 1e"),
            ({"completion": " a", "contrast": 3}, "contrast= is a int"),
            ({"completion": " a", "contrast": ""}, "completion is empty"),
            ({"inputs": torch.zeros(5), "target": 0}, "index holds text"),
            ({"completion": " war", "damping": -1.0}, r"damping=-1\.0 is not allowed"),
        ],
    )
    def test_bad_questions(self, index: wf.Index, asked: dict[str, Any], message: str) -> None:
        with pytest.raises((QueryError, CurvatureError), match=message):
            index.query(**asked)

    def test_bad_sweeps(self, index: wf.Index) -> None:
        with pytest.raises(QueryError, match="dampings are empty"):
            index.sweep_damping(prompt="gold", completion=" silver", dampings=[])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"curvature": "hessian"}, "'ekfac', 'kfac', 'diagonal'"),
        ({"curvature": "datainf", "fisher": "sampled"}, "own gradients; leave fisher out"),
        ({"curvature": "identity", "fisher": "empirical"}, "no gradients; leave fisher out"),
        ({"curvature": "kfac", "damping": 0.0}, "give a number > 0"),
        ({"curvature": "identity", "damping": -1.0}, "not allowed"),
    ],
)
def test_curvatures_refuse_what_makes_no_sense(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(CurvatureError, match=message):
        wf.build(CASE.model, (CASE.x, CASE.y), tmp_path / "i", **options)
    assert not (tmp_path / "i").exists()


def test_regression_and_its_options(tmp_path: Path) -> None:
    """A linear model under squared error: EK-FAC is exact, and other settings are refused."""
    model = torch.nn.Linear(5, 2).double()
    y = torch.randn(12, 2, dtype=torch.float64)
    path = tmp_path / "i"
    index = wf.build(model, (CASE.x, y), path, objective=wf.Regression(), encoder="none")
    exact = wf.build(
        model,
        (CASE.x, y),
        tmp_path / "exact",
        objective=wf.Regression(),
        encoder="none",
        curvature="exact",
    )
    asked = (CASE.asked_x, torch.zeros(4, 2, dtype=torch.float64))
    a = torch.cat([CASE.x, torch.ones(12, 1, dtype=torch.float64)], 1)
    block = torch.kron(torch.eye(2, dtype=torch.float64), a.T @ a / 12)
    errors = (y - model(CASE.x)).detach()
    documents = torch.einsum("no,ni->noi", errors, a).reshape(12, -1)
    b = torch.cat([CASE.asked_x, torch.ones(4, 1, dtype=torch.float64)], 1)
    queries = torch.einsum("no,ni->noi", -model(CASE.asked_x).detach(), b).reshape(4, -1)
    lam = 0.1 * block.diagonal().mean()
    eye = torch.eye(12, dtype=torch.float64)
    expected = (queries @ torch.linalg.solve(block + lam * eye, documents.T) / 12).numpy()
    for found in (index, exact):
        np.testing.assert_allclose(found.scores(asked), expected, rtol=1e-8)
    with pytest.raises(MismatchError, match="variance"):
        wf.open(path, model=model, objective=wf.Regression(variance=2.0))
    assert np.array_equal(wf.open(path, model=model).scores(asked), index.scores(asked))
