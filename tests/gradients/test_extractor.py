"""Truth 1: per-example gradients equal single backward passes, for every layer kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import dense
from pairs import gradient, gradients, pairs, require_equal, require_truth
from small_models import (
    CASES,
    Case,
    Shared,
    classifier_case,
    convolutions,
    image_case,
    llama,
    lm_case,
    mlp,
    with_lora,
)
from wherefrom.errors import ModelError
from wherefrom.gradients.batches import Batch, stack_examples
from wherefrom.gradients.extractor import GradientExtractor
from wherefrom.gradients.fisher import true_gradients
from wherefrom.gradients.layers import select_layers
from wherefrom.gradients.objectives import Classification


@pytest.mark.parametrize("kind", CASES)
def test_equal_single_backward_passes(kind: str) -> None:
    require_truth(CASES[kind]())


@pytest.mark.parametrize(
    "kind",
    ["llama-mlp", "gpt2-linear", "shared", "conv", "conv-groups", "lora-llama", "lora-merged"],
)
def test_do_not_depend_on_the_batch(kind: str) -> None:
    case = CASES[kind]()
    together = gradients(case, list(range(case.count)))
    for row in range(case.count):
        for name, value in gradients(case, [row]).items():
            torch.testing.assert_close(together[name][row], value[0], rtol=1e-9, atol=1e-12)


def checkpointed_llama() -> nn.Module:
    model = llama()
    model.activation_checkpointing_enable({"use_reentrant": False})
    return model


def adapted(model: nn.Module) -> nn.Module:
    return with_lora(model, "default", target_modules=["q_proj", "up_proj"])


class Checkpointed(nn.Module):
    """A model that is run again in the backward pass."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return torch.utils.checkpoint.checkpoint(self.inner, x, use_reentrant=False)


@pytest.mark.parametrize(
    ("plain", "checkpointed"),
    [
        (lm_case("mlp", llama(), "mlp"), lm_case("mlp", checkpointed_llama(), "mlp")),
        (lm_case("linear", llama(), "linear"), lm_case("linear", checkpointed_llama(), "linear")),
        (
            lm_case("lora", adapted(llama()), "lora"),
            lm_case("lora", adapted(checkpointed_llama()), "lora"),
        ),
        (
            image_case("conv", convolutions()),
            image_case("conv", Checkpointed(convolutions())),
        ),
        (
            CASES["lora-merged"](),
            image_case("m", Checkpointed(CASES["lora-merged"]().model), "lora"),
        ),
    ],
    ids=lambda case: case.name,
)
def test_gradient_checkpointing_changes_nothing(plain: Case, checkpointed: Case) -> None:
    runs = []
    innermost = [m for m in checkpointed.model.modules() if not list(m.children())]
    linear = next(m for m in innermost if isinstance(m, nn.Linear))
    handle = linear.register_forward_pre_hook(lambda *_: runs.append(1))
    # transformers checkpoints in training mode only
    found = gradients(checkpointed, [0, 1, 2], training=True)
    handle.remove()
    assert len(runs) == 2, "the block was not recomputed: the test proves nothing"
    expected = gradients(plain, [0, 1, 2])
    for name, value in expected.items():
        wrapped = name if name in found else f"inner.{name}"
        torch.testing.assert_close(found[wrapped], value, rtol=1e-9, atol=1e-12)
    assert len(found) == len(expected)


def test_attention_kernels_agree() -> None:
    """To float32: the eager kernel takes its softmax in that precision whatever the model's."""
    eager = gradients(lm_case("eager", llama(attn_implementation="eager"), "linear"), [0, 1, 2])
    sdpa = gradients(lm_case("sdpa", llama(attn_implementation="sdpa"), "linear"), [0, 1, 2])
    for name, value in eager.items():
        torch.testing.assert_close(sdpa[name], value, rtol=1e-4, atol=2e-6)


