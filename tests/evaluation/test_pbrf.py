"""Proximal Bregman responses against closed forms, dense solves and other minimisers."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from subjects import DOCUMENTS, QUERIES, WIDTH, regression, tensors
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import kl_div
from transformers.pytorch_utils import Conv1D

import wherefrom as wf
from dense import weight_gradient
from dense_gauss_newton import gauss_newton
from small_models import CASES, Case, classifier_case
from wherefrom.curvature.eigen import FittedEigen
from wherefrom.errors import EvaluationError
from wherefrom.evaluation.leave_out import one_document_each, removed
from wherefrom.evaluation.measurement import Measurement
from wherefrom.evaluation.pbrf import (
    Responses,
    damping_of,
    proximal_bregman,
    proximal_responses,
)
from wherefrom.evaluation.perceptrons import LogisticTrainer
from wherefrom.evaluation.quasi_newton import minimise
from wherefrom.evaluation.retraining import Retrainer
from wherefrom.evaluation.scores import fit, influence
from wherefrom.evaluation.subject import Subject
from wherefrom.evaluation.trainers import Run
from wherefrom.gradients.batches import Batch
from wherefrom.gradients.extractor import GradientExtractor
from wherefrom.gradients.layers import select_layers
from wherefrom.query.questions import Question


def transposed() -> nn.Module:
    """GPT-2's kind of linear layer before one of torch's."""
    torch.manual_seed(0)
    first = Conv1D(7, 5)
    nn.init.normal_(first.weight)
    return nn.Sequential(first, nn.Tanh(), nn.Linear(7, 3)).double()


OWN = {"conv1d": lambda: classifier_case("conv1d", transposed())}

PRECISE = {"tolerance": 1e-5, "most": 2000}


@dataclass
class CaseExamples:
    """The documents of a small model."""

    case: Case

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.ones(self.case.count, np.int64)

    @property
    def tokens(self) -> NDArray[np.int64]:
        return self.lengths

    def batch(self, chosen: NDArray[np.int64]) -> Batch:
        return self.case.batch([int(i) for i in chosen])

    def shortened(self, positions: int) -> CaseExamples:
        return self


@cache
def subject_of(name: str) -> tuple[Case, Subject]:
    """A small model; every document is asked about, as itself."""
    case = OWN[name]() if name in OWN else CASES[name]()
    layers = select_layers(case.model, case.layers)
    asked = tuple(Question(None, ((1.0, case.batch([i])),)) for i in range(case.count))
    subject = Subject(
        name,
        GradientExtractor(case.model, case.objective, layers),
        CaseExamples(case),
        asked,
        tuple(f"d{i}" for i in range(case.count)),
        None,
        None,
        "",
    )
    return case, subject


def dense_influence(
    case: Case, subject: Subject, lambdas: tuple[float, ...]
) -> NDArray[np.float64]:
    """``[question, document]`` with the Gauss-Newton matrix of all layers written out."""
    layers = subject.extractor.layers
    names = [layer.name for layer in layers]
    gradients = torch.stack(
        [
            torch.cat([weight_gradient(case.model, n, case.score(i)).flatten() for n in names])
            for i in range(case.count)
        ]
    )
    damping = torch.cat(
        [
            torch.full((layer.size,), lam, dtype=torch.float64)
            for layer, lam in zip(layers, lambdas, strict=True)
        ]
    )
    damped = gauss_newton(case, names, range(case.count)) + damping.diag()
    solved = torch.linalg.solve(damped, gradients.T)
    return (gradients @ solved / case.count).numpy()


@pytest.mark.parametrize(
    ("name", "step", "error"),
    [
        ("mlp-bias", 1e-4, 1e-3),
        ("mlp-no-bias", 1e-4, 1e-3),
        ("shared", 1e-4, 1e-3),
        ("conv", 1e-4, 1e-3),
        ("conv1d", 1e-4, 1e-3),
        # Llama's norms round to float32, which a smaller step would drown in.
        ("lora-llama", 2e-3, 1e-2),
    ],
)
def test_a_small_step_is_damped_gauss_newton_influence_over_all_layers(
    name: str, step: float, error: float
) -> None:
    case, subject = subject_of(name)
    fitted = fit(subject, "ekfac", damping=0.5)
    chosen = [1, 4]
    found = proximal_responses(subject, chosen, fitted, step=step, **PRECISE)
    expected = dense_influence(case, subject, damping_of(fitted))[:, chosen].T
    np.testing.assert_allclose(found.nats, expected, atol=error * np.abs(expected).max())
    assert found.residuals.max() < 1e-2


def test_it_is_the_influence_of_the_exact_block_where_there_is_one_layer() -> None:
    case, subject = subject_of("mlp-bias")
    layer = select_layers(case.model, ["2"])
    extractor = GradientExtractor(case.model, case.objective, layer)
    alone = Subject(
        "one layer",
        extractor,
        subject.documents,
        subject.questions,
        subject.doc_ids,
        None,
        None,
        "",
    )
    fitted = fit(alone, "exact", damping=0.3)
    found = proximal_responses(alone, range(8), fitted, step=1e-4, **PRECISE)
    expected = influence(alone, fitted)
    np.testing.assert_allclose(found.nats.T, expected, atol=1e-3 * np.abs(expected).max())


def test_the_error_of_the_first_order_falls_with_the_step() -> None:
    case, subject = subject_of("mlp-bias")
    fitted = fit(subject, "ekfac")
    expected = dense_influence(case, subject, damping_of(fitted))[:, [3]].T
    errors = [
        np.abs(proximal_responses(subject, [3], fitted, step=s, **PRECISE).nats - expected).max()
        for s in (0.1, 0.01)
    ]
    assert errors[1] < 0.2 * errors[0]


def test_one_damping_for_all_layers_is_in_units_of_the_mean_over_all() -> None:
    case, subject = subject_of("mlp-bias")
    fitted = fit(subject, "ekfac")
    assert isinstance(fitted, FittedEigen)
    lambdas = damping_of(fitted, 2.0)
    every = torch.cat([values.flatten() for values in fitted.eigenvalues])
    assert lambdas == pytest.approx([2.0 * float(every.mean())] * 3)
    found = proximal_responses(subject, [0], fitted, damping=2.0, step=1e-4, **PRECISE)
    expected = dense_influence(case, subject, lambdas)[:, [0]].T
    np.testing.assert_allclose(found.nats, expected, atol=1e-3 * np.abs(expected).max())
    assert found.damping == lambdas


@pytest.mark.parametrize("step", [1.0, 5.0, -1.0])
def test_least_squares_in_closed_form(step: float) -> None:
    """Adding to a linear model with squared error moves it by a rank-one update of ``G``."""
    subject = regression()
    fitted = fit(subject, "ekfac")
    (lam,) = damping_of(fitted)
    x, y = tensors(DOCUMENTS, 0)
    queries, wanted = tensors(QUERIES, 1)
    weight = subject.extractor.model.get_parameter("weight").detach()
    document, epsilon = 5, step / DOCUMENTS
    g = (
        x.T @ x / DOCUMENTS
        + lam * torch.eye(WIDTH)
        + epsilon * torch.outer(x[document], x[document])
    )
    error = float(y[document] - weight @ x[document])
    moved = weight + epsilon * error * torch.linalg.solve(g, x[document])
    before, after = (-0.5 * (wanted - queries @ w.T).square()[:, 0] for w in (weight, moved))
    found = proximal_responses(subject, [document], fitted, step=step, **PRECISE)
    np.testing.assert_allclose(found.nats[0], ((after - before) / step).numpy(), rtol=1e-5)


def test_a_large_step_minimises_the_objective_as_another_optimiser_does() -> None:
    """The objective from its definition, by functional calls and KL, minimised by scipy."""
    case, subject = subject_of("mlp-bias")
    # Under less damping there are several minima.
    fitted = fit(subject, "ekfac", damping=5.0)
    lambdas = damping_of(fitted)
    names = [
        f"{layer.name}.{part}" for layer in subject.extractor.layers for part in ("weight", "bias")
    ]
    step = float(case.count)
    trained = {name: case.model.get_parameter(name).detach() for name in names}
    every = case.batch(list(range(case.count)))
    one = case.batch([6])
    reference = torch.log_softmax(case.model(every.inputs), -1).detach()

    def named(flat: Tensor) -> dict[str, Tensor]:
        parts = flat.split([trained[name].numel() for name in names])
        return {n: p.view(trained[n].shape) for n, p in zip(names, parts, strict=True)}

    def objective(values: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        flat = torch.from_numpy(values).requires_grad_()
        weights = named(flat)
        logp = torch.log_softmax(functional_call(case.model, weights, (every.inputs,)), -1)
        value = kl_div(logp, reference, log_target=True, reduction="sum") / case.count
        for i, name in enumerate(names):
            value = value + 0.5 * lambdas[i // 2] * (weights[name] - trained[name]).square().sum()
        own = torch.log_softmax(functional_call(case.model, weights, (one.inputs,)), -1)
        value = value - own[0, one.targets[0]]
        (gradient,) = torch.autograd.grad(value, flat)
        return value.item(), gradient.numpy()

    start = torch.cat([trained[name].flatten() for name in names]).numpy()
    options = {"maxiter": 5000, "ftol": 1e-15, "gtol": 1e-10, "maxfun": 10000}
    best = minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
    weights = named(torch.from_numpy(best.x))
    after = torch.log_softmax(functional_call(case.model, weights, (every.inputs,)), -1).detach()
    expected = (after - reference)[torch.arange(case.count), every.targets] / step
    found = proximal_responses(subject, [6], fitted, step=step, **PRECISE)
    np.testing.assert_allclose(found.nats[0], expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_an_exact_curvature_makes_it_quick(kind: str) -> None:
    """Of one linear layer under squared error EK-FAC is exact: two steps will do."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 4, generator=generator, dtype=torch.float64) * torch.arange(1.0, 5.0)
    y = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    torch.manual_seed(0)
    model = (nn.Linear(4, 3) if kind == "linear" else Conv1D(3, 4)).double()
    holder = nn.Sequential(model)
    subject = Subject.of_tensors(kind, holder, (x, y), (x[:2], y[:2]), objective=wf.Regression())
    fitted = fit(subject, "ekfac", fisher="expected")
    found = proximal_responses(subject, [3, 4], fitted, step=0.01, tolerance=1e-3)
    assert found.passes.max() <= 3


