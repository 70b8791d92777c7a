"""Quantisation: unbiased scales, residuals that are bounds, cosines as good as the bits allow."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from wherefrom.store import Bits
from wherefrom.store.quantise import Quantised, few_bits, quantise

INTEGER_BITS: list[Bits] = [1, 2, 4, 8]
ALL_BITS: list[Bits] = [1, 2, 4, 8, 16, 32]

vectors_of_all_sizes = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=9),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)


def exact_row(stored: Quantised, i: int) -> list[Fraction]:
    """The stored vector of row i without any rounding."""
    scale = Fraction(float(stored.scales[i]))
    return [scale * Fraction(level) for level in stored.format.unpack(stored.codes)[i].tolist()]


def exactly(row: NDArray[Any]) -> list[Fraction]:
    return [Fraction(x) for x in row.tolist()]


def dot(left: list[Fraction], right: list[Fraction]) -> Fraction:
    return sum((x * y for x, y in zip(left, right, strict=True)), Fraction(0))


def cosines(vectors: NDArray[np.float32], bits: Bits) -> NDArray[np.float64]:
    exact, stored = vectors.astype(np.float64), quantise(vectors, bits).vectors
    products = (exact * stored).sum(axis=1)
    found = products / np.linalg.norm(exact, axis=1) / np.linalg.norm(stored, axis=1)
    return np.asarray(found)


@given(vectors=vectors_of_all_sizes, bits=st.sampled_from(INTEGER_BITS))
def test_integer_levels_are_unbiased(vectors: NDArray[np.float32], bits: Bits) -> None:
    stored = quantise(vectors, bits)
    levels = stored.format.unpack(stored.codes, np.int64)
    assert np.abs(levels).max() <= stored.format.largest
    if bits < 8:
        assert (levels % 2 == 1).all()
    for i, row in enumerate(vectors):
        exact, decoded = exactly(row), exact_row(stored, i)
        squared = dot(exact, exact)
        if squared == 0:
            assert stored.scales[i] == 0
        # 2**-24 for the scale's 24 bits, and its rounding before that.
        assert abs(dot(exact, decoded) - squared) <= squared * Fraction(1, 2**24 - 1)
        assert [Fraction(x) for x in stored.vectors[i].tolist()] == decoded


@given(vectors=vectors_of_all_sizes, bits=st.sampled_from(ALL_BITS))
def test_residuals_are_tight_upper_bounds(vectors: NDArray[np.float32], bits: Bits) -> None:
    stored = quantise(vectors, bits)
    for i, row in enumerate(vectors):
        left = [x - y for x, y in zip(exactly(row), exact_row(stored, i), strict=True)]
        squared = dot(left, left)
        residual = Fraction(float(stored.residual_norms[i])) ** 2
        assert squared <= residual <= squared * (1 + Fraction(1, 10**11))


@given(vectors=vectors_of_all_sizes, bits=st.sampled_from(ALL_BITS))
def test_rows_are_quantised_each_for_itself(vectors: NDArray[np.float32], bits: Bits) -> None:
    together = quantise(vectors, bits)
    for i in range(len(vectors)):
        alone = quantise(vectors[i : i + 1], bits)
        for name in ("codes", "scales", "residual_norms"):
            assert np.array_equal(getattr(alone, name)[0], getattr(together, name)[i])


@pytest.mark.parametrize("bits", ALL_BITS)
def test_rows_of_many_blocks_are_quantised_each_for_itself(bits: Bits) -> None:
    vectors = np.random.default_rng(0).standard_t(3, (70, 2999)).astype(np.float32)
    together = quantise(vectors, bits)
    for i in (0, 20, 21, 22, 69):
        alone = quantise(vectors[i : i + 1], bits)
        for name in ("codes", "scales", "residual_norms"):
            assert np.array_equal(getattr(alone, name)[0], getattr(together, name)[i])


@pytest.mark.parametrize("bits", ALL_BITS)
def test_no_rows_and_zero_rows(bits: Bits) -> None:
    none = quantise(np.empty((0, 5), np.float32), bits)
    assert (len(none.codes), none.vectors.shape) == (0, (0, 5))
    rows = np.zeros((3, 5), np.float32)
    rows[1] = np.arange(5)
    rows[2] = -0.0
    stored = quantise(rows, bits)
    assert not stored.vectors[[0, 2]].any()
    assert stored.residual_norms[[0, 2]].tolist() == [0, 0]
    assert (stored.scales[[0, 2]] == (0 if bits <= 8 else 1)).all()
    assert stored.vectors[1] @ rows[1] == pytest.approx(30, rel=1e-3)


@pytest.mark.parametrize(
    ("bits", "cosine"), [(1, 0.79), (2, 0.93), (4, 0.99), (8, 0.9998)], ids=str
)
@pytest.mark.parametrize("dimension", [4096, 4099])
def test_gaussian_rows_keep_their_direction(bits: Bits, cosine: float, dimension: int) -> None:
    rng = np.random.default_rng(7)
    sizes = np.exp(rng.standard_normal((100, 1)) * 10)
    vectors = (sizes * rng.standard_normal((100, dimension))).astype(np.float32)
    found = cosines(vectors, bits)
    assert (found > cosine - 0.002).all()
    assert found.mean() > cosine + 0.001 if bits < 8 else found.mean() > cosine


@pytest.mark.parametrize(("bits", "cosine"), [(2, 0.81), (4, 0.94), (8, 0.998)], ids=str)
def test_heavy_tails_get_coarser_grids(bits: Bits, cosine: float) -> None:
    """Student's t of 3 degrees; one step for all rows leaves .80 and .92 on 2 and 4 bits."""
    vectors = np.random.default_rng(0).standard_t(3, (100, 4096)).astype(np.float32)
    assert cosines(vectors, bits).mean() > cosine


