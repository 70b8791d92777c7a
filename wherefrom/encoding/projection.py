"""Random projection of each layer by Gaussian Kronecker matrices: the baseline of the field.

A layer's whitened gradient ``X [d_out, d_in]`` becomes ``P_out^T X P_in`` with independent normal
entries (LoGra, Choe et al. 2024, has the same form), of which as many entries are taken as are its
share. Each entry's product with that of another gradient is ``<X, Y>`` on average, so the vectors'
inner products are unbiased; but entries that share a row or a column are correlated, and the layers
do not share their noise, so that it is larger than a sketch's.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
import torch
from torch import Tensor

from wherefrom.encoding.reduction import Reduction
from wherefrom.gradients.counter import key_of, normals

__all__ = ["RandomProjection"]

_FIRST_STREAM = 1 << 32
"""Streams of a seed: two a layer from here."""


class RandomProjection(Reduction):
    """Kronecker Gaussian projections with an equal share of the entries for every layer.

    A layer with fewer weights than its share gets as many entries as it has weights.

    Args:
        shapes: ``(d_out, d_in)`` of each layer.
        dimension: Entries of a vector, at most the number of weights.
        seed: Of the matrices.
    """

    kind = "random"

    def __init__(self, shapes: Sequence[tuple[int, int]], dimension: int, seed: int) -> None:
        super().__init__(tuple(d_out * d_in for d_out, d_in in shapes))
        self.dimension = dimension
        self._shapes = tuple(shapes)
        shares = _shares(self.sizes, dimension)
        self._starts = np.cumsum([0, *shares]).tolist()
        self._sides: list[tuple[Tensor, Tensor]] = []
        for layer, (shape, share) in enumerate(zip(shapes, shares, strict=True)):
            k_out, k_in = _sides(shape, share)
            stream = _FIRST_STREAM + 2 * layer
            p_out = _gaussian(seed, stream, shape[0], k_out) / math.sqrt(max(share, 1))
            self._sides.append((p_out, _gaussian(seed, stream + 1, shape[1], k_in)))

    @property
    def scaling_key(self) -> Hashable:
        """The whitening itself."""
        return "whitening"

    def buffer(self, documents: int, like: Tensor) -> Tensor:
        """``[doc, dimension]``."""
        return like.new_zeros(documents, self.dimension)

    def add(self, layer: int, scaled: Tensor, buffer: Tensor) -> None:
        """Project the layer into its share of the entries."""
        start, end = self._starts[layer : layer + 2]
        p_out, p_in = (p.to(scaled.device, scaled.dtype) for p in self._sides[layer])
        projected = p_out.T @ (scaled.reshape(-1, *self._shapes[layer]) @ p_in)
        buffer[:, start:end] += projected.flatten(1)[:, : end - start]


def _shares(sizes: tuple[int, ...], dimension: int) -> list[int]:
    """Entries of each layer: equal, as far as layers have as many weights."""
    shares = [0] * len(sizes)
    left = dimension
    for waiting, layer in zip(
        range(len(sizes), 0, -1), sorted(range(len(sizes)), key=lambda i: sizes[i]), strict=True
    ):
        shares[layer] = min(sizes[layer], left // waiting)
        left -= shares[layer]
    return shares


def _sides(shape: tuple[int, int], share: int) -> tuple[int, int]:
    """``k_out`` and ``k_in``, as equal as can be, with room for the share."""
    root = math.isqrt(max(share - 1, 0)) + 1
    k_out = min(shape[0], root)
    k_in = min(shape[1], -(-share // k_out))
    return (k_out, k_in) if k_out * k_in >= share else (-(-share // k_in), k_in)


def _gaussian(seed: int, stream: int, rows: int, columns: int) -> Tensor:
    """Standard normal numbers, float32 ``[rows, columns]``."""
    drawn = normals(key_of(seed, stream), np.arange(rows, dtype=np.uint64), columns)
    return torch.from_numpy(drawn.astype(np.float32))
