"""Exact inner products of integer vectors with packed codes, at the speed of memory or of a cache.

The vectors v, integers of up to 15 bits, are split into two digits, ``v = 256 h + l``, that fit
int8, and the codes into fields that do: entry d of a code of ``b < 8`` bits has the level
``2 u - (2**b - 1)``, and a byte masked to one field is ``u`` times a power of two. So

    <v, level> = 2 * sum over fields (256 <h, u> + <l, u>) - (2**b - 1) * sum(v)

is made of int8 matrix products with sums in int32, all without rounding, and codes are never
unpacked: a chunk of rows stays in a core's cache while its fields are masked out one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, reduce

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wherefrom.store import CodeFormat

__all__ = ["LARGEST", "CodeProducts"]

LARGEST = 127 << 8
"""The largest magnitude of a vector's entries."""

# Bytes of a code in one product. Products of int8 numbers are below 2**14, so that sums of 2**16
# fit int32. Fields are summed with weights, at most 2**7 * (mask 1 + mask 2 + ...) < 2**18 a byte.
_BYTES = 1 << 16
_BYTES_OF_FIELDS = 1 << 12
_CACHED_BYTES = 1 << 19  # of codes: they and one field of them should stay in a core's cache
_FLOAT_BYTES = 1 << 10  # 2**14 * 2**10: every sum of integers is exact in float32


class CodeProducts:
    """Inner products of q vectors with the levels of coded rows.

    Args:
        vectors: int64 ``[q, dimension]``, in ``-LARGEST .. LARGEST``.
        code: What the codes mean; of 1 to 8 bits.
        width: Bytes of a row of codes, a multiple of 8; those past the code's are zero.
    """

    def __init__(self, vectors: NDArray[np.int64], code: CodeFormat, width: int) -> None:
        """Arrange the vectors' digits as the fields of the codes lie."""
        self._bits = code.bits
        self._block = _BYTES if code.bits == 8 else _BYTES_OF_FIELDS
        per_byte = 8 // code.bits
        padded = np.zeros((len(vectors), width * per_byte), np.int64)
        padded[:, : code.dimension] = vectors
        high = (padded + 128) >> 8
        digits = np.concatenate([high, padded - (high << 8)]).astype(np.int8)
        fields = digits.reshape(len(digits), width, per_byte).transpose(2, 1, 0)
        self._digits = [
            torch.from_numpy(np.ascontiguousarray(fields[:, start : start + self._block]))
            for start in range(0, width, self._block)
        ]
        self._offset = torch.from_numpy((2.0**code.bits - 1) * padded.sum(axis=1))

    def __call__(self, codes: NDArray[np.uint8]) -> Tensor:
        """``<vector, levels>`` for rows of ``codes`` [m, width], exact, as float64 [m, q]."""
        starts = range(0, codes.shape[1], self._block)
        totals = reduce(
            Tensor.add_,
            (
                _digit_products(codes[:, start : start + self._block], self._bits, digits).double()
                for start, digits in zip(starts, self._digits, strict=True)
            ),
        )
        count = len(self._offset)
        products = totals[:, count:].add(totals[:, :count], alpha=256.0)
        if self._bits < 8:
            products.mul_(2.0 ** (1 - (8 - self._bits))).sub_(self._offset)
        return products


def _digit_products(codes: NDArray[np.uint8], bits: int, digits: Tensor) -> Tensor:
    """``2**(8 - bits) * sum over fields (u [m, bytes] @ digits [bytes, column])``, as int32."""
    kernel = _kernel()
    if bits == 8:
        return kernel(torch.utils.dlpack.from_dlpack(codes.view(np.int8)), digits[0])
    sums = torch.zeros(len(codes), digits.shape[2], dtype=torch.int32)
    rows = max(1, _CACHED_BYTES // codes.shape[1])
    buffer = np.empty((min(rows, len(codes)), codes.shape[1]), np.uint8)
    for start in range(0, len(codes), rows):
        some, part = codes[start : start + rows], sums[start : start + rows]
        fields = _fields(some, bits, buffer[: len(some)])
        for (field, weight), columns in zip(fields, digits, strict=True):
            part.add_(kernel(field, columns), alpha=weight)
    return sums


def _fields(
    codes: NDArray[np.uint8], bits: int, buffer: NDArray[np.uint8]
) -> Iterator[tuple[Tensor, int]]:
    """The fields [m, bytes] of codes as int8, one after the other in ``buffer``, and their weights.

    A field's numbers times its weight are ``2**(8 - bits) u``.
    """
    field = torch.from_numpy(buffer.view(np.int8))
    words, into = codes.view(np.uint64), buffer.view(np.uint64)
    lowest = 0x0101010101010101 * (2**bits - 1)
    top = 8 - bits
    for shift in range(0, top, bits):
        np.bitwise_and(words, np.uint64(lowest << shift), out=into)
        yield field, 1 << (top - shift)
    # The highest bit is int8's sign. So the last field's weight is negative, if that bit is all of
    # it; otherwise the field is moved down, for which numpy has a fast division but no fast shift.
    if bits == 1:
        np.bitwise_and(words, np.uint64(lowest << top), out=into)
        yield field, -1
    else:
        np.floor_divide(codes, np.uint8(1 << top), out=buffer)
        yield field, 1 << top


_Kernel = Callable[[Tensor, Tensor], Tensor]


@cache
def _kernel() -> _Kernel:
    """The fastest int8 product that is exact on this machine.

    torch's own reads codes at the speed of memory, but on processors without VNNI its 16-bit
    partial sums saturate. So it is tried on the largest numbers first.
    """
    ones = torch.ones(32, 256, dtype=torch.int8)
    for left, right in ((127, 127), (-127, 127), (127, -128), (-128, -128)):
        found = torch._int_mm(left * ones, (right * ones[:2]).T.contiguous())
        if not bool((found == 256 * left * right).all()):
            return _float_product
    return torch._int_mm


def _float_product(left: Tensor, right: Tensor) -> Tensor:
    """Exact on every machine: sums of at most 1024 products of int8 numbers fit 24 bits."""
    total = torch.zeros(len(left), right.shape[1], dtype=torch.int32)
    for start in range(0, len(right), _FLOAT_BYTES):
        part = slice(start, start + _FLOAT_BYTES)
        total += (left[:, part].float() @ right[part].float()).int()
    return total
