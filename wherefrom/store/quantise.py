"""Vectors to stored rows: levels of few bits, or fp16 or fp32 entries, under one scale per row.

With x a vector and c its levels, the scale s of 1 to 8 bits makes ``<x, s c> = <x, x>``: an inner
product with the stored vector is then the one with x plus what ``s c - x``, orthogonal to x, adds:
after a random rotation, noise of mean zero (the estimator of RaBitQ, Gao and Long 2024). Its size
depends on the cosine of x and c alone, so the levels are those of a uniform grid whose step is
searched for the largest cosine, row by row.

Whitened gradients span many orders of magnitude from document to document, and fp16 only nine. With
a scale of its own every row uses fp16's full range; a power of two costs no rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wherefrom.records import Bits
from wherefrom.store.codes import CodeFormat

__all__ = ["ROUNDING", "Quantised", "few_bits", "quantise", "row_norms"]

ROUNDING = 1 + 1e-12
"""What makes a norm summed in float64 an upper bound, for up to some 10**9 entries."""

_BLOCK_ENTRIES = 1 << 16
_TOP_EXPONENT = 15
_SCALE_BITS = 24
# Steps of the uniform grid with the least squared error on N(0, 1) (Max 1960, table II; 8 bits: 255
# levels), and the multiples of them that are tried: heavy tails want coarser grids.
_GAUSSIAN_STEP = {2: 0.9957, 4: 0.3352, 8: 0.0309}
_MULTIPLES = (0.85, 1.0, 1.25, 1.75, 3.0)
_CELLS_PER_SIDE = {2: 2, 4: 8, 8: 127}


@dataclass(frozen=True, slots=True)
class Quantised:
    """Rows as they are stored: the vector of row i is ``scales[i] * level``, exactly.

    Attributes:
        format: What the codes mean.
        codes: [n, width] as :class:`CodeFormat` says: packed levels, or float16 or float32.
        scales: [n] float64 of at most 24 significant bits; powers of two with 16 and 32 bits.
        residual_norms: [n] float64, upper bounds (but for a relative 1e-12 exact) of the norms of
            the vectors minus the stored ones.
    """

    format: CodeFormat
    codes: NDArray[Any]
    scales: NDArray[np.float64]
    residual_norms: NDArray[np.float64]

    @property
    def vectors(self) -> NDArray[np.float64]:
        """The stored vectors, [n, dimension]."""
        return self.format.decode(self.codes, self.scales)


def quantise(vectors: NDArray[np.float32], bits: Bits) -> Quantised:
    """Round finite float32 ``vectors`` [n, dimension] to ``bits`` bits per entry.

    With up to 8 bits ``<x, stored x> = <x, x>`` but for the scale's rounding, a relative 2**-24,
    and rows of zeros have scale 0. With 16 bits a row's scale brings its largest entry to
    [2**14, 2**15] in magnitude: it cannot overflow, and entries down to 2**-39 of the largest
    survive. Rows of zeros and 32-bit rows have scale 1 then.
    """
    count, dimension = vectors.shape
    layout = CodeFormat(bits, dimension)
    if bits == 32:
        return Quantised(layout, layout.pack(vectors), np.ones(count), np.zeros(count))
    codes = np.empty((count, layout.width), layout.dtype)
    scales = np.empty(count)
    residual_norms = np.empty(count)
    for rows in _blocks(vectors):
        block = vectors[rows].astype(np.float64)
        if bits == 16:
            levels, scales[rows] = _half_precision(block)
        else:
            levels, scales[rows] = _integer_levels(block, layout)
        codes[rows] = layout.pack(levels)
        block -= levels * scales[rows, None]
        residual_norms[rows] = row_norms(block) * ROUNDING
    return Quantised(layout, codes, scales, residual_norms)


def few_bits(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """``values`` rounded to 24 significant bits: their products with levels are exact."""
    mantissa, exponent = np.frexp(values)
    return np.asarray(np.ldexp(np.rint(np.ldexp(mantissa, _SCALE_BITS)), exponent - _SCALE_BITS))


def row_norms(rows: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Euclidean norms [n] of ``rows`` [n, dimension], accumulated pairwise in float64."""
    squares = rows.astype(np.float64)
    squares *= squares
    return np.asarray(np.sqrt(squares.sum(axis=1)))


def _half_precision(rows: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Entries [n, dimension] that fp16 holds, and scales [n], powers of two."""
    largest = np.abs(rows).max(axis=1)
    shift = np.where(largest > 0, _TOP_EXPONENT - np.frexp(largest)[1], 0)
    entries = np.ldexp(rows, shift[:, None]).astype(np.float16).astype(np.float64)
    return entries, np.ldexp(1.0, -shift)


def _integer_levels(
    rows: NDArray[np.float64], layout: CodeFormat
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Levels [n, dimension] of the largest cosine found, and the unbiased scales [n]."""
    norms = row_norms(rows)
    levels = np.where(rows < 0, -1.0, 1.0)
    if layout.bits > 1:
        rms = norms / math.sqrt(layout.dimension)
        sizes = (np.abs(rows) / np.where(rms > 0, rms, 1)[:, None]).astype(np.float32)
        levels *= _magnitudes(sizes, _best_steps(sizes, layout), layout)
    products = (rows * levels).sum(axis=1)
    scales = np.divide(norms**2, products, out=np.zeros(len(rows)), where=norms > 0)
    return levels, few_bits(scales)


def _best_steps(sizes: NDArray[np.float32], layout: CodeFormat) -> NDArray[np.float32]:
    """The step [n] of those tried whose levels have the largest cosine with ``sizes``."""
    finest = _GAUSSIAN_STEP[layout.bits]
    largest = sizes.max(axis=1)
    tried = [np.full(len(sizes), multiple * finest, np.float32) for multiple in _MULTIPLES]
    tried.append(np.where(largest > 0, largest / _CELLS_PER_SIDE[layout.bits], 1))
    cosines = []
    for steps in tried:
        magnitudes = _magnitudes(sizes, steps, layout)
        products = (magnitudes * sizes).sum(axis=1)
        magnitudes *= magnitudes
        norms = np.sqrt(magnitudes.sum(axis=1))
        cosines.append(np.divide(products, norms, out=np.zeros_like(products), where=norms > 0))
    return np.asarray(np.stack(tried)[np.argmax(cosines, axis=0), np.arange(len(sizes))])


def _magnitudes(
    sizes: NDArray[np.float32], steps: NDArray[np.float32], layout: CodeFormat
) -> NDArray[np.float32]:
    """Absolute levels [n, dimension] of entries of absolute value ``sizes`` on grids of ``steps``.

    With 8 bits zero is a level; the others have none, and their levels count half steps.
    """
    magnitudes = sizes / steps[:, None]
    if layout.bits == 8:
        np.rint(magnitudes, out=magnitudes)
        np.minimum(magnitudes, _CELLS_PER_SIDE[8], out=magnitudes)
        return magnitudes
    np.floor(magnitudes, out=magnitudes)
    np.minimum(magnitudes, _CELLS_PER_SIDE[layout.bits] - 1, out=magnitudes)
    magnitudes *= 2
    magnitudes += 1
    return magnitudes


def _blocks(vectors: NDArray[Any]) -> Iterator[slice]:
    """Slices of rows small enough that temporaries stay in a cache."""
    count, dimension = vectors.shape
    step = max(1, _BLOCK_ENTRIES // dimension)
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))
