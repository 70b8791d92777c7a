"""Reductions: a whitened gradient, layer by layer, -> one vector of fixed length.

A reduction is linear and blind to the data, so a document and a query go through the same map and
inner products survive: ``none`` keeps them exactly, ``sketch`` in expectation.

The count-sketch (Charikar, Chen and Farach-Colton 2002; Weinberger et al. 2009) adds every
coordinate, with a random sign, into one of m buckets. Here the coordinates of a layer are cut into
runs of at most m; a run keeps its order and goes in as a whole, shifted cyclically by a random
amount. Two coordinates of one run never meet, two of different runs meet with probability 1/m, and
signs are independent; these are all that unbiasedness and the usual variance bound

    Var <x', y'> <= (|x|^2 |y|^2 + <x, y>^2) / m

need, and whole runs are added at the speed of memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from wherefrom.errors import WherefromError
from wherefrom.gradients.counter import bits, key_of

__all__ = ["NoReduction", "Reduction", "ReductionKind", "Sketch", "make_reduction"]

ReductionKind = Literal["none", "sketch"]


class Reduction(ABC):
    """A linear map from the layers' gradients to one vector.

    Args:
        sizes: Number of weights of each layer.
    """

    kind: ClassVar[ReductionKind]
    dimension: int

    def __init__(self, sizes: tuple[int, ...]) -> None:
        self.sizes = sizes
        self.offsets = tuple(int(o) for o in np.cumsum((0, *sizes))[:-1])

    @abstractmethod
    def scaling(self, layer: int, whitening: Tensor) -> Tensor:
        """What to multiply a layer's rotated gradient with: whitening, and signs where needed."""

    @abstractmethod
    def buffer(self, documents: int, like: Tensor) -> Tensor:
        """Zeros to add layers into, ``[doc, ...]``."""

    @abstractmethod
    def add(self, layer: int, scaled: Tensor, buffer: Tensor) -> None:
        """Add one layer's scaled gradients ``[doc, size]`` into the buffer."""

    @abstractmethod
    def finish(self, buffer: Tensor) -> Tensor:
        """``[doc, dimension]`` vectors from the buffer."""


class NoReduction(Reduction):
    """All coordinates, layer after layer."""

    kind = "none"

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__(sizes)
        self.dimension = sum(sizes)

    def scaling(self, layer: int, whitening: Tensor) -> Tensor:
        """The whitening itself."""
        return whitening

    def buffer(self, documents: int, like: Tensor) -> Tensor:
        """``[doc, dimension]``."""
        return like.new_zeros(documents, self.dimension)

    def add(self, layer: int, scaled: Tensor, buffer: Tensor) -> None:
        """Put the layer in its place."""
        start = self.offsets[layer]
        buffer[:, start : start + self.sizes[layer]] += scaled

    def finish(self, buffer: Tensor) -> Tensor:
        """The buffer itself."""
        return buffer


class Sketch(Reduction):
    """Count-sketch of all layers together to ``dimension`` buckets, fixed by ``seed``."""

    kind = "sketch"

    def __init__(self, sizes: tuple[int, ...], dimension: int, seed: int) -> None:
        super().__init__(sizes)
        self.dimension = dimension
        self._signs = key_of(seed, 1)
        runs = [-(-size // dimension) for size in sizes]
        random = bits(key_of(seed, 2), 0, sum(runs))
        self._shifts = np.split(
            (random % np.uint64(dimension)).astype(np.int64), np.cumsum(runs)[:-1]
        )

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
        for run, shift in enumerate(self._shifts[layer].tolist()):
            part = scaled[:, run * self.dimension : (run + 1) * self.dimension]
            buffer[:, shift : shift + part.shape[1]] += part

    def finish(self, buffer: Tensor) -> Tensor:
        """Fold the second half onto the first."""
        return buffer[:, : self.dimension] + buffer[:, self.dimension :]


def make_reduction(kind: str, sizes: tuple[int, ...], dimension: int, seed: int) -> Reduction:
    """The reduction of that kind.

    Raises:
        WherefromError: The kind is unknown or the dimension not positive.
    """
    if kind == "none":
        return NoReduction(sizes)
    if kind == "sketch":
        if dimension < 1:
            raise WherefromError(f"a sketch needs at least 1 dimension, not {dimension}")
        return Sketch(sizes, dimension, seed)
    raise WherefromError(f"encoder {kind!r} is unknown; choose 'auto', 'sketch' or 'none'")
