"""The scan: bounds on every document's inner product with a query, at the speed of memory.

The scan copy holds each stored vector as ``x = s c + e`` with int8 codes ``c`` and ``|e| <= r``.
The query is split likewise into an integer vector and a remainder, ``q = t v + d`` with
``v = 128 h + l``, both digits int8, so that ``<v, c>`` comes from two exact integer products. Then

    |<q, x> - t s <v, c>| <= |q| r + |d| (|x| + r) + rounding

by Cauchy-Schwarz. Integer products are exact, so the estimate has only the rounding of three
float64 multiplications; the last term covers these and the float64 summation of the reranked score.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from wherefrom.errors import QueryError
from wherefrom.store import ScanCopy

__all__ = ["Bounds", "scan"]

_DIGIT = 128
_LARGEST = 127 * _DIGIT
_CHUNK = 1 << 26  # bytes; each product costs a rendezvous of threads, so few large ones
_COPIED_CHUNK = 1 << 22  # bytes, where a filter makes copies
_INT32_COLUMNS = 1 << 17  # 128 * 128 * 2**17 = 2**31 bounds the sums of 127 * 127
_FLOAT_COLUMNS = 1 << 10  # 127 * 127 * 2**10 < 2**24
_UNIT = 2.0**-53


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the scan knows of inner products with the stored vectors.

    Attributes:
        ordinals: int64 ``[n]`` documents.
        estimate: float64 ``[n]``.
        error: float64 ``[n]``: the inner product lies within ``estimate +- error``.
    """

    ordinals: NDArray[np.int64]
    estimate: NDArray[np.float64]
    error: NDArray[np.float64]


def scan(
    copy: ScanCopy, query: NDArray[np.float32], ordinals: NDArray[np.int64] | None = None
) -> Bounds:
    """Bound ``<query, x>`` for every stored vector x, or for those of ``ordinals``.

    Args:
        copy: The scan copy of n documents.
        query: float32 ``[dimension]``.
        ordinals: Which documents; all by default.

    Raises:
        QueryError: The query vector is not finite.
    """
    if not np.isfinite(query).all():
        raise QueryError("the query's gradient holds NaN or infinity; check the completion")
    wide = np.zeros(copy.codes.shape[1], np.float64)
    wide[: len(query)] = query
    unit = float(np.abs(wide).max()) / _LARGEST or 1.0
    integers = np.rint(wide / unit)
    remainder = float(np.linalg.norm(wide - unit * integers)) * (1 + 1e-12)
    high = np.rint(integers / _DIGIT)
    digits = np.stack([high, integers - _DIGIT * high], 1).astype(np.int8)
    norm = float(np.linalg.norm(wide)) * (1 + 1e-12)
    count = len(copy) if ordinals is None else len(ordinals)
    bounds = Bounds(np.empty(count, np.int64), np.empty(count), np.empty(count))
    rounding = (len(wide) + 16) * _UNIT
    start = 0
    size = _CHUNK if ordinals is None else _COPIED_CHUNK
    for chunk in copy.chunks(max(1, size // len(wide)), ordinals):
        part = slice(start, start + len(chunk.ordinals))
        products = _integer_products(chunk.codes, digits)
        bounds.ordinals[part] = chunk.ordinals
        bounds.estimate[part] = products @ (_DIGIT * unit, unit) * chunk.scale
        reach = chunk.norm + chunk.residual
        bounds.error[part] = norm * chunk.residual + remainder * reach + 2 * rounding * norm * reach
        start = part.stop
    return bounds


def _integer_products(codes: NDArray[np.int8], digits: NDArray[np.int8]) -> NDArray[np.float64]:
    """``codes [m, width] @ digits [width, 2]``, exact, as float64."""
    kernel, columns = _kernel()
    total = np.zeros((len(codes), digits.shape[1]))
    for start in range(0, codes.shape[1], columns):
        left = torch.utils.dlpack.from_dlpack(codes[:, start : start + columns])
        right = torch.from_numpy(np.ascontiguousarray(digits[start : start + columns]))
        total += kernel(left, right).numpy()
    return total


_Kernel = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@cache
def _kernel() -> tuple[_Kernel, int]:
    """The fastest product that is exact on this machine, and how many columns it may sum.

    torch's int8 product reads codes at the speed of memory, but on processors without VNNI its
    16-bit partial sums saturate. So it is tried on the largest codes first. The other way is exact
    everywhere: sums of at most 1024 products of int8 numbers fit float32's 24 bits.
    """
    largest = torch.full((32, 256), 127, dtype=torch.int8)
    for left, right in ((largest, largest), (-largest, largest), (largest, -largest)):
        found = torch._int_mm(left, right[:2].T.contiguous())
        if not bool((found.abs() == 256 * 127 * 127).all()):
            return _float_product, _FLOAT_COLUMNS
    return torch._int_mm, _INT32_COLUMNS


def _float_product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return left.float() @ right.float()
