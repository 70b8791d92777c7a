"""Model + batch -> per-layer (activation, output gradient) pairs of each document.

No weight gradient is ever formed by autograd. All parameters are frozen; each selected layer's
output passes through a tap, an identity whose backward hands the pair ``(a, delta)`` to a consumer
as soon as it is known and then lets it go. The taps hang on one dummy leaf, so the backward pass
visits what lies between the loss and the first selected layer, and nothing before it.

Pairs come in the dtypes in which the model computed them, which may differ from layer to layer and
between the two of a pair; those who add them up promote them to float32 at least.

A tap keeps its activation with ``save_for_backward``, so gradient checkpointing recomputes
it as it does any saved tensor, and an in-place change of it is an error instead of a wrong number.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from wherefrom.errors import ModelError
from wherefrom.gradients.batches import Batch
from wherefrom.gradients.kinds import Kind
from wherefrom.gradients.layers import Layer, tapped_modules
from wherefrom.gradients.memory import no_room, out_of_memory
from wherefrom.gradients.objectives import Objective

__all__ = ["Consumer", "Forward", "GradientExtractor", "LayerPair"]


@dataclass(frozen=True, slots=True)
class LayerPair:
    """One layer's share of a batch's gradients: ``sum_t delta_t a_t^T`` for each document.

    Both are on the device that the layer is on, where a model is spread over several.

    Attributes:
        layer: Position of the layer in the extractor's ``layers``.
        activations: ``[doc, position, d_in]`` (one more input, 1, with a bias); padding is zero.
            Positions are tokens, places of a convolution's kernel, and the same again for each
            copy of a document that the objective runs.
        deltas: ``[doc, position, d_out]``: gradient of the scalar with respect to the output.
        input_of: The first layer of the model that read the very same activations, so that what
            depends on them alone is computed once (gate and up projections share their input).
        positions: Number of positions that count, padding left out.
        first: Whether these activations come for the first time (several backward passes may
            follow one forward pass).

    Layers with the same ``input_of`` get the same ``activations`` object in one pass, if they ran
    once in it.
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


class _Call(NamedTuple):
    """One run of a layer's module: its kind, its input and the gradient of its output."""

    kind: Kind
    given: Tensor
    gradient: Tensor


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
        self.readings: list[list[Hashable]] = [[] for _ in range(layers)]
        self.deliver: Callable[[int, _Call], None] | None = None
        self._known: dict[int, tuple[weakref.ref[Tensor], int, int]] = {}

    def saw(self, layer: int, kind: Kind, given: Tensor) -> None:
        """Count a call, and note what it reads: equal notes mean equal activations."""
        if not self.recording:
            return
        self.calls[layer] += 1
        reference, version, number = self._known.get(id(given), (None, 0, 0))
        if reference is None or reference() is not given or version != given._version:
            number = sum(self.calls)
            self._known[id(given)] = (weakref.ref(given), given._version, number)
        self.readings[layer].append((number, kind.reading))

    def sink(self, layer: int, kind: Kind) -> Callable[[Tensor, Tensor], None]:
        """Where a tap of ``layer`` hands its pair."""

        def deliver(given: Tensor, gradient: Tensor) -> None:
            if self.deliver is not None:
                self.deliver(layer, _Call(kind, given, gradient))

        return deliver