def test_taking_a_document_out_of_a_logistic_regression_is_to_fit_it_without() -> None:
    """With the damping that it was fitted with, both objectives differ by a constant."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    y = (x @ torch.randn(4, 3, generator=generator, dtype=torch.float64)).argmax(1)
    queries = torch.randn(5, 4, generator=generator, dtype=torch.float64), torch.arange(5) % 3
    l2 = 0.01
    trainer = LogisticTrainer(x, y, l2)
    (model,) = trainer.train([Run(np.ones(30, np.bool_), 0)])
    subject = Subject.of_tensors("logistic", model, (x, y), queries)
    fitted = fit(subject, "ekfac")
    assert isinstance(fitted, FittedEigen)
    damping = l2 / float(fitted.eigenvalues[0].mean())
    chosen = [2, 11, 29]
    found = proximal_responses(
        subject, chosen, fitted, damping=damping, step=-1.0, tolerance=1e-6, most=500
    )
    retrainer = Retrainer(
        trainer, Measurement(subject.extractor.objective, subject.questions), subject.digest
    )
    actual = removed(one_document_each(30, chosen), retrainer, [0]).mean()
    np.testing.assert_allclose(found.nats, actual, atol=1e-5 * np.abs(actual).max())


def test_nothing_of_the_subject_moves() -> None:
    case, subject = subject_of("mlp-bias")
    before = copy.deepcopy(case.model.state_dict())
    wanted = [p.requires_grad for p in case.model.parameters()]
    proximal_responses(subject, [0], fit(subject, "ekfac"))
    assert all(torch.equal(before[k], v) for k, v in case.model.state_dict().items())
    assert [p.requires_grad for p in case.model.parameters()] == wanted


def test_a_network_of_relus_reaches_minima_on_its_kinks() -> None:
    """Where no gradient vanishes: it stops all the same, near where a longer search ends."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 6, generator=generator)
    y = (x[:, 0] * x[:, 1] > 0).long()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.3)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    subject = Subject.of_tensors("relus", model, (x, y), (x[:5], 1 - y[:5]))
    fitted = fit(subject, "ekfac")
    chosen = range(0, 60, 20)
    rough = proximal_responses(subject, chosen, fitted, tolerance=1e-2)
    exact = proximal_responses(subject, chosen, fitted, tolerance=3e-3, most=3000)
    assert (rough.passes < exact.passes).all()
    assert (rough.residuals > 1e-2).any()
    assert np.abs(rough.nats - exact.nats).max() < 0.2 * np.abs(exact.nats).max()


