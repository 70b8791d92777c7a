"""Truths 2 and 3: where curvatures are exact, and in which order they approximate elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

import dense
from curvature import reference
from curvature.contract import Sides, close, regular_case
from curvature.reference import case_of, pairs, truth, truth_of, weight_gradients
from small_models import CASES, Case, mlp
from wherefrom.curvature.eigen import FittedEigen
from wherefrom.curvature.fitted import FittedCurvature
from wherefrom.curvature.kinds import make_curvature
from wherefrom.gradients.batches import Batch, document_key, stack_examples
from wherefrom.gradients.extractor import LayerPair
from wherefrom.gradients.fisher import Fisher, PseudoGradients
from wherefrom.gradients.layers import select_layers
from wherefrom.gradients.objectives import Classification, Regression


@dataclass(frozen=True)
class SquaredError(Case):
    """Documents whose log-likelihood is Gaussian."""

    def score(self, document: int, targets: Tensor | None = None) -> dense.Score:
        single = self.batch([document])
        wanted = single.targets if targets is None else targets

        def scalar(model: Callable[[Tensor], Tensor]) -> Tensor:
            errors = wanted - model(single.inputs)
            return -errors.square().sum() / (2 * self.objective.variance)

        return scalar


def regression_case(model: nn.Module, *, variance: float = 1.0, count: int = 9) -> Case:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(count, 5, dtype=torch.float64, generator=generator)
    y = torch.randn(count, 3, dtype=torch.float64, generator=generator)

    def batch(rows: list[int]) -> Batch:
        return stack_examples(x[rows], y[rows], [f"d{i}" for i in rows])

    return SquaredError("mse", model, "linear", Regression(variance=variance), batch, count)


def linear(bias: bool) -> nn.Module:
    torch.manual_seed(4)
    return nn.Linear(5, 3, bias=bias).double()


def dense_block(fitted: FittedEigen, layer: int) -> Tensor:
    """``Q diag(Lambda) Q^T``, from what the package fitted."""
    d_out, d_in = fitted.layers[layer].shape
    units = torch.eye(d_out * d_in, dtype=torch.float64).reshape(-1, d_out, d_in)
    basis = fitted.raw(layer, units).flatten(1).T
    return basis @ torch.diag(fitted.eigenvalues[layer].reshape(-1)) @ basis.T


def fit(case: Case, kind: str, fisher: Fisher, **options: object) -> FittedEigen:
    fitted = make_curvature(kind).fit(pairs(case, fisher, **options))
    assert isinstance(fitted, FittedEigen)
    return fitted


def gauss_newton(case: Case, name: str) -> Tensor:
    """``E over documents of J^T H J``, Jacobian and Hessian by automatic differentiation."""
    weight = case.model.get_submodule(name).weight.detach()
    bias = case.model.get_submodule(name).bias
    values = [weight] if bias is None else [weight, bias.detach()]
    total = torch.zeros(())
    for row in range(case.count):
        single = case.batch([row])

        def outputs(*given: Tensor, single: Batch = single) -> Tensor:
            parts = dict(zip((f"{name}.weight", f"{name}.bias"), given, strict=False))
            return torch.func.functional_call(case.model, parts, (single.inputs,))[0]

        def loss(at: Tensor, single: Batch = single) -> Tensor:
            return -case.objective.log_likelihood(at[None], single.targets, single).sum()

        at = outputs(*values).detach()
        parts = torch.func.jacrev(outputs, argnums=tuple(range(len(values))))(*values)
        jacobian = parts[0] if bias is None else torch.cat([parts[0], parts[1][..., None]], -1)
        jacobian = jacobian.flatten(1).detach()
        total = total + jacobian.T @ torch.func.jacrev(torch.func.grad(loss))(at) @ jacobian
    return total / case.count


# Where Kronecker factors are exact.


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("variance", [1.0, 0.25])
@pytest.mark.parametrize("kind", ["ekfac", "kfac"])
def test_exact_for_a_linear_model_with_squared_error(
    kind: str, variance: float, bias: bool
) -> None:
    """``G = E[a a^T] (x) 1/variance``: one Kronecker product."""
    case = regression_case(linear(bias), variance=variance)
    a = torch.cat([case.batch([i]).inputs for i in range(case.count)])
    a = torch.cat([a, torch.ones(len(a), 1)], 1) if bias else a
    block = torch.kron(torch.eye(3, dtype=torch.float64), a.T @ a / len(a)) / variance
    assert select_layers(case.model, "linear")[0].name == ""
    fitted = fit(case, kind, "expected")
    close(dense_block(fitted, 0), block, 1e-10)
    exact = fit(case, "exact", "expected")
    close(dense_block(exact, 0), block, 1e-10)


@pytest.mark.parametrize("kind", ["ekfac", "kfac"])
def test_exact_for_a_linear_classifier_that_knows_nothing(kind: str) -> None:
    """At zero weights softmax has one Fisher matrix for all documents."""
    model = nn.Sequential(nn.Linear(5, 3, bias=False)).double()
    nn.init.zeros_(model[0].weight)
    x = torch.randn(9, 5, dtype=torch.float64)
    case = reference.tensor_case("linear", model, x, torch.arange(9) % 3)
    close(
        dense_block(fit(case, kind, "expected"), 0),
        dense_block(fit(case, "exact", "expected"), 0),
        1e-10,
    )


@pytest.mark.parametrize("name", ["mlp-bias", "mlp-no-bias", "mlp-mixed-inplace"])
def test_one_document_of_one_token_is_the_rank_one_formula(name: str) -> None:
    """EK-FAC, K-FAC, DataInf and the exact solve: ``sum_l q_l . g_l / (|g_l|^2 + lambda_l)``.

    ``lambda_l`` is the damping times the mean eigenvalue, ``|g_l|^2 / d_l``.
    """
    whole = case_of(name)
    case = replace(whole, batch=lambda rows: whole.batch([3] * len(rows)), count=1)
    expected = 0.0
    for layer in truth_of(case, "empirical"):
        g, q = layer.documents[0], layer.queries[0]
        expected += float(q @ g / (g @ g + 0.1 * (g @ g) / len(g)))
    for kind in ("ekfac", "kfac", "exact", "datainf"):
        fitted = make_curvature(kind).fit(pairs(case, "empirical"))
        assert Sides(case, fitted).scores().item() == pytest.approx(expected, rel=1e-9), kind


# Order of approximation.

ORDERED = ["mlp-bias", "shared", "conv", "llama-mlp", "gpt2-linear", "lora-llama"]


@pytest.mark.parametrize("name", ORDERED)
def test_ekfac_is_no_further_from_the_exact_block_than_kfac(name: str) -> None:
    case = case_of(name)
    fisher: Fisher = reference.fishers(name)[0]
    closer = []
    ekfac, kfac = fit(case, "ekfac", fisher), fit(case, "kfac", fisher)
    for i, layer in enumerate(truth(name, fisher)):
        exact = reference.exact_block(layer)
        one, other = ((dense_block(f, i) - exact).norm() for f in (ekfac, kfac))
        assert one <= other * (1 + 1e-12)
        closer.append(float(one / other))
        trace = exact.diagonal().sum()
        torch.testing.assert_close(ekfac.eigenvalues[i].sum(), trace, rtol=1e-9, atol=0.0)
    assert min(closer) < 0.95


def test_the_trace_of_kfac_is_right_where_activations_and_gradients_are_independent() -> None:
    """``T`` counts the positions that A and S are means over: attended ones, scored or not.

    Each document reads two vectors at four positions; only the second half is scored, and each
    output gradient stands at each vector equally often.
    """
    torch.manual_seed(0)
    model = nn.Linear(3, 2, bias=False).double()
    vectors = torch.randn(2, 3, dtype=torch.float64)
    x = vectors[torch.tensor([[0, 1, a, b] for a in (0, 1) for b in (0, 1)])]
    objective = _OneSided()
    case = Case(
        "positions",
        model,
        "linear",
        objective,
        lambda rows: stack_examples(x[rows], torch.zeros(len(rows), 4).long(), ["d"] * len(rows)),
        4,
    )
    kfac, exact = fit(case, "kfac", "empirical"), fit(case, "exact", "empirical")
    # E[a a^T] is the same for scored and other positions, so that the diagonal blocks of tokens
    # with themselves have the right trace; products of different tokens are what K-FAC leaves out.
    own = sum(
        float((pair[0] ** 2).sum() * (pair[1] ** 2).sum())
        for row in range(4)
        for pair in zip(*_tokens(case, row), strict=True)
    )
    assert kfac.eigenvalues[0].sum().item() == pytest.approx(own / 4, rel=1e-10)
    assert exact.eigenvalues[0].sum().item() != pytest.approx(own / 4, rel=1e-2)


class _OneSided(Classification):
    """A loss at the last two of four positions, linear in the logits: one gradient at both."""

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(batch.inputs)

    def log_likelihood(self, outputs: Tensor, targets: Tensor, batch: Batch) -> Tensor:
        return (outputs[:, 2:] * torch.tensor([1.0, -2.0])).sum((1, 2))


def _tokens(case: Case, row: int) -> tuple[Tensor, Tensor]:
    single = case.batch([row])

    def score(model: nn.Module) -> Tensor:
        return case.objective.log_likelihood(
            case.objective.outputs(model, single), single.targets, single
        ).sum()

    return dense.tokens_of(case.model, [""], score)


@pytest.mark.parametrize("name", ["llama-mlp", "gpt2-linear"])
def test_positions_without_loss_count_alike_in_all_factors(name: str) -> None:
    """Some documents score only their end; their other tokens are attended to, hence positions."""
    case = case_of(name)
    single = [case.batch([i]) for i in range(case.count)]
    assert any(b.scored is not None and not bool(b.scored.all()) for b in single)
    positions = sum(b.inputs.shape[1] for b in single)
    fitted = fit(case, "kfac", "sampled")
    for i, layer in enumerate(truth(name, "sampled")):
        a, s, count = layer.factors
        assert count == positions
        trace = float(a.trace() * s.trace() / count / case.count)
        assert float(fitted.eigenvalues[i].sum()) == pytest.approx(trace, rel=1e-10)


# The Fisher matrix.


def block_of(source: PseudoGradients) -> list[Tensor]:
    """``E over documents of sum g g^T`` from what the package gives, for each layer."""
    sums: dict[int, Tensor] = {}

    def add(pair: LayerPair) -> None:
        g = torch.einsum("bto,bti->boi", pair.deltas, pair.activations).flatten(1)
        sums[pair.layer] = sums.get(pair.layer, 0.0) + g.T @ g

    documents = source.run(add)
    return [sums[i] / documents for i in range(len(sums))]


@pytest.mark.parametrize("objective", ["softmax", "gaussian"])
def test_expected_fisher_is_the_gauss_newton_matrix(objective: str) -> None:
    case = case_of("mlp-bias") if objective == "softmax" else regression_case(mlp(), variance=0.3)
    blocks = block_of(pairs(case, "expected"))
    for layer, block in zip(select_layers(case.model, "linear"), blocks, strict=True):
        close(block, gauss_newton(case, layer.name), 1e-9)


@pytest.mark.parametrize("objective", ["softmax", "gaussian"])
def test_sampled_fisher_converges_to_the_expected_one(objective: str) -> None:
    """The error of a whole block shrinks as one over the root of the number of draws."""
    case = case_of("mlp-bias") if objective == "softmax" else regression_case(mlp())
    expected = block_of(pairs(case, "expected"))
    rows, repeats, few = list(range(case.count)), 2048, 32
    single = case.batch(rows)
    draws = []
    for copy in range(repeats):
        ids = tuple(f"{i}-{copy}" for i in rows)
        draws.append((ids, [document_key(d) for d in ids]))

    def error(copies: range) -> float:
        """Relative, over all layers, of the mean over some copies of all documents."""
        chosen = [draws[c] for c in copies]
        batch = Batch(
            single.inputs.repeat(len(chosen), 1),
            single.targets.repeat(len(chosen), *[1] * (single.targets.ndim - 1)),
            tuple(d for ids, _ in chosen for d in ids),
            reference.np.array([k for _, keys in chosen for k in keys], reference.np.uint64),
        )
        source = PseudoGradients(reference.extractor_of(case), lambda: [batch], "sampled")
        found = block_of(source)
        squares = sum((f - e).square().sum() for f, e in zip(found, expected, strict=True))
        return float((squares / sum(e.square().sum() for e in expected)).sqrt())

    groups = [error(range(start, start + few)) for start in range(0, repeats, few)]
    spread = (sum(e * e for e in groups) / len(groups)) ** 0.5
    whole = error(range(repeats))
    ratio = spread / whole
    assert (repeats / few) ** 0.5 / 2 < ratio < (repeats / few) ** 0.5 * 2
    assert whole < 0.05


def test_one_mean_over_documents_whatever_their_length() -> None:
    """The Fisher block is a mean over documents, of gradients summed over their tokens."""
    case = case_of("llama-mlp")
    blocks = block_of(pairs(case, "sampled"))
    for block, layer in zip(blocks, truth("llama-mlp", "sampled"), strict=True):
        close(block, reference.exact_block(layer), 1e-9)


def test_the_reference_gradients_are_those_of_one_layer_at_a_time() -> None:
    """The suite's own machinery, against that of the other rooms' tests."""
    for name in CASES:
        case = replace(case_of(name), model=dense.unmerged(case_of(name).model))
        layers = select_layers(case.model, case.layers)
        found = weight_gradients(case.model, layers, case.score(1))
        for layer, gradient in zip(layers, found, strict=True):
            other = dense.weight_gradient(case.model, layer.name, case.score(1)).reshape(-1)
            torch.testing.assert_close(gradient, other, rtol=1e-12, atol=1e-14)


def test_exact_and_ekfac_agree_on_what_is_measured_in_a_basis() -> None:
    """EK-FAC's eigenvalues are the exact block's diagonal in its own basis."""
    case = regular_case()
    fitted: FittedCurvature = fit(case, "ekfac", "expected")
    exact = dense_block(fit(case, "exact", "expected"), 0)
    units = torch.eye(4, dtype=torch.float64).reshape(-1, 2, 2)
    basis = fitted.raw(0, units).flatten(1)
    found = fitted.eigenvalues[0].reshape(-1)
    close((basis @ exact @ basis.T).diagonal(), found, 1e-10)
