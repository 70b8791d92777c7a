"""Objectives: log-likelihoods, their gradients, and the Fisher of the outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, jacrev

import wherefrom as wf
from wherefrom.errors import CurvatureError, ModelError
from wherefrom.gradients.batches import Batch, stack_examples
from wherefrom.gradients.counter import key_of, normals, uniforms
from wherefrom.gradients.objectives import Probabilistic, objective_from

CLASSES = 3


def network(outputs: int = CLASSES) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, outputs)).double()


def examples(count: int, targets: Tensor) -> Batch:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, 4, dtype=torch.float64, generator=generator)
    return stack_examples(inputs, targets, [f"d{i}" for i in range(count)])


def classes(count: int = 6) -> Batch:
    return examples(count, torch.arange(count) % CLASSES)


def numbers(count: int = 6, outputs: int = CLASSES) -> Batch:
    return examples(count, torch.linspace(-1, 1, count * outputs).double().reshape(count, outputs))


CASES: dict[str, tuple[Probabilistic, Batch]] = {
    "classification": (wf.Classification(), classes()),
    "regression": (wf.Regression(), numbers()),
    "noisy regression": (wf.Regression(variance=2.5), numbers()),
}
every_case = pytest.mark.parametrize("name", CASES)


def scored_logits() -> tuple[Tensor, Batch]:
    """Two documents of three positions, of which some do not count."""
    logits = torch.randn(2, 3, 5, dtype=torch.float64)
    scored = torch.tensor([[True, False, True], [False, True, False]])
    batch = stack_examples(torch.zeros(2, 3), torch.tensor([[0, 1, 2], [3, 4, 0]]), ["a", "b"])
    return logits, Batch(batch.inputs, batch.targets, batch.doc_ids, batch.keys, scored=scored)


def autograd(objective: wf.Objective, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    leaf = outputs.detach().requires_grad_()
    nats = objective.log_likelihood(leaf, batch.targets, batch)
    (gradient,) = torch.autograd.grad(nats.sum(), leaf)
    return nats.detach(), gradient


def test_the_categorical_closed_form_is_the_gradient() -> None:
    logits, batch = scored_logits()
    objective = wf.CausalLM()
    nats, gradient = objective.differentiate(logits, batch.targets, batch)
    expected_nats, expected = autograd(objective, logits, batch)
    torch.testing.assert_close(nats, expected_nats, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)
    assert torch.equal(gradient[0, 1], torch.zeros(5, dtype=torch.float64))


def test_a_subclass_with_its_own_likelihood_is_not_differentiated_by_the_closed_form() -> None:
    class Tempered(wf.Classification):
        def log_likelihood(self, outputs: Tensor, targets: Tensor, batch: Batch) -> Tensor:
            return super().log_likelihood(outputs / 2, targets, batch)

    batch = classes()
    outputs = Tempered().outputs(network(), batch)
    _, gradient = Tempered().differentiate(outputs, batch.targets, batch)
    torch.testing.assert_close(gradient, autograd(Tempered(), outputs, batch)[1])
    assert Tempered.kind == "Tempered", "an index must not take it for plain classification"


@pytest.mark.parametrize("variance", [1.0, 2.5])
def test_regression_is_a_gaussian_log_likelihood(variance: float) -> None:
    objective, batch = wf.Regression(variance=variance), numbers()
    outputs = objective.outputs(network(), batch).detach()
    nats, gradient = objective.differentiate(outputs, batch.targets, batch)
    normal = torch.distributions.Normal(outputs, math.sqrt(variance))
    torch.testing.assert_close(nats, normal.log_prob(batch.targets).sum(1))
    torch.testing.assert_close(gradient, (batch.targets - outputs) / variance)


def test_one_number_a_document_may_be_a_vector_or_a_column() -> None:
    objective, model = wf.Regression(), network(1)
    column = numbers(outputs=1)
    vector = examples(6, column.targets[:, 0])
    outputs = objective.outputs(model, column)
    assert outputs.shape == (6, 1)
    both = [objective.log_likelihood(outputs, b.targets, b) for b in (column, vector)]
    assert torch.equal(both[0], both[1])
    assert both[0].shape == (6,)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.zeros(6, 2).double(), r"shape \(6, 2\), the model's predictions \(6, 3\)"),
        (torch.zeros(6).double(), r"shape \(6,\)"),
        (torch.zeros(6, 3, dtype=torch.long), r"type torch.int64; .*targets.float\(\)"),
    ],
)
def test_targets_that_do_not_fit_predictions_are_refused(targets: Tensor, message: str) -> None:
    batch = examples(6, targets)
    objective = wf.Regression()
    with pytest.raises(ModelError, match=message):
        objective.differentiate(objective.outputs(network(), batch), targets, batch)


def test_models_that_return_something_else_are_refused() -> None:
    class Wrong(nn.Module):
        def __init__(self, result: object) -> None:
            super().__init__()
            self.result = result

        def forward(self, inputs: Tensor) -> object:
            return self.result

    for objective in (wf.Regression(), wf.Classification()):
        for result in ({}, torch.tensor(1.0), torch.zeros(5)):
            with pytest.raises(ModelError, match=r"Wrong returned .*your own wf.Objective"):
                objective.outputs(Wrong(result), numbers())


@pytest.mark.parametrize("variance", [0.0, -1.0, math.inf, math.nan])
def test_bad_variances_are_refused(variance: float) -> None:
    with pytest.raises(ModelError, match="give a number > 0"):
        wf.Regression(variance=variance)


# The Fisher of the outputs


def hessian(objective: wf.Objective, outputs: Tensor, batch: Batch, row: int) -> Tensor:
    """Of minus the log-likelihood with respect to one document's outputs, by autograd."""

    def loss(given: Tensor) -> Tensor:
        whole = torch.cat([outputs[:row], given[None], outputs[row + 1 :]])
        return -objective.log_likelihood(whole, batch.targets, batch).sum()

    # Reverse over reverse: forward mode warns about torch.jit.
    return jacrev(jacrev(loss))(outputs[row])


