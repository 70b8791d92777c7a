"""Gradients kept one by one, for the curvatures that are functions of them and nothing smaller."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from wherefrom.curvature.bases import gradients_of
from wherefrom.curvature.fits import OnePass
from wherefrom.curvature.fitted import FittedCurvature, block, require_finite, takes_no_part
from wherefrom.curvature.memory import Room, require_memory
from wherefrom.gradients.extractor import LayerPair
from wherefrom.gradients.layers import Layer

__all__ = ["KeptGradients", "kept_fit", "row_blocks", "squared_norms"]

_BLOCK_BYTES = 1 << 26
_REMEDY = "fit on fewer documents (fit_documents=), choose fewer layers, or curvature='ekfac'"


class KeptGradients:
    """Gradients as they come, counted, so that too many are refused while they are few.

    Args:
        layers: The layers, in order.
        kind: Of the curvature, for messages.
        expected: How many documents there will be, to refuse in time what would not fit.
        memory: Bytes they may take; half of the machine's by default.

    Attributes:
        documents: How many documents were seen.
    """

    def __init__(
        self,
        layers: tuple[Layer, ...],
        kind: str,
        expected: int | None = None,
        memory: int | None = None,
    ) -> None:
        self.documents = 0
        self._layers = layers
        self._kind = kind
        self._expected = expected or 0
        self._memory = memory
        self._parts: list[list[Tensor]] = [[] for _ in layers]
        self._reached = [0] * len(layers)
        self._bytes = [0] * len(layers)
        self._foreseen = [0] * len(layers)

    def add(self, pair: LayerPair) -> None:
        """Keep one pair's gradients, ``[doc, d_out d_in]``, at least float32.

        Raises:
            CurvatureError: They do not fit in memory.
        """
        gradients = gradients_of(pair).flatten(1)
        self._foresee(pair, gradients.element_size())
        self._keep(pair.layer, gradients)
        self._reached[pair.layer] += len(gradients) if pair.first else 0

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Keep what ``state`` gave, too.

        Raises:
            CurvatureError: Tensors are missing or of the wrong shape, or do not fit in memory.
        """
        self.documents += int(block(state, "documents", self._layers[0], ()))
        reached = block(state, "reached", self._layers[0], (len(self._layers),)).tolist()
        for i, layer in enumerate(self._layers):
            self._reached[i] += reached[i]
            name = f"{i}.gradients"
            if name in state:  # Else the layer took no part so far.
                self._keep(i, block(state, name, layer, (-1, layer.size)))

    def state(self) -> dict[str, Tensor]:
        """All gradients of a layer in one tensor, and counts."""
        tensors = {
            "documents": torch.tensor(self.documents),
            "reached": torch.tensor(self._reached),
        }
        for i, parts in enumerate(self._parts):
            if parts:
                tensors[f"{i}.gradients"] = self._joined(i).cpu()
        return tensors

    def merge(self, later: KeptGradients) -> None:
        """Keep the gradients of the documents that follow, after these.

        Raises:
            CurvatureError: They do not fit in memory.
        """
        self.documents += later.documents
        for i, parts in enumerate(later._parts):
            self._reached[i] += later._reached[i]
            for part in parts:
                self._keep(i, part)
            parts.clear()

    def gradients(self) -> tuple[Tensor, ...]:
        """Of each layer ``[gradient, d_out d_in]``, in the order they came.

        Raises:
            CurvatureError: They are not finite, or a layer takes no part.
        """
        found = []
        for i, layer in enumerate(self._layers):
            if not self._parts[i]:
                raise takes_no_part(layer)
            found.append(require_finite(layer, self._joined(i), "the gradient"))
        return tuple(found)

    def _joined(self, layer: int) -> Tensor:
        """All of a layer, which from then on are one part."""
        parts = self._parts[layer]
        if len(parts) > 1:
            parts[:] = [torch.cat(parts)]
        return parts[0]

    def _keep(self, layer: int, gradients: Tensor) -> None:
        parts = self._parts[layer]
        parts.append(gradients.to(parts[0].device) if parts else gradients)
        self._bytes[layer] += gradients.nbytes
        require_memory(
            sum(map(max, self._bytes, self._foreseen)),
            f"the gradients that curvature={self._kind!r} keeps",
            _REMEDY,
            gradients.device,
            self._memory,
        )

    def _foresee(self, pair: LayerPair, width: int) -> None:
        """What all documents will need: at least one gradient each, or as many as those so far."""
        if not any(self._foreseen):
            self._foreseen = [self._expected * layer.size * width for layer in self._layers]
        done = self._reached[pair.layer]
        if pair.first and done:
            each = self._bytes[pair.layer] / done
            self._foreseen[pair.layer] = round(self._expected * each)


def kept_fit(
    layers: tuple[Layer, ...],
    kind: str,
    room: Room,
    finish: Callable[[KeptGradients], FittedCurvature],
) -> OnePass[KeptGradients]:
    """A fit in one pass that keeps every gradient.

    Args:
        layers: The layers, in order.
        kind: Of the curvature, for messages.
        room: What it may take.
        finish: What the gradients come to.
    """

    def empty() -> KeptGradients:
        return KeptGradients(layers, kind, room.documents, room.memory)

    def load(state: Mapping[str, Tensor]) -> KeptGradients:
        kept = empty()
        kept.load(state)
        return kept

    return OnePass(empty, load, finish)


def row_blocks(gradients: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Kept gradients in float64, some rows at a time: ``(first row, [row, d])``."""
    rows = max(1, _BLOCK_BYTES // (8 * gradients.shape[1]))
    for start in range(0, len(gradients), rows):
        yield start, gradients[start : start + rows].double()


def squared_norms(gradients: Tensor) -> Tensor:
    """``|g_i|^2``, float64 ``[gradient]``."""
    parts = [part.square().sum(1) for _, part in row_blocks(gradients)]
    return torch.cat(parts)
