"""The proximal Bregman objective of a subject: its value, its gradient, and what preconditions it.

See :mod:`wherefrom.evaluation.pbrf` for what it is good for.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wherefrom.curvature.eigen import FittedEigen
from wherefrom.curvature.memory import require_memory
from wherefrom.errors import EvaluationError
from wherefrom.evaluation.subject import Subject
from wherefrom.gradients.batches import Batch
from wherefrom.gradients.layers import Layer, tapped_modules
from wherefrom.gradients.objectives import Probabilistic

__all__ = ["ProximalObjective", "in_float64"]

_AT_ONCE = 512
_VECTORS = 80
"""Vectors over all layers that L-BFGS holds: two for each of 30 steps, and those at work."""


class _Weights:
    """The selected layers' weights in a copy of a model, as one float64 vector.

    By rows of each layer's ``[d_out, d_in]``, the bias last, as gradients are.
    """

    def __init__(self, model: nn.Module, layers: Sequence[Layer]) -> None:
        for position, module, _ in tapped_modules(model, layers):
            layer = layers[position]
            if all(module is not model.get_submodule(name) for name in layer.modules):
                raise EvaluationError(
                    f"layer {layer.name!r} is merged into its base, whose weights would move in "
                    "its place; unmerge the adapter (model.unmerge_adapter())"
                )
        self._layers = layers
        self.parameters = [
            model.get_parameter(f"{layer.name}.{part}")
            for layer in layers
            for part in (("weight", "bias") if layer.bias else ("weight",))
        ]
        self._ends = [0]
        for layer in layers:
            self._ends.append(self._ends[-1] + layer.size)

    def split(self, flat: Tensor) -> Iterator[Tensor]:
        """Views ``[d_out, d_in]`` of a vector, one a layer."""
        for layer, (start, end) in zip(self._layers, pairwise(self._ends), strict=True):
            yield flat[start:end].view(layer.shape)

    def vector(self, parts: Sequence[Tensor]) -> Tensor:
        """Tensors shaped as ``parameters``, laid end to end."""
        flat = parts[0].new_zeros(self._ends[-1])
        for part, place in zip(parts, self._places(flat), strict=True):
            place.copy_(part.reshape(place.shape))
        return flat

    @torch.no_grad()
    def write(self, flat: Tensor) -> None:
        """Set the model's weights."""
        for parameter, place in zip(self.parameters, self._places(flat), strict=True):
            parameter.copy_(place.reshape(parameter.shape))

    def _places(self, flat: Tensor) -> Iterator[Tensor]:
        """Views of a vector, one a parameter: of its shape, that of kernels laid flat."""
        for layer, matrix in zip(self._layers, self.split(flat), strict=True):
            weight = matrix[:, : layer.d_in]
            yield weight.T if layer.kind == "Conv1D" else weight
            if layer.bias:
                yield matrix[:, -1]


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """Some documents, and what holds their outputs where they were.

    Attributes:
        positions: Of the documents, int64 ``[doc]``.
        batch: In float64.
        outputs: Of the trained model.
        nats: Log-likelihoods under it, ``[doc]``.
        held: Their gradient with respect to ``outputs``.
    """

    positions: NDArray[np.int64]
    batch: Batch
    outputs: Tensor
    nats: Tensor
    held: Tensor


