"""Residuals that are true, sizes that are refused in time, and overflow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from curvature import reference
from curvature.contract import Sides, dead_case, narrowed
from curvature.reference import case_of, pairs, truth
from wherefrom.curvature import lissa, memory
from wherefrom.curvature.fitted import require_finite
from wherefrom.curvature.kinds import CURVATURE_KINDS, curvature_from_state, make_curvature
from wherefrom.curvature.lissa import LiSSA
from wherefrom.errors import CurvatureError
from wherefrom.gradients.fisher import Fisher, PseudoGradients

# Residuals.


def dense_residual(name: str, layer: int, damping: float, solved: Tensor, g: Tensor) -> float:
    block = reference.exact_block(truth(name, "sampled")[layer])
    damped = block + damping * block.diagonal().mean() * torch.eye(len(block), dtype=torch.float64)
    errors = (solved.flatten(1) @ damped - g.flatten(1)).norm(dim=1)
    return float((errors / g.flatten(1).norm(dim=1)).max())


@pytest.mark.parametrize("most", [3, 40, 10_000])
def test_lissas_residual_is_true(most: int) -> None:
    name, damping = "llama-mlp", 2.0
    fitted = LiSSA(damping, most_iterations=most).fit(pairs(case_of(name), "sampled"))
    sides = Sides(case_of(name), fitted)
    found = []
    for i, asked in enumerate(sides.asked):
        solved = fitted.solve(i, asked)
        residual = fitted.residual(i, asked, solved)
        assert residual == pytest.approx(dense_residual(name, i, damping, solved, asked), rel=1e-6)
        found.append(residual)
    if most == 10_000:
        assert max(found) <= lissa.TOLERANCE
        assert 40 < fitted.report["iterations"] < most
        assert fitted.report["residual"] <= lissa.TOLERANCE
    else:
        assert max(found) > lissa.TOLERANCE
        assert fitted.report["iterations"] == most
        assert fitted.report["residual"] > lissa.TOLERANCE


def test_an_easy_row_stops_before_a_hard_one() -> None:
    """Solved together or alone, a row takes its own number of steps."""
    fitted = LiSSA(0.5).fit(pairs(case_of("llama-mlp"), "sampled"))
    layer = truth("llama-mlp", "sampled")[0]
    vectors = torch.linalg.eigh(reference.exact_block(layer)).eigenvectors
    shape = fitted.layers[0].shape
    easy, hard = vectors[:, -1].reshape(shape), vectors[:, 0].reshape(shape)
    assert fitted.recursion(0, easy)[1] < fitted.recursion(0, hard)[1]
    together = fitted.solve(0, torch.stack([easy, hard]))
    for row, g in zip(together, (easy, hard), strict=True):
        torch.testing.assert_close(row, fitted.solve(0, g), rtol=1e-10, atol=1e-12)


def test_lissas_report_is_that_of_some_gradients() -> None:
    """Single ones: their mean is solved far sooner."""
    name = "mlp-bias"
    fitted = LiSSA(0.5, most_iterations=20).fit(pairs(case_of(name), "sampled"))
    expected = []
    for i, layer in enumerate(truth(name, "sampled")):
        some = torch.cat(layer.pseudo)[::2].reshape(-1, *fitted.layers[i].shape)
        solved = fitted.solve(i, some)
        expected += [
            dense_residual(name, i, 0.5, x[None], g[None])
            for x, g in zip(solved, some, strict=True)
        ]
    assert fitted.report["residual"] == pytest.approx(max(expected), rel=1e-6)


def test_the_step_of_lissa_comes_from_the_largest_eigenvalue() -> None:
    """Also where all gradients are +x or -x on two classes, so that absolute values mislead."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    x = torch.randn(7, 4, dtype=torch.float64)
    case = reference.tensor_case("two", model, x, torch.arange(7) % 2)
    for name, chosen in (("two", case), ("mlp-bias", case_of("mlp-bias"))):
        layers = reference.truth_of(chosen, "empirical")
        fitted = LiSSA(1.0).fit(pairs(chosen, "empirical"))
        for value, trace, layer in zip(fitted.largest, fitted.traces, layers, strict=True):
            spectrum = torch.linalg.eigvalsh(reference.exact_block(layer))
            assert value == pytest.approx(float(spectrum[-1]), rel=1e-3), name
            assert trace == pytest.approx(float(spectrum.sum()), rel=1e-10)
        assert fitted.report["residual"] <= lissa.TOLERANCE


def test_the_largest_eigenvalue_of_gradients_orthogonal_to_their_absolute_values() -> None:
    gradients = torch.tensor([[1.0, -1.0], [2.0, -2.0]])
    assert lissa._largest_eigenvalue(gradients, 2) == pytest.approx(5.0, rel=1e-12)
    assert lissa._largest_eigenvalue(torch.zeros(2, 3), 2) == 0.0


