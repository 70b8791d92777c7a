"""Truths 2, 3 (its EK-FAC part), 4 and 9: the operator equals a dense one built another way."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dense
from small_models import CASES, Case
from wherefrom.curvature.ekfac import EKFAC, FittedEKFAC
from wherefrom.errors import CurvatureError
from wherefrom.gradients.batches import stack_examples
from wherefrom.gradients.counter import key_of, uniforms
from wherefrom.gradients.extractor import GradientExtractor, LayerPair
from wherefrom.gradients.fisher import Fisher, PseudoGradients, true_gradients
from wherefrom.gradients.layers import select_layers
from wherefrom.gradients.objectives import Categorical, Classification


def extractor_of(case: Case) -> GradientExtractor:
    return GradientExtractor(case.model, case.objective, select_layers(case.model, case.layers))


def fit(case: Case, fisher: Fisher, *, size: int = 3, damping: float = 0.1) -> FittedEKFAC:
    extractor = extractor_of(case)
    rows = list(range(case.count))

    def batches() -> list[object]:
        return [case.batch(rows[i : i + size]) for i in range(0, len(rows), size)]

    return EKFAC(damping).fit(PseudoGradients(extractor, batches, fisher, seed=5))


def scores(case: Case, fitted: FittedEKFAC) -> Tensor:
    """``[query, document]`` influence by whitened inner products, documents as queries."""
    extractor = extractor_of(case)
    rotation = fitted.rotation()
    whitened: list[Tensor] = [torch.empty(0)] * len(fitted.layers)

    def keep(pair: LayerPair) -> None:
        whitened[pair.layer] = (rotation(pair) * fitted.whitening(pair.layer)).flatten(1)

    with extractor.session():
        true_gradients(extractor, case.batch(list(range(case.count))), keep)
    phi = torch.cat(whitened, 1)
    return phi @ phi.T / case.count


def labels(case: Case, row: int, fisher: Fisher) -> list[tuple[float, Tensor | None]]:
    """``(weight, targets)`` of each pseudo-gradient of a document, run alone."""
    single = case.batch([row])
    if fisher == "empirical":
        return [(1.0, None)]
    with torch.no_grad():
        outputs = case.objective.outputs(case.model, single)
    probabilities = torch.softmax(outputs, -1)
    if fisher == "expected":
        return [
            (float(p.sqrt()), torch.tensor([c])) for c, p in enumerate(probabilities[0].unbind())
        ]
    level = uniforms(key_of(5, 0), single.keys, single.targets[0].numel())
    cumulative = probabilities.reshape(-1, probabilities.shape[-1]).cumsum(-1).numpy()
    drawn = [
        int(np.searchsorted(c, u, side="right")) for c, u in zip(cumulative, level[0], strict=True)
    ]
    return [(1.0, torch.tensor(drawn).reshape(single.targets.shape))]


def dense_scores(case: Case, fisher: Fisher, damping: float = 0.1) -> Tensor:
    layers = select_layers(case.model, case.layers)
    rows = range(case.count)
    blocks, flat, lambdas = [], [], []
    for layer in layers:
        activations, deltas, pseudo, true = [], [], [], []
        for row in rows:
            pairs = []
            for weight, targets in labels(case, row, fisher):
                score = case.score(row, targets)
                a, d = dense.tokens_of(case.model, layer.modules, score)
                pairs.append((a, weight * d))
            activations.append(pairs[0][0])
            deltas += [d for _, d in pairs]
            pseudo.append(
                [
                    weight * dense.weight_gradient(case.model, layer.name, case.score(row, targets))
                    for weight, targets in labels(case, row, fisher)
                ]
            )
            true.append(dense.weight_gradient(case.model, layer.name, case.score(row)))
        block, mean = dense.ekfac_matrix(activations, deltas, pseudo)
        blocks.append(block)
        lambdas.append(float(damping * mean))
        flat.append(torch.stack([g.reshape(-1) for g in true]))
    return dense.influence(blocks, flat, flat, lambdas)


COMBINATIONS = [
    (kind, fisher)
    for kind in CASES
    for fisher in ("sampled", "expected", "empirical")
    if fisher != "expected" or not kind.startswith(("llama", "gpt"))
]


@pytest.mark.parametrize(("kind", "fisher"), COMBINATIONS)
def test_equals_the_dense_operator(kind: str, fisher: Fisher) -> None:
    case = CASES[kind]()
    found = scores(case, fit(case, fisher))
    expected = dense_scores(case, fisher)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", ["mlp-bias", "llama-mlp", "shared"])
def test_precondition_is_the_same_operator(kind: str) -> None:
    case = CASES[kind]()
    fitted = fit(case, "empirical")
    extractor = extractor_of(case)
    rotation = fitted.rotation()
    total = torch.zeros(case.count, case.count, dtype=torch.float64)

    def add(pair: LayerPair) -> None:
        raw = torch.einsum("bto,bti->boi", pair.deltas, pair.activations)
        solved = fitted.precondition(pair.layer, rotation(pair))
        total.add_(solved.flatten(1) @ raw.flatten(1).T)

    with extractor.session():
        true_gradients(extractor, case.batch(list(range(case.count))), add)
    torch.testing.assert_close(total / case.count, scores(case, fitted), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("size", [1, 2, 6])
def test_does_not_depend_on_batching(size: int) -> None:
    case = CASES["llama-mlp"]()
    torch.testing.assert_close(
        scores(case, fit(case, "sampled", size=size)),
        scores(case, fit(case, "sampled", size=3)),
        rtol=1e-7,
        atol=1e-10,
    )


def test_exact_for_linear_regressionlike_models() -> None:
    """Kronecker is exact for one linear layer whose output gradients do not depend on its inputs.

    With every input a permutation of one distribution and outputs at zero, softmax's Fisher is the
    same matrix for each document, so ``G = E[a a^T] (x) F`` and EK-FAC equals it.
    """
    torch.manual_seed(0)
    model = nn.Linear(4, 3, bias=False).double()
    nn.init.zeros_(model.weight)
    x = torch.randn(9, 4, dtype=torch.float64)
    y = torch.randint(0, 3, (9,))
    case = Case(
        "linear",
        model,
        "linear",
        Classification(),
        lambda rows: stack_examples(x[rows], y[rows], [f"d{i}" for i in rows]),
        9,
    )
    layer = select_layers(model)[0]
    pseudo, true = [], []
    for row in range(9):
        pseudo.append(
            [
                w * dense.weight_gradient(model, layer.name, case.score(row, t))
                for w, t in labels(case, row, "expected")
            ]
        )
        true.append(dense.weight_gradient(model, layer.name, case.score(row)).reshape(-1))
    block = dense.gauss_newton(pseudo)
    flat = torch.stack(true)
    damping = 0.1 * float(block.diagonal().mean())
    expected = dense.influence([block], [flat], [flat], [damping])
    torch.testing.assert_close(scores(case, fit(case, "expected")), expected, rtol=1e-8, atol=1e-10)


def test_one_document_of_one_token_is_the_rank_one_formula() -> None:
    """Empirical EK-FAC of one gradient: ``sum_l (q_l . g_l) / (|g_l|^2 + lambda_l)``."""
    case = CASES["mlp-bias"]()
    single = replace(case, batch=lambda rows: case.batch([0] * len(rows)), count=1)
    layers = select_layers(case.model)
    fitted = fit(single, "empirical")
    expected = 0.0
    for layer in layers:
        g = dense.weight_gradient(case.model, layer.name, case.score(0)).reshape(-1)
        expected += float(g @ g / (g @ g + 0.1 * (g @ g) / len(g)))
    assert scores(single, fitted).item() == pytest.approx(expected, rel=1e-9)


def test_large_damping_gives_the_gradient_dot_and_the_default_does_not() -> None:
    case = CASES["llama-mlp"]()
    layers = select_layers(case.model, case.layers)
    fitted = fit(case, "sampled")
    dots = torch.zeros(case.count, case.count, dtype=torch.float64)
    weighted = torch.zeros_like(dots)
    for i, layer in enumerate(layers):
        g = torch.stack(
            [
                dense.weight_gradient(case.model, layer.name, case.score(r)).reshape(-1)
                for r in range(case.count)
            ]
        )
        dots += g @ g.T
        weighted += g @ g.T / (1e9 * fitted.eigenvalues[i].mean())
    large = scores(case, fitted.with_damping(1e9))
    torch.testing.assert_close(large * case.count, weighted, rtol=1e-6, atol=0.0)
    default = scores(case, fitted)
    off = ~torch.eye(case.count, dtype=torch.bool)
    pearson = np.corrcoef(default[off].numpy(), dots[off].numpy())[0, 1]
    assert pearson < 0.98


def test_damping_belongs_to_its_layer_and_leaves_no_trace() -> None:
    case = CASES["mlp-bias"]()
    fitted = fit(case, "empirical")
    before = scores(case, fitted)
    scores(case, fitted.with_damping(10.0))
    assert torch.equal(scores(case, fitted), before)
    for i, values in enumerate(fitted.eigenvalues):
        torch.testing.assert_close(
            fitted.damped(i) - values, (0.1 * values.mean()).expand_as(values)
        )
    blown = replace(fitted, eigenvalues=(fitted.eigenvalues[0] * 100, *fitted.eigenvalues[1:]))
    assert torch.equal(blown.damped(1), fitted.damped(1))


def test_closer_to_the_exact_block_than_kfac() -> None:
    case = CASES["llama-mlp"]()
    rows = range(case.count)
    for layer in select_layers(case.model, case.layers):
        pairs = [dense.tokens_of(case.model, layer.modules, case.score(r)) for r in rows]
        pseudo = [[dense.weight_gradient(case.model, layer.name, case.score(r))] for r in rows]
        exact = dense.gauss_newton(pseudo)
        ekfac, _ = dense.ekfac_matrix([a for a, _ in pairs], [d for _, d in pairs], pseudo)
        tokens = sum(len(a) for a, _ in pairs)
        a = sum(x.T @ x for x, _ in pairs) / tokens
        s = sum(d.T @ d for _, d in pairs) / tokens
        kfac = torch.kron(s, a) * tokens / case.count
        assert (ekfac - exact).norm() < (kfac - exact).norm()
        fitted = fit(case, "empirical")
        i = fitted.layers.index(layer)
        basis = torch.kron(fitted.bases[i].q_out, fitted.bases[i].q_in)
        ours = basis @ torch.diag(fitted.eigenvalues[i].reshape(-1)) @ basis.T
        torch.testing.assert_close((ours - exact).norm(), (ekfac - exact).norm(), rtol=1e-7, atol=0)


def test_sampled_fisher_converges_to_the_expected() -> None:
    """Errors shrink as one over the square root of the number of draws."""
    case = CASES["mlp-bias"]()
    outputs = case.objective.outputs(case.model, case.batch([0]))
    objective = case.objective
    assert isinstance(objective, Categorical)
    truth = torch.softmax(outputs.detach(), -1)[0]
    errors = []
    for draws in (400, 40_000):
        level = torch.from_numpy(uniforms(key_of(1, 0), np.arange(draws, dtype=np.uint64), 1))[:, 0]
        drawn = objective.draw(truth.expand(draws, -1), level)
        share = torch.bincount(drawn, minlength=3) / draws
        errors.append(float((share - truth).abs().max()))
        assert errors[-1] < 4 * 0.5 / draws**0.5
    assert errors[1] < errors[0]


def test_state_round_trip_gives_the_same_bits() -> None:
    case = CASES["llama-mlp"]()
    fitted = fit(case, "sampled")
    state = fitted.state()
    assert "1.q_in" not in state, "gate and up share an input: stored once"
    restored = FittedEKFAC.from_state(
        fitted.layers, state, documents=fitted.documents, damping=fitted.damping
    )
    assert torch.equal(scores(case, restored), scores(case, fitted))
    state.pop("2.q_out")
    with pytest.raises(CurvatureError, match=r"2\.q_out"):
        FittedEKFAC.from_state(fitted.layers, state, documents=1, damping=0.1)


def test_bad_damping_and_dead_layers() -> None:
    case = CASES["mlp-bias"]()
    fitted = fit(case, "empirical")
    for damping in (-1.0, float("nan"), float("inf")):
        with pytest.raises(CurvatureError, match="damping"):
            fitted.with_damping(damping)
    dead = replace(
        fitted, eigenvalues=(torch.zeros_like(fitted.eigenvalues[0]), *fitted.eigenvalues[1:])
    )
    with pytest.raises(CurvatureError, match="no gradient reaches it"):
        dead.with_damping(0.1)


def test_expected_fisher_of_a_language_model_is_refused() -> None:
    with pytest.raises(CurvatureError, match="sampled"):
        fit(CASES["llama-mlp"](), "expected")