def test_evidence_correlates_over_responses() -> None:
    _, subject = subject_of("mlp-bias")
    fitted = fit(subject, "ekfac")
    responses = proximal_responses(subject, [7, 0, 2, 5], fitted, step=0.01)
    exact = responses.as_scores(len(subject))
    assert not exact[:, [1, 3, 4, 6]].any()
    methods = {"itself": 3.0 * exact, "turned": -exact, "ekfac": influence(subject, fitted)}
    evidence = proximal_bregman(methods, responses, subject="mlp", reference="turned")
    assert evidence.kind == "pbrf"
    for name in ("Pearson", "Spearman"):
        assert evidence.value("itself", name) == pytest.approx(1.0)
        assert evidence.value("turned", name) == pytest.approx(-1.0)
        assert evidence.value("itself", f"{name} above turned") == pytest.approx(2.0)
    assert evidence.value("ekfac", "Pearson") > 0.8
    assert evidence.setting["responses"] == 4


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"documents": []}, "positions of documents"),
        ({"documents": [8]}, "from 0 to 7"),
        ({"documents": [-1]}, "from 0 to 7"),
        ({"step": 0.0}, "adds nothing"),
        ({"tolerance": 0.0}, "tolerance=0.0"),
        ({"damping": 0.0}, "damping > 0"),
        ({"most": 2, "tolerance": 1e-6}, "no response of 1 was reached in 2 passes"),
    ],
)
def test_what_cannot_be_answered_is_refused(changed: dict[str, object], message: str) -> None:
    _, subject = subject_of("mlp-bias")
    arguments = {"documents": [3], **changed}
    with pytest.raises(EvaluationError, match=message):
        proximal_responses(subject, fitted=fit(subject, "ekfac"), **arguments)