@pytest.mark.parametrize("bits", [2, 4])
def test_no_single_step_does_better(bits: Bits) -> None:
    """The steps tried come close to the best of a fine grid, for tails light or heavy."""
    rng = np.random.default_rng(2)
    shape = (30, 2048)
    kinds = [rng.uniform(-1, 1, shape), rng.standard_normal(shape), rng.laplace(size=shape)]
    kinds.append(rng.standard_t(3, shape))
    for vectors in kinds:
        sizes = np.abs(vectors) / np.sqrt((vectors**2).mean(axis=1, keepdims=True))
        best = np.zeros(len(vectors))
        for step in np.geomspace(0.1, 20, 150):
            levels = np.minimum(sizes // step, 2 ** (bits - 1) - 1) + 0.5
            products = (sizes * levels).sum(axis=1) / np.linalg.norm(levels, axis=1)
            best = np.maximum(best, products / np.linalg.norm(sizes, axis=1))
        assert cosines(vectors.astype(np.float32), bits).mean() > best.mean() - 0.002


@pytest.mark.parametrize("bits", INTEGER_BITS)
def test_entries_on_the_grid_are_kept_exactly(bits: Bits) -> None:
    largest = 127 if bits == 8 else 2**bits - 1
    rng = np.random.default_rng(0)
    levels = np.arange(-largest, largest + 1, 1 if bits == 8 else 2)
    rows = rng.choice(levels, (20, 64)).astype(np.float32)
    rows[:, 0] = largest
    rows *= 2.0 ** rng.integers(-120, 110, (20, 1)).astype(np.float32)
    stored = quantise(rows, bits)
    assert np.array_equal(stored.vectors, rows)
    assert not stored.residual_norms.any()


def test_errors_average_out_under_a_random_rotation() -> None:
    """Over random rotations, inner products with stored vectors have the true mean."""
    rng = np.random.default_rng(3)
    vector, query = rng.standard_normal((2, 32))
    found = []
    for _ in range(4000):
        rotation = np.linalg.qr(rng.standard_normal((32, 32)))[0]
        turned = (rotation @ vector).astype(np.float32)
        found.append(quantise(turned[None], 1).vectors[0] @ (rotation @ query))
    spread = np.std(found) / np.sqrt(len(found))
    assert spread < 0.1
    assert abs(np.mean(found) - vector @ query) < 4 * spread


@given(values=hnp.arrays(np.float64, 5, elements=st.floats(1e-60, 1e60)))
def test_few_bits_make_products_exact(values: NDArray[np.float64]) -> None:
    rounded = few_bits(values)
    assert (np.abs(rounded - values) <= values * 2.0**-24).all()
    for value in rounded.tolist():
        assert Fraction(value) * 127 == Fraction(value * 127)
        assert float(np.float32(np.frexp(value)[0])) == np.frexp(value)[0]


@given(vectors=vectors_of_all_sizes)
def test_fp16_rows_neither_overflow_nor_lose_small_entries(vectors: NDArray[np.float32]) -> None:
    stored = quantise(vectors, 16)
    assert stored.codes.dtype == np.float16
    assert np.isfinite(stored.codes).all()
    mantissa, _ = np.frexp(stored.scales)
    assert (mantissa == 0.5).all()
    largest = np.abs(stored.codes.astype(np.float64)).max(axis=1)
    zero = ~vectors.any(axis=1)
    assert ((largest >= 2**14) & (largest <= 2**15) | zero).all()
    assert (stored.scales[zero] == 1).all()
    # Half a unit in the last place: 2**-11 of the entry, or 2**-25 below fp16's normal range.
    allowed = np.maximum(
        np.abs(vectors.astype(np.float64)) * 2**-11, stored.scales[:, None] / 2**25
    )
    assert (np.abs(vectors - stored.vectors) <= allowed).all()


def test_fp16_keeps_what_lies_far_out() -> None:
    rows = np.array([[1e30, 1e24], [1e-30, 3e-36], [0, 0], [3e38, -3.4028235e38], [1e-45, 0]])
    stored = quantise(rows.astype(np.float32), 16)
    np.testing.assert_allclose(stored.vectors, rows.astype(np.float32), rtol=2**-11)
    assert stored.scales[2] == 1


def test_fp16_residuals_count_what_float32_would_lose() -> None:
    stored = quantise(np.array([[2.0**127, 2.0**-149]], np.float32), 16)
    assert stored.residual_norms[0] == pytest.approx(2.0**-149, rel=1e-11)


@given(vectors=vectors_of_all_sizes)
def test_fp32_rows_are_kept_as_they_are(vectors: NDArray[np.float32]) -> None:
    stored = quantise(vectors, 32)
    assert np.array_equal(stored.vectors, vectors)
    assert (stored.scales == 1).all()
    assert not stored.residual_norms.any()
