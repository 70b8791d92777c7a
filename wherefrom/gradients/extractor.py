"""Model + batch -> per-layer (activation, output gradient) pairs of each document.

No weight gradient is ever formed by autograd. All parameters are frozen; each selected layer's
output passes through a tap, an identity whose backward hands the pair ``(a, delta)`` to a consumer
as soon as it is known and then lets it go. The taps hang on one dummy leaf, so the backward pass
visits what lies between the loss and the first selected layer, and nothing before it.

A tap keeps its activation with ``save_for_backward``, so gradient checkpointing recomputes
it as it does any saved tensor, and an in-place change of it is an error instead of a wrong number.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from wherefrom.errors import ModelError
from wherefrom.gradients.batches import Batch
from wherefrom.gradients.layers import Layer
from wherefrom.gradients.objectives import Objective

__all__ = ["Consumer", "Forward", "GradientExtractor", "LayerPair"]


@dataclass(frozen=True, slots=True)
class LayerPair:
    """One layer's share of a batch's gradients: ``sum_t delta_t a_t^T`` for each document.

    Attributes:
        layer: Position of the layer in the extractor's ``layers``.
        activations: ``[doc, token, d_in]`` (one more input, 1, with a bias); padding is zero.
        deltas: ``[doc, token, d_out]``: gradient of the scalar with respect to the output.
        input_of: The first layer of the model that read the very same activations, so that what
            depends on them alone is computed once (gate and up projections share their input).
        positions: Number of positions that count, padding left out.
        first: Whether these activations come for the first time (several backward passes may
            follow one forward pass).

    Layers with the same ``input_of`` get the same ``activations`` object in one pass.
    """

    layer: int
    activations: Tensor
    deltas: Tensor
    input_of: int
    positions: int
    first: bool


Consumer = Callable[[LayerPair], None]


class _Tap(torch.autograd.Function):
    """Identity that shows the gradient passing through it, with the layer's input, to a sink."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, anchor: Tensor, activation: Tensor, sink: Any) -> Tensor:
        """Keep the activation; the result aliases ``output`` without being a view of it.

        A view made inside a custom function may not be changed in place, and ``ReLU(inplace=True)``
        after a linear layer is common. The alias is safe: a linear layer's backward does not read
        its output.
        """
        ctx.save_for_backward(activation)
        ctx.sink = sink
        return output.data

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None, None]:
        """Hand over the pair; the gradient passes on unchanged."""
        (activation,) = ctx.saved_tensors
        ctx.sink(activation, gradients[0])
        return gradients[0] if ctx.needs_input_grad[0] else None, None, None, None


class _Recorder:
    """What the taps of one forward pass share.

    A module may run several times in a pass, and modules may share a weight: a layer's pairs are
    handed over together, when all its calls have delivered. Calls are counted while the forward
    pass runs and not when checkpointing repeats a part of it.
    """

    def __init__(self, layers: int, device: torch.device) -> None:
        self.anchor = torch.zeros((), device=device, requires_grad=True)
        self.recording = True
        self.calls = [0] * layers
        self.inputs: list[list[int]] = [[] for _ in range(layers)]
        self.deliver: Callable[[int, Tensor, Tensor], None] | None = None
        self._known: dict[int, tuple[weakref.ref[Tensor], int, int]] = {}

    def saw(self, layer: int, given: Tensor) -> None:
        """Count a call, and number its input: equal numbers mean the very same tensor."""
        if not self.recording:
            return
        self.calls[layer] += 1
        reference, version, number = self._known.get(id(given), (None, 0, 0))
        if reference is None or reference() is not given or version != given._version:
            number = sum(self.calls)
            self._known[id(given)] = (weakref.ref(given), given._version, number)
        self.inputs[layer].append(number)

    def sink(self, layer: int) -> Callable[[Tensor, Tensor], None]:
        """Where a tap of ``layer`` hands its pair."""

        def deliver(activation: Tensor, delta: Tensor) -> None:
            if self.deliver is not None:
                self.deliver(layer, activation, delta)

        return deliver


