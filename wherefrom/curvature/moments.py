"""Second moments of vectors, ``sum_t v_t v_t^T``, and their eigenvectors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from wherefrom.curvature.block_diagonal import Matrix, of_blocks
from wherefrom.curvature.fitted import block, require_finite
from wherefrom.gradients.layers import Layer

__all__ = ["BlockMoments", "SecondMoment"]

_LOWEST_STRIP, _HIGHEST_STRIP = 64, 256


class SecondMoment:
    """A sum of ``v v^T``, float64: its upper triangle, in strips of rows from the diagonal on.

    Four strips are 5/8 of the work and of the memory, more are less; but a strip is a product, and
    narrow products are slow.

    Args:
        width: Entries of a vector.
        buffer: The entries of all strips, one after another; taken over, not copied.
    """

    def __init__(self, width: int, buffer: Tensor) -> None:
        self._width = width
        self._buffer = buffer
        shapes = _strips(width)
        parts = torch.split(buffer, [rows * columns for rows, columns in shapes])
        self._strips = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

    @classmethod
    def zero(cls, width: int, device: torch.device) -> SecondMoment:
        """Of no vectors yet."""
        return cls(width, torch.zeros(cls.entries(width), dtype=torch.float64, device=device))

    @classmethod
    def load(
        cls, tensors: Mapping[str, Tensor], name: str, layer: Layer, width: int
    ) -> SecondMoment:
        """From a tensor that :meth:`state` gave.

        Raises:
            CurvatureError: It is missing or of another size.
        """
        return cls(width, block(tensors, name, layer, (cls.entries(width),)))

    @staticmethod
    def entries(width: int) -> int:
        """How many numbers are kept for vectors of a width."""
        return sum(rows * columns for rows, columns in _strips(width))

    def add(self, vectors: Tensor, dtype: torch.dtype) -> None:
        """Add ``sum_t v_t v_t^T`` over the leading dimensions of ``[..., d]``."""
        flat = vectors.reshape(-1, self._width).to(dtype)
        start = 0
        for strip in self._strips:
            strip += flat[:, start : start + len(strip)].T @ flat[:, start:]
            start += len(strip)

    def merge(self, later: SecondMoment) -> None:
        """Add another sum to this one."""
        self._buffer += later._buffer.to(self._buffer.device)

    def state(self) -> Tensor:
        """All strips, one after another."""
        return self._buffer.cpu()

    def mean(self, count: int, layer: Layer, what: str) -> Tensor:
        """The mean over ``count`` vectors; the sum is given up for it.

        Args:
            count: Of vectors.
            layer: For messages.
            what: It is, for messages.

        Returns:
            float64 ``[d, d]``, of which the upper triangle counts.

        Raises:
            CurvatureError: It is not finite.
        """
        matrix = self._buffer.new_zeros(self._width, self._width)
        start = 0
        for strip in self._strips:
            require_finite(layer, strip, what)
            torch.div(strip, max(count, 1), out=matrix[start : start + len(strip), start:])
            start += len(strip)
        del strip, self._buffer
        self._strips.clear()
        return matrix

    def eigen(self, count: int, layer: Layer, what: str) -> tuple[Tensor, Tensor]:
        """Eigendecompose the mean over ``count`` vectors; the sum is given up for it.

        Args:
            count: Of vectors.
            layer: For messages.
            what: It is, for messages.

        Returns:
            Eigenvalues and eigenvectors as columns, float64.

        Raises:
            CurvatureError: The sum is not finite.
        """
        matrix = self.mean(count, layer, what)
        # In its own place, which LAPACK wants column by column: large factors decide on the peak of
        # memory. The upper triangle of the matrix is the lower one of its transpose.
        values, vectors = matrix.new_empty(len(matrix)), matrix.mT
        torch.linalg.eigh(vectors, UPLO="L", out=(values, vectors))
        # Rounding leaves eigenvalues of a singular factor at minus nothing.
        return values.clamp_(min=0.0), vectors


class BlockMoments:
    """Second moments of equal blocks of coordinates, without those between the blocks.

    Args:
        width: Entries of a vector.
        block: Most entries of a block; ``width`` for the whole second moment.
        buffer: The entries of all blocks, one after another; taken over, not copied.
    """

    def __init__(self, width: int, block: int, buffer: Tensor) -> None:
        self._spans = _spans(width, block)
        self._buffer = buffer
        widths = [stop - start for start, stop in self._spans]
        parts = torch.split(buffer, [SecondMoment.entries(wide) for wide in widths])
        self._moments = [SecondMoment(w, part) for w, part in zip(widths, parts, strict=True)]

    @classmethod
    def zero(cls, width: int, block: int, device: torch.device) -> BlockMoments:
        """Of no vectors yet."""
        entries = cls.entries(width, block)
        return cls(width, block, torch.zeros(entries, dtype=torch.float64, device=device))

    @staticmethod
    def entries(width: int, block: int) -> int:
        """How many numbers are kept for vectors of a width."""
        whole, rest = divmod(width, block)
        return whole * SecondMoment.entries(block) + SecondMoment.entries(rest)

    def add(self, vectors: Tensor, dtype: torch.dtype) -> None:
        """Add ``sum_t v_t v_t^T`` over the leading dimensions of ``[..., d]``."""
        flat = vectors.flatten(0, -2).to(dtype)
        for (start, stop), moment in zip(self._spans, self._moments, strict=True):
            moment.add(flat[:, start:stop], dtype)

    def merge(self, later: BlockMoments) -> None:
        """Add other sums to these."""
        self._buffer += later._buffer.to(self._buffer.device)

    def state(self) -> Tensor:
        """All blocks, one after another."""
        return self._buffer.cpu()

    def eigen(
        self, count: int, layer: Layer, name: str, dtype: torch.dtype
    ) -> tuple[Tensor, Matrix]:
        """Eigendecompose the mean over ``count`` vectors; the sums are given up for it.

        Args:
            count: Of vectors.
            layer: For messages.
            name: Of the factor, for messages.
            dtype: Of the eigenvectors.

        Returns:
            Eigenvalues, float64 ``[d]`` and not negative, and eigenvectors as columns.

        Raises:
            CurvatureError: The sum is not finite.
        """
        del self._buffer
        values, blocks = [], []
        while self._moments:
            found, vectors = self._moments.pop(0).eigen(count, layer, f"factor {name}")
            values.append(found)
            # By rows, as they come back from a file: products have the same bits then.
            blocks.append(vectors.to(dtype, memory_format=torch.contiguous_format).contiguous())
            del vectors
        return torch.cat(values), of_blocks(blocks)


def _spans(width: int, block: int) -> list[tuple[int, int]]:
    """First entry and end of each block."""
    return [(start, min(start + block, width)) for start in range(0, width, block)]


def _strips(width: int) -> list[tuple[int, int]]:
    """Rows and columns of each strip."""
    height = min(max(-(-width // 4), _LOWEST_STRIP), _HIGHEST_STRIP)
    return [(min(height, width - start), width - start) for start in range(0, width, height)]
