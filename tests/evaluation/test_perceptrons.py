"""Perceptrons and logistic regressions against torch's optimiser and scikit-learn's solver."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from wherefrom.errors import EvaluationError
from wherefrom.evaluation.logistic import fit_logistic
from wherefrom.evaluation.perceptrons import (
    LogisticTrainer,
    MLPRecipe,
    PerceptronTrainer,
    first_weights,
    mlp_logits,
)
from wherefrom.evaluation.trainers import Run
from wherefrom.gradients.layers import select_layers

DOCUMENTS, WIDTH, CLASSES = 23, 5, 3
RECIPE = MLPRecipe(widths=(WIDTH, 7, CLASSES), epochs=4, batch_size=6, learning_rate=0.2)
L2 = 0.01


def examples(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Classes that the inputs tell apart, but not without fault."""
    generator = torch.Generator().manual_seed(7)
    targets = torch.randint(0, CLASSES, (DOCUMENTS,), generator=generator)
    inputs = torch.randn(DOCUMENTS, WIDTH, generator=generator, dtype=torch.float64)
    inputs[:, :CLASSES] += torch.eye(CLASSES)[targets]
    return inputs.to(dtype), targets


def run_of(*left_out: int, seed: int = 0) -> Run:
    members = np.ones(DOCUMENTS, np.bool_)
    members[list(left_out)] = False
    return Run(members, seed)


RUNS = [run_of(), run_of(3), run_of(4), run_of(*range(9), seed=1), run_of(3, seed=1), run_of()]


def weights(model: nn.Module) -> list[Tensor]:
    return [weight.detach() for weight in model.parameters()]


def trained_by_torch(run: Run) -> nn.Module:
    """The same training with torch's own modules, optimiser and schedule."""
    inputs, targets = examples()
    generator = torch.Generator().manual_seed(run.seed)
    start = first_weights(1, RECIPE.widths, generator)
    model = nn.Sequential(nn.Linear(WIDTH, 7), nn.ReLU(), nn.Linear(7, CLASSES)).double()
    for parameter, first in zip(model.parameters(), start, strict=True):
        parameter.data = first[0].reshape(parameter.shape).double()
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=RECIPE.learning_rate,
        momentum=RECIPE.momentum,
        weight_decay=RECIPE.weight_decay,
    )
    count = int(run.members.sum())
    steps = RECIPE.epochs * math.ceil(count / RECIPE.batch_size)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(RECIPE.epochs):
        order = torch.rand(DOCUMENTS, generator=generator).argsort().numpy()
        kept = [int(i) for i in order if run.members[i]]
        for first in range(0, count, RECIPE.batch_size):
            batch = kept[first : first + RECIPE.batch_size]
            optimizer.zero_grad()
            cross_entropy(model(inputs[batch]), targets[batch]).backward()
            optimizer.step()
            rate.step()
    return model