class Forward:
    """A forward pass with its taps, ready for one or more backward passes.

    Attributes:
        outputs: What the objective's ``outputs`` returned.
        batch: The batch, on the model's device.
    """

    def __init__(
        self,
        layers: tuple[Layer, ...],
        batch: Batch,
        outputs: Tensor,
        recorder: _Recorder,
        copies: int,
    ) -> None:
        self.outputs = outputs
        self.batch = batch
        self._layers = layers
        self._recorder = recorder
        self._copies = copies
        self._passes = 0
        leaders: dict[Hashable, int] = {}
        self._leader = [
            leaders.setdefault((layers[i].bias, *readings), i) if readings else i
            for i, readings in enumerate(recorder.readings)
        ]
        # The calls of a layer that ran several times come in any order, so its activations are its
        # own.
        once = [i for i, calls in enumerate(recorder.calls) if calls == 1]
        self._readers = Counter(self._leader[i] for i in once)
        self._shared: dict[int, Tensor] = {}

    def backward(self, gradient: Tensor, consume: Consumer, *, last: bool = True) -> None:
        """Carry a gradient back from the outputs; ``consume`` gets each layer's pair.

        Args:
            gradient: Of a sum over documents with respect to ``outputs``, of their shape.
            consume: Called once a layer, in the order of the backward pass.
            last: Whether the graph may be freed.

        Raises:
            ModelError: No selected layer takes part in the outputs, or memory runs out.
        """
        waiting: list[list[_Call]] = [[] for _ in self._layers]
        to_come = self._readers.copy()
        consumed = 0

        def flush(layer: int) -> None:
            nonlocal consumed
            leader = self._leader[layer]
            to_come[leader] -= 1
            consume(self._pair(layer, waiting[layer], shared=to_come[leader] > 0))
            waiting[layer].clear()
            consumed += 1

        def deliver(layer: int, call: _Call) -> None:
            waiting[layer].append(call)
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
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise no_room(len(self.batch)) from error
        finally:
            self._recorder.deliver = None
            self._shared.clear()
        for layer, calls in enumerate(waiting):
            if calls:  # a call whose output the loss does not read brings nothing; the others count
                flush(layer)
        self._passes += 1
        if consumed == 0:
            raise ModelError(
                "no selected layer takes part in the model's output; choose others with layers= "
                "(reentrant gradient checkpointing hides layers: use use_reentrant=False)"
            )

    def _pair(self, index: int, calls: Sequence[_Call], *, shared: bool) -> LayerPair:
        """Bring a layer's calls together; ``shared``: others will ask for the same activations."""
        layer, leader = self._layers[index], self._leader[index]
        for call in calls:
            self._require_documents(call, layer)
        parts = [call.kind.deltas(call.gradient) for call in calls]
        mask = self._mask(calls, parts, layer)
        deltas = self._folded(parts)
        activations = self._shared.pop(leader, None)
        if activations is None:
            activations = self._folded([call.kind.activations(call.given) for call in calls])
            if layer.bias:
                ones = activations.new_ones((*activations.shape[:2], 1))
                activations = torch.cat([activations, ones], 2)
            if mask is not None:
                activations = activations * mask.unsqueeze(2).to(activations.device)
        if shared:
            self._shared[leader] = activations
        positions = deltas.shape[0] * deltas.shape[1] if mask is None else int(mask.sum())
        first = self._passes == 0
        return LayerPair(index, activations, deltas, leader, positions, first)

    def _folded(self, parts: Sequence[Tensor]) -> Tensor:
        """``[doc, position, width]`` of all calls, the copies of a document one after another."""
        size = len(self.batch)
        folded = [part.reshape(size, -1, part.shape[2]) for part in parts]
        return torch.cat(folded, 1) if len(folded) > 1 else folded[0]

    def _mask(self, calls: Sequence[_Call], parts: Sequence[Tensor], layer: Layer) -> Tensor | None:
        """``[doc, position]``: which positions are not padding; ``None`` when all count."""
        attended = self.batch.attended
        if attended is None:
            return None
        masks = []
        for call, part in zip(calls, parts, strict=True):
            copies, positions = len(part) // len(attended), part.shape[1]
            if call.kind.reads_tokens and positions == 1 < copies == self._flattened:
                masks.append(attended)
            elif call.kind.reads_tokens and positions == attended.shape[1]:
                masks.append(attended.repeat(1, copies) if copies > 1 else attended)
            elif call.kind.reads_tokens and positions == 1:
                masks.append(attended.new_ones((len(attended), copies)))
            else:
                raise ModelError(
                    f"layer {layer.name!r} sees {positions} positions, the batch has "
                    f"{attended.shape[1]}; padding cannot be told apart: build with batch_size=1"
                )
        return torch.cat(masks, 1) if len(masks) > 1 else masks[0]

    @property
    def _flattened(self) -> int:
        """Rows of a document where a model lays all tokens of a batch one after another (OPT)."""
        inputs = self.batch.inputs
        of_tokens = inputs.ndim == 2 and not inputs.dtype.is_floating_point and self._copies == 1
        return inputs.shape[1] if of_tokens else 1

    def _require_documents(self, call: _Call, layer: Layer) -> None:
        """Refuse an input whose first dimension is not the document, its copies or its tokens."""
        size, given = len(self.batch), call.given
        rows = given.shape[0] if given.ndim >= call.kind.fewest_dimensions else 0
        if rows not in (size, size * self._copies, size * self._flattened):
            raise ModelError(
                f"layer {layer.name!r} sees an input of shape {tuple(given.shape)} for a batch of "
                f"{size} documents; the first dimension must be the document: leave it out of "
                "layers"
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
        """Where the model's inputs go: where its first weights are."""
        return next(self.model.parameters()).device

    @contextmanager
    def session(self) -> Iterator[None]:
        """Freeze the model for a run of batches: evaluation mode, no parameter wants a gradient.

        Raises:
            ModelError: The model no longer has the layers that were selected.
        """
        taps = list(tapped_modules(self.model, self.layers))
        training = {m: m.training for m in self.model.modules()}
        wanted = [(p, p.requires_grad) for p in self.model.parameters()]
        self.model.eval()
        for parameter, _ in wanted:
            parameter.requires_grad_(False)
        handles = [
            module.register_forward_hook(self._tap(layer, kind), with_kwargs=True)
            for layer, module, kind in taps
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
            ModelError: The model fails on these inputs, memory runs out, or its outputs are not a
                row a document.
        """
        batch = batch.to(self.device)
        recorder = _Recorder(len(self.layers), self.device)
        self._recorder = recorder
        try:
            with torch.enable_grad():
                outputs = self.objective.outputs(self.model, batch)
        except (RuntimeError, IndexError, ValueError, MemoryError) as error:
            if out_of_memory(error):
                raise no_room(len(batch)) from error
            raise ModelError(
                f"{type(self.model).__name__} cannot run on inputs of shape "
                f"{tuple(batch.inputs.shape)} and type {batch.inputs.dtype}: "
                f"{str(error).splitlines()[0]}"
            ) from error
        recorder.recording = False
        if not isinstance(outputs, Tensor) or outputs.shape[:1] != (len(batch),):
            given = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise ModelError(
                f"{type(self.objective).__name__}.outputs returned {given} for {len(batch)} "
                "documents; the first dimension must be the document"
            )
        return Forward(self.layers, batch, outputs, recorder, self.objective.copies)

    def _tap(self, layer: int, kind: Kind) -> Callable[..., Tensor]:
        """The forward hook of a module that a layer's pairs come from."""

        def hook(module: nn.Module, inputs: tuple[Any, ...], named: Any, output: Tensor) -> Tensor:
            recorder = self._recorder
            if recorder is None:
                raise ModelError(
                    "the model ran inside a gradient session but not through forward()"
                )
            given = inputs[0] if inputs else next(iter(named.values()))
            recorder.saw(layer, kind, given)
            result: Tensor = _Tap.apply(  # type: ignore[no-untyped-call]
                output, recorder.anchor, given.detach(), recorder.sink(layer, kind)
            )
            return result

        return hook