def test_weight_gradients_are_not_formed_and_the_model_is_left_alone() -> None:
    case = CASES["mlp-bias"]()
    case.model.train()
    case.model[0].weight.requires_grad_(False)
    before = [(p.requires_grad, p.clone()) for p in case.model.parameters()]
    gradients(case, [0, 1])
    assert case.model.training
    assert not case.model[0]._forward_hooks
    for (wanted, value), parameter in zip(before, case.model.parameters(), strict=True):
        assert parameter.grad is None
        assert parameter.requires_grad == wanted
        assert torch.equal(parameter, value)


@pytest.mark.parametrize("kind", ["llama-mlp", "lora-llama", "lora-merged"])
def test_layers_that_share_an_input_share_the_tensor(kind: str) -> None:
    readers = {
        "llama-mlp": ["model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj"],
        "lora-llama": [
            f"base_model.model.model.layers.0.self_attn.{part}_proj.lora_A.default"
            for part in ("q", "v")
        ],
        "lora-merged": [f"base_model.model.0.lora_A.{name}" for name in ("first", "second")],
    }[kind]
    found = pairs(CASES[kind](), [0, 1])
    first, second = (found.pop(name) for name in readers)
    assert first.activations is second.activations
    assert first.input_of == second.input_of
    assert all(pair.input_of != first.input_of for pair in found.values())


class TwoReaders(nn.Module):
    """Two convolutions of one image."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left = nn.Conv2d(1, 2, 2, padding=1)
        self.right = nn.Conv2d(1, 3, **({"kernel_size": 2, "padding": 1} | options))
        self.head = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        left, right = (torch.tanh(f(x)).mean((1, 2, 3)) for f in (self.left, self.right))
        return self.head(torch.stack([left, right], 1))


@pytest.mark.parametrize(
    ("options", "shares"),
    [
        ({}, True),
        ({"stride": 2}, False),
        ({"padding": 0}, False),
        ({"dilation": 2}, False),
        ({"padding_mode": "reflect"}, False),
        ({"kernel_size": 3}, False),
        ({"bias": False}, False),
    ],
)
def test_convolutions_share_an_input_if_they_unfold_it_alike(
    options: dict[str, object], shares: bool
) -> None:
    case = image_case("two", TwoReaders(**options).double())
    require_truth(case)
    found = pairs(case, [0, 1])
    assert (found["left"].activations is found["right"].activations) is shares
    assert (found["left"].input_of == found["right"].input_of) is shares


class Twice(Classification):
    """The mean of the logits of a document and of a changed copy of it."""

    copies = 2

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        repeated = batch.inputs.repeat_interleave(2, 0)
        factors = torch.tensor([1.0, 0.5], dtype=repeated.dtype).repeat(len(batch))
        shaped = factors.reshape(-1, *[1] * (repeated.ndim - 1))
        logits = model(repeated * shaped)
        return logits.reshape(len(batch), 2, -1).mean(1)


@pytest.mark.parametrize("kind", ["mlp-bias", "shared", "conv", "conv-groups", "lora-merged"])
def test_copies_of_a_document_are_positions(kind: str) -> None:
    case = CASES[kind]()
    single = pairs(case, [0, 1])
    double = pairs(replace(case, objective=Twice()), [0, 1])
    for name, pair in single.items():
        assert double[name].activations.shape[1] == 2 * pair.activations.shape[1]
        assert double[name].positions == 2 * pair.positions
    require_truth(replace(case, objective=Twice()))


class PaddedRows(nn.Module):
    """Rows of numbers with zeros for padding: a linear layer at each, and one on their sum."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.each = nn.Linear(2, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        real = (x != 0).any(-1, keepdim=True)
        return self.head((torch.tanh(self.each(x)) * real).sum(1))