@every_case
def test_expected_gradients_make_the_gauss_newton_of_the_weights(name: str) -> None:
    objective, batch = CASES[name]
    model = network()
    parameters = {n: p.detach() for n, p in model.named_parameters()}
    outputs = objective.outputs(model, batch)
    terms = list(objective.expected_gradients(outputs, batch))
    assert len(terms) == objective.expected_terms(outputs) == CLASSES
    for row in range(len(batch)):
        jacobian = jacrev(lambda p, row=row: functional_call(model, p, (batch.inputs[row],)))(
            parameters
        )
        flat = torch.cat([j.reshape(CLASSES, -1) for j in jacobian.values()], 1)
        expected = flat.T @ hessian(objective, outputs.detach(), batch, row) @ flat
        pulled = torch.stack([term[row] for term in terms]) @ flat
        torch.testing.assert_close(pulled.T @ pulled, expected, rtol=1e-10, atol=1e-12)


@every_case
def test_sampled_gradients_converge_to_the_expected_as_one_over_the_root(name: str) -> None:
    objective, batch = CASES[name]
    single = objective.outputs(network(), batch)[:1].detach()
    truth = hessian(
        objective, single, stack_examples(batch.inputs[:1], batch.targets[:1], ["a"]), 0
    )
    errors = []
    for draws in (400, 40_000):
        many = Batch(
            batch.inputs[:1].expand(draws, -1),
            batch.targets[:1].expand(draws, *batch.targets.shape[1:]),
            ("a",) * draws,
            np.arange(draws, dtype=np.uint64),
        )
        drawn = objective.sampled_gradient(single.expand(draws, -1), many, key_of(3, 0))
        errors.append(float((drawn.T @ drawn / draws - truth).norm() / truth.norm()))
        assert drawn.mean(0).norm() < 4 * truth.trace().sqrt() / draws**0.5
        assert errors[-1] < 8 / draws**0.5
    assert errors[1] < errors[0] / 4


@every_case
def test_draws_belong_to_documents_and_not_to_batches(name: str) -> None:
    objective, batch = CASES[name]
    outputs = objective.outputs(network(), batch).detach()
    together = objective.sampled_gradient(outputs, batch, key_of(3, 0))
    turned = stack_examples(batch.inputs.flip(0), batch.targets.flip(0), batch.doc_ids[::-1])
    assert torch.equal(
        objective.sampled_gradient(outputs.flip(0), turned, key_of(3, 0)).flip(0), together
    )
    for row in range(len(batch)):
        alone = stack_examples(
            batch.inputs[row : row + 1], batch.targets[row : row + 1], batch.doc_ids[row : row + 1]
        )
        single = objective.sampled_gradient(outputs[row : row + 1], alone, key_of(3, 0))
        assert torch.equal(single[0], together[row])
    assert not torch.equal(objective.sampled_gradient(outputs, batch, key_of(4, 0)), together)


@every_case
def test_outputs_that_are_not_finite_name_the_document(name: str) -> None:
    objective, batch = CASES[name]
    outputs = objective.outputs(network(), batch).detach()
    outputs[4, 2] = math.nan
    attempts: list[Callable[[], object]] = [
        lambda: objective.sampled_gradient(outputs, batch, key_of(0, 0)),
        lambda: next(iter(objective.expected_gradients(outputs, batch))),
    ]
    for attempt in attempts:
        with pytest.raises(ModelError, match="document 'd4' is not finite"):
            attempt()


