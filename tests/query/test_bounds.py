"""The scan's candidates: bounds that hold exactly, and no better document left out."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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
from wherefrom.query import kernels, selection
from wherefrom.query import scan as scan_module
from wherefrom.query.kernels import LARGEST, CodeProducts
from wherefrom.query.scan import Candidates, scan
from wherefrom.query.search import inner_products
from wherefrom.store import Bits, CodeFormat, ScanCopy
from wherefrom.store.quantise import quantise, row_norms
from wherefrom.store.segments import encode_rows

Rows = NDArray[np.float32]
BITS: tuple[Bits, ...] = (1, 2, 4, 8, 16, 32)
PACKED: tuple[Bits, ...] = (1, 2, 4, 8)
KERNELS = {"float": kernels._float_product, "int8": torch._int_mm}


@pytest.fixture(params=list(KERNELS))
def _kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each product in turn; torch's own is left out where this processor saturates."""
    name = str(request.param)
    if name == "int8" and kernels._kernel() is not torch._int_mm:
        pytest.skip("torch's int8 product is not exact on this processor")
    monkeypatch.setattr(kernels, "_kernel", lambda: KERNELS[name])


@dataclass(frozen=True)
class Stored:
    """Vectors as an index holds them.

    Attributes:
        vectors: Before quantisation.
        decoded: What is stored of them.
        copy: Their scan copy.
    """

    vectors: Rows
    decoded: NDArray[np.float64]
    copy: ScanCopy


def store(vectors: Rows, bits: Bits) -> Stored:
    """As the store does, in memory."""
    stored = quantise(vectors, bits)
    codes = stored if bits <= 8 else encode_rows(stored.vectors)
    residual = np.zeros(len(vectors)) if bits <= 8 else codes.residual_norms
    copy = ScanCopy.of_arrays(
        codes.format,
        codes=padded(codes.codes),
        scale=codes.scales,
        residual=residual,
        norm=row_norms(stored.vectors),
        lost=stored.residual_norms,
        whole=row_norms(vectors),
    )
    return Stored(vectors, stored.vectors, copy)


