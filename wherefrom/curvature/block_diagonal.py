"""Orthogonal matrices with blocks on the diagonal: eigenvectors of factors too wide for one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["BlockDiagonal", "Matrix", "of_blocks", "rotated", "rotated_back"]


@dataclass(frozen=True, slots=True, eq=False)
class BlockDiagonal:
    """Columns of a block-diagonal orthogonal matrix ``Q [d, d]``.

    Attributes:
        blocks: ``[block, width, width]`` in order; the last reaches past ``d`` where ``d`` is no
            multiple of the width, and is the identity there.
        size: ``d``.
        columns: int64 positions of the columns; all by default.
    """

    blocks: Tensor
    size: int
    columns: Tensor | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of its entries."""
        return self.blocks.dtype

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.size, self.size if self.columns is None else len(self.columns)

    def to(self, device: torch.device) -> BlockDiagonal:
        """The same on a device."""
        columns = None if self.columns is None else self.columns.to(device)
        return BlockDiagonal(self.blocks.to(device), self.size, columns)

    def times(self, vectors: Tensor, *, transposed: bool = False) -> Tensor:
        """``x Q`` of row vectors ``[..., d]``, or ``x Q^T`` of all columns."""
        count, width = self.blocks.shape[:2]
        flat = vectors.reshape(-1, self.size)
        padded = functional.pad(flat, (0, count * width - self.size))
        parts = padded.view(-1, count, width).transpose(0, 1)
        blocks = self.blocks.to(vectors.dtype)
        turned = torch.bmm(parts, blocks.mT if transposed else blocks).transpose(0, 1)
        whole = turned.reshape(len(flat), count * width)[:, : self.size]
        whole = whole.reshape(vectors.shape)
        return whole if self.columns is None else whole[..., self.columns]


Matrix = Tensor | BlockDiagonal
"""Orthonormal columns ``[d, k]``."""


def rotated(vectors: Tensor, columns: Matrix) -> Tensor:
    """``x Q`` of row vectors ``[..., d]``."""
    return vectors @ columns if isinstance(columns, Tensor) else columns.times(vectors)


def rotated_back(vectors: Tensor, columns: Matrix) -> Tensor:
    """``x Q^T`` of row vectors ``[..., d]``, all columns taken."""
    if isinstance(columns, Tensor):
        return vectors @ columns.to(vectors.dtype).T
    return columns.times(vectors, transposed=True)


def of_blocks(blocks: list[Tensor]) -> Matrix:
    """The matrix with these squares on its diagonal, of one width but for the last."""
    if len(blocks) == 1:
        return blocks[0]
    width, last = len(blocks[0]), len(blocks[-1])
    stacked = blocks[0].new_zeros(len(blocks), width, width)
    for place, square in zip(stacked, blocks, strict=True):
        place[: len(square), : len(square)] = square
    stacked[-1].diagonal()[last:] = 1.0
    return BlockDiagonal(stacked, width * (len(blocks) - 1) + last)
