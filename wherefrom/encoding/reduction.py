"""Reductions: a whitened gradient, layer by layer, -> one vector of fixed length.

A reduction is linear and the same for documents and queries. ``none`` keeps inner products exactly,
``sketch`` in expectation.

The count-sketch (Charikar, Chen and Farach-Colton 2002; Weinberger et al. 2009) adds every
coordinate, with a random sign, into one of m buckets. Here the coordinates of a layer are cut into
runs of at most m; a run keeps its order and goes in as a whole, shifted cyclically by a random
amount. Two coordinates of one run never meet, two of different runs meet with probability 1/m, and
signs are independent; these are all that unbiasedness and the usual variance bound

    Var <x', y'> <= (|x|^2 |y|^2 + <x, y>^2) / m

need, and whole runs are added at the speed of memory. Coordinates that are kept have entries of
their own, before the buckets, and take no part in the sketch: the bound then holds for what is left
of x and y without them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from wherefrom.curvature.fitted import Rectangles
from wherefrom.encoding.stages import ReductionKind
from wherefrom.gradients.counter import bits, key_of

__all__ = ["NoReduction", "Reduction", "Sketch"]

_SIGNS, _SHIFTS = 1, 2
"""Streams of a seed."""


class Reduction(ABC):
    """A linear map from the layers' gradients to one vector.

    Args:
        sizes: Number of weights of each layer.

    Attributes:
        dimension: Entries of a vector.
        rectangles: Rows and columns of each layer's coordinates that the map reads; ``None``: all.
    """

    kind: ClassVar[ReductionKind]
    dimension: int
    rectangles: Rectangles | None = None

    def __init__(self, sizes: tuple[int, ...]) -> None:
        self.sizes = sizes
        self.offsets = tuple(int(o) for o in np.cumsum((0, *sizes))[:-1])

    @property
    @abstractmethod
    def scaling_key(self) -> Hashable:
        """Equal for reductions over the same layers whose ``scaling`` is the same."""

    def restricted(self, layer: int, coordinates: Tensor) -> Tensor:
        """The layer's rectangle of ``[..., d_out, d_in]``."""
        if self.rectangles is None:
            return coordinates
        rows, columns = (side.to(coordinates.device) for side in self.rectangles[layer])
        return coordinates[..., rows[:, None], columns]

    def scaling(self, layer: int, whitening: Tensor) -> Tensor:
        """What to multiply the rectangle of a layer's coordinates with.

        Args:
            layer: Which.
            whitening: ``[d_out, d_in]``.
        """
        return self.restricted(layer, whitening)

    @abstractmethod
    def buffer(self, documents: int, like: Tensor) -> Tensor:
        """Zeros to add layers into, ``[doc, ...]``."""

    @abstractmethod
    def add(self, layer: int, scaled: Tensor, buffer: Tensor) -> None:
        """Add one layer's scaled gradients ``[doc, entries of the rectangle]`` into the buffer."""

    def finish(self, buffer: Tensor) -> Tensor:
        """``[doc, dimension]`` vectors from the buffer."""
        return buffer


class NoReduction(Reduction):
    """All coordinates, layer after layer."""

    kind = "none"

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__(sizes)
        self.dimension = sum(sizes)

    @property
    def scaling_key(self) -> Hashable:
        """The whitening itself."""
        return "whitening"

    def buffer(self, documents: int, like: Tensor) -> Tensor:
        """``[doc, dimension]``."""
        return like.new_zeros(documents, self.dimension)

    def add(self, layer: int, scaled: Tensor, buffer: Tensor) -> None:
        """Put the layer in its place."""
        start = self.offsets[layer]
        buffer[:, start : start + self.sizes[layer]] += scaled


class Sketch(Reduction):
    """Count-sketch of all layers together, fixed by its seed.

    Args:
        sizes: Number of weights of each layer.
        dimension: Entries of a vector: kept coordinates, then buckets.
        seed: Of signs and shifts.
        kept: Positions of the coordinates kept in each layer, increasing; none by default.
    """

    kind = "sketch"

    def __init__(
        self,
        sizes: tuple[int, ...],
        dimension: int,
        seed: int,
        kept: Sequence[Tensor] | None = None,
    ) -> None:
        super().__init__(sizes)
        self.dimension = dimension
        self._seed = seed
        self._kept = kept
        counts = [0] * len(sizes) if kept is None else [len(chosen) for chosen in kept]
        self._starts = np.cumsum([0, *counts]).tolist()
        self._buckets = dimension - self._starts[-1]
        self._signs = key_of(seed, _SIGNS)
        runs = [-(-size // self._buckets) for size in sizes]
        random = bits(key_of(seed, _SHIFTS), 0, sum(runs))
        self._shifts = np.split(
            (random % np.uint64(self._buckets)).astype(np.int64), np.cumsum(runs)[:-1]
        )

    @property
    def scaling_key(self) -> Hashable:
        """Signs follow from the seed alone, whatever the dimension and whatever is kept."""
        return "signs", self._seed

    def scaling(self, layer: int, whitening: Tensor) -> Tensor:
        """The whitening with random signs; kept coordinates carry theirs on both sides."""
        random = bits(self._signs, self.offsets[layer], self.sizes[layer])
        signs = torch.from_numpy((random >> np.uint64(63)).astype(np.int8) * 2 - 1)
        return whitening * signs.to(whitening.device, whitening.dtype).reshape(whitening.shape)

    def buffer(self, documents: int, like: Tensor) -> Tensor:
        """``[doc, kept + 2 buckets]``: shifted runs may reach past the end, until finished."""
        return like.new_zeros(documents, self._starts[-1] + 2 * self._buckets)

    def add(self, layer: int, scaled: Tensor, buffer: Tensor) -> None:
        """Add the layer's runs at their shifts, and what it keeps before them."""
        start, end = self._starts[layer : layer + 2]
        if self._kept is None or start == end:
            self._add_runs(layer, scaled, buffer)
            return
        chosen = self._kept[layer].to(scaled.device)
        values = scaled.index_select(1, chosen)
        buffer[:, start:end] += values
        scaled.index_fill_(1, chosen, 0.0)
        self._add_runs(layer, scaled, buffer)
        scaled.index_copy_(1, chosen, values)

    def _add_runs(self, layer: int, scaled: Tensor, buffer: Tensor) -> None:
        first, width = self._starts[-1], self._buckets
        for run, shift in enumerate(self._shifts[layer].tolist()):
            part = scaled[:, run * width : (run + 1) * width]
            buffer[:, first + shift : first + shift + part.shape[1]] += part

    def finish(self, buffer: Tensor) -> Tensor:
        """Fold the second half of the buckets onto the first."""
        first, width = self._starts[-1], self._buckets
        folded = buffer[:, first : first + width] + buffer[:, first + width :]
        return torch.cat([buffer[:, :first], folded], 1) if first else folded