def test_curvatures_without_eigenvalues_are_refused() -> None:
    _, subject = subject_of("mlp-bias")
    with pytest.raises(EvaluationError, match="'identity' has none"):
        proximal_responses(subject, [0], fit(subject, "identity"))


def test_merged_adapters_are_refused() -> None:
    _, subject = subject_of("lora-merged")
    with pytest.raises(EvaluationError, match="unmerge the adapter"):
        proximal_responses(subject, [0], fit(subject, "ekfac"))


def test_objectives_without_a_distribution_are_refused() -> None:
    class Hinge(wf.Objective):
        def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
            return model(batch.inputs)

        def log_likelihood(self, outputs: Tensor, targets: Tensor, batch: Batch) -> Tensor:
            return -torch.relu(1.0 - outputs.gather(1, targets[:, None])[:, 0])

    case, subject = subject_of("mlp-bias")
    fitted = fit(subject, "ekfac")
    x = case.batch(list(range(8)))
    hinged = Subject.of_tensors(
        "hinge", case.model, (x.inputs, x.targets), (x.inputs, x.targets), objective=Hinge()
    )
    with pytest.raises(EvaluationError, match="Hinge has no known distribution"):
        proximal_responses(hinged, [0], fitted)


def test_too_few_responses_are_refused() -> None:
    responses = Responses(
        np.array([0]), np.ones((1, 2)), np.zeros(1), np.ones(1, np.int64), 1.0, ()
    )
    with pytest.raises(EvaluationError, match="1 changes are too few"):
        proximal_bregman({"a": np.ones((2, 5))}, responses, subject="x")


def test_the_minimiser_solves_a_quadratic_in_one_step_with_its_inverse() -> None:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(6, 6, dtype=torch.float64, generator=generator)
    matrix = root @ root.T + torch.eye(6)
    wanted = torch.arange(6.0, dtype=torch.float64)

    def quadratic(point: Tensor) -> tuple[float, Tensor]:
        away = point - wanted
        return 0.5 * float(away @ matrix @ away), matrix @ away

    start = torch.zeros(6, dtype=torch.float64)
    best = minimise(
        quadratic, start, lambda v: torch.linalg.solve(matrix, v), tolerance=1e-9, most=10
    )
    assert best.reached
    assert best.passes == 2
    torch.testing.assert_close(best.point, wanted)
    blind = minimise(quadratic, start, lambda v: v.clone(), tolerance=1e-9, most=200)
    assert blind.reached
    torch.testing.assert_close(blind.point, wanted, atol=1e-6, rtol=0)
    assert not minimise(quadratic, start, lambda v: v.clone(), tolerance=1e-9, most=3).reached


def test_the_minimiser_stops_at_a_kink() -> None:
    """``|x| + (x - 0.5)^2 / 2 + y^2`` has its minimum at 0, where its gradient jumps."""

    def kinked(point: Tensor) -> tuple[float, Tensor]:
        x, y = float(point[0]), float(point[1])
        value = abs(x) + 0.5 * (x - 0.5) ** 2 + y * y
        slope = (1.0 if x > 0 else -1.0) + x - 0.5
        return value, torch.tensor([slope, 2 * y], dtype=torch.float64)

    start = torch.tensor([3.0, 2.0], dtype=torch.float64)
    best = minimise(kinked, start, lambda v: v.clone(), tolerance=1e-3, most=500)
    assert best.reached
    assert float(best.point.norm()) < 1e-3


def test_a_slope_without_end_is_no_minimum() -> None:
    def falling(point: Tensor) -> tuple[float, Tensor]:
        return -float(point.exp().sum()), -point.exp()

    start = torch.zeros(2, dtype=torch.float64)
    assert not minimise(falling, start, lambda v: v.clone(), tolerance=1e-2, most=500).reached


def test_a_document_whose_likelihood_can_fall_for_ever_is_not_taken_out() -> None:
    _, subject = subject_of("mlp-bias")
    fitted = fit(subject, "ekfac", damping=1e-6)
    with pytest.raises(EvaluationError, match="no response of 1 was reached"):
        proximal_responses(subject, [0], fitted, step=-100.0)


def test_a_flat_start_is_a_minimum() -> None:
    start = torch.zeros(3, dtype=torch.float64)
    best = minimise(lambda p: (0.0, p.clone()), start, lambda v: v, tolerance=1e-3, most=5)
    assert best.reached
    assert best.passes == 1
    assert torch.equal(best.point, start)
