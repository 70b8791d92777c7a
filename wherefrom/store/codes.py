"""Codes: how a stored vector's entries lie in its bytes.

A stored vector is ``scale * level``, entry by entry. With 1, 2 or 4 bits the levels are the odd
integers ``-(2**bits - 1) .. 2**bits - 1`` (one bit: the sign), held in ``bits`` bits as
``(level + 2**bits - 1) / 2``; entry d lies in byte ``d // (8 / bits)`` from bit
``bits * (d % (8 / bits))`` up. What is left of the last byte is zero. With 8 bits the levels are
the integers -127..127 as int8; with 16 and 32 bits they are IEEE numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, get_args

import numpy as np
from numpy.typing import DTypeLike, NDArray

from wherefrom.records import Bits

__all__ = ["CodeFormat"]


@dataclass(frozen=True, slots=True)
class CodeFormat:
    """The layout of the codes of vectors of one length.

    Attributes:
        bits: Of an entry.
        dimension: Entries of a vector.
    """

    bits: Bits
    dimension: int

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            ValueError: There is no such code, or the dimension is not positive.
        """
        if self.bits not in get_args(Bits):
            raise ValueError(f"{self.bits} bits; use one of {get_args(Bits)}")
        if self.dimension <= 0:
            raise ValueError(f"dimension {self.dimension}; use a positive number")

    @property
    def bytes(self) -> int:
        """Bytes of one code."""
        return -(-self.dimension * self.bits // 8)

    @property
    def packed(self) -> bool:
        """Whether codes are integer levels packed into bytes, not IEEE numbers."""
        return self.bits <= 8

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a code array's elements: bytes if packed, entries otherwise."""
        return np.dtype({16: "<f2", 32: "<f4"}.get(self.bits, "u1"))

    @property
    def width(self) -> int:
        """Elements of one code in an array of :attr:`dtype`."""
        return self.bytes if self.packed else self.dimension

    @property
    def largest(self) -> int:
        """The largest level of a packed code.

        Raises:
            ValueError: The entries are IEEE numbers.
        """
        if not self.packed:
            raise ValueError(f"{self.bits} bits hold IEEE numbers; use 1, 2, 4 or 8 bits")
        return 127 if self.bits == 8 else 2**self.bits - 1

    def pack(self, levels: NDArray[Any]) -> NDArray[Any]:
        """Codes [n, width] of ``levels`` [n, dimension].

        Args:
            levels: Levels of this format (not checked), of any type that holds them; entries to be
                rounded with 16 and 32 bits.
        """
        if not self.packed:
            return np.ascontiguousarray(levels, self.dtype)
        if self.bits == 8:
            return np.ascontiguousarray(levels, np.int8).view(np.uint8)
        if self.bits == 1:
            return np.packbits(levels > 0, axis=1, bitorder="little")
        count, per_byte = len(levels), 8 // self.bits
        entries = np.zeros((count, self.bytes * per_byte), np.uint8)
        entries[:, : self.dimension] = (levels.astype(np.int8) + self.largest) // 2
        places = entries.reshape(count, self.bytes, per_byte)
        codes = places[..., 0].copy()
        for place in range(1, per_byte):
            codes |= places[..., place] << (self.bits * place)
        return codes

    def unpack(self, codes: NDArray[Any], into: DTypeLike = np.float64) -> NDArray[Any]:
        """Levels [n, dimension] of ``codes`` [n, width] as type ``into`` (int8 if packed, float).

        Bytes past the code's are ignored, so padded codes will do.
        """
        codes = codes[:, : self.width]
        if not self.packed:
            return codes.astype(into)
        if self.bits == 8:
            return codes.view(np.int8).astype(into)
        levels = np.take(_levels_of_bytes(self.bits).astype(into), codes, axis=0)
        return levels.reshape(len(codes), self.bytes * 8 // self.bits)[:, : self.dimension]

    def decode(self, codes: NDArray[Any], scales: NDArray[np.float64]) -> NDArray[np.float64]:
        """The stored vectors ``scale * level``, exact, [n, dimension].

        Args:
            codes: [n, width], or padded.
            scales: [n], of at most 24 significant bits.
        """
        vectors = self.unpack(codes, np.float64)
        vectors *= scales[:, None]
        return vectors

    def squared_norms(self, codes: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Sums of squared levels [n] of packed ``codes`` [n, width] or padded; exact.

        Raises:
            ValueError: The entries are IEEE numbers.
        """
        past_the_end = self.bytes * (8 // self.bits) - self.dimension if self.bits < 8 else 0
        surplus = past_the_end * self.largest**2
        squares = (_levels_of_bytes(self.bits).astype(np.int32) ** 2).sum(axis=1)
        sums = np.take(squares, codes[:, : self.bytes]).sum(axis=1, dtype=np.int64)
        return np.asarray(sums - surplus)


@cache
def _levels_of_bytes(bits: int) -> NDArray[np.int8]:
    """The levels [256, 8 / bits] that each byte holds."""
    data = np.arange(256, dtype=np.uint8)[:, None]
    if bits == 8:
        return data.view(np.int8)
    entries = data >> np.arange(0, 8, bits, dtype=np.uint8) & (2**bits - 1)
    return np.asarray(2 * entries.astype(np.int8) - (2**bits - 1), np.int8)