class ProximalObjective:
    """What is minimised, for one document after another.

    Args:
        subject: Model and documents; the model is copied.
        fitted: Preconditions.
        lambdas: Of each layer.

    Attributes:
        model: The copy, in float64 and evaluation mode.
        trained: The selected layers' weights as they were, float64 ``[weight]``.

    Raises:
        EvaluationError: The objective has no known distribution, or an adapter is merged.
        CurvatureError: Vectors or outputs do not fit in memory.
    """

    def __init__(self, subject: Subject, fitted: FittedEigen, lambdas: Sequence[float]) -> None:
        extractor = subject.extractor
        if not isinstance(extractor.objective, Probabilistic):
            raise EvaluationError(
                f"{type(extractor.objective).__name__} has no known distribution, so its loss may "
                "not be convex in the outputs; derive it from Categorical or Gaussian"
            )
        size = sum(layer.size for layer in extractor.layers)
        require_memory(
            _VECTORS * 8 * size,
            "the vectors of a proximal Bregman response",
            "choose fewer layers (layers=)",
            extractor.device,
        )
        self._objective = extractor.objective
        self._count = len(subject)
        self._fitted = fitted
        self._lambdas = lambdas
        self.model = copy.deepcopy(extractor.model).double().eval()
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        self._weights = _Weights(self.model, extractor.layers)
        for parameter in self._weights.parameters:
            parameter.requires_grad_(True)
        self.trained = self._weights.vector([p.detach() for p in self._weights.parameters])
        self._pull = torch.cat(
            [
                self.trained.new_full((layer.size,), value)
                for layer, value in zip(extractor.layers, lambdas, strict=True)
            ]
        )
        self._parts: list[_Part] = []
        for positions, batch in subject.document_batches(_AT_ONCE):
            placed = in_float64(batch.to(extractor.device))
            outputs, nats, held = self._differentiated(placed)
            self._parts.append(_Part(positions, placed, outputs.detach(), nats, held))
            require_memory(
                2 * held.nbytes * self._count // len(positions),
                "the outputs on all documents",
                "evaluate fewer or shorter documents",
                extractor.device,
            )

    def move(self, weights: Tensor) -> None:
        """Set the model's weights, float64 ``[weight]``."""
        self._weights.write(weights)

    def adding(self, document: int, epsilon: float) -> Callable[[Tensor], tuple[float, Tensor]]:
        """Value and gradient of the objective that adds ``epsilon`` of a document.

        The value is zero at the trained weights, as a difference: ``-epsilon log p`` is left out.
        """

        def objective(weights: Tensor) -> tuple[float, Tensor]:
            self.move(weights)
            totals = [torch.zeros_like(parameter) for parameter in self._weights.parameters]
            moved = weights - self.trained
            value = 0.5 * float(self._pull @ moved.square())
            for part in self._parts:
                outputs, nats, now = self._differentiated(part.batch)
                gained = nats - part.nats
                here = np.flatnonzero(part.positions == document)
                away = _rowwise(part.held, outputs.detach() - part.outputs)
                value += float((away - gained).sum()) / self._count
                value -= epsilon * float(gained[here].sum())
                carried = (part.held - now) / self._count
                carried[here] -= epsilon * now[here]
                found = torch.autograd.grad(
                    outputs, self._weights.parameters, carried, allow_unused=True
                )
                for total, added in zip(totals, found, strict=True):
                    if added is not None:
                        total += added
            return value, self._weights.vector(totals).addcmul_(self._pull, moved)

        return objective

    def precondition(self, flat: Tensor) -> Tensor:
        """The curvature's ``(G + lambda)^-1``, layer by layer."""
        solved = []
        for layer, matrix in enumerate(self._weights.split(flat)):
            damped = self._fitted.eigenvalues[layer] + self._lambdas[layer]
            point = torch.zeros_like(matrix, requires_grad=True)
            # The basis is orthogonal: its transpose, which autograd knows, is its inverse.
            with torch.enable_grad():
                rotated = self._fitted.raw(layer, point)
            (coordinates,) = torch.autograd.grad(rotated, point, matrix)
            solved.append(self._fitted.raw(layer, coordinates / damped).flatten())
        return torch.cat(solved)

    def _differentiated(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs with their graph, log-likelihoods, and their gradient with respect to outputs."""
        with torch.enable_grad():
            outputs = self._objective.outputs(self.model, batch)
        nats, gradient = self._objective.differentiate(outputs, batch.targets, batch)
        return outputs, nats, gradient


def _rowwise(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of rows, ``[doc]``."""
    return (a * b).flatten(1).sum(1)


def in_float64(batch: Batch) -> Batch:
    """A batch whose inputs and targets are float64 where they are floats."""
    inputs, targets = (
        part.double() if part.dtype.is_floating_point else part
        for part in (batch.inputs, batch.targets)
    )
    return replace(batch, inputs=inputs, targets=targets)
