"""Refined queries against dense solves with the whole Gauss-Newton matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from dense_gauss_newton import gauss_newton
from small_models import CASES, Case
from wherefrom.curvature import memory
from wherefrom.curvature.eigen import FittedEigen
from wherefrom.curvature.fitted import FittedCurvature
from wherefrom.curvature.kinds import make_curvature
from wherefrom.errors import CurvatureError, QueryError
from wherefrom.gradients.batches import Batch
from wherefrom.gradients.extractor import GradientExtractor, LayerPair
from wherefrom.gradients.fisher import PseudoGradients, true_gradients
from wherefrom.gradients.layers import select_layers
from wherefrom.query.conjugate_gradients import Refined, refine, require_refinable

PRECISE = {"steps": 200, "tolerance": 1e-9}


def flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])


@dataclass
class Problem:
    """A model with a fitted curvature, and one query's gradient in its coordinates."""

    case: Case
    fitted: FittedCurvature
    extractor: GradientExtractor
    gradient: list[Tensor]

    def batches(self) -> list[Batch]:
        return [self.case.batch([0, 1, 2]), self.case.batch(list(range(3, self.case.count)))]

    def solved(self, **options: object) -> Refined:
        return refine(self.extractor, self.fitted, self.gradient, self.batches, **options)

    def raw(self, parts: Sequence[Tensor]) -> Tensor:
        """In the order of the weights, all layers end to end."""
        return flat([self.fitted.raw(i, part) for i, part in enumerate(parts)])

    @cached_property
    def matrix(self) -> Tensor:
        names = [layer.name for layer in self.extractor.layers]
        return gauss_newton(self.case, names, range(self.case.count))

    def damped(self, damping: float) -> Tensor:
        """``G + lambda`` over all weights."""
        assert isinstance(self.fitted, FittedEigen)
        # K-FAC's trace is its own; every other curvature has the matrix's.
        values = torch.cat([v.reshape(-1) for v in self.fitted.eigenvalues])
        mean = float(values.mean())
        if self.fitted.kind != "kfac" and "llama" not in self.case.name:
            assert mean == pytest.approx(float(self.matrix.diagonal().mean()), rel=1e-5)
        return self.matrix + damping * mean * torch.eye(len(self.matrix), dtype=torch.float64)

    def own(self, damping: float) -> Tensor:
        """The curvature's solution with the same lambda, all layers end to end."""
        assert isinstance(self.fitted, FittedEigen)
        values = torch.cat([v.reshape(-1) for v in self.fitted.eigenvalues])
        return flat(self.gradient) / (values + damping * values.mean())


@cache
def problem(name: str, kind: str = "ekfac") -> Problem:
    case = CASES[name]()
    layers = select_layers(case.model, case.layers)
    extractor = GradientExtractor(case.model, case.objective, layers)
    rows = list(range(case.count))
    fisher = "sampled" if "llama" in name else "expected"
    curvature = make_curvature(kind)
    labels = fisher if curvature.labels == "model" else "empirical"
    fitted = curvature.fit(PseudoGradients(extractor, lambda: [case.batch(rows)], labels))
    coordinates = fitted.coordinates()
    gradient: list[Tensor] = [torch.empty(0)] * len(layers)

    def keep(pair: LayerPair) -> None:
        gradient[pair.layer] = coordinates(pair)[0].double()

    asked = case.batch([2])
    with extractor.session():
        true_gradients(extractor, replace(asked, targets=asked.targets.roll(1)), keep)
    return Problem(case, fitted, extractor, gradient)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("mlp-bias", "ekfac"),
        ("mlp-bias", "kfac"),
        ("shared", "ekfac"),
        ("shared", "diagonal"),
        ("shared", "exact"),
        ("conv", "ekfac"),
        ("lora-merged", "ekfac"),
    ],
)
def test_it_reaches_the_dense_solution(name: str, kind: str) -> None:
    """Whatever the preconditioner."""
    asked = problem(name, kind)
    damping = 10.0
    found = asked.solved(damping=damping, **PRECISE)
    damped = asked.damped(damping)
    expected = torch.linalg.solve(damped, asked.raw(asked.gradient))
    error = (asked.raw(found.solved) - expected).norm()
    # Eigenvalues are summed from gradients in the model's precision or in float32.
    assert error < 1e-6 * expected.norm()
    assert found.residual <= PRECISE["tolerance"]
    assert found.damping == damping


