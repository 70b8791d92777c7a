"""The scan's bounds hold, exactly, on vectors that are hard for floating point."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from wherefrom.errors import QueryError
from wherefrom.query import scan as scan_module
from wherefrom.query.scan import scan
from wherefrom.query.search import inner_products
from wherefrom.store import ScanCopy
from wherefrom.store.scan import encode_rows

Rows = NDArray[np.float32]
KERNELS = {
    "float": (scan_module._float_product, scan_module._FLOAT_COLUMNS),
    "int8": (torch._int_mm, scan_module._INT32_COLUMNS),
}


@pytest.fixture(params=list(KERNELS))
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each product in turn; torch's own is left out where this processor saturates."""
    name = str(request.param)
    if name == "int8" and scan_module._kernel()[0] is not torch._int_mm:
        pytest.skip("torch's int8 product is not exact on this processor")
    monkeypatch.setattr(scan_module, "_kernel", lambda: KERNELS[name])
    return name


def copy_of(vectors: Rows, *, padding: int = 0) -> ScanCopy:
    """The scan copy of stored vectors, with columns of zeros after the last."""
    return ScanCopy(**encode_rows(vectors.astype(np.float64), vectors.shape[1] + padding))


def exact(row: Rows, query: Rows) -> Fraction:
    pairs = zip(row.tolist(), query.tolist(), strict=True)
    return sum((Fraction(a) * Fraction(b) for a, b in pairs), Fraction(0))


def assert_bounded(vectors: Rows, query: Rows, *, padding: int = 0) -> NDArray[np.float64]:
    """True products and the computed ones lie within the bounds; returns the errors."""
    bounds = scan(copy_of(vectors, padding=padding), query)
    computed = inner_products(vectors.astype(np.float64), query[None])[0]
    for i, row in enumerate(vectors):
        estimate, error = Fraction(float(bounds.estimate[i])), Fraction(float(bounds.error[i]))
        assert abs(exact(row, query) - estimate) <= error
        assert abs(Fraction(float(computed[i])) - estimate) <= error
    return bounds.error


def heavy(rng: np.random.Generator, *shape: int) -> Rows:
    """Signed entries over 60 orders of magnitude."""
    magnitude = 10.0 ** rng.uniform(-30, 30, shape)
    return np.asarray(magnitude * rng.choice([-1.0, 1.0], shape), np.float32)


def hard_vectors(width: int) -> dict[str, Rows]:
    rng = np.random.default_rng(width)
    normal = rng.standard_normal((6, width)).astype(np.float32)
    alternating = np.where(np.arange(width) % 2, -1.0, 1.0).astype(np.float32)
    one_hot = np.zeros((6, width), np.float32)
    one_hot[np.arange(6), np.arange(6) % width] = np.float32(1e-20)
    return {
        "normal": normal,
        "heavy tails": heavy(rng, 6, width),
        "huge and tiny rows": normal * np.float32(10.0) ** np.array([[30, -30, 0, -36, 36, 1]]).T,
        "zeros": np.zeros((6, width), np.float32),
        "identical": np.repeat(normal[:1], 6, 0),
        "one-hot": one_hot,
        "alternating": np.outer(np.arange(-3, 3, dtype=np.float32), alternating),
        "all largest": np.outer([127, -127, 1, -1, 2.0**-140, 3e38], np.abs(alternating)),
        "halves": np.full((6, width), 0.5, np.float32) + np.eye(6, width, dtype=np.float32),
        "subnormal": (normal * np.float32(1e-44)).astype(np.float32),
    }


@pytest.mark.parametrize("width", [1, 5, 63, 64, 65, 200])
@pytest.mark.usefixtures("kernel")
def test_bounds_hold_on_hard_vectors(width: int) -> None:
    rng = np.random.default_rng(1)
    for vectors in hard_vectors(width).values():
        rows = vectors.astype(np.float32)
        worst = rows[1] - np.float32(0.9) * rows[0]
        for query in (rows[0], worst, heavy(rng, width), np.zeros(width, np.float32)):
            assert_bounded(rows, query, padding=-width % 64)