def padded_case(objective: Classification) -> Case:
    lengths = [3, 1, 2]
    x = torch.randn(3, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    attended = torch.arange(3) < torch.tensor(lengths)[:, None]

    def batch(rows: list[int]) -> Batch:
        width = max(lengths[row] for row in rows)
        inputs = torch.where(attended[rows, :width, None], x[rows, :width], 0.0)
        plain = stack_examples(inputs, torch.tensor(rows), [f"d{row}" for row in rows])
        return replace(plain, attended=attended[rows, :width])

    return Case("padded", PaddedRows().double(), "linear", objective, batch, 3)


@pytest.mark.parametrize("objective", [Classification(), Twice()])
def test_padding_counts_nothing_in_any_copy(objective: Classification) -> None:
    case = padded_case(objective)
    require_truth(case)
    found = pairs(case, [0, 1, 2])
    copies = objective.copies
    assert found["each"].positions == 6 * copies
    assert found["head"].positions == 3 * copies
    kept = found["each"].activations.abs().sum(2).reshape(3, copies, 3) > 0
    assert torch.equal(kept, case.batch([0, 1, 2]).attended[:, None].expand(-1, copies, -1))


def test_tokens_laid_one_after_another() -> None:
    """OPT's feed-forward layers see ``[doc x token, d]``."""
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(6)
    config = OPTConfig(
        vocab_size=23,
        hidden_size=8,
        ffn_dim=10,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        word_embed_proj_dim=8,
        dropout=0.0,
    )
    model = OPTForCausalLM(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)
    case = lm_case("opt", model, "mlp")
    require_truth(case)
    found = pairs(case, list(range(case.count)))
    attended = case.batch(list(range(case.count))).attended
    assert attended is not None
    assert all(pair.positions == int(attended.sum()) for pair in found.values())


HALF = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
"""Rounding errors of the two half precisions."""


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(
    "kind", ["mlp-bias", "shared", "conv", "conv-groups", "lora-merged", "gpt-neox-mlp"]
)
def test_half_precision_is_close(kind: str, dtype: torch.dtype) -> None:
    """To a float32 model with the same weights."""
    case = CASES[kind]()
    case.model.to(dtype).float()
    expected = gradients(replace(case, batch=_cast(case.batch, torch.float32)), [0, 1, 2])
    case.model.to(dtype)
    found = pairs(replace(case, batch=_cast(case.batch, dtype)), [0, 1, 2])
    assert all(pair.deltas.dtype == dtype for pair in found.values())
    require_equal({n: gradient(p) for n, p in found.items()}, expected, 4 * HALF[dtype])


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("kind", [kind for kind in CASES if kind != "lora-merged"])
def test_half_precision_is_the_model_s_own(kind: str, dtype: torch.dtype) -> None:
    """Weight gradients of autograd, from the same forward pass, rounded as the model rounds."""
    case = CASES[kind]()
    case.model.to(dtype)
    half = replace(case, batch=_cast(case.batch, dtype))
    found = gradients(half, [0, 1, 2])
    expected = summed_gradients(half, [0, 1, 2], found)
    require_equal({n: g.sum(0) for n, g in found.items()}, expected, 2 * HALF[dtype])


def summed_gradients(case: Case, rows: list[int], names: Iterable[str]) -> dict[str, Tensor]:
    """Autograd's weight gradients of a whole batch, in the model's precision."""
    batch = case.batch(rows)
    for parameter in case.model.parameters():
        parameter.requires_grad_()
    outputs = case.objective.outputs(case.model, batch)
    _, gradient_of_outputs = case.objective.differentiate(outputs, batch.targets, batch)
    outputs.backward(gradient_of_outputs.to(outputs.dtype))
    expected = {}
    for name in names:
        module = case.model.get_submodule(name)
        matrix = module.weight.grad.flatten(1)
        matrix = matrix.T if type(module).__name__ == "Conv1D" else matrix
        bias = [] if module.bias is None else [module.bias.grad[:, None]]
        expected[name] = torch.cat([matrix, *bias], 1)
    return expected


def _cast(batch: Callable[[list[int]], Batch], dtype: torch.dtype) -> Callable[..., Batch]:
    def cast(rows: list[int]) -> Batch:
        made = batch(rows)
        floating = made.inputs.is_floating_point()
        return replace(made, inputs=made.inputs.to(dtype)) if floating else made

    return cast


def test_mixed_precision_within_a_model() -> None:
    """An adapter in float32 on a base in bfloat16, as peft makes them."""
    case = CASES["lora-llama"]()
    case.model.bfloat16()
    for name, parameter in case.model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    found = pairs(case, [0, 1, 2])
    assert all(pair.activations.dtype == torch.float32 for pair in found.values())
    sums = {name: gradient(pair).sum(0) for name, pair in found.items()}
    require_equal(sums, summed_gradients(case, [0, 1, 2], found), 1e-6)


def test_autocast_gives_pairs_of_two_dtypes() -> None:
    case = classifier_case("mlp", mlp().float())
    case = replace(case, batch=_cast(case.batch, torch.float32))
    expected = gradients(case, [0, 1, 2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = pairs(case, [0, 1, 2])
    assert found["0"].activations.dtype == torch.float32
    assert found["0"].deltas.dtype == torch.bfloat16
    require_equal({n: gradient(p) for n, p in found.items()}, expected, 2e-2)


class SharedConvolution(nn.Module):
    """One convolution applied twice, and two of other strides tied to one weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.twice = nn.Conv2d(1, 1, 3, padding=1)
        self.near = nn.Conv2d(1, 2, 2, bias=False)
        self.far = nn.Conv2d(1, 2, 2, bias=False, stride=2)
        self.far.weight = self.near.weight
        self.head = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.twice(torch.sin(self.twice(x))))
        both = self.near(h).mean((2, 3)) + torch.sin(self.far(h)).mean((2, 3))
        return self.head(torch.tanh(both))


def test_shared_convolutions_are_summed() -> None:
    case = image_case("shared", SharedConvolution().double())
    layers = {layer.name: layer for layer in select_layers(case.model, "linear")}
    assert layers["near"].modules == ("near", "far")
    require_truth(case)


@pytest.mark.parametrize("kind", ["shared", "conv", "conv-groups", "lora-merged"])
def test_the_reference_sees_the_same_positions(kind: str) -> None:
    """The dense reference's tokens and the package's pairs have the same second moments."""
    case = CASES[kind]()
    found = pairs(case, [0])
    for layer in select_layers(case.model, case.layers):
        a, delta = dense.tokens_of(case.model, layer.modules, case.score(0))
        pair = found[layer.name]
        assert pair.positions == len(a)
        for ours, theirs in ((pair.activations[0], a), (pair.deltas[0], delta)):
            torch.testing.assert_close(ours.T @ ours, theirs.T @ theirs, rtol=1e-9, atol=1e-12)


def test_a_first_dimension_that_is_no_document_is_refused() -> None:
    class Row(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.common = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return x[:, :3] + self.common(torch.ones(1, 4, dtype=x.dtype))

    case = classifier_case("row", Row().double())
    with pytest.raises(ModelError, match=r"'common' sees .* \(1, 4\) for a batch of 3 documents"):
        gradients(case, [0, 1, 2])
    with pytest.raises(ModelError, match="first dimension must be the document"):
        gradients(replace(case, objective=Twice()), [0, 1, 2])


class Unbatched(nn.Module):
    """A convolution of one image that takes the documents for channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x[:, 0]).mean((1, 2)).expand(len(x), -1)


def test_an_unbatched_image_is_refused() -> None:
    with pytest.raises(ModelError, match="first dimension must be the document"):
        gradients(image_case("unbatched", Unbatched().double()), [0, 1])


def test_convolutions_of_padded_documents_are_refused() -> None:
    case = image_case("conv", convolutions())
    attended = torch.ones(2, 12, dtype=torch.bool)
    padded = replace(case, batch=lambda rows: replace(case.batch(rows), attended=attended))
    with pytest.raises(ModelError, match="padding cannot be told apart"):
        gradients(padded, [0, 1])


def test_a_failed_start_leaves_the_model_alone() -> None:
    model = Shared().double()
    extractor = GradientExtractor(model, Classification(), select_layers(model))
    model.head = nn.Identity()
    model.train()
    with pytest.raises(ModelError, match="'head' is now a Identity"), extractor.session():
        pass
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_nan_loss_names_the_document() -> None:
    case = CASES["mlp-bias"]()
    batch = case.batch([0, 1, 2])
    batch.inputs[1, 0] = float("nan")
    extractor = GradientExtractor(case.model, Classification(), select_layers(case.model))
    with extractor.session(), pytest.raises(ModelError, match="'d1'"):
        true_gradients(extractor, batch, lambda pair: None)
