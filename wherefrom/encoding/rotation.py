"""A seeded random rotation that spreads a vector's energy evenly over its entries.

The randomised Hadamard transform (Ailon and Chazelle 2006): random signs, then the orthogonal
matrix of entries ``+-1 / sqrt(P)``. It needs a power of two. For any other length m it is applied,
with fresh signs each time, to the first P entries and then to the last P, P the largest power of
two up to m; before that the two halves are mixed, entry by entry, for where 2 P is hardly more than
m the two blocks hardly meet. All steps are orthogonal. Coarse codes need the rotation: without it a
few large entries decide the scale of all others.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from wherefrom.gradients.counter import bits, key_of

__all__ = ["Rotation"]

_STREAM = 16
"""First stream of the seed; one for each time the transform is applied."""

_LARGEST_FACTOR = 6
"""Binary logarithm of the largest Hadamard matrix multiplied with; they make up the others."""


class Rotation:
    """An orthogonal map of vectors of one length.

    Args:
        dimension: Their length.
        seed: Of the signs.
    """

    def __init__(self, dimension: int, seed: int) -> None:
        self.dimension = dimension
        self._power = dimension.bit_length() - 1
        size = 1 << self._power
        starts = (0,) if size == dimension else (0, dimension - size)
        self._rounds = [
            (start, _signs(seed, _STREAM + number, size)) for number, start in enumerate(starts)
        ]
        whole = size == dimension
        self._mixing = None if whole else _signs(seed, _STREAM + len(starts), dimension // 2)

    def __call__(self, vectors: Tensor) -> Tensor:
        """``[..., dimension]`` rotated, in the precision given."""
        turned = vectors.clone()
        if self._mixing is not None:
            half = len(self._mixing)
            signs = self._mixing.to(vectors.device, vectors.dtype) * math.sqrt(0.5)
            first, last = vectors[..., :half] * signs, vectors[..., -half:] * math.sqrt(0.5)
            turned[..., :half] = first + last
            turned[..., -half:] = first - last
        for start, signs in self._rounds:
            part = turned[..., start : start + len(signs)]
            part.copy_(_hadamard(part * signs.to(part.device, part.dtype), self._power))
        return turned


def _signs(seed: int, stream: int, count: int) -> Tensor:
    random = bits(key_of(seed, stream), 0, count)
    return torch.from_numpy((random >> np.uint64(63)).astype(np.int8) * 2 - 1)


def _hadamard(vectors: Tensor, power: int) -> Tensor:
    """The orthogonal Hadamard transform of the last dimension, ``2 ** power`` long.

    As a Kronecker product of small matrices, which is a few matrix products at the speed of BLAS.
    """
    turned = vectors
    width = 1
    while power > 0:
        factor = min(power, _LARGEST_FACTOR)
        matrix = _matrix(factor).to(vectors.device, vectors.dtype)
        if width == 1:
            turned = turned.reshape(-1, len(matrix)) @ matrix
        else:
            turned = matrix @ turned.reshape(-1, len(matrix), width)
        width *= len(matrix)
        power -= factor
    return (turned / math.sqrt(width)).reshape(vectors.shape)


def _matrix(power: int) -> Tensor:
    """Sylvester's matrix of order ``2 ** power``."""
    matrix = torch.ones(1, 1)
    step = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    for _ in range(power):
        matrix = torch.kron(matrix, step)
    return matrix