class Forward:
    """A forward pass with its taps, ready for one or more backward passes.

    Attributes:
        outputs: What the objective's ``outputs`` returned.
        batch: The batch, on the model's device.
    """

    def __init__(
        self, layers: tuple[Layer, ...], batch: Batch, outputs: Tensor, recorder: _Recorder
    ) -> None:
        self.outputs = outputs
        self.batch = batch
        self._layers = layers
        self._recorder = recorder
        self._passes = 0
        self._latest: tuple[int, Tensor | None] = (-1, None)
        leaders: dict[tuple[bool, tuple[int, ...]], int] = {}
        self._leader = [
            leaders.setdefault((layers[i].bias, tuple(numbers)), i) if numbers else i
            for i, numbers in enumerate(recorder.inputs)
        ]

    def backward(self, gradient: Tensor, consume: Consumer, *, last: bool = True) -> None:
        """Carry a gradient back from the outputs; ``consume`` gets each layer's pair.

        Args:
            gradient: Of a sum over documents with respect to ``outputs``, of their shape.
            consume: Called once a layer, in the order of the backward pass.
            last: Whether the graph may be freed.

        Raises:
            ModelError: No selected layer takes part in the outputs.
        """
        waiting: list[list[tuple[Tensor, Tensor]]] = [[] for _ in self._layers]
        self._latest = (-1, None)
        consumed = 0

        def flush(layer: int) -> None:
            nonlocal consumed
            consume(self._pair(layer, waiting[layer]))
            waiting[layer].clear()
            consumed += 1

        def deliver(layer: int, activation: Tensor, delta: Tensor) -> None:
            waiting[layer].append((activation, delta))
            if len(waiting[layer]) == self._recorder.calls[layer]:
                flush(layer)

        self._recorder.deliver = deliver
        try:
            torch.autograd.grad(
                self.outputs,
                self._recorder.anchor,
                gradient.to(self.outputs.dtype),
                retain_graph=not last,
                allow_unused=True,
            )
        finally:
            self._recorder.deliver = None
        for layer, pairs in enumerate(waiting):
            if pairs:  # a call whose output the loss does not read brings nothing; the others count
                flush(layer)
        self._latest = (-1, None)
        self._passes += 1
        if consumed == 0:
            raise ModelError(
                "no selected layer takes part in the model's output; choose others with layers= "
                "(reentrant gradient checkpointing hides layers: use use_reentrant=False)"
            )

    def _pair(self, index: int, pairs: Sequence[tuple[Tensor, Tensor]]) -> LayerPair:
        layer, leader = self._layers[index], self._leader[index]
        parts = [_three_dimensional(a, d, len(self.batch), layer) for a, d in pairs]
        deltas = torch.cat([d for _, d in parts], 1) if len(parts) > 1 else parts[0][1]
        mask = self._mask(parts, layer)
        activations = self._latest[1] if self._latest[0] == leader and len(parts) == 1 else None
        if activations is None:
            activations = torch.cat([a for a, _ in parts], 1) if len(parts) > 1 else parts[0][0]
            if layer.bias:
                ones = activations.new_ones((*activations.shape[:2], 1))
                activations = torch.cat([activations, ones], 2)
            if mask is not None:
                activations = activations * mask.unsqueeze(2)
            self._latest = (leader, activations)
        positions = deltas.shape[0] * deltas.shape[1] if mask is None else int(mask.sum())
        first = self._passes == 0
        return LayerPair(index, activations, deltas, leader, positions, first)

    def _mask(self, parts: Sequence[tuple[Tensor, Tensor]], layer: Layer) -> Tensor | None:
        """``[doc, token]``: which positions are not padding; ``None`` when all count."""
        attended = self.batch.attended
        if attended is None:
            return None
        masks = []
        for activation, _ in parts:
            if activation.shape[1] == attended.shape[1]:
                masks.append(attended)
            elif activation.shape[1] == 1:
                masks.append(attended.new_ones((len(attended), 1)))
            else:
                raise ModelError(
                    f"layer {layer.name!r} sees {activation.shape[1]} positions, the batch has "
                    f"{attended.shape[1]}; padding cannot be told apart: build with batch_size=1"
                )
        return torch.cat(masks, 1) if len(masks) > 1 else masks[0]


