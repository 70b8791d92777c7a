"""What the experiments with adapters compute beside the package, held to the package."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.experiments.adapter_blocks import (
    DAMPING,
    Direct,
    Fit,
    Recording,
    Unscaled,
    fits,
    products,
    self_influence,
)
from benchmarks.experiments.instructions import CLASSES, familiar, held_out, training
from wherefrom.evaluation.baselines import words
from wherefrom.evaluation.scores import fit, influence
from wherefrom.evaluation.scores import self_influence as expected_self_influence
from wherefrom.evaluation.subject import Subject
from wherefrom.gradients.examples import TensorExamples, batches

QUESTIONS = 5
CURVATURES = {
    "gradient dot": ("identity", None),
    "datainf": ("datainf", None),
    "ekfac, empirical": ("ekfac", "empirical"),
    "ekfac, expected": ("ekfac", "expected"),
    "kfac, expected": ("kfac", "expected"),
    "exact, empirical": ("exact", "empirical"),
    "exact, expected": ("exact", "expected"),
}


def _examples(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 6, generator=generator)
    return inputs, torch.randint(0, 3, (count,), generator=generator)


class Recorded:
    """A small classifier with its recordings; documents fewer or more than weights of a block."""

    def __init__(self, documents: int) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).eval()
        asked = _examples(QUESTIONS, 2)
        self.subject = Subject.of_tensors("", model, _examples(documents, 1), asked)
        extractor = self.subject.extractor
        questions = TensorExamples(asked[0].numpy(), asked[1].numpy(), ["q"] * QUESTIONS)
        # In batches of other sizes than the subject's, so that an order that is lost shows.
        placed = list(batches(self.subject.documents, max_documents=7))[::-1]
        self.own = Recording.own(extractor, placed)
        self.pseudo = Recording.pseudo(extractor, placed, "expected", 0)
        self.asked = Recording.own(extractor, batches(questions, max_documents=2))
        self.found: dict[str, Fit] = fits(self.own, self.pseudo, "expected")

    def scores(self, curvature: str, weights: torch.Tensor | None = None) -> np.ndarray:
        weights = torch.eye(QUESTIONS).double() if weights is None else weights
        solver = self.found[curvature].curvature
        return products(solver, self.asked, weights, self.own.gradients())


@pytest.fixture(scope="module", params=[11, 60])
def recorded(request: pytest.FixtureRequest) -> Recorded:
    return Recorded(request.param)


@pytest.mark.parametrize("name", CURVATURES)
def test_recorded_scores_are_those_of_the_package(recorded: Recorded, name: str) -> None:
    kind, fisher = CURVATURES[name]
    damping = None if kind == "identity" else DAMPING
    fitted = fit(recorded.subject, kind, damping=damping, fisher=fisher)
    expected = influence(recorded.subject, fitted)
    assert recorded.scores(name).sum(0) == pytest.approx(expected, rel=1e-3, abs=1e-4)
    own = self_influence(recorded.found[name].curvature, recorded.own)
    expected_own = expected_self_influence(recorded.subject, fitted)
    assert own == pytest.approx(expected_own, rel=1e-3, abs=1e-4)


def test_a_question_is_the_weighted_sum_of_its_parts(recorded: Recorded) -> None:
    weights = torch.full((1, QUESTIONS), 1 / QUESTIONS).double()
    for name in recorded.found:
        mean = recorded.scores(name, weights)[:, 0]
        assert mean == pytest.approx(recorded.scores(name).mean(1), rel=1e-2, abs=1e-3)


def test_nats_are_in_the_order_of_the_documents(recorded: Recorded) -> None:
    inputs, targets = _examples(len(recorded.subject), 1)
    logits = recorded.subject.extractor.model(inputs).log_softmax(1)
    expected = logits.gather(1, targets[:, None])[:, 0].detach().numpy()
    assert recorded.own.nats == pytest.approx(expected, rel=1e-4)


def test_another_damping_is_another_solution(recorded: Recorded) -> None:
    exact = Direct.fit(recorded.own).with_damping(3.0)
    for layer, gradients in enumerate(exact.gradients):
        block = gradients.T @ gradients / exact.documents
        shift = 3.0 * block.trace() / len(block)
        g = torch.randn(2, *recorded.own.layers[layer].shape).double()
        expected = torch.linalg.solve(
            block + shift * torch.eye(len(block)).double(), g.flatten(1).T
        )
        assert torch.allclose(exact.solve(layer, g).flatten(1), expected.T, rtol=1e-8)


def test_the_unscaled_recursion_is_ten_steps_of_what_was_published() -> None:
    recorded = Recorded(11)
    exact = Direct.fit(recorded.own)
    gradients, shift = exact.gradients[0], exact.shifts[0]
    g = torch.randn(1, *recorded.own.layers[0].shape).double()
    v = g.flatten()
    for _ in range(10):
        products_ = sum((row @ v) * row - shift * v for row in gradients) / len(gradients)
        v = g.flatten() + v - products_
    assert torch.allclose(Unscaled(exact).solve(0, g).flatten(), v, rtol=1e-8)


def test_held_out_tasks_share_no_word_with_those_trained_on() -> None:
    tasks = training()
    assert len({task.prompt + task.answer for task in tasks}) == len(tasks) == 24 * len(CLASSES)
    known = {word for task in tasks for word in words(task.prompt + task.answer)}
    asked = held_out()
    assert not known & {word for task in asked for word in words(task.prompt + task.answer)}
    assert [task.answer for task in familiar()] == [task.answer for task in asked]
    assert {task.kind for task in asked} == set(CLASSES)
