"""Vectors to stored rows: fp16 or fp32 entries under one power-of-two scale per row.

Whitened gradients span many orders of magnitude from document to document, and fp16 only nine.
With a scale of its own every row uses fp16's full range; a power of two costs no rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wherefrom.store.manifest import CodeType

__all__ = ["Quantised", "quantise", "row_norms"]

_BLOCK_ENTRIES = 1 << 20
_TOP_EXPONENT = 15


@dataclass(frozen=True, slots=True)
class Quantised:
    """Rows as they are stored: the vector of row i is ``scales[i] * codes[i]``, exactly.

    Attributes:
        codes: [n, dimension] float16 or float32.
        scales: [n] float64, powers of two.
        residual_norms: [n] float64, norms of the vectors minus the stored ones.
    """

    codes: NDArray[np.floating[Any]]
    scales: NDArray[np.float64]
    residual_norms: NDArray[np.float64]


def quantise(vectors: NDArray[np.float32], dtype: CodeType) -> Quantised:
    """Round finite float32 ``vectors`` [n, dimension] to ``dtype``.

    For float16 a row's scale brings its largest entry to [2**14, 2**15] in magnitude: it cannot
    overflow, and entries down to 2**-39 of the largest survive. Rows of zeros and float32 rows
    have scale 1.
    """
    count = len(vectors)
    if dtype == "float32":
        return Quantised(np.ascontiguousarray(vectors), np.ones(count), np.zeros(count))
    codes = np.empty(vectors.shape, np.float16)
    scales = np.empty(count)
    residual_norms = np.empty(count)
    for rows in _blocks(vectors):
        block = vectors[rows]
        largest = np.abs(block).max(axis=1)
        shift = np.where(largest > 0, _TOP_EXPONENT - np.frexp(largest)[1], 0)
        # Up to 2**163, more than float32 holds: scale in two exact steps.
        half = shift // 2
        scaled = block * np.ldexp(np.float32(1), half)[:, None]
        scaled *= np.ldexp(np.float32(1), shift - half)[:, None]
        codes[rows] = scaled
        scales[rows] = np.ldexp(1.0, -shift)
        scaled -= codes[rows]
        residual_norms[rows] = row_norms(scaled) * scales[rows]
    return Quantised(codes, scales, residual_norms)


def row_norms(rows: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Euclidean norms [n] of ``rows`` [n, dimension], accumulated pairwise in float64."""
    squares = rows.astype(np.float64)
    squares *= squares
    return np.asarray(np.sqrt(squares.sum(axis=1)))


def _blocks(vectors: NDArray[Any]) -> Iterator[slice]:
    """Slices of rows small enough that temporaries stay within a few megabytes."""
    count, dimension = vectors.shape
    step = max(1, _BLOCK_ENTRIES // dimension)
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))