def padded(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """With zeros to a multiple of 64 bytes."""
    return np.pad(codes, ((0, 0), (0, -codes.shape[1] % 64)))


def exact(row: NDArray[Any], query: Rows) -> Fraction:
    pairs = zip(row.tolist(), query.tolist(), strict=True)
    return sum((Fraction(a) * Fraction(b) for a, b in pairs), Fraction(0))


def assert_bounded(stored: Stored, query: Rows) -> None:
    """All values, exact and computed, lie within the bounds, as do those before quantisation."""
    count = len(stored.vectors)
    computed = inner_products(stored.decoded, query[None])[0]
    products = [exact(row, query) for row in stored.decoded]
    before = [exact(row, query) for row in stored.vectors]
    for slack, truths in ((None, (products, computed.tolist())), (0.0, (before,))):
        ends = scan(stored.copy, query[None], count, (1, -1), slack=slack)[0]
        for direction, found in zip((1, -1), ends, strict=True):
            for values in truths:
                assert_end_is_bounded(found, [direction * Fraction(value) for value in values])


def assert_end_is_bounded(found: Candidates, values: list[Fraction]) -> None:
    for ordinal, estimate, error in zip(found.ordinals, found.estimate, found.error, strict=True):
        assert abs(values[ordinal] - Fraction(float(estimate))) <= Fraction(float(error))
    left = set(range(len(values))) - set(found.ordinals.tolist())
    assert (found.rest == -np.inf) == (not left)
    assert all(values[i] <= Fraction(found.rest) for i in left)
    assert all(values[i] <= 0 for i in left)


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
    hard = {
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
    return {name: vectors.astype(np.float32) for name, vectors in hard.items()}


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("width", [1, 5, 64, 99])
def test_bounds_hold_on_hard_vectors(width: int, bits: Bits) -> None:
    rng = np.random.default_rng(1)
    for rows in hard_vectors(width).values():
        worst = rows[1] - np.float32(0.9) * rows[0]
        for query in (rows[0], worst, heavy(rng, width), np.zeros(width, np.float32)):
            assert_bounded(store(rows, bits), query)


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def rows_and_query(draw: st.DrawFn) -> tuple[Rows, Rows]:
    width = draw(st.integers(1, 9))
    rows = draw(hnp.arrays(np.float32, (draw(st.integers(1, 4)), width), elements=finite))
    return rows, draw(hnp.arrays(np.float32, width, elements=finite))


@given(given=rows_and_query(), bits=st.sampled_from(BITS))
@settings(max_examples=100)
def test_bounds_hold_on_any_vectors(given: tuple[Rows, Rows], bits: Bits) -> None:
    rows, query = given
    assert_bounded(store(rows, bits), query)


@pytest.mark.parametrize("bits", PACKED)
def test_the_querys_remainder_can_use_up_the_error(bits: Bits) -> None:
    """All remainders are a half, with the signs of the levels: no smaller error would do."""
    rng = np.random.default_rng(5)
    levels = np.where(rng.integers(0, 2, (1, 256)) > 0, 1, -1) * CodeFormat(bits, 256).largest
    query = (rng.integers(-8000, 8000, 256) * 2 + 0.5 * np.sign(levels[0])).astype(np.float32)
    query[0] = LARGEST / 2
    code = CodeFormat(bits, 256)
    nothing, norm = np.zeros(1), row_norms(levels)
    copy = ScanCopy.of_arrays(
        code,
        codes=padded(code.pack(levels)),
        scale=np.ones(1),
        residual=nothing,
        norm=norm,
        lost=nothing,
        whole=norm,
    )
    direction = 1 if query @ levels[0] > 0 else -1
    found = scan(copy, query[None], 1, (direction,))[0][0]
    off = abs(direction * exact(levels[0], query) - Fraction(float(found.estimate[0])))
    assert 0.97 < off / Fraction(float(found.error[0])) <= 1


@pytest.mark.parametrize("bits", PACKED)
def test_rounding_alone_is_covered(bits: Bits) -> None:
    """Queries of integers have no remainder: what estimates are off by is rounding."""
    rng = np.random.default_rng(6)
    queries = rng.integers(-LARGEST // 2, LARGEST // 2, (4, 2000)).astype(np.float32)
    queries[:, 0] = LARGEST / 2
    stored = store(rng.standard_normal((6, 2000)).astype(np.float32), bits)
    whole = stored.copy.whole
    off = 0.0
    found_by_query = scan(stored.copy, queries, 6, (1, -1), normalised=True)
    for query, ends in zip(queries, found_by_query, strict=True):
        for direction, found in zip((1, -1), ends, strict=True):
            values = [
                direction * exact(row, query) / Fraction(float(norm))
                for row, norm in zip(stored.decoded, whole, strict=True)
            ]
            assert_end_is_bounded(found, values)
            assert (found.error < 1e-11 * np.linalg.norm(query)).all()
            for i, estimate in zip(found.ordinals, found.estimate, strict=True):
                off = max(off, float(abs(values[i] - Fraction(float(estimate)))))
    assert off > 0


@pytest.mark.parametrize("bits", PACKED)
def test_what_quantisation_lost_can_use_up_the_slack(bits: Bits) -> None:
    stored = store(np.random.default_rng(7).standard_normal((1, 500)).astype(np.float32), bits)
    query = (stored.decoded[0] - stored.vectors[0]).astype(np.float32)
    ends = scan(stored.copy, query[None], 1, (1, -1), slack=0.0)[0]
    reached = [
        abs(direction * exact(stored.vectors[0], query) - Fraction(float(found.estimate[0])))
        / Fraction(float(found.error[0]))
        for direction, found in zip((1, -1), ends, strict=True)
        if len(found.ordinals)
    ]
    assert all(0.95 < part <= 1 for part in reached)
    assert reached


def collection(bits: Bits, *, seed: int = 0, count: int = 700, dimension: int = 90) -> Stored:
    """Heavy-tailed rows, with zeros and, for ties, copies of good rows."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_t(4, (count, dimension)) * rng.lognormal(0, 1.5, (count, 1))
    rows[rng.choice(count, 40)] = 0.0
    rows[-50:] = rows[np.argsort(-np.abs(rows).sum(axis=1))[:50]]
    return store(rows.astype(np.float32), bits)


def values_of(stored: Stored, queries: Rows, *, normalised: bool) -> NDArray[np.float64]:
    """Brute force, [query, row]."""
    products = inner_products(stored.decoded, queries)
    if not normalised:
        return products
    whole = stored.copy.whole
    return np.divide(products, whole, out=np.zeros_like(products), where=whole > 0)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("filtered", [False, True])
def test_no_document_among_the_best_is_left_out(
    bits: Bits, normalised: bool, filtered: bool
) -> None:
    stored = collection(bits)
    rng = np.random.default_rng(8)
    queries = rng.standard_t(4, (7, 90)).astype(np.float32)
    queries[3] = stored.vectors[-1]
    searched = rng.permutation(700)[:300] if filtered else np.arange(700)
    values = values_of(stored, queries, normalised=normalised)
    for k in (1, 10, 299, 1000):
        answers = scan(
            stored.copy,
            queries,
            k,
            (1, -1),
            ordinals=searched if filtered else None,
            normalised=normalised,
        )
        for query in range(7):
            for direction, found in zip((1, -1), answers[query], strict=True):
                assert_complete(found, direction * values[query], searched, k)


def assert_complete(
    found: Candidates, values: NDArray[np.float64], searched: NDArray[np.int64], k: int
) -> None:
    """The k best positive ones, with all that tie with the last, are there; the rest is bounded."""
    assert (np.diff(found.ordinals) > 0).all()
    assert np.isin(found.ordinals, searched).all()
    assert (np.abs(values[found.ordinals] - found.estimate) <= found.error).all()
    positive = np.sort(values[searched][values[searched] > 0])
    if len(positive):
        best = searched[values[searched] >= positive[-min(k, len(positive))]]
        assert np.isin(best, found.ordinals).all()
    left = np.setdiff1d(searched, found.ordinals)
    assert (found.rest == -np.inf) == (not len(left))
    assert (values[left] <= found.rest).all()


@pytest.mark.parametrize("bits", PACKED)
def test_few_documents_are_kept(bits: Bits) -> None:
    rng = np.random.default_rng(9)
    stored = store(rng.standard_normal((5000, 256)).astype(np.float32), bits)
    queries = rng.standard_normal((5, 256)).astype(np.float32)
    for ends in scan(stored.copy, queries, 50, (1, -1)):
        for found in ends:
            assert 50 <= len(found.ordinals) <= 55
            assert 0 < found.rest <= found.estimate.min() + found.error.max()


def same(one: Candidates, other: Candidates) -> bool:
    return (
        one.ordinals.tolist() == other.ordinals.tolist()
        and one.estimate.tobytes() == other.estimate.tobytes()
        and one.error.tobytes() == other.error.tobytes()
        and one.rest == other.rest
    )


@pytest.mark.parametrize("bits", BITS)
def test_a_query_has_the_same_bounds_alone_as_among_others(bits: Bits) -> None:
    stored = collection(bits)
    queries = np.random.default_rng(10).standard_t(4, (70, 90)).astype(np.float32)
    queries *= np.float32(10.0) ** np.random.default_rng(11).integers(-20, 20, (70, 1))
    together = scan(stored.copy, queries, 5, (-1, 1), normalised=True, slack=0.0)
    for query in (0, 13, 64, 69):
        alone = scan(
            stored.copy, queries[query : query + 1], 5, (1, -1), normalised=True, slack=0.0
        )
        assert same(alone[0][0], together[query][1])
        assert same(alone[0][1], together[query][0])


@pytest.mark.parametrize("bits", [1, 8, 16])
@pytest.mark.parametrize("threads", [1, 3])
def test_bounds_do_not_depend_on_how_rows_are_read(
    bits: Bits, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = collection(bits)
    queries = np.random.default_rng(12).standard_t(4, (3, 90)).astype(np.float32)
    whole = scan(stored.copy, queries, 5, (1, -1))
    before = torch.get_num_threads()
    monkeypatch.setattr(scan_module, "_BYTES", 64 * 7)
    monkeypatch.setattr(kernels, "_CACHED_BYTES", 64 * 3)
    monkeypatch.setattr(selection, "_HELD", 8)
    torch.set_num_threads(threads)
    try:
        parts = scan(stored.copy, queries, 5, (1, -1))
        assert torch.get_num_threads() == threads == threads_of_a_new_thread()
    finally:
        torch.set_num_threads(before)
    for one, other in zip(whole, parts, strict=True):
        assert all(map(same, one, other))


def threads_of_a_new_thread() -> int:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(torch.get_num_threads).result()


def test_an_error_in_a_thread_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise MemoryError

    stored = collection(8)
    before = torch.get_num_threads()
    monkeypatch.setattr(CodeProducts, "__call__", broken)
    torch.set_num_threads(2)
    try:
        with pytest.raises(MemoryError):
            scan(stored.copy, stored.vectors[:1], 5, (1,))
    finally:
        torch.set_num_threads(before)


def test_nothing_to_search_and_nothing_asked() -> None:
    stored = collection(4)
    found = scan(stored.copy, stored.vectors[:1], 5, (1,), ordinals=np.empty(0, np.int64))[0][0]
    assert (len(found.ordinals), found.rest) == (0, -np.inf)
    assert scan(stored.copy, stored.vectors[:0], 5, (1, -1)) == []


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_query_that_is_not_finite_is_refused(bad: Any) -> None:
    queries = np.array([[1.0, 0.0, 0.0], [1.0, bad, 0.0]], np.float32)
    with pytest.raises(QueryError, match="NaN or infinity"):
        scan(store(np.ones((2, 3), np.float32), 8).copy, queries, 1, (1,))


SHAPES: list[tuple[Bits, int]] = [
    *[(8, dimension) for dimension in (1, 63, 1025, (1 << 18) + 5)],
    *[(4, 129), (4, 9001), (2, 16500)],
    *[(1, dimension) for dimension in (7, 511, 33001, 1 << 18)],
]


@pytest.mark.parametrize("kind", ["random", "large", "largest", "alternating"])
@pytest.mark.parametrize(("bits", "dimension"), SHAPES)
@pytest.mark.usefixtures("_kernel")
def test_products_are_exact(bits: Bits, dimension: int, kind: str) -> None:
    rng = np.random.default_rng(dimension)
    code = CodeFormat(bits, dimension)
    if bits == 8:
        levels = rng.integers(-127, 128, (4, dimension))
    else:
        levels = 2 * rng.integers(0, 2**bits, (4, dimension)) - code.largest
    vectors = rng.integers(-LARGEST, LARGEST + 1, (4, dimension))
    if kind == "large":  # sums as large as they get, and without a power of two in them
        levels = np.maximum(levels, code.largest - 8) if bits == 8 else np.abs(levels)
        vectors = LARGEST - np.abs(vectors) // 16
    elif kind != "random":
        signs = np.where(np.arange(dimension) % 2, -1, 1) if kind == "alternating" else 1
        levels[:2] = signs * code.largest * np.array([[1], [-1]])
        vectors[:] = signs * np.array([[LARGEST], [-LARGEST], [-128], [126 * 256 + 127]])
    codes = padded(code.pack(levels))
    found = CodeProducts(vectors, code, codes.shape[1])(codes)
    assert found.tolist() == (levels @ vectors.T).tolist()


@pytest.fixture
def _fresh_kernel() -> Iterator[None]:
    kernels._kernel.cache_clear()
    yield
    kernels._kernel.cache_clear()


@pytest.mark.usefixtures("_fresh_kernel")
def test_a_saturating_product_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on processors that add pairs of products in 16 bits, with one operand made unsigned."""

    def saturating(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        products = (left.long() + 128)[:, :, None] * right.long()[None]
        pairs = products.reshape(len(left), -1, 2, right.shape[1]).sum(2).clamp(-32768, 32767)
        return (pairs.sum(1) - 128 * right.long().sum(0)).int()

    monkeypatch.setattr(torch, "_int_mm", saturating)
    assert kernels._kernel() is kernels._float_product


def test_slack_allows_for_a_share_of_each_norm() -> None:
    stored = store(np.random.default_rng(3).standard_normal((50, 40)).astype(np.float32), 8)
    query = np.random.default_rng(4).standard_normal((1, 40)).astype(np.float32)
    none, some = (scan(stored.copy, query, 50, (1, -1), slack=slack)[0] for slack in (0.0, 0.01))
    for before, after in zip(none, some, strict=True):
        kept = np.isin(after.ordinals, before.ordinals)
        wider = after.error[kept] - before.error
        norms = stored.copy.whole[before.ordinals] * np.linalg.norm(query.astype(float))
        np.testing.assert_allclose(wider, 0.01 * norms, rtol=1e-6)
