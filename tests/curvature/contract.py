"""One suite for all curvatures: what each promises, against its own dense twin.

A curvature gets the tests by a subclass that says how it is fitted and what ``(G_l + lambda_l)^-1``
is as an explicit matrix, built from independent gradients (``reference.py``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from curvature import reference
from curvature.reference import Applied, LayerTruth, case_of, fishers, pairs, shifted, truth
from small_models import CASES, Case
from wherefrom.curvature.fitted import Curvature, CurvatureKind, FittedCurvature, Rectangles
from wherefrom.curvature.kinds import curvature_from_state
from wherefrom.errors import CurvatureError
from wherefrom.gradients.batches import Batch
from wherefrom.gradients.extractor import LayerPair
from wherefrom.gradients.fisher import Fisher, true_gradients

SMALL = ["mlp-bias", "conv-groups", "llama-mlp", "lora-llama"]
"""Where a property needs no look at every layer kind."""


class Sides:
    """Both sides of scores, layer by layer, from one fitted curvature.

    Attributes:
        asked: Queries' gradients in the basis, ``[query, d_out, d_in]`` of each layer.
        known: Documents'.
    """

    def __init__(self, case: Case, fitted: FittedCurvature) -> None:
        rows = list(range(case.count))
        self.case, self.fitted = case, fitted
        self.known = _coordinates(case, fitted, case.batch(rows))
        self.asked = _coordinates(case, fitted, shifted(case, rows))

    def scores(self, asking: FittedCurvature | None = None) -> Tensor:
        """``<psi, phi> / N``, ``[query, document]``; ``asking`` gives the queries' side."""
        return sum(self.shares(asking))

    def shares(self, asking: FittedCurvature | None = None) -> list[Tensor]:
        """``<psi_l, phi_l> / N`` of each layer."""
        asking = asking or self.fitted
        found = []
        for i, (asked, known) in enumerate(zip(self.asked, self.known, strict=True)):
            scale = self.fitted.scale(i)
            psi = (asking.solve(i, asked) / scale).flatten(1)
            phi = (known.double() * scale).flatten(1)
            found.append(psi @ phi.T / self.case.count)
        return found


