"""Layer kinds: how a module's input and output gradient become (activation, delta) pairs.

Every kind is brought to one format, rows of positions: activations ``[row, position, d_in]`` and
output gradients ``[row, position, d_out]``, such that ``sum_t delta_t a_t^T`` is the gradient of
the weight seen as a matrix ``[d_out, d_in]``. A linear layer has it already. A convolution gets it
by unfolding: each place that the kernel visits is a position, as in Grosse and Martens (2016).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["SUPPORTED", "Convolution", "Dense", "Kind", "kind_of"]

SUPPORTED = "nn.Linear, nn.Conv2d, transformers' Conv1D and the A and B of peft's LoRA"
"""What :func:`kind_of` knows, for error messages."""

# Subclasses of nn.Linear whose own forward() is the same map.
_SAME_MAP = ("FalconLinear",)


@dataclass(frozen=True, eq=False)
class Kind(ABC):
    """What a module computes, as a map ``y = W a + b`` at each position.

    Attributes:
        d_in: Width of an activation, without the bias.
        d_out: Width of an output gradient.
        bias: Whether the module has a bias.
    """

    d_in: int
    d_out: int
    bias: bool

    fewest_dimensions: ClassVar[int] = 2
    """Dimensions that an input must have for its first one to be the document."""

    reads_tokens: ClassVar[bool] = True
    """Whether an input ``[row, token, ...]`` has its tokens as positions."""

    @property
    @abstractmethod
    def reading(self) -> Hashable:
        """What the activations depend on beside the input: equal readings, equal activations."""

    @abstractmethod
    def activations(self, given: Tensor) -> Tensor:
        """``[row, position, d_in]`` from the module's input, in its dtype."""

    @abstractmethod
    def deltas(self, gradient: Tensor) -> Tensor:
        """``[row, position, d_out]`` from the gradient of the module's output, in its dtype."""


@dataclass(frozen=True, eq=False)
class Dense(Kind):
    """A linear map of the last dimension: ``nn.Linear``, ``Conv1D``."""

    @property
    def reading(self) -> Hashable:
        """The same for all linear maps."""
        return "dense"

    def activations(self, given: Tensor) -> Tensor:
        """The input; all dimensions between the first and the last are positions."""
        return given.reshape(given.shape[0], -1, given.shape[-1])

    def deltas(self, gradient: Tensor) -> Tensor:
        """The output gradient, likewise."""
        return gradient.reshape(gradient.shape[0], -1, gradient.shape[-1])


@dataclass(frozen=True, eq=False)
class Convolution(Kind):
    """A two-dimensional convolution, whose inputs are ``[row, channel, height, width]``.

    The entries of an activation are ordered as in ``weight.reshape(d_out, -1)``: channel, kernel
    row, kernel column. With several groups, each pair of a place and a group is a position: it has
    the activation of the group, and an output gradient that is zero outside the group's channels.

    Attributes:
        kernel: Height and width of the kernel.
        stride: Of height and width.
        dilation: Of height and width.
        padding: ``(left, right, top, bottom)``, as :func:`torch.nn.functional.pad` takes it.
        mode: How the padding is filled, as :func:`torch.nn.functional.pad` names it.
        groups: Into which channels are split.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[int, ...]
    mode: str
    groups: int

    fewest_dimensions: ClassVar[int] = 4
    reads_tokens: ClassVar[bool] = False

    @classmethod
    def of(cls, module: nn.Conv2d) -> Convolution:
        """The kind of a convolution."""
        weight = module.weight
        return cls(
            d_in=weight[0].numel(),
            d_out=weight.shape[0],
            bias=module.bias is not None,
            kernel=module.kernel_size,
            stride=module.stride,
            dilation=module.dilation,
            padding=_padding(module),
            mode="constant" if module.padding_mode == "zeros" else module.padding_mode,
            groups=module.groups,
        )

    @property
    def reading(self) -> Hashable:
        """All that decides which entries of an input meet at a position."""
        return self.kernel, self.stride, self.dilation, self.padding, self.mode, self.groups

    def activations(self, given: Tensor) -> Tensor:
        """The patches under the kernel."""
        padded = F.pad(given, self.padding, mode=self.mode) if any(self.padding) else given
        patches = F.unfold(padded, self.kernel, self.dilation, 0, self.stride)
        if self.groups == 1:
            return patches.transpose(1, 2)
        grouped = patches.reshape(len(given), self.groups, self.d_in, -1)
        return grouped.permute(0, 3, 1, 2).reshape(len(given), -1, self.d_in)

    def deltas(self, gradient: Tensor) -> Tensor:
        """The output gradient at each place, once a group."""
        places = gradient.flatten(2).transpose(1, 2)
        if self.groups == 1:
            return places
        grouped = places.reshape(*places.shape[:2], self.groups, -1)
        alone = torch.diag_embed(grouped.transpose(2, 3), dim1=2, dim2=3)
        return alone.reshape(len(gradient), -1, self.d_out)


def _padding(module: nn.Conv2d) -> tuple[int, ...]:
    """``(left, right, top, bottom)``; where ``"same"`` is uneven, the larger half comes last."""
    if isinstance(module.padding, str):
        totals = [0, 0]
        if module.padding == "same":
            spans = zip(module.kernel_size, module.dilation, strict=True)
            totals = [dilation * (size - 1) for size, dilation in spans]
        halves = [(total // 2, total - total // 2) for total in totals]
    else:
        halves = [(size, size) for size in module.padding]
    return (*halves[1], *halves[0])


def kind_of(module: nn.Module) -> Kind | None:
    """The kind of a module; ``None`` if it is not supported.

    A subclass with a ``forward`` of its own (a weight-standardised convolution, a router) may
    compute anything with its weight, and a parametrised weight is not what is trained, so neither
    is supported.
    """
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if not isinstance(weight, nn.Parameter):
        return None
    cls = type(module)
    if cls.__name__ == "Conv1D" and weight.ndim == 2:
        return Dense(weight.shape[0], weight.shape[1], bias is not None)
    if isinstance(module, nn.Linear):
        plain = cls.forward is nn.Linear.forward or cls.__name__ in _SAME_MAP
        return Dense(module.in_features, module.out_features, bias is not None) if plain else None
    if isinstance(module, nn.Conv2d):
        methods = ("forward", "_conv_forward")
        plain = all(getattr(cls, name) is getattr(nn.Conv2d, name) for name in methods)
        return Convolution.of(module) if plain else None
    return None
