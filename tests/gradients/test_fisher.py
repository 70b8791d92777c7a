"""Pseudo-gradients: which Fisher suits a model, and the bits of what is drawn."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

import wherefrom as wf
from wherefrom.errors import CurvatureError
from wherefrom.gradients.batches import Batch, stack_examples
from wherefrom.gradients.counter import key_of, uniforms
from wherefrom.gradients.extractor import GradientExtractor, LayerPair
from wherefrom.gradients.fisher import EXPECTED_CLASSES, Fisher, PseudoGradients, default_fisher
from wherefrom.gradients.layers import select_layers


class Squared(wf.Objective):
    """No distribution is known of it."""

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(batch.inputs)

    def log_likelihood(self, outputs: Tensor, targets: Tensor, batch: Batch) -> Tensor:
        return -outputs.square().sum(1)


def extractor(objective: wf.Objective, outputs: int = 3) -> GradientExtractor:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, outputs)).double()
    return GradientExtractor(model, objective, select_layers(model, "linear"))


def batch(count: int = 4, outputs: int = 3, *, labels: bool = True) -> Batch:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, 4, dtype=torch.float64, generator=generator)
    targets = torch.arange(count) % outputs if labels else torch.ones(count, outputs).double()
    return stack_examples(inputs, targets, [f"d{i}" for i in range(count)])


def blocks(
    run: GradientExtractor, given: Sequence[Batch], fisher: Fisher, seed: int = 0
) -> list[Tensor]:
    """Sum over documents (and terms) of the outer products of each layer's gradient."""
    total = [torch.zeros(layer.size, layer.size).double() for layer in run.layers]

    def add(pair: LayerPair) -> None:
        rows = torch.einsum("bto,bti->boi", pair.deltas, pair.activations).flatten(1)
        total[pair.layer] += rows.T @ rows

    assert PseudoGradients(run, lambda: given, fisher, seed=seed).run(add) == sum(map(len, given))
    return total


@pytest.mark.parametrize(
    ("objective", "labels", "outputs", "fisher"),
    [
        (wf.Classification(), True, EXPECTED_CLASSES, "expected"),
        (wf.Classification(), True, EXPECTED_CLASSES + 1, "sampled"),
        (wf.Regression(), False, EXPECTED_CLASSES, "expected"),
        (wf.Regression(), False, EXPECTED_CLASSES + 1, "sampled"),
        (Squared(), True, 3, "empirical"),
    ],
)
def test_the_default_suits_the_model(
    objective: wf.Objective, labels: bool, outputs: int, fisher: Fisher
) -> None:
    run = extractor(objective, outputs)
    assert default_fisher(run, batch(1, outputs, labels=labels)) == fisher


@pytest.mark.parametrize("objective", [wf.Classification(), wf.Regression(variance=2.0)])
def test_sampled_blocks_approach_the_expected(objective: wf.Objective) -> None:
    """With many documents that differ in their id alone."""
    run = extractor(objective)
    labels = isinstance(objective, wf.Categorical)
    one = batch(labels=labels)
    expected = blocks(run, [one], "expected")
    errors = []
    for copies in (25, 2500):
        many = stack_examples(
            one.inputs.repeat(copies, 1),
            one.targets.repeat(copies, *[1] * (one.targets.ndim - 1)),
            [f"{i}" for i in range(4 * copies)],
        )
        sampled = blocks(run, [many], "sampled")
        errors.append(
            max(
                float((s / copies - e).norm() / e.norm())
                for s, e in zip(sampled, expected, strict=True)
            )
        )
    assert errors[1] < 0.1
    assert errors[1] < errors[0] / 3


@pytest.mark.parametrize("fisher", ["sampled", "expected", "empirical"])
def test_blocks_do_not_depend_on_batches(fisher: Fisher) -> None:
    run, whole = extractor(wf.Classification()), batch()
    parts = [
        stack_examples(whole.inputs[rows], whole.targets[rows], [f"d{i}" for i in rows])
        for rows in ([3, 0], [1], [2])
    ]
    for together, apart in zip(
        blocks(run, [whole], fisher), blocks(run, parts, fisher), strict=True
    ):
        torch.testing.assert_close(apart, together, rtol=1e-12, atol=1e-14)


def test_labels_are_drawn_by_the_stream_that_indexes_are_built_with() -> None:
    """The curvature of an index can be made again from its seed, in this and later releases."""
    run, given = extractor(wf.Classification()), batch()
    outputs = run.objective.outputs(run.model, given).detach()
    levels = uniforms(key_of(7, 0), given.keys, 1)[:, 0]
    labels = [
        int(torch.searchsorted(p.cumsum(0), torch.tensor(u).double()))
        for p, u in zip(outputs.softmax(1), levels, strict=True)
    ]
    expected = torch.nn.functional.one_hot(torch.tensor(labels), 3) - outputs.softmax(1)
    deltas: list[Tensor] = []

    def keep(pair: LayerPair) -> None:
        if pair.layer == 1:
            deltas.append(pair.deltas[:, 0])

    PseudoGradients(run, lambda: [given], "sampled", seed=7).run(keep)
    torch.testing.assert_close(deltas[0], expected, rtol=1e-12, atol=1e-14)


def test_more_terms_than_allowed_are_refused() -> None:
    run = extractor(wf.Regression(), EXPECTED_CLASSES + 1)
    given = batch(2, EXPECTED_CLASSES + 1, labels=False)
    with pytest.raises(CurvatureError, match=f"need {EXPECTED_CLASSES + 1} backward passes"):
        blocks(run, [given], "expected")


def test_an_objective_without_a_distribution_has_its_own_labels_only() -> None:
    for fisher in ("sampled", "expected"):
        with pytest.raises(CurvatureError, match="Squared has none: use fisher='empirical'"):
            PseudoGradients(extractor(Squared()), lambda: [batch()], fisher)
    blocks(extractor(Squared()), [batch()], "empirical")


def test_a_distribution_without_expected_terms_says_so() -> None:
    class Half(wf.Regression):
        def expected_terms(self, outputs: Tensor) -> int | None:
            return None

        expected_gradients = wf.Probabilistic.expected_gradients

    assert default_fisher(extractor(Half()), batch(1, labels=False)) == "sampled"
    with pytest.raises(CurvatureError, match="not defined for Half; use fisher='sampled'"):
        blocks(extractor(Half()), [batch(labels=False)], "expected")