def _three_dimensional(
    activation: Tensor, delta: Tensor, size: int, layer: Layer
) -> tuple[Tensor, Tensor]:
    """``[doc, token, width]`` from whatever leading dimensions the module used."""
    if activation.ndim < 2 or activation.shape[0] != size:
        raise ModelError(
            f"layer {layer.name!r} sees an input of shape {tuple(activation.shape)} for a batch of "
            f"{size} documents; the first dimension must be the document: leave it out of layers"
        )
    return (
        activation.reshape(size, -1, activation.shape[-1]),
        delta.reshape(size, -1, delta.shape[-1]),
    )


@contextmanager
def _deterministic_attention(device: torch.device) -> Iterator[None]:
    """On GPUs, the attention kernel whose backward pass gives the same bits every time."""
    if device.type == "cpu":
        yield
    else:
        with sdpa_kernel(SDPBackend.MATH):
            yield


class GradientExtractor:
    """Runs a model over batches and yields each layer's (activation, output gradient) pairs.

    Args:
        model: The model; put into evaluation mode while a pass runs, and left as it was.
        objective: What the model's outputs mean.
        layers: From :func:`wherefrom.gradients.layers.select_layers`.
    """

    def __init__(self, model: nn.Module, objective: Objective, layers: Sequence[Layer]) -> None:
        self.model = model
        self.objective = objective
        self.layers = tuple(layers)
        self._recorder: _Recorder | None = None

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the selected layers' weights."""
        module = self.model.get_submodule(self.layers[0].name)
        weight: Tensor = module.weight  # type: ignore[assignment]
        return weight.dtype

    @contextmanager
    def session(self) -> Iterator[None]:
        """Freeze the model for a run of batches: evaluation mode, no parameter wants a gradient."""
        training = {m: m.training for m in self.model.modules()}
        wanted = [(p, p.requires_grad) for p in self.model.parameters()]
        self.model.eval()
        for parameter, _ in wanted:
            parameter.requires_grad_(False)
        handles = [
            self.model.get_submodule(name).register_forward_hook(self._tap(i), with_kwargs=True)
            for i, layer in enumerate(self.layers)
            for name in layer.modules
        ]
        try:
            with _deterministic_attention(self.device):
                yield
        finally:
            self._recorder = None
            for handle in handles:
                handle.remove()
            for module, mode in training.items():
                module.training = mode
            for parameter, flag in wanted:
                parameter.requires_grad_(flag)

    def forward(self, batch: Batch) -> Forward:
        """Run the model on a batch, inside :meth:`session`, with every selected layer tapped.

        Raises:
            ModelError: The model fails on these inputs.
        """
        batch = batch.to(self.device)
        recorder = _Recorder(len(self.layers), self.device)
        self._recorder = recorder
        try:
            with torch.enable_grad():
                outputs = self.objective.outputs(self.model, batch)
        except (RuntimeError, IndexError, ValueError) as error:
            raise ModelError(
                f"{type(self.model).__name__} cannot run on inputs of shape "
                f"{tuple(batch.inputs.shape)} and type {batch.inputs.dtype}: "
                f"{str(error).splitlines()[0]}"
            ) from error
        recorder.recording = False
        return Forward(self.layers, batch, outputs, recorder)

    def _tap(self, layer: int) -> Callable[..., Tensor]:
        """The forward hook of a layer's modules."""

        def hook(module: nn.Module, inputs: tuple[Any, ...], named: Any, output: Tensor) -> Tensor:
            recorder = self._recorder
            if recorder is None:
                raise ModelError(
                    "the model ran inside a gradient session but not through forward()"
                )
            given = inputs[0] if inputs else next(iter(named.values()))
            recorder.saw(layer, given)
            result: Tensor = _Tap.apply(  # type: ignore[no-untyped-call]
                output, recorder.anchor, given.detach(), recorder.sink(layer)
            )
            return result

        return hook