def test_solving_nothing_gives_nothing() -> None:
    """A zero gradient has no direction: no step, no residual, no division by zero."""
    fitted = LiSSA(1.0).fit(pairs(case_of("mlp-bias"), "sampled"))
    g = torch.zeros(2, *fitted.layers[0].shape, dtype=torch.float64)
    g[1] = 1.0
    solved = fitted.solve(0, g)
    assert bool((solved[0] == 0).all())
    assert bool((solved[1] != 0).any())
    assert fitted.residual(0, g, solved) <= lissa.TOLERANCE
    assert fitted.residual(0, g[:1], solved[:1]) == 0.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_exact_solve_reports_its_residual(dtype: torch.dtype) -> None:
    """Largest of all layers, of ``g = G 1 + mean eigenvalue``, solved as queries are."""
    case = narrowed("mlp-bias", dtype)
    fitted = make_curvature("exact").fit(pairs(case, "empirical"))
    residuals = []
    for i, layer in enumerate(truth("mlp-bias", "empirical")):
        block = reference.exact_block(layer)
        mean = block.diagonal().mean()
        g = block.sum(1) + mean
        q = fitted.bases[i].q.double()
        solved = q @ fitted.solve(i, (g @ q).reshape(fitted.layers[i].shape)).flatten()
        residuals.append(float((block @ solved + 0.1 * mean * solved - g).norm() / g.norm()))
    reported = fitted.report["residual"]
    assert reported < (1e-12 if dtype is torch.float64 else 1e-5)
    if dtype is torch.float32:
        assert reported > 1e-9
        # The block itself is known to float32 only, so not to more digits than that.
        assert reported == pytest.approx(max(residuals), abs=1e-5)


def test_tiny_damping_of_an_exact_block_stays_positive() -> None:
    """Rounding leaves eigenvalues of a singular block below zero."""
    fitted = make_curvature("exact", 1e-25).fit(pairs(case_of("mlp-bias"), "empirical"))
    for i in range(len(fitted.layers)):
        scale = fitted.scale(i)
        assert bool(torch.isfinite(scale).all())
        assert bool((scale > 0).all())


def test_closed_forms_have_no_residual() -> None:
    for kind in CURVATURE_KINDS:
        fisher: Fisher = "empirical"
        fitted = make_curvature(kind).fit(pairs(case_of("mlp-bias"), fisher))
        sides = Sides(case_of("mlp-bias"), fitted)
        residual = fitted.residual(0, sides.asked[0], fitted.solve(0, sides.asked[0]))
        assert (residual is not None) is (kind == "lissa")
        assert set(fitted.report) == {
            "lissa": {"iterations", "residual"},
            "exact": {"residual"},
        }.get(kind, set())


# Memory.


def limit(monkeypatch: pytest.MonkeyPatch, allowed: int) -> None:
    monkeypatch.setattr(memory, "_limit", lambda device: allowed)


