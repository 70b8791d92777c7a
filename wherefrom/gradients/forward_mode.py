"""Forward mode: how a model's outputs move when its selected weights move along given vectors.

Every module that uses a selected weight adds ``V a`` to the tangent of its output, so one pass
gives ``J v``, the derivative of all outputs at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from wherefrom.errors import ModelError
from wherefrom.gradients.batches import Batch
from wherefrom.gradients.extractor import GradientExtractor
from wherefrom.gradients.kinds import Kind
from wherefrom.gradients.layers import Layer, tapped_modules

__all__ = ["output_tangent", "untapped"]


def untapped(extractor: GradientExtractor) -> GradientExtractor:
    """The same model and objective with no layer tapped: taps have no forward mode."""
    return GradientExtractor(extractor.model, extractor.objective, ())


def output_tangent(
    extractor: GradientExtractor,
    layers: Sequence[Layer],
    batch: Batch,
    vectors: Sequence[Tensor],
    *,
    remedy: str = "ask with refine=0",
) -> tuple[Tensor, Tensor]:
    """The outputs on a batch and ``J v``. Inside the session of an :func:`untapped` extractor.

    Args:
        extractor: Of no layers.
        layers: Those whose weights move.
        batch: What the model reads.
        vectors: Of each layer ``[d_out, d_in]``, in the order of the weight, the bias last.
        remedy: What to do where a model has no forward mode, for the message.

    Returns:
        Both of the shape of the objective's outputs, in the model's own precision.

    Raises:
        ModelError: The model cannot be run in forward mode, or no selected layer takes part in its
            outputs.
    """
    model = extractor.model
    try:
        # Of the attention kernels only the plain one has a forward mode.
        with (
            _first_use(),
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),
            forward_ad.dual_level(),
            _pushed(model, layers, vectors),
        ):
            outputs = extractor.objective.outputs(model, batch.to(extractor.device))
            primal, tangent = _unpacked(outputs)
    except (RuntimeError, NotImplementedError) as error:
        raise ModelError(
            f"{type(model).__name__} cannot be run in forward mode, which this needs: "
            f"{str(error).splitlines()[0]}; {remedy}"
        ) from error
    if tangent is None:
        raise ModelError(
            "no selected layer takes part in the model's output; choose others with layers="
        )
    return primal, tangent


@contextmanager
def _first_use() -> Iterator[None]:
    """Torch sets up its forward mode with its own jit, and warns that this is deprecated."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit", DeprecationWarning)
        yield


@contextmanager
def _pushed(model: nn.Module, layers: Sequence[Layer], vectors: Sequence[Tensor]) -> Iterator[None]:
    """Inside a dual level, let the selected weights move along ``vectors``."""
    handles = [
        module.register_forward_hook(
            _push(kind, vectors[position], bias=layers[position].bias), with_kwargs=True
        )
        for position, module, kind in tapped_modules(model, layers)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _push(kind: Kind, vector: Tensor, *, bias: bool) -> Callable[..., Tensor]:
    """The hook that adds a weight's motion to the tangent of its module's output."""

    def hook(module: nn.Module, inputs: tuple[Any, ...], named: Any, output: Tensor) -> Tensor:
        given, _ = _unpacked(inputs[0] if inputs else next(iter(named.values())))
        primal, tangent = _unpacked(output)
        activations = kind.activations(given)
        moving = vector.to(activations.device, activations.dtype)
        moved = activations @ moving[:, : kind.d_in].T
        if bias:
            moved = moved + moving[:, -1]
        push = _adjoint(kind, primal, moved)
        dual: Tensor = forward_ad.make_dual(  # type: ignore[no-untyped-call]
            primal, push if tangent is None else tangent + push
        )
        return dual

    return hook


def _unpacked(dual: Tensor) -> tuple[Tensor, Tensor | None]:
    """Value and tangent; ``None`` where there is none."""
    primal, tangent = forward_ad.unpack_dual(dual)  # type: ignore[no-untyped-call]
    return primal, tangent


def _adjoint(kind: Kind, output: Tensor, moved: Tensor) -> Tensor:
    """``[row, position, d_out]`` as a change of the module's output: ``kind.deltas`` transposed."""
    # Made anew and not zeros_like(output): what runs here must not see the tangent of anything.
    flat = torch.zeros(output.shape, dtype=output.dtype, device=output.device, requires_grad=True)
    with torch.enable_grad():
        deltas = kind.deltas(flat)
    (push,) = torch.autograd.grad(deltas, flat, moved.to(deltas.dtype))
    return push
