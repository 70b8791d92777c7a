"""Gradients kept one by one, for the curvatures that are functions of them and nothing smaller."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from wherefrom.curvature.bases import gradients_of
from wherefrom.curvature.fitted import require_finite
from wherefrom.curvature.memory import require_memory
from wherefrom.errors import CurvatureError
from wherefrom.gradients.extractor import LayerPair
from wherefrom.gradients.fisher import PairSource
from wherefrom.gradients.layers import Layer

__all__ = ["keep_gradients", "row_blocks", "squared_norms"]

_BLOCK_BYTES = 1 << 26
_REMEDY = "fit on fewer documents (fit_documents=), choose fewer layers, or curvature='ekfac'"


class _Kept:
    """Gradients as they come, counted, so that too many are refused while they are few."""

    def __init__(self, layers: tuple[Layer, ...], kind: str, expected: int | None) -> None:
        self.parts: list[list[Tensor]] = [[] for _ in layers]
        self._layers = layers
        self._kind = kind
        self._expected = expected or 0
        self._documents = [0] * len(layers)
        self._bytes = [0] * len(layers)
        self._foreseen = [0] * len(layers)

    def add(self, pair: LayerPair) -> None:
        """Keep one pair's gradients."""
        gradients = gradients_of(pair).flatten(1)
        self._foresee(pair, gradients.element_size())
        self.parts[pair.layer].append(gradients)
        self._bytes[pair.layer] += gradients.nbytes
        self._documents[pair.layer] += len(gradients) if pair.first else 0
        require_memory(
            sum(map(max, self._bytes, self._foreseen)),
            f"the gradients that curvature={self._kind!r} keeps",
            _REMEDY,
            gradients.device,
        )

    def _foresee(self, pair: LayerPair, width: int) -> None:
        """What all documents will need: at least one gradient each, or as many as those so far."""
        if not any(self._foreseen):
            self._foreseen = [self._expected * layer.size * width for layer in self._layers]
        done = self._documents[pair.layer]
        if pair.first and done:
            each = self._bytes[pair.layer] / done
            self._foreseen[pair.layer] = round(self._expected * each)


def keep_gradients(
    source: PairSource, kind: str, expected: int | None
) -> tuple[tuple[Tensor, ...], int]:
    """One pass: every gradient of a source.

    Args:
        source: Where they come from; with an expected Fisher one gradient a document and class.
        kind: Of the curvature, for messages.
        expected: How many documents there will be, to refuse in time what would not fit.

    Returns:
        For each layer ``[gradient, d_out d_in]``, at least float32, and the number of documents.

    Raises:
        CurvatureError: They do not fit in memory, are not finite, or a layer takes no part.
    """
    kept = _Kept(source.layers, kind, expected)
    documents = source.run(kept.add)
    result = []
    for layer, parts in zip(source.layers, kept.parts, strict=True):
        if not parts:
            raise CurvatureError(
                f"layer {layer.name!r} takes no part in the model's output; leave it out of layers"
            )
        result.append(require_finite(layer, torch.cat(parts), "the gradient"))
        parts.clear()
    return tuple(result), documents


def row_blocks(gradients: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Kept gradients in float64, some rows at a time: ``(first row, [row, d])``."""
    rows = max(1, _BLOCK_BYTES // (8 * gradients.shape[1]))
    for start in range(0, len(gradients), rows):
        yield start, gradients[start : start + rows].double()


def squared_norms(gradients: Tensor) -> Tensor:
    """``|g_i|^2``, float64 ``[gradient]``."""
    parts = [part.square().sum(1) for _, part in row_blocks(gradients)]
    return torch.cat(parts)