def _coordinates(
    case: Case,
    fitted: FittedCurvature,
    batch: Batch,
    rectangles: Rectangles | None = None,
) -> list[Tensor]:
    extractor = reference.extractor_of(case)
    coordinates = fitted.coordinates(rectangles)
    found: list[Tensor] = [torch.empty(0)] * len(fitted.layers)

    def keep(pair: LayerPair) -> None:
        found[pair.layer] = coordinates(pair)

    with extractor.session():
        true_gradients(extractor, batch, keep)
    return found


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Equal to a share of the largest entry."""
    allowed = tolerance * float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0.0, atol=allowed)


def parameters(metafunc: pytest.Metafunc) -> None:
    """``name`` and ``fisher`` of every case that a curvature can be fitted on."""
    kind = metafunc.cls.kind
    if {"name", "fisher"} <= set(metafunc.fixturenames):
        metafunc.parametrize(
            ("name", "fisher"), [(name, fisher) for name in CASES for fisher in fishers(name, kind)]
        )
    elif "name" in metafunc.fixturenames:
        metafunc.parametrize("name", SMALL)


class CurvatureContract(ABC):
    """The suite; subclasses are collected by pytest."""

    kind: ClassVar[CurvatureKind]
    damping: ClassVar[float] = 0.1
    tolerance: ClassVar[float] = 1e-7
    whitens: ClassVar[bool] = True
    fitted_on: ClassVar[bool] = True
    """Whether anything is fitted at all."""
    telling: ClassVar[str] = "llama-attention"
    """A language model on which curvature shows."""
    more_than_weights: ClassVar[bool] = True
    """Whether scores are more than gradient dots, each layer with a weight."""
    zero_damping: ClassVar[bool] = True
    """Whether damping may be 0 where nothing is singular."""
    knows_energy: ClassVar[bool] = True
    """Whether eigenvalues are at hand."""

    @abstractmethod
    def recipe(self, damping: float) -> Curvature:
        """How to fit."""

    @staticmethod
    @abstractmethod
    def inverse(layer: LayerTruth, damping: float) -> Tensor:
        """``(G_l + lambda_l)^-1 [D, D]``, built another way."""

    def mean_inverse(self, applied: Applied, layer: LayerTruth, damping: float) -> float:
        """What ``mean_inverse`` should be."""
        return applied.mean

    def default(self) -> Curvature:
        """At the default damping; good enough to compare scores."""
        return self.recipe(0.1)

    def fisher(self, name: str) -> Fisher:
        """The default one of a case."""
        return fishers(name, self.kind)[0]

    def fit(self, source: object, damping: float | None = None) -> FittedCurvature:
        return self.recipe(self.damping if damping is None else damping).fit(source)

    def fitted(self, name: str, fisher: Fisher) -> FittedCurvature:
        return _fitted(type(self), name, fisher)

    def sides(self, name: str, fisher: Fisher) -> Sides:
        return _sides(type(self), name, fisher)

    def twin(self, name: str, fisher: Fisher, damping: float) -> list[Applied]:
        return _twin(self.inverse, name, fisher, damping)

    # Against the dense twin.

    def test_scores_equal_the_dense_operator(self, name: str, fisher: Fisher) -> None:
        expected = sum(applied.scores for applied in self.twin(name, fisher, self.damping))
        close(self.sides(name, fisher).scores(), expected, self.tolerance)

    def test_solve_is_the_dense_inverse_in_the_basis(self, name: str, fisher: Fisher) -> None:
        sides = self.sides(name, fisher)
        twin = self.twin(name, fisher, self.damping)
        for i, (layer, applied) in enumerate(zip(truth(name, fisher), twin, strict=True)):
            raw = sides.fitted.raw(i, sides.asked[i])
            assert raw.dtype == torch.float64
            close(raw.flatten(1), layer.queries, 1e-10)
            solved = sides.fitted.solve(i, sides.asked[i])
            assert solved.dtype == torch.float64
            close(sides.fitted.raw(i, solved).flatten(1), applied.solved, self.tolerance)

    def test_energies_are_the_diagonal(self, name: str, fisher: Fisher) -> None:
        sides = self.sides(name, fisher)
        twin = self.twin(name, fisher, self.damping)
        for i, (layer, applied) in enumerate(zip(truth(name, fisher), twin, strict=True)):
            energies = sides.fitted.energies(i, sides.known[i])
            assert bool((energies >= 0).all())
            close(energies, applied.energies, self.tolerance)
            scale = sides.fitted.scale(i)
            assert scale.dtype == torch.float64
            assert scale.shape == sides.fitted.layers[i].shape
            assert bool((scale > 0).all())
            assert sides.fitted.whitens(i) is self.whitens
            if self.whitens:
                norms = (sides.known[i] * scale).flatten(1).square().sum(1)
                close(norms, applied.energies, self.tolerance)
            expected = self.mean_inverse(applied, layer, self.damping)
            assert sides.fitted.mean_inverse(i) == pytest.approx(expected, rel=1e-7)

    def test_another_damping_moves_the_queries_side_only(self, name: str, fisher: Fisher) -> None:
        """Documents keep the scale they were stored with; the score is that of the new damping."""
        sides = self.sides(name, fisher)
        other = 7 * self.damping + 0.5
        asking = sides.fitted.with_damping(other)
        assert asking.damping == other
        twin = self.twin(name, fisher, other)
        close(sides.scores(asking), sum(applied.scores for applied in twin), self.tolerance)
        for i, (layer, applied) in enumerate(zip(truth(name, fisher), twin, strict=True)):
            assert torch.equal(asking.scale(i), sides.fitted.scale(i))
            assert not asking.whitens(i)
            mean = self.mean_inverse(applied, layer, other)
            assert asking.mean_inverse(i) == pytest.approx(mean, rel=1e-7)

    # Coordinates.

    def test_expected_energies_are_those_of_the_dense_operator(self, name: str) -> None:
        """``Lambda / (Lambda + lambda)``, under the damping of the documents' side."""
        fisher = self.fisher(name)
        fitted = self.fitted(name, fisher)
        for i, (layer, known) in enumerate(zip(fitted.layers, truth(name, fisher), strict=True)):
            energy = fitted.expected_energy(i)
            assert (energy is not None) is self.knows_energy
            if energy is None:
                continue
            inverse = self.inverse(known, self.damping)
            trace = float(torch.linalg.inv(inverse).diagonal().mean())
            lam = trace * self.damping / (1.0 + self.damping)
            units = torch.eye(layer.size, dtype=torch.float64).reshape(-1, *layer.shape)
            basis = fitted.raw(i, units).flatten(1)
            expected = 1.0 - lam * ((basis @ inverse) * basis).sum(1).reshape(layer.shape)
            close(energy, expected, 1e-6)
            assert torch.equal(fitted.with_damping(3.0).expected_energy(i), energy)

    def test_rectangles_of_coordinates_are_parts_of_the_whole(self, name: str) -> None:
        """Whatever their form: all, none, one row, some columns, in any order."""
        sides = self.sides(name, self.fisher(name))
        generator = torch.Generator().manual_seed(0)
        for number in range(6):
            rectangles = []
            for layer in sides.fitted.layers:
                d_out, d_in = layer.shape
                counts = {0: (d_out, d_in), 1: (0, 0), 2: (1, d_in), 3: (d_out, 1)}.get(
                    number, (max(1, d_out // 2), max(1, d_in // 3))
                )
                sides_of = zip(layer.shape, counts, strict=True)
                rows, columns = (torch.randperm(d, generator=generator)[:k] for d, k in sides_of)
                rectangles.append((rows, columns))
            batch = sides.case.batch(list(range(sides.case.count)))
            found = _coordinates(sides.case, sides.fitted, batch, rectangles)
            for part, whole, (rows, columns) in zip(found, sides.known, rectangles, strict=True):
                expected = whole[:, rows[:, None], columns]
                assert part.shape == expected.shape
                if part.numel():
                    allowed = 1e-12 * float(whole.abs().max())
                    torch.testing.assert_close(part, expected, rtol=0.0, atol=allowed)

    # Damping.

    def test_another_damping_leaves_no_trace(self, name: str) -> None:
        sides = self.sides(name, self.fisher(name))
        before = sides.scores()
        there = sides.fitted.with_damping(40.0)
        sides.scores(there)
        assert torch.equal(sides.scores(), before)
        back = there.with_damping(self.damping)
        assert torch.equal(sides.scores(back), before)
        assert all(back.whitens(i) is self.whitens for i in range(len(sides.known)))

    def test_damping_of_a_layer_does_not_leak_into_others(self, name: str) -> None:
        """One layer's gradients grown a hundredfold: the others keep their bits."""
        case, fisher = case_of(name), self.fisher(name)
        sides = self.sides(name, fisher)
        grown = self.fit(reference.Altered(pairs(case, fisher), 0, 100.0))
        for damping in (self.damping, 3.0):
            one, other = sides.fitted.with_damping(damping), grown.with_damping(damping)
            for i in range(1, len(sides.known)):
                assert torch.equal(one.scale(i), other.scale(i))
                assert torch.equal(one.solve(i, sides.asked[i]), other.solve(i, sides.asked[i]))
            first = other.solve(0, sides.asked[0])
            assert torch.equal(first, one.solve(0, sides.asked[0])) is not self.fitted_on

    def test_large_damping_leaves_the_gradient_dot(self, name: str) -> None:
        sides = self.sides(name, self.fisher(name))
        large = sides.fitted.with_damping(1e9)
        layers = truth(name, self.fisher(name))
        for i, (share, layer) in enumerate(zip(sides.shares(large), layers, strict=True)):
            dots = layer.queries @ layer.documents.T / sides.case.count
            close(share / large.mean_inverse(i), dots, 1e-5)

    @pytest.mark.parametrize("damping", [-1.0, -1e-9, float("nan"), float("inf")])
    def test_bad_damping_is_refused(self, damping: float) -> None:
        fitted = self.fitted("mlp-bias", self.fisher("mlp-bias"))
        with pytest.raises(CurvatureError, match=f"damping={damping} is not allowed"):
            fitted.with_damping(damping)
        source = pairs(case_of("mlp-bias"), self.fisher("mlp-bias"))
        with pytest.raises(CurvatureError, match=f"damping={damping} is not allowed"):
            self.fit(source, damping)

    def test_no_damping_is_refused_where_a_block_is_singular(self) -> None:
        """Eight documents do not fill 42 directions; the last layer's gradients sum to zero."""
        fitted = self.fitted("mlp-bias", self.fisher("mlp-bias"))
        source = pairs(case_of("mlp-bias"), self.fisher("mlp-bias"))
        if not self.fitted_on or self.kind == "diagonal":
            assert self.fit(source, 0.0).damping == 0.0
            return
        for refused in (lambda: fitted.with_damping(0.0), lambda: self.fit(source, 0.0)):
            with pytest.raises(CurvatureError, match=r"layer '\d' is singular and damping is 0"):
                refused()

    def test_no_damping_is_allowed_where_nothing_is_singular(self) -> None:
        case = regular_case()
        fisher: Fisher = "empirical" if self.kind == "datainf" else "expected"
        if not self.zero_damping:
            with pytest.raises(CurvatureError, match=r"layer '0' is singular and damping is 0"):
                self.fit(pairs(case, fisher), 0.0)
            return
        fitted = self.fit(pairs(case, fisher), 0.0)
        layers = reference.truth_of(case, fisher)
        expected = sum(Applied.of(self.inverse(layer, 0.0), layer).scores for layer in layers)
        close(Sides(case, fitted).scores(), expected, 1e-6)

    def test_at_the_default_damping_scores_are_not_the_gradient_dot(self) -> None:
        """Else every other test would prove nothing."""
        case, layers = case_of(self.telling), truth(self.telling, self.fisher(self.telling))
        recipe = self.default()
        assert recipe.damping == 0.1
        sides = Sides(case, recipe.fit(pairs(case, self.fisher(self.telling))))
        found = sides.scores()
        dots = [layer.queries @ layer.documents.T for layer in layers]
        weighted = [sides.fitted.mean_inverse(i) * dot for i, dot in enumerate(dots)]
        assert np.corrcoef(found.flatten(), sum(dots).flatten())[0, 1] < 0.98
        correlation = np.corrcoef(found.flatten(), sum(weighted).flatten())[0, 1]
        assert bool(correlation < 0.98) is self.more_than_weights

    # What scores must not depend on.

    @pytest.mark.parametrize(("size", "step"), [(1, -1), (8, 1)])
    def test_order_and_batches_do_not_matter(self, name: str, size: int, step: int) -> None:
        case, fisher = case_of(name), self.fisher(name)
        rows = range(case.count)[::step]
        fitted = self.fit(pairs(case, fisher, size=size, rows=rows))
        assert fitted.documents in (case.count, 0)
        close(Sides(case, fitted).scores(), self.sides(name, fisher).scores(), self.tolerance)

    def test_fitting_twice_gives_the_same_bits(self, name: str) -> None:
        case, fisher = case_of(name), self.fisher(name)
        once, again = self.fitted(name, fisher), self.fit(pairs(case, fisher))
        assert once.report == again.report
        state, other = once.state(), again.state()
        assert state.keys() == other.keys()
        assert all(torch.equal(state[key], other[key]) for key in state)

    def test_a_row_does_not_depend_on_what_it_is_solved_with(self, name: str) -> None:
        sides = self.sides(name, self.fisher(name))
        for i, asked in enumerate(sides.asked):
            together = sides.fitted.solve(i, asked)
            alone = torch.stack([sides.fitted.solve(i, row) for row in asked])
            assert alone.shape == together.shape
            close(alone, together, 1e-12)

    # On disk.

    def test_state_comes_back_with_the_same_bits(self, name: str) -> None:
        sides = self.sides(name, self.fisher(name))
        restored = self.restored(sides.fitted, sides.fitted.state())
        assert restored.kind == self.kind
        assert restored.damping == self.damping
        assert restored.documents == sides.fitted.documents
        assert dict(restored.report) == dict(sides.fitted.report)
        before, after = Sides(sides.case, sides.fitted), Sides(sides.case, restored)
        assert torch.equal(after.scores(), before.scores())
        for damping in (2.0, 11.0):
            one, other = (s.fitted.with_damping(damping) for s in (before, after))
            assert torch.equal(after.scores(other), before.scores(one))
        for i, known in enumerate(sides.known):
            assert torch.equal(restored.energies(i, known), sides.fitted.energies(i, known))
            assert restored.whitens(i) is sides.fitted.whitens(i)

    def test_damaged_states_are_refused_by_layer(self, name: str) -> None:
        fitted = self.fitted(name, self.fisher(name))
        state = fitted.state()
        assert bool(state) is self.fitted_on
        for key, tensor in state.items():
            missing = {k: t for k, t in state.items() if k != key}
            with pytest.raises(CurvatureError, match=rf"layer '.+' lacks '{key}'; rebuild"):
                self.restored(fitted, missing)
            wrong = tensor[..., :-1] if tensor.ndim else tensor[None]
            with pytest.raises(CurvatureError, match=r"layer '.+' has another shape"):
                self.restored(fitted, {**state, key: wrong})

    def restored(self, fitted: FittedCurvature, state: dict[str, Tensor]) -> FittedCurvature:
        return curvature_from_state(
            self.kind,
            fitted.layers,
            {key: tensor.clone() for key, tensor in state.items()},
            documents=fitted.documents,
            damping=fitted.damping,
            report=fitted.report,
        )

    # Bad gradients.

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    @pytest.mark.parametrize("layer", [0, 2])
    def test_what_is_not_finite_names_its_layer(self, layer: int, value: float) -> None:
        case, fisher = case_of("mlp-bias"), self.fisher("mlp-bias")
        source = reference.Altered(pairs(case, fisher), layer, value)
        if not self.fitted_on:
            self.fit(source)
            return
        name = source.layers[layer].name
        with pytest.raises(CurvatureError, match=rf"layer '{name}' is not finite.*float32"):
            self.fit(source)

    def test_a_layer_that_no_gradient_reaches_is_named(self) -> None:
        case = dead_case(unused=False)
        if not self.fitted_on:
            return
        with pytest.raises(CurvatureError, match=r"'dead' is singular: no gradient reaches it"):
            self.fit(pairs(case, self.fisher("mlp-bias")))

    def test_a_layer_that_takes_no_part_is_named(self) -> None:
        case = dead_case(unused=True)
        if not self.fitted_on:
            return
        with pytest.raises(CurvatureError, match="'dead' takes no part in the model's output"):
            self.fit(pairs(case, self.fisher("mlp-bias")))

    # Precision.

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_narrow_models_are_scored_closely(self, dtype: torch.dtype) -> None:
        """Factors are no narrower than float32; what bfloat16 loses, the gradients lose."""
        name, fisher = "llama-mlp", "empirical"
        narrow = narrowed(name, dtype)
        fitted = self.fit(pairs(narrow, fisher))
        assert {t.dtype for t in fitted.state().values() if t.is_floating_point()} <= {
            torch.float32,
            torch.float64,
        }
        found = Sides(narrow, fitted).scores()
        assert found.dtype == torch.float64
        assert bool(torch.isfinite(found).all())
        expected = self.sides(name, fisher).scores()
        if dtype is torch.float32:
            close(found, expected, 1e-3)
        else:
            assert np.corrcoef(found.flatten(), expected.flatten())[0, 1] > 0.95


@cache
def _fitted(suite: type[CurvatureContract], name: str, fisher: Fisher) -> FittedCurvature:
    return suite().fit(pairs(case_of(name), fisher))


@cache
def _sides(suite: type[CurvatureContract], name: str, fisher: Fisher) -> Sides:
    return Sides(case_of(name), _fitted(suite, name, fisher))


@cache
def _twin(
    inverse: Callable[[LayerTruth, float], Tensor], name: str, fisher: Fisher, damping: float
) -> list[Applied]:
    return [Applied.of(inverse(g, damping), g) for g in truth(name, fisher)]


def regular_case() -> Case:
    """A layer of four weights and many documents: no block is singular."""
    torch.manual_seed(11)
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Tanh(), nn.Linear(2, 3)).double()
    x = torch.randn(12, 2, dtype=torch.float64)
    return reference.tensor_case("regular", model, x, torch.randint(0, 3, (12,)), ("0",))


class _Dead(nn.Module):
    def __init__(self, unused: bool) -> None:
        super().__init__()
        torch.manual_seed(12)
        self.head = nn.Linear(5, 3)
        self.dead = nn.Linear(5, 3)
        self.unused = unused

    def forward(self, x: Tensor) -> Tensor:
        off = self.dead(x)
        return self.head(x) if self.unused else self.head(x) + 0.0 * off


def dead_case(*, unused: bool) -> Case:
    """A layer whose output is multiplied by zero, or thrown away."""
    x = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y = torch.arange(8) % 3
    return reference.tensor_case("dead", _Dead(unused).double(), x, y)


def narrowed(name: str, dtype: torch.dtype) -> Case:
    """The same model in another precision."""
    case = CASES[name]()

    def batch(rows: list[int]) -> Batch:
        wide = case.batch(rows)
        return (
            replace(wide, inputs=wide.inputs.to(dtype)) if wide.inputs.is_floating_point() else wide
        )

    return replace(case, model=case.model.to(dtype), batch=batch)