def test_a_language_model_with_padding() -> None:
    asked = problem("lora-llama")
    found = asked.solved(damping=10.0, steps=60, tolerance=1e-6)
    damped = asked.damped(10.0)
    expected = torch.linalg.solve(damped, asked.raw(asked.gradient))
    assert (asked.raw(found.solved) - expected).norm() < 1e-4 * expected.norm()


def test_it_is_another_solution_than_the_blocks_give() -> None:
    asked = problem("mlp-bias")
    found = asked.solved(damping=0.5, **PRECISE)
    cosine = torch.nn.functional.cosine_similarity(flat(found.solved), asked.own(0.5), dim=0)
    assert cosine < 0.98


def test_an_exact_preconditioner_needs_one_step() -> None:
    """Of one layer, the exact block is the whole matrix."""
    whole = problem("mlp-bias", "exact")
    one = whole.extractor.layers[1:2]
    extractor = GradientExtractor(whole.case.model, whole.case.objective, one)
    source = PseudoGradients(extractor, whole.batches, "expected")
    fitted = make_curvature("exact").fit(source)
    gradient = torch.randn(one[0].shape, dtype=torch.float64)
    found = refine(
        extractor, fitted, [gradient], whole.batches, steps=9, damping=0.3, tolerance=1e-6
    )
    assert found.steps == 1
    expected = fitted.with_damping(0.3).solve(0, gradient)
    torch.testing.assert_close(found.solved[0], expected, rtol=1e-6, atol=1e-8)


def test_each_step_comes_nearer() -> None:
    """Conjugate gradients shrink the error in the matrix's norm; residuals are true ones."""
    asked = problem("shared")
    damped = asked.damped(0.5)
    wanted = asked.raw(asked.gradient)
    expected = torch.linalg.solve(damped, wanted)
    errors = []
    for steps in range(7):
        found = asked.solved(steps=steps, damping=0.5, tolerance=0.0)
        assert found.steps == steps == len(found.residuals) - 1
        h = asked.raw(found.solved)
        true = (damped @ h - wanted).norm() / wanted.norm()
        assert found.residual == pytest.approx(float(true), rel=1e-5)
        errors.append(float((h - expected) @ damped @ (h - expected)))
    assert all(later < 0.99 * earlier for earlier, later in pairwise(errors))


def test_the_first_step_takes_the_best_multiple_of_the_curvatures_own_solution() -> None:
    asked = problem("mlp-bias")
    found = flat(asked.solved(steps=1, damping=2.0, tolerance=0.0).solved)
    own = asked.own(2.0)
    raw = asked.raw(_split(asked, own))
    factor = (raw @ asked.raw(asked.gradient)) / (raw @ asked.damped(2.0) @ raw)
    torch.testing.assert_close(found, factor * own, rtol=1e-6, atol=1e-9)


def _split(asked: Problem, whole: Tensor) -> list[Tensor]:
    parts = whole.split([layer.size for layer in asked.extractor.layers])
    return [p.reshape(layer.shape) for p, layer in zip(parts, asked.extractor.layers, strict=True)]


def test_no_steps_give_the_start() -> None:
    asked = problem("mlp-bias")
    start = [torch.full(layer.shape, 0.1).double() for layer in asked.extractor.layers]
    found = asked.solved(steps=0, start=start, damping=0.5)
    assert torch.equal(flat(found.solved), flat(start))
    assert found.steps == 0
    true = asked.damped(0.5) @ asked.raw(start) - asked.raw(asked.gradient)
    expected = float(true.norm() / asked.raw(asked.gradient).norm())
    assert found.residual == pytest.approx(expected, rel=1e-6)
    nothing = asked.solved(steps=0)
    assert not flat(nothing.solved).any()
    assert nothing.residuals == (1.0,)


