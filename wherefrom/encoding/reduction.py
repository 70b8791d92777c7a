"""Reductions: a whitened gradient, layer by layer, -> one vector of fixed length.

A reduction is linear and the same for documents and queries. ``none`` keeps inner products exactly,
``sketch`` in expectation.

The count-sketch (Charikar, Chen and Farach-Colton 2002; Weinberger et al. 2009) adds every
coordinate, with a random sign, into one of m buckets. Here the coordinates of a layer are cut into
runs of at most m; a run keeps its order and goes in as a whole, shifted cyclically by a random
amount. Two coordinates of one run never meet, two of different runs meet with probability 1/m, and
signs are independent; these are all that unbiasedness and the usual variance bound

    Var <x', y'> <= (|x|^2 |y|^2 + <x, y>^2) / m

need, and whole runs are added at the speed of memory. The bound grows with the norms of what is
sketched: leaving out the coordinates that carry little of the product and much of the norm loses
less than it saves.
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
        dimension: Entries of a vector, the buckets.
        seed: Of signs and shifts.
        chosen: Positions, in each layer, of the coordinates that are sketched, increasing; all by
            default.
    """

    kind = "sketch"

    def __init__(
        self,
        sizes: tuple[int, ...],
        dimension: int,
        seed: int,
        chosen: Sequence[Tensor] | None = None,
    ) -> None:
        super().__init__(sizes)
        self.dimension = dimension
        self._seed = seed
        self._chosen = chosen
        counts = sizes if chosen is None else [len(positions) for positions in chosen]
        self._signs = key_of(seed, _SIGNS)
        runs = [-(-count // dimension) for count in counts]
        random = bits(key_of(seed, _SHIFTS), 0, sum(runs))
        self._shifts = np.split(
            (random % np.uint64(dimension)).astype(np.int64), np.cumsum(runs)[:-1]
        )

    @property
    def scaling_key(self) -> Hashable:
        """Signs follow from the seed alone, whatever the dimension and whatever is sketched."""
        return "signs", self._seed

    def scaling(self, layer: int, whitening: Tensor) -> Tensor:
        """The whitening with random signs."""
        random = bits(self._signs, self.offsets[layer], self.sizes[layer])
        signs = torch.from_numpy((random >> np.uint64(63)).astype(np.int8) * 2 - 1)
        return whitening * signs.to(whitening.device, whitening.dtype).reshape(whitening.shape)

    def buffer(self, documents: int, like: Tensor) -> Tensor:
        """``[doc, 2 dimension]``: shifted runs may reach past the end; folded when finished."""
        return like.new_zeros(documents, 2 * self.dimension)

    def add(self, layer: int, scaled: Tensor, buffer: Tensor) -> None:
        """Add the layer's runs at their shifts."""
        if self._chosen is not None:
            scaled = scaled.index_select(1, self._chosen[layer].to(scaled.device))
        for run, shift in enumerate(self._shifts[layer].tolist()):
            part = scaled[:, run * self.dimension : (run + 1) * self.dimension]
            buffer[:, shift : shift + part.shape[1]] += part

    def finish(self, buffer: Tensor) -> Tensor:
        """Fold the second half onto the first."""
        return buffer[:, : self.dimension] + buffer[:, self.dimension :]