def test_expected_is_not_defined_for_several_predictions_of_classes() -> None:
    logits, batch = scored_logits()
    objective = wf.CausalLM()
    assert objective.expected_terms(logits) is None
    with pytest.raises(CurvatureError, match="makes several: use fisher='sampled'"):
        next(objective.expected_gradients(logits, batch))


# Random numbers


@given(count=st.integers(1, 9), positions=st.integers(1, 9))
def test_normal_numbers_are_box_mullers_and_do_not_depend_on_how_many(
    count: int, positions: int
) -> None:
    keys = np.arange(count, dtype=np.uint64) * np.uint64(977)
    found = normals(key_of(1, 2), keys, positions)
    assert found.shape == (count, positions)
    assert np.array_equal(found, normals(key_of(1, 2), keys, positions + 3)[:, :positions])
    assert np.array_equal(found[-1:], normals(key_of(1, 2), keys[-1:], positions))
    pair = uniforms(key_of(1, 2), keys, 2)
    radius = np.sqrt(-2 * np.log(1 - pair[:, 0]))
    np.testing.assert_allclose(found[:, 0], radius * np.cos(2 * np.pi * pair[:, 1]), rtol=1e-12)


def test_normal_numbers_are_normal() -> None:
    found = normals(key_of(1, 2), np.arange(1000, dtype=np.uint64), 100)
    assert abs(found.mean()) < 4 / found.size**0.5
    assert abs(found.var() - 1) < 4 * (2 / found.size) ** 0.5
    assert abs((found**4).mean() - 3) < 4 * (96 / found.size) ** 0.5
    correlation = np.corrcoef(found[:, ::2].reshape(-1), found[:, 1::2].reshape(-1))[0, 1]
    assert abs(correlation) < 4 / (found.size / 2) ** 0.5


# A user's own


class SoftTargets(wf.Objective):
    """Cross-entropy with a distribution as target."""

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(batch.inputs)

    def log_likelihood(self, outputs: Tensor, targets: Tensor, batch: Batch) -> Tensor:
        return (targets * outputs.log_softmax(-1)).sum(-1)


class Poisson(Probabilistic):
    """Counts, with the logarithm of their rate as output, and a Fisher."""

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(batch.inputs)[:, 0]

    def log_likelihood(self, outputs: Tensor, targets: Tensor, batch: Batch) -> Tensor:
        return targets * outputs - outputs.exp() - torch.lgamma(targets + 1.0)

    def sampled_gradient(self, outputs: Tensor, batch: Batch, key: np.ndarray) -> Tensor:
        rate = outputs.detach().exp()
        normal = torch.from_numpy(normals(key, batch.keys, 1))[:, 0]
        return rate.sqrt() * normal

    def expected_terms(self, outputs: Tensor) -> int | None:
        return 1

    def expected_gradients(self, outputs: Tensor, batch: Batch) -> Iterator[Tensor]:
        yield outputs.detach().exp().sqrt()


def test_a_users_own_objective_needs_two_methods() -> None:
    batch = examples(6, torch.softmax(torch.randn(6, CLASSES).double(), 1))
    objective = SoftTargets()
    assert (objective.kind, objective.copies, dict(objective.options())) == ("SoftTargets", 1, {})
    assert objective.bind(network(), None) is objective
    outputs = objective.outputs(network(), batch)
    nats, gradient = objective.differentiate(outputs, batch.targets, batch)
    assert nats.shape == (6,)
    torch.testing.assert_close(gradient, batch.targets - outputs.detach().softmax(-1))


def test_a_users_own_distribution_has_the_fisher_of_its_outputs() -> None:
    batch = examples(6, torch.arange(6).double())
    outputs = Poisson().outputs(network(), batch).detach()
    (term,) = Poisson().expected_gradients(outputs, batch)
    for row in range(6):
        torch.testing.assert_close(term[row] ** 2, hessian(Poisson(), outputs, batch, row))


# What an index records


@pytest.mark.parametrize(
    "objective",
    [
        wf.Classification(),
        wf.Regression(variance=2.5),
        wf.CausalLM(context=7),
        wf.MaskedLM(context=8, probability=0.3, seed=4),
        wf.SequenceClassification(label="mood", context=9),
    ],
    ids=lambda objective: objective.kind,
)
def test_an_objective_can_be_made_again(objective: wf.Objective) -> None:
    again = objective_from(objective.kind, dict(objective.options()))
    assert type(again) is type(objective)
    assert again.options() == objective.options()


def test_what_cannot_be_made_again_says_so() -> None:
    with pytest.raises(ModelError, match=r"your own, 'SoftTargets'; open it with objective="):
        objective_from("SoftTargets", {})
    with pytest.raises(ModelError, match="cannot be made from what the index records"):
        objective_from("regression", {"width": 3})