def test_a_start_is_improved_and_left_alone() -> None:
    asked = problem("mlp-bias")
    start = [asked.fitted.solve(i, g) for i, g in enumerate(asked.gradient)]
    before = flat(start)
    found = asked.solved(start=start, damping=0.5, **PRECISE)
    assert torch.equal(flat(start), before)
    expected = torch.linalg.solve(asked.damped(0.5), asked.raw(asked.gradient))
    torch.testing.assert_close(asked.raw(found.solved), expected, rtol=1e-6, atol=1e-8)


def test_it_stops_at_the_tolerance() -> None:
    asked = problem("conv")
    found = asked.solved(steps=50, damping=5.0, tolerance=0.05)
    assert found.steps < 50
    assert found.residual <= 0.05 < min(found.residuals[:-1])


def test_much_damping_leaves_the_gradient() -> None:
    """One lambda for all layers, though their curvatures are of other sizes."""
    asked = problem("mlp-mixed-inplace")
    assert isinstance(asked.fitted, FittedEigen)
    means = [float(values.mean()) for values in asked.fitted.eigenvalues]
    assert max(means) > 1.5 * min(means)
    found = asked.solved(steps=20, damping=1e9, tolerance=1e-9)
    mean = torch.cat([values.reshape(-1) for values in asked.fitted.eigenvalues]).mean()
    expected = flat(asked.gradient) / (1e9 * mean)
    largest = float(expected.abs().max())
    torch.testing.assert_close(flat(found.solved), expected, rtol=1e-6, atol=1e-6 * largest)


def test_the_same_bits_every_time() -> None:
    asked = problem("conv")
    first, second = (asked.solved(steps=4) for _ in range(2))
    assert torch.equal(flat(first.solved), flat(second.solved))
    assert first.residuals == second.residuals


def test_progress_is_told() -> None:
    told: list[tuple[int, float]] = []
    found = problem("conv").solved(
        steps=3, tolerance=0.0, progress=lambda step, residual: told.append((step, residual))
    )
    assert told == list(enumerate(found.residuals))


def test_a_gradient_of_zero_is_solved_by_zero() -> None:
    asked = problem("mlp-bias")
    zero = replace(asked, gradient=[torch.zeros_like(g) for g in asked.gradient])
    found = zero.solved(steps=5, start=asked.gradient)
    assert not flat(found.solved).any()
    assert found.residual == 0.0


@pytest.mark.parametrize("kind", ["identity", "datainf", "lissa"])
def test_curvatures_without_eigenvalues_are_refused(kind: str) -> None:
    asked = problem("mlp-bias", kind)
    with pytest.raises(QueryError, match=rf"^refine= needs eigenvalues .*'{kind}'.*refine=0$"):
        asked.solved(steps=1)
    with pytest.raises(QueryError, match="refine= needs eigenvalues"):
        require_refinable(asked.fitted)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": -1}, QueryError, "refine=-1 is not allowed"),
        ({"steps": 1, "tolerance": -0.1}, QueryError, "tolerance"),
        ({"steps": 1, "tolerance": float("nan")}, QueryError, "tolerance"),
        ({"steps": 1, "damping": -1.0}, CurvatureError, "damping=-1.0"),
        ({"steps": 1, "damping": float("nan")}, CurvatureError, "damping=nan"),
        ({"steps": 1, "damping": 0.0}, CurvatureError, "damping > 0"),
    ],
)
def test_what_is_out_of_range_is_refused(
    options: dict[str, float], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        problem("mlp-bias").solved(**options)


def test_vectors_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = problem("mlp-bias")
    monkeypatch.setattr(memory, "_limit", lambda device: 1000)
    with pytest.raises(
        CurvatureError,
        match=r"^the vectors of refine= would need .* KiB of memory, more than the 1000 bytes",
    ):
        asked.solved(steps=1)


def test_products_that_overflow_are_refused() -> None:
    asked = problem("mlp-bias")
    huge = replace(asked, gradient=[g * 1e308 for g in asked.gradient])
    with pytest.raises(CurvatureError, match="not finite"):
        huge.solved(steps=1)


def test_the_model_is_left_as_it_was() -> None:
    asked = problem("mlp-bias")
    asked.solved(steps=1)
    assert all(parameter.requires_grad for parameter in asked.case.model.parameters())
    assert not any(module._forward_hooks for module in asked.case.model.modules())