@pytest.mark.parametrize("kind", ["exact", "lissa", "datainf", "ekfac", "kfac"])
def test_what_does_not_fit_is_refused_with_its_size(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(monkeypatch, 1000)
    with pytest.raises(CurvatureError, match=r"would need [1-9].* of memory, more than the"):
        make_curvature(kind).fit(pairs(case_of("mlp-bias"), "empirical"), documents=8)


def seen(case: reference.Case, fisher: Fisher) -> tuple[PseudoGradients, list[int]]:
    """A source of one document a batch, and how many documents were done."""
    done: list[int] = []
    batches = [case.batch([i]) for i in range(case.count)]
    source = PseudoGradients(
        reference.extractor_of(case), lambda: batches, fisher, progress=done.append
    )
    return source, done


def kept_bytes(case: reference.Case, gradients: int) -> int:
    return 8 * gradients * sum(layer.size for layer in reference.extractor_of(case).layers)


@pytest.mark.parametrize("kind", ["datainf", "lissa"])
@pytest.mark.parametrize("fisher", ["empirical", "expected"])
def test_too_many_gradients_are_refused_before_they_are_there(
    kind: str, fisher: Fisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first gradient on, or, with several a document, from the second document on."""
    case = case_of("mlp-bias")
    needed = kept_bytes(case, 8 * (3 if fisher == "expected" else 1))
    limit(monkeypatch, needed - 1)
    source, done = seen(case, fisher)
    with pytest.raises(
        CurvatureError, match=rf"curvature='{kind}' keeps would need.*fit_documents="
    ):
        make_curvature(kind).fit(source, documents=8)
    assert len(done) <= (1 if fisher == "expected" else 0)
    source, done = seen(case, fisher)
    with pytest.raises(CurvatureError, match="keeps would need"):
        make_curvature(kind).fit(source)
    assert len(done) == 7, "unannounced documents are refused when they come"


@pytest.mark.parametrize("size", [1, 3, 8])
@pytest.mark.parametrize("fisher", ["empirical", "expected"])
def test_gradients_that_just_fit_are_kept(
    fisher: Fisher, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = case_of("mlp-bias")
    limit(monkeypatch, kept_bytes(case, 8 * (3 if fisher == "expected" else 1)))
    fitted = LiSSA(50.0).fit(pairs(case, fisher, size=size), documents=8)
    assert fitted.documents == 8


def test_the_exact_block_is_refused_before_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of("mlp-bias")
    layers = reference.extractor_of(case).layers
    needed = 8 * (sum(layer.size**2 for layer in layers) + 4 * 48**2)
    limit(monkeypatch, needed)
    assert make_curvature("exact").fit(pairs(case, "empirical")).documents == 8
    limit(monkeypatch, needed - 1)
    source, done = seen(case, "empirical")
    match = r"curvature='exact' over 3 layers \(the largest, '2', has 48 weights\) would need"
    with pytest.raises(CurvatureError, match=match):
        make_curvature("exact").fit(source)
    assert done == []


def test_factors_too_large_to_decompose_name_their_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, 8 * 3 * 7**2)
    with pytest.raises(CurvatureError, match=r"eigenvectors of layer '2' \(6 outputs, 8 inputs\)"):
        make_curvature("ekfac").fit(pairs(case_of("mlp-bias"), "empirical"))


def test_half_of_the_memory_is_allowed() -> None:
    total = memory._limit(torch.device("cpu"))
    assert 1 << 26 < total < 1 << 45
    memory.require_memory(total, "this", "do that", torch.device("cpu"))
    with pytest.raises(CurvatureError, match=r"this would need [1-9].* allowed here; do that"):
        memory.require_memory(total + 1, "this", "do that", torch.device("cpu"))


# Overflow and names.


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_bad_number_is_enough(value: float) -> None:
    layer = reference.extractor_of(case_of("mlp-bias")).layers[1]
    values = torch.zeros(3)
    assert require_finite(layer, values, "it") is values
    values[1] = value
    with pytest.raises(CurvatureError, match="it of layer '2' is not finite"):
        require_finite(layer, values, "it")


def overflowing(scale: float) -> reference.Case:
    """Inputs whose squares leave float32; the loss stays finite, for the weights are zero."""
    model = nn.Sequential(nn.Linear(4, 3, bias=False))
    nn.init.zeros_(model[0].weight)
    x = scale * torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    return reference.tensor_case("overflow", model, x, torch.arange(6) % 3)


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("ekfac", "factor A"),
        ("kfac", "factor A"),
        ("diagonal", "the mean squared gradient"),
    ],
)
def test_overflow_of_float32_names_the_layer(kind: str, what: str) -> None:
    with pytest.raises(CurvatureError, match=rf"{what} of layer '0' is not finite: .* float32"):
        make_curvature(kind).fit(pairs(overflowing(1e25), "empirical"))


@pytest.mark.parametrize("kind", ["exact", "datainf", "lissa"])
def test_what_is_squared_in_float64_does_not_overflow(kind: str) -> None:
    case = overflowing(1e25)
    fitted = make_curvature(kind, 1.0).fit(pairs(case, "empirical"))
    assert bool(torch.isfinite(Sides(case, fitted).scores()).all())


def test_activations_that_overflow_in_half_precision_are_named() -> None:
    """A hidden layer that reaches 65504 brings infinity into the next one's input."""
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 3, bias=False)).half()
    with torch.no_grad():
        model[0].weight.fill_(60000.0)
        model[1].weight.zero_()
    x = torch.ones(6, 4).half()
    case = reference.tensor_case("half", model, x, torch.arange(6) % 3, ("0",))

    class Clamped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Tensor:
            return torch.nan_to_num(self.inner(x))

    case = reference.tensor_case("half", Clamped(), x, torch.arange(6) % 3, ("inner.1",))
    with pytest.raises(CurvatureError, match=r"factor A of layer 'inner\.1' is not finite"):
        make_curvature("ekfac").fit(pairs(case, "empirical"))


@pytest.mark.parametrize("make", [make_curvature, None])
def test_unknown_kinds_are_refused(make: Callable[..., object] | None) -> None:
    if make is not None:
        with pytest.raises(CurvatureError, match=r"'eigen' is unknown; choose one of 'ekfac', "):
            make("eigen")
        return
    with pytest.raises(CurvatureError, match="'eigen' is unknown; the index needs a newer"):
        curvature_from_state("eigen", (), {}, documents=1, damping=0.1, report={})


def test_dampings_have_their_defaults() -> None:
    found = {kind: make_curvature(kind).damping for kind in CURVATURE_KINDS}
    assert found == {kind: 0.0 if kind == "identity" else 0.1 for kind in CURVATURE_KINDS}
    assert {make_curvature(kind, 0.3).damping for kind in CURVATURE_KINDS} == {0.3}


def test_a_layer_that_is_dead_is_so_at_any_damping() -> None:
    case = replace(dead_case(unused=False), layers=("dead",))
    for damping in (0.0, 1e-3, 1e6):
        with pytest.raises(CurvatureError, match="no gradient reaches it"):
            make_curvature("ekfac", damping).fit(pairs(case, "empirical"))