@pytest.mark.usefixtures("kernel")
def test_bounds_are_tight_enough_to_be_of_use() -> None:
    """On ordinary vectors the interval is within two percent of ``|q| |x|``."""
    rng = np.random.default_rng(2)
    vectors = rng.standard_normal((50, 300)).astype(np.float32)
    query = rng.standard_normal(300).astype(np.float32)
    error = assert_bounded(vectors, query)
    assert (error < 0.02 * np.linalg.norm(query) * np.linalg.norm(vectors, axis=1)).all()
    assert not scan(copy_of(np.zeros((3, 8), np.float32)), np.ones(8, np.float32)).error.any()


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def rows_and_query(draw: st.DrawFn) -> tuple[Rows, Rows]:
    width = draw(st.integers(1, 9))
    rows = draw(hnp.arrays(np.float32, (draw(st.integers(1, 4)), width), elements=finite))
    return rows, draw(hnp.arrays(np.float32, width, elements=finite))


@given(given=rows_and_query(), padding=st.sampled_from([0, 3, 55]))
@settings(max_examples=150)
def test_bounds_hold_on_any_vectors(given: tuple[Rows, Rows], padding: int) -> None:
    rows, query = given
    assert_bounded(rows, query, padding=padding)


def digits(shape: tuple[int, int], kind: str) -> NDArray[np.int8]:
    if kind == "random":
        return np.random.default_rng(0).integers(-127, 128, shape).astype(np.int8)
    sign = np.where(np.arange(shape[1]) % 2, -1, 1) if kind == "alternating" else 1
    return np.asarray(np.full(shape, 127) * sign, np.int8)


@pytest.mark.parametrize("width", [1, 63, 256, 1024, 1025, (1 << 18) + 64])
@pytest.mark.parametrize("kind", ["random", "largest", "alternating"])
@pytest.mark.usefixtures("kernel")
def test_integer_products_are_exact(kind: str, width: int) -> None:
    codes = digits((3, width), kind)
    codes[2] = -codes[2]
    query = np.stack([digits((1, width), kind)[0], np.full(width, 64, np.int8)], 1)
    found = scan_module._integer_products(codes, query)
    expected = codes.astype(np.int64) @ query.astype(np.int64)
    assert found.astype(object).tolist() == expected.tolist()


@pytest.fixture
def fresh_kernel() -> Iterator[None]:
    scan_module._kernel.cache_clear()
    yield
    scan_module._kernel.cache_clear()


@pytest.mark.usefixtures("fresh_kernel")
def test_a_saturating_product_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on processors that add pairs of products in 16 bits, with one operand made unsigned."""

    def saturating(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        products = (left.long() + 128)[:, :, None] * right.long()[None]
        pairs = products.reshape(len(left), -1, 2, right.shape[1]).sum(2).clamp(-32768, 32767)
        return (pairs.sum(1) - 128 * right.long().sum(0)).int()

    monkeypatch.setattr(torch, "_int_mm", saturating)
    assert scan_module._kernel() == KERNELS["float"]


@pytest.mark.parametrize("ordinals", [[4, 0, 2], [], [3]])
def test_some_documents_have_the_bounds_they_have_among_all(ordinals: list[int]) -> None:
    vectors = hard_vectors(70)["normal"]
    copy, query = copy_of(vectors, padding=58), vectors[2]
    every, some = scan(copy, query), scan(copy, query, np.array(ordinals, np.int64))
    assert some.ordinals.tolist() == ordinals
    assert some.estimate.tobytes() == every.estimate[ordinals].tobytes()
    assert some.error.tobytes() == every.error[ordinals].tobytes()


def test_bounds_do_not_depend_on_how_rows_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.random.default_rng(3).standard_normal((40, 70)).astype(np.float32)
    copy = copy_of(vectors)
    whole = scan(copy, vectors[0])
    monkeypatch.setattr(scan_module, "_CHUNK", 7 * 128)
    parts = scan(copy, vectors[0])
    assert parts.ordinals.tolist() == list(range(40))
    assert parts.estimate.tobytes() == whole.estimate.tobytes()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_query_that_is_not_finite_is_refused(bad: Any) -> None:
    query = np.array([1.0, bad, 0.0], np.float32)
    with pytest.raises(QueryError, match="NaN or infinity"):
        scan(copy_of(np.ones((2, 3), np.float32)), query)
