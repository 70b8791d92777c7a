"""Convolutions against autograd and against patches cut by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import dense
from pairs import require_truth
from small_models import Case, image_case
from wherefrom.gradients.batches import Batch, stack_examples
from wherefrom.gradients.kinds import Convolution, kind_of
from wherefrom.gradients.objectives import Classification

MODES = ("zeros", "reflect", "replicate", "circular")


class OneConvolution(nn.Module):
    """A convolution of the image's channels, before a linear head."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.spread = nn.Conv2d(1, 4, 1)
        self.conv = nn.Conv2d(4, 4, **options)
        self.head = nn.Linear(4, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.conv(torch.sin(self.spread(x))))
        return self.head(h.flatten(2).pow(2).mean(2))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3},
        {"kernel_size": 3, "bias": False},
        {"kernel_size": (2, 3), "stride": (2, 1), "padding": (1, 0)},
        {"kernel_size": 2, "dilation": (2, 3), "padding": 2},
        {"kernel_size": 3, "groups": 2, "stride": 2},
        {"kernel_size": 3, "groups": 2, "stride": 2, "bias": False},
        {"kernel_size": 2, "groups": 4, "dilation": 2},
        {"kernel_size": 1, "groups": 4, "bias": False},
        {"kernel_size": (2, 4), "padding": "same"},
        {"kernel_size": (2, 4), "padding": "same", "padding_mode": "reflect", "groups": 2},
        {"kernel_size": 3, "padding": "valid", "stride": 2},
        {"kernel_size": 3, "padding": (2, 1), "padding_mode": "circular"},
        {"kernel_size": 3, "padding": (1, 2), "padding_mode": "replicate", "stride": (1, 2)},
        {"kernel_size": 3, "padding": (1, 2), "padding_mode": "reflect", "dilation": 2},
        {"kernel_size": 5},
    ],
    ids=str,
)
def test_equal_single_backward_passes(options: dict[str, object]) -> None:
    require_truth(image_case("one", OneConvolution(**options).double()))


class Denoised(Classification):
    """The logits of two denoising steps of a U-Net, each at a time of its own."""

    copies = 2

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        times = torch.tensor([3, 700]).repeat(len(batch))
        sample = model(batch.inputs.repeat_interleave(2, 0), times).sample
        return sample.reshape(len(batch), 2, 3, -1).pow(2).mean((1, 3))


def test_a_unet_equals_single_backward_passes() -> None:
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    model = UNet2DModel(
        sample_size=4,
        in_channels=1,
        out_channels=3,
        block_out_channels=(4, 8),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=2,
        attention_head_dim=4,
    )
    layers = ("time_embedding.*", "*.time_emb_proj", "conv_in", "*shortcut", "*down*.to_q")
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64, generator=generator)
    case = Case(
        "unet",
        model.double().eval(),
        (*layers, "*samplers.0.conv"),
        Denoised(),
        lambda rows: stack_examples(x[rows], torch.tensor(rows), [f"d{i}" for i in rows]),
        2,
    )
    require_truth(case)


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Conv2d, Tensor]:
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    groups = draw(st.integers(1, 3))
    torch.manual_seed(draw(st.integers(0, 99)))
    module = nn.Conv2d(
        groups * draw(st.integers(1, 2)),
        groups * draw(st.integers(1, 2)),
        draw(pair),
        stride=draw(pair),
        padding=draw(st.tuples(st.integers(0, 2), st.integers(0, 2))),
        dilation=draw(pair),
        groups=groups,
        bias=draw(st.booleans()),
        padding_mode=draw(st.sampled_from(MODES)),
    ).double()
    size = draw(st.tuples(st.integers(3, 6), st.integers(3, 6)))
    for axis in (0, 1):
        reach = module.dilation[axis] * (module.kernel_size[axis] - 1) + 1
        assume(size[axis] + 2 * module.padding[axis] >= reach)
    return module, torch.randn(2, module.in_channels, *size, dtype=torch.float64)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(convolutions())
def test_any_convolution(drawn: tuple[nn.Conv2d, Tensor]) -> None:
    module, x = drawn
    kind = kind_of(module)
    assert isinstance(kind, Convolution)
    output = module(x)
    gradient = torch.randn_like(output)
    activations, deltas = kind.activations(x), kind.deltas(gradient)
    assert activations.shape == (2, output[0, 0].numel() * module.groups, kind.d_in)

    wanted = [module.weight, *([] if module.bias is None else [module.bias])]
    for row in range(2):
        weight, *bias = torch.autograd.grad(output[row], wanted, gradient[row], retain_graph=True)
        torch.testing.assert_close(deltas[row].T @ activations[row], weight.flatten(1))
        if bias:
            torch.testing.assert_close(deltas[row].sum(0), bias[0])

    patches = dense.patches(module, x, output).reshape(activations.shape)
    torch.testing.assert_close(activations, patches, rtol=0, atol=0)
