"""Codes: levels come back from their bytes, which lie where the format says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from wherefrom.store import Bits, CodeFormat

PACKED: list[Bits] = [1, 2, 4, 8]
IEEE: list[Bits] = [16, 32]


def random_levels(code: CodeFormat, count: int, seed: int = 0) -> NDArray[np.int8]:
    """Levels from all over their range, both ends included."""
    largest = 127 if code.bits == 8 else 2**code.bits - 1
    step = 1 if code.bits == 8 else 2
    every = np.arange(-largest, largest + 1, step, dtype=np.int8)
    return np.random.default_rng(seed).choice(every, (count, code.dimension))


formats = st.builds(CodeFormat, st.sampled_from(PACKED), st.integers(1, 70))


@given(code=formats, count=st.integers(0, 5), seed=st.integers(0, 99))
def test_levels_come_back(code: CodeFormat, count: int, seed: int) -> None:
    levels = random_levels(code, count, seed)
    codes = code.pack(levels)
    assert (codes.shape, codes.dtype) == ((count, code.bytes), np.uint8)
    assert (code.width, code.dtype) == (code.bytes, np.uint8)
    types: list[Any] = [np.int8, np.float32, np.float64]
    for into in types:
        unpacked = code.unpack(codes, into)
        assert unpacked.dtype == into
        assert np.array_equal(unpacked, levels)
    for other in (levels.astype(np.float64), np.asfortranarray(levels), levels.astype(np.int64)):
        assert np.array_equal(code.pack(other), codes)


@given(code=formats, seed=st.integers(0, 99))
def test_entries_lie_where_the_format_says(code: CodeFormat, seed: int) -> None:
    levels = random_levels(code, 2, seed)
    codes = code.pack(levels)
    per_byte = 8 // code.bits
    for row in range(2):
        # A code read as one little-endian number: entry d starts at bit d * bits.
        number = int.from_bytes(codes[row].tobytes(), "little")
        for entry, level in enumerate(levels[row].tolist()):
            field = number >> (code.bits * entry) & (2**code.bits - 1)
            assert field == codes[row, entry // per_byte] >> code.bits * (entry % per_byte) & (
                2**code.bits - 1
            )
            if code.bits == 8:
                assert field == level % 256
            else:
                assert 2 * field - (2**code.bits - 1) == level
        assert number >> code.bits * code.dimension == 0


def test_bytes_of_an_example() -> None:
    assert CodeFormat(1, 10).pack(np.array([[1, -1, 1, 1, -1, -1, -1, 1, -1, 1]])).tolist() == [
        [0b10001101, 0b10]
    ]
    assert CodeFormat(2, 5).pack(np.array([[-3, -1, 1, 3, 3]])).tolist() == [[0b11100100, 3]]
    assert CodeFormat(4, 3).pack(np.array([[-15, 15, 1]])).tolist() == [[0xF0, 0x08]]
    assert CodeFormat(8, 3).pack(np.array([[-127, 0, 1]])).tolist() == [[0x81, 0, 1]]


@pytest.mark.parametrize("bits", IEEE)
def test_ieee_numbers_are_kept_as_they_are(bits: Bits) -> None:
    code = CodeFormat(bits, 7)
    entries = np.random.default_rng(0).standard_normal((3, 7)).astype(code.dtype)
    assert (code.bytes, code.width) == (7 * bits // 8, 7)
    packed = code.pack(entries)
    assert packed.dtype == entries.dtype
    assert np.array_equal(packed, entries)
    assert np.array_equal(code.unpack(packed), entries.astype(np.float64))


@given(code=formats, padding=st.integers(0, 9))
def test_padded_codes_mean_the_same(code: CodeFormat, padding: int) -> None:
    levels = random_levels(code, 4)
    codes = np.pad(code.pack(levels), [(0, 0), (0, padding)], constant_values=255)
    scales = np.array([0.0, 1.5, 2.0**-140, 3e38])
    assert np.array_equal(code.unpack(codes), levels)
    assert np.array_equal(code.decode(codes, scales), levels * scales[:, None])
    squares = (levels.astype(np.int64) ** 2).sum(axis=1)
    assert np.array_equal(code.squared_norms(codes), squares)


def test_squared_norms_of_long_codes_do_not_overflow() -> None:
    code = CodeFormat(8, 300_000)
    assert code.squared_norms(np.full((1, 300_000), 0x81, np.uint8)) == [300_000 * 127**2]


def test_impossible_formats_are_refused() -> None:
    wrong: list[Any] = [(3, 5), (8, 0), (1, -1)]
    for bits, dimension in wrong:
        with pytest.raises(ValueError, match="; use"):
            CodeFormat(bits, dimension)
    for bits in IEEE:
        code = CodeFormat(bits, 2)
        with pytest.raises(ValueError, match="IEEE"):
            _ = code.largest
        with pytest.raises(ValueError, match="IEEE"):
            code.squared_norms(np.zeros((1, 8), np.uint8))
