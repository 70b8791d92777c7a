"""Gauss-Newton products against the matrix written out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.func import jacrev

from dense_gauss_newton import gauss_newton, surprise
from small_models import (
    CASES,
    VOCABULARY,
    Case,
    bert,
    classifier_case,
    image_case,
    mlp,
    with_lora,
)
from wherefrom.errors import CurvatureError, ModelError
from wherefrom.gradients.batches import Batch, pad_tokens, stack_examples
from wherefrom.gradients.extractor import GradientExtractor
from wherefrom.gradients.gauss_newton import GaussNewton
from wherefrom.gradients.layers import select_layers
from wherefrom.gradients.objectives import Classification, Gaussian, Objective, Regression
from wherefrom.gradients.tokens import TokenisedDocument


def matrix_of(case: Case, rows: Sequence[int] | None = None, batch_size: int = 3) -> GaussNewton:
    rows = range(case.count) if rows is None else rows
    layers = select_layers(case.model, case.layers)
    extractor = GradientExtractor(case.model, case.objective, layers)
    starts = range(0, len(rows), batch_size)
    return GaussNewton(
        extractor, lambda: [case.batch(list(rows[i : i + batch_size])) for i in starts]
    )


def random_vectors(matrix: GaussNewton, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(layer.shape, dtype=torch.float64, generator=generator)
        for layer in matrix.layers
    ]


def flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])


def require_dense(case: Case, rows: Sequence[int] | None = None, **more: object) -> None:
    """A product equals that of the dense matrix over the same documents."""
    matrix = matrix_of(case, rows)
    names = [layer.name for layer in matrix.layers]
    vectors = random_vectors(matrix)
    dense = gauss_newton(case, names, range(case.count) if rows is None else rows, **more)
    expected = dense @ flat(vectors)
    found = flat(matrix.product(vectors))
    assert found.dtype == torch.float64
    # Norms of transformers' Llama run in float32 whatever the model's precision.
    rounding = 1e-6 if "llama" in case.name else 1e-10
    assert (found - expected).norm() <= rounding * expected.norm()
    # Blocks off the diagonal are in it: without them the product is another.
    ends = torch.tensor([0, *(layer.size for layer in matrix.layers)]).cumsum(0).tolist()
    blocks = [dense[a:b, a:b] for a, b in pairwise(ends)]
    assert len(blocks) == 1 or (torch.block_diag(*blocks) @ flat(vectors) - found).norm() > 1e-3


@pytest.mark.parametrize("name", CASES)
def test_a_product_is_that_of_the_matrix(name: str) -> None:
    rows = [0, 1, 2] if name.startswith(("gpt", "llama", "lora-llama")) else None
    require_dense(CASES[name](), rows)


def test_padding_and_positions_that_do_not_count_give_nothing() -> None:
    case = CASES["llama-mlp"]()
    whole = case.batch([0, 1, 2, 3])
    assert whole.attended is not None
    assert whole.scored is not None
    matrix = matrix_of(case, [0, 1, 2, 3], batch_size=4)
    vectors = random_vectors(matrix)
    alone = matrix_of(case, [0, 1, 2, 3], batch_size=1)
    torch.testing.assert_close(
        flat(matrix.product(vectors)), flat(alone.product(vectors)), rtol=1e-5, atol=1e-6
    )


def test_padding_of_a_bidirectional_model_gives_nothing() -> None:
    from wherefrom.gradients.objectives import SequenceClassification

    lengths = [3, 6, 4, 5]
    generator = torch.Generator().manual_seed(3)
    texts = [torch.randint(1, 11, (n,), generator=generator).numpy() for n in lengths]

    def batch(rows: list[int]) -> Batch:
        documents = [
            TokenisedDocument(texts[i], torch.ones(lengths[i], dtype=torch.bool).numpy())
            for i in rows
        ]
        padded = pad_tokens(documents, [f"d{i}" for i in rows])
        return replace(padded, targets=torch.tensor([i % 3 for i in rows]), scored=None)

    require_dense(Case("bert", bert(), "linear", SequenceClassification(), batch, 4))


def test_lora_that_runs_by_itself() -> None:
    model = with_lora(mlp((True, True, True)), "default", target_modules=["0", "2"])
    case = replace(classifier_case("lora", model), layers="lora")
    require_dense(case)


@pytest.mark.parametrize("variance", [1.0, 0.3])
def test_regression(variance: float) -> None:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(6, 5, dtype=torch.float64, generator=generator)
    y = torch.randn(6, 3, dtype=torch.float64, generator=generator)
    objective = Regression(variance=variance)

    def batch(rows: list[int]) -> Batch:
        return stack_examples(x[rows], y[rows], [f"d{i}" for i in rows])

    case = Case("regression", mlp(), "linear", objective, batch, 6)
    require_dense(case, loss=lambda predicted: (predicted - 1.0).square().sum() / (2.0 * variance))


def test_it_is_the_expected_fisher_matrix() -> None:
    """The mean of outer products of the pseudo-gradients of all classes is the same matrix."""
    from wherefrom.gradients.fisher import PseudoGradients

    case = CASES["mlp-bias"]()
    matrix = matrix_of(case)
    vectors = random_vectors(matrix)
    extractor = GradientExtractor(case.model, case.objective, matrix.layers)
    rows: list[list[Tensor]] = [[] for _ in matrix.layers]
    PseudoGradients(extractor, lambda: [case.batch(list(range(8)))], "expected").run(
        lambda pair: rows[pair.layer].append(
            torch.einsum("bto,bti->boi", pair.deltas, pair.activations).flatten(1)
        )
    )
    gradients = torch.cat([torch.cat(layer) for layer in rows], 1)
    expected = gradients.T @ (gradients @ flat(vectors)) / 8
    torch.testing.assert_close(flat(matrix.product(vectors)), expected)


def test_it_is_symmetric_and_never_negative() -> None:
    matrix = matrix_of(CASES["shared"]())
    u, v = random_vectors(matrix, 1), random_vectors(matrix, 2)
    of_u, of_v = flat(matrix.product(u)), flat(matrix.product(v))
    torch.testing.assert_close(flat(v) @ of_u, flat(u) @ of_v)
    assert flat(u) @ of_u > 0
    # The same logit more of every class changes no probability.
    head = [torch.zeros_like(part) for part in u]
    head[-1][:, -1] = 1.0
    assert flat(matrix.product(head)).norm() < 1e-12


def test_the_same_bits_every_time() -> None:
    matrix = matrix_of(CASES["conv-groups"]())
    vectors = random_vectors(matrix)
    assert torch.equal(flat(matrix.product(vectors)), flat(matrix.product(vectors)))


def test_batches_do_not_matter() -> None:
    case = CASES["conv"]()
    vectors = random_vectors(matrix_of(case))
    alone = flat(matrix_of(case, batch_size=1).product(vectors))
    torch.testing.assert_close(flat(matrix_of(case, batch_size=8).product(vectors)), alone)


def test_the_model_is_left_as_it_was() -> None:
    case = CASES["mlp-mixed-inplace"]()
    case.model.train()
    matrix = matrix_of(case)
    matrix.product(random_vectors(matrix))
    assert all(module.training for module in case.model.modules())
    assert all(parameter.requires_grad for parameter in case.model.parameters())
    assert not any(module._forward_hooks for module in case.model.modules())


def test_half_precision_adds_up_in_float64() -> None:
    case = CASES["mlp-bias"]()
    vectors = random_vectors(matrix_of(case))
    expected = flat(matrix_of(case).product(vectors))
    coarse = replace(
        case, model=case.model.bfloat16(), batch=lambda rows: _coarser(CASES["mlp-bias"](), rows)
    )
    found = flat(matrix_of(coarse).product(vectors))
    assert found.dtype == torch.float64
    assert (found - expected).norm() < 0.05 * expected.norm()


def _coarser(case: Case, rows: list[int]) -> Batch:
    batch = case.batch(rows)
    return replace(batch, inputs=batch.inputs.bfloat16())


class _Unknown(Objective):
    kind = "unknown"

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(batch.inputs)

    def log_likelihood(self, outputs: Tensor, targets: Tensor, batch: Batch) -> Tensor:
        return -outputs.square().sum(1)


def test_an_objective_without_a_distribution_is_refused() -> None:
    case = replace(CASES["mlp-bias"](), objective=_Unknown())
    with pytest.raises(CurvatureError, match=r"^the Gauss-Newton .*_Unknown has none.*refine=0$"):
        matrix_of(case)


def test_an_objective_that_only_draws_is_refused() -> None:
    class Drawn(Classification):
        fisher_product = Gaussian.__mro__[1].fisher_product

    matrix = matrix_of(replace(CASES["mlp-bias"](), objective=Drawn()))
    with pytest.raises(CurvatureError, match=r"^Drawn has no fisher_product"):
        matrix.product(random_vectors(matrix))


class _Forwardless(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, given: Tensor) -> Tensor:
        return given.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient


class _Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp()

    def forward(self, x: Tensor) -> Tensor:
        return _Forwardless.apply(self.inner(x))


def test_a_model_without_a_forward_mode_is_refused() -> None:
    matrix = matrix_of(classifier_case("wrapped", _Wrapped()))
    with pytest.raises(ModelError, match=r"^_Wrapped cannot be run in forward mode.*refine=0$"):
        matrix.product(random_vectors(matrix))


def test_layers_that_take_no_part_are_refused() -> None:
    class Apart(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.lost = mlp(), nn.Linear(5, 3).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    case = replace(classifier_case("apart", Apart()), layers=("lost",))
    with pytest.raises(ModelError, match=r"^no selected layer takes part"):
        matrix_of(case).product([torch.ones(3, 6, dtype=torch.float64)])


def test_no_documents_are_refused() -> None:
    with pytest.raises(CurvatureError, match=r"^the Gauss-Newton .*at least one document"):
        matrix_of(CASES["mlp-bias"](), []).product(random_vectors(matrix_of(CASES["mlp-bias"]())))


def test_outputs_that_are_not_finite_name_the_document() -> None:
    case = image_case("nan", CASES["conv"]().model)

    def batch(rows: list[int]) -> Batch:
        good = case.batch(rows)
        good.inputs[[i for i, row in enumerate(rows) if row == 5]] = float("nan")
        return good

    matrix = matrix_of(replace(case, batch=batch))
    with pytest.raises(ModelError, match="'d5'"):
        matrix.product(random_vectors(matrix))


def test_the_dense_matrix_has_a_hessian_of_its_own() -> None:
    """The reference does not share the closed form that it judges."""
    logits = torch.randn(VOCABULARY, dtype=torch.float64)
    p = torch.softmax(logits, 0)
    torch.testing.assert_close(jacrev(jacrev(surprise))(logits), torch.diag(p) - torch.outer(p, p))
