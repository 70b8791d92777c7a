"""The coordinates of the largest expected energy, and nothing else.

A whitened coordinate's expected energy is ``Lambda / (Lambda + lambda)``, its share of one under
damping. What is left out is lost for good, where a sketch would only be noisy; but the coordinates
kept lie in a corner of the eigenbasis, so that only the rows and columns that hold one are ever
computed: ``d_in k_in + d_out k_out + k_in k_out`` multiplications a token, where all coordinates
take ``d_in^2 + d_out^2 + d_in d_out``.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import torch
from torch import Tensor

from wherefrom.encoding.reduction import Reduction

__all__ = ["Energy", "top_coordinates"]


def top_coordinates(energies: Sequence[Tensor], count: int) -> tuple[Tensor, ...]:
    """Positions of the ``count`` largest energies of all layers together.

    Of equal ones the first are taken, so that the choice is the same on every machine.

    Args:
        energies: Of each layer, any shape.
        count: At most the number of all.

    Returns:
        For each layer int64 positions by rows, increasing.
    """
    flat = [energy.flatten().cpu().numpy() for energy in energies]
    largest = np.concatenate([_largest(values, min(count, len(values))) for values in flat])
    threshold = _largest(largest, count).min()
    above = [values > threshold for values in flat]
    equal = count - sum(int(chosen.sum()) for chosen in above)
    for values, chosen in zip(flat, above, strict=True):
        ties = np.flatnonzero(values == threshold)[:equal]
        chosen[ties] = True
        equal -= len(ties)
    return tuple(torch.from_numpy(np.flatnonzero(chosen)) for chosen in above)


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """The ``count`` largest, in any order."""
    split = len(values) - count
    return np.partition(values, split)[split:] if split else values


class Energy(Reduction):
    """Some coordinates of each layer, layer after layer, through their bounding rectangle.

    Args:
        shapes: ``(d_out, d_in)`` of each layer.
        chosen: Positions of its coordinates, by rows, increasing.
    """

    kind = "energy"

    def __init__(self, shapes: Sequence[tuple[int, int]], chosen: Sequence[Tensor]) -> None:
        super().__init__(tuple(d_out * d_in for d_out, d_in in shapes))
        self.dimension = sum(map(len, chosen))
        self._starts = np.cumsum([0, *map(len, chosen)]).tolist()
        rectangles, self._inside = [], []
        for (_, d_in), positions in zip(shapes, chosen, strict=True):
            rows, row = torch.unique(positions // d_in, return_inverse=True)
            columns, column = torch.unique(positions % d_in, return_inverse=True)
            rectangles.append((rows, columns))
            self._inside.append(row * len(columns) + column)
        self.rectangles = tuple(rectangles)

    @property
    def scaling_key(self) -> Hashable:
        """Its own."""
        return "energy", id(self)

    def scaling(self, layer: int, whitening: Tensor) -> Tensor:
        """The rectangle of the whitening, zero where it holds what was not chosen."""
        rectangle = self.restricted(layer, whitening)
        inside = self._inside[layer].to(whitening.device)
        scaling = torch.zeros_like(rectangle).flatten()
        scaling[inside] = rectangle.flatten()[inside]
        return scaling.reshape(rectangle.shape)

    def buffer(self, documents: int, like: Tensor) -> Tensor:
        """``[doc, dimension]``."""
        return like.new_zeros(documents, self.dimension)

    def add(self, layer: int, scaled: Tensor, buffer: Tensor) -> None:
        """Pick the layer's coordinates out of its rectangle."""
        start, end = self._starts[layer : layer + 2]
        buffer[:, start:end] += scaled.index_select(1, self._inside[layer].to(scaled.device))