def test_training_is_that_of_torch() -> None:
    models = PerceptronTrainer(*examples(), RECIPE).train(RUNS)
    for run, model in zip(RUNS, models, strict=True):
        for found, expected in zip(weights(model), weights(trained_by_torch(run)), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_a_model_does_not_depend_on_its_company() -> None:
    """In float32 too, where another order of additions would show."""
    trainer = PerceptronTrainer(*examples(torch.float32), RECIPE)
    together = list(trainer.train(RUNS))
    alone = [next(iter(trainer.train([run]))) for run in RUNS]
    for one, other in zip(together, alone, strict=True):
        assert all(map(torch.equal, weights(one), weights(other)))
    assert all(map(torch.equal, weights(together[0]), weights(together[5])))
    assert not torch.equal(weights(together[0])[0], weights(together[1])[0])
    assert not torch.equal(weights(together[1])[0], weights(together[4])[0])


def test_modules_compute_what_was_trained() -> None:
    inputs, _ = examples()
    (model,) = PerceptronTrainer(*examples(), RECIPE).train([run_of()])
    stacked = [w.reshape(1, 1, -1) if w.ndim == 1 else w[None] for w in weights(model)]
    torch.testing.assert_close(model(inputs), mlp_logits(stacked, inputs[None])[0])
    assert not model.training
    assert [layer.d_out for layer in select_layers(model, "linear")] == [7, CLASSES]


@pytest.mark.parametrize(
    "trainer", [PerceptronTrainer(*examples(), RECIPE), LogisticTrainer(*examples(), L2)]
)
def test_trainers_leave_the_random_state_and_can_be_pickled(
    trainer: PerceptronTrainer | LogisticTrainer,
) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    (model,) = trainer.train([run_of(2)])
    assert torch.equal(torch.rand(4), expected)
    (again,) = pickle.loads(pickle.dumps(trainer)).train([run_of(2)])
    assert all(map(torch.equal, weights(model), weights(again)))


def by_scikit(members: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The bias is a weight like the others: scikit-learn would leave its own unpenalised."""
    inputs, targets = (part.numpy() for part in examples())
    design = np.hstack([inputs, np.ones((DOCUMENTS, 1))])
    solver = LogisticRegression(
        C=1 / (L2 * DOCUMENTS), fit_intercept=False, tol=1e-12, max_iter=10_000, solver="newton-cg"
    )
    return solver.fit(design[members], targets[members]).coef_


def test_logistic_regressions_are_those_of_scikit_learn() -> None:
    for run, model in zip(RUNS, LogisticTrainer(*examples(), L2).train(RUNS), strict=True):
        weight, bias = weights(model)
        found = torch.cat([weight, bias[:, None]], 1).numpy()
        np.testing.assert_allclose(found, by_scikit(run.members), rtol=0, atol=1e-6)
        assert isinstance(model, nn.Linear)
        assert not model.training


@given(
    seed=st.integers(0, 2**31),
    scale=st.floats(0.0, 5.0),
    l2=st.floats(1e-4, 1.0),
    left_out=st.integers(0, DOCUMENTS - 1),
)
def test_logistic_fits_are_optima_wherever_they_start(
    seed: int, scale: float, l2: float, left_out: int
) -> None:
    inputs, targets = examples()
    members = torch.from_numpy(run_of(left_out).members)
    start = scale * torch.randn(
        CLASSES, WIDTH + 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    fitted = fit_logistic(inputs, targets, members[None], CLASSES, l2, start=start)[0]
    fitted.requires_grad_()
    logits = inputs @ fitted[:, :-1].T + fitted[:, -1]
    losses = cross_entropy(logits, targets, reduction="none")[members]
    objective = losses.sum() / DOCUMENTS + 0.5 * l2 * fitted.square().sum()
    (gradient,) = torch.autograd.grad(objective, fitted)
    assert float(gradient.abs().max()) < 1e-10


def test_a_document_taken_away_moves_the_optimum_by_its_influence() -> None:
    """``(1/N) H^-1 grad log p``, H without the document: N stays, and so does the penalty."""
    inputs, targets = examples()
    whole, without = LogisticTrainer(inputs, targets, 1.0).train([run_of(), run_of(3)])

    def objective(flat: Tensor) -> Tensor:
        matrix = flat.view(CLASSES, WIDTH + 1)
        logits = inputs @ matrix[:, :-1].T + matrix[:, -1]
        losses = cross_entropy(logits, targets, reduction="none")
        return (losses.sum() - losses[3]) / DOCUMENTS + 0.5 * flat.square().sum()

    def own(flat: Tensor) -> Tensor:
        matrix = flat.view(CLASSES, WIDTH + 1)
        return (matrix[:, :-1] @ inputs[3] + matrix[:, -1]).log_softmax(0)[targets[3]]

    def flat(model: nn.Module) -> Tensor:
        weight, bias = weights(model)
        return torch.cat([weight, bias[:, None]], 1).flatten()

    at = flat(whole)
    hessian = torch.autograd.functional.hessian(objective, at)
    foretold = torch.linalg.solve(hessian, torch.func.grad(own)(at)) / DOCUMENTS
    change = at - flat(without)
    torch.testing.assert_close(change, foretold, rtol=0.01, atol=1e-4)


def refusals() -> Iterator[tuple[str, object]]:
    inputs, targets = examples()
    yield "floats [document, 5]", lambda: PerceptronTrainer(inputs[:, 1:], targets, RECIPE)
    yield "one class for each of 23", lambda: PerceptronTrainer(inputs, targets[1:], RECIPE)
    yield "classes from 0 to 2", lambda: PerceptronTrainer(inputs, targets + 1, RECIPE)
    yield "as int64", lambda: LogisticTrainer(inputs, targets.double())
    yield "give a positive number", lambda: LogisticTrainer(inputs, targets, 0.0)
    nobody = Run(np.zeros(DOCUMENTS, np.bool_), 0)
    strangers = Run(np.ones(DOCUMENTS + 1, np.bool_), 0)
    for trainer in (PerceptronTrainer(inputs, targets, RECIPE), LogisticTrainer(inputs, targets)):
        yield "no members", lambda trainer=trainer: next(trainer.train([run_of(), nobody]))
        yield "a bool for each of 23", lambda trainer=trainer: next(trainer.train([strangers]))
    wild = MLPRecipe(widths=RECIPE.widths, learning_rate=1e12)
    diverging = PerceptronTrainer(inputs, targets, wild)
    yield "give a lower one", lambda: next(diverging.train([run_of()]))
    yield "not finite", lambda: PerceptronTrainer(inputs / 0, targets, RECIPE)


@pytest.mark.parametrize(("message", "call"), list(refusals()), ids=lambda value: str(value)[:24])
def test_refusals_say_what_to_give(message: str, call: object) -> None:
    with pytest.raises(EvaluationError, match=message.replace("[", r"\[")):
        call()  # type: ignore[operator]


def test_a_fit_that_does_not_arrive_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wherefrom.evaluation.logistic._NEWTON_STEPS", 1)
    with pytest.raises(EvaluationError, match="did not converge in 1 Newton steps"):
        next(LogisticTrainer(*examples()).train([run_of()]))
