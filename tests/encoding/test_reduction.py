"""Reductions: exact, or right on average with the spread they promise; fixed for ever by a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from wherefrom.encoding.reduction import NoReduction, Reduction, Sketch

SIZES = (37, 16, 1, 50)


def reduced(reduction: Reduction, layers: Sequence[Tensor]) -> Tensor:
    """``[doc, dimension]`` of gradients ``[doc, size]`` of each layer, given in any order."""
    buffer = reduction.buffer(len(layers[0]), layers[0])
    for i in reversed(range(len(layers))):
        ones = torch.ones(layers[i].shape[1], dtype=layers[i].dtype)
        reduction.add(i, layers[i] * reduction.scaling(i, ones), buffer)
    return reduction.finish(buffer)


def split(vectors: Tensor, sizes: tuple[int, ...] = SIZES) -> Sequence[Tensor]:
    return torch.split(vectors, sizes, 1)


def matrix(reduction: Reduction) -> Tensor:
    """``[coordinate, bucket]``: where the reduction sends each unit vector."""
    return reduced(reduction, split(torch.eye(sum(reduction.sizes)).double(), reduction.sizes))


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def test_none_keeps_every_coordinate_in_its_place() -> None:
    vectors = normal(3, sum(SIZES))
    reduction = NoReduction(SIZES)
    assert reduction.dimension == sum(SIZES)
    assert torch.equal(reduced(reduction, split(vectors)), vectors)


@pytest.mark.parametrize("dimension", [1, 7, 16, 17, 50, 64, 104, 300])
def test_every_coordinate_goes_into_one_bucket_and_a_run_never_meets_itself(dimension: int) -> None:
    found = matrix(Sketch(SIZES, dimension, seed=3))
    assert found.shape == (sum(SIZES), dimension)
    assert torch.equal(found.abs().sum(1), torch.ones(sum(SIZES)).double())
    assert torch.equal(found.abs().amax(1), torch.ones(sum(SIZES)).double())
    buckets = found.abs().argmax(1)
    for layer in split(buckets[None].double()):
        for run in torch.split(layer[0], dimension):
            assert len(run.unique()) == len(run)


def sketches(dimension: int, count: int) -> list[Sketch]:
    return [Sketch(SIZES, dimension, seed) for seed in range(count)]


@pytest.mark.parametrize("dimension", [3, 16, 40])
def test_pairs_of_coordinates_meet_and_agree_as_independent_draws_would(dimension: int) -> None:
    """In different runs, within a layer or across: they share a bucket once in m, signs even."""
    drawn = torch.stack([matrix(sketch) for sketch in sketches(dimension, 800)])
    signs, buckets = drawn.sum(2), drawn.abs().argmax(2)
    # First coordinates of layers, the start of a layer's second run, and neighbours in one run.
    first, second, third = 0, SIZES[0], sum(SIZES[:3])
    pairs = [(first, second), (second, third), (first, third), (first + 1, third)]
    if dimension < SIZES[0]:
        pairs.append((first, dimension))
    for one, other in pairs:
        met = (buckets[:, one] == buckets[:, other]).double().mean()
        assert abs(met - 1 / dimension) < 4 * (1 / dimension / 800) ** 0.5
        assert abs((signs[:, one] * signs[:, other]).mean()) < 4 / 800**0.5
    assert abs(signs[:, 0].mean()) < 4 / 800**0.5
    assert abs((signs[:, 0] * signs[:, 1]).mean()) < 4 / 800**0.5


def pairs_of_vectors() -> dict[str, tuple[Tensor, Tensor]]:
    size = sum(SIZES)
    x, y = normal(2, size)
    heavy = x**5
    alternating = torch.ones(size, dtype=torch.float64)
    alternating[::2] = -1.0
    one = torch.zeros(size, dtype=torch.float64)
    one[40] = 1.0
    return {
        "unrelated": (x, y),
        "alike": (x, x + 0.1 * y),
        "heavy tails": (heavy, heavy + y),
        "alternating": (alternating, alternating.abs()),
        "one coordinate": (one, one),
        "constant": (alternating.abs(), alternating.abs()),
    }


@pytest.mark.parametrize("dimension", [8, 32])
def test_inner_products_are_unbiased_with_the_promised_variance(dimension: int) -> None:
    count = 1500
    pairs = pairs_of_vectors()
    parts = split(torch.cat([torch.stack(pair) for pair in pairs.values()]))
    drawn = torch.stack([reduced(sketch, parts) for sketch in sketches(dimension, count)])
    products = (drawn[:, ::2] * drawn[:, 1::2]).sum(2)
    for i, (kind, (x, y)) in enumerate(pairs.items()):
        truth = float(x @ y)
        bound = float((x @ x) * (y @ y) + truth**2) / dimension
        assert abs(float(products[:, i].mean()) - truth) <= 4 * (bound / count) ** 0.5, kind
        # The sample variance scatters too; for heavy tails by a few per cent at this many draws.
        assert float(products[:, i].var()) <= 1.25 * bound, kind
    assert products[:, list(pairs).index("one coordinate")].unique().tolist() == [1.0]


@given(seed=st.integers(0, 2**64 - 1), a=st.integers(-9, 9), dimension=st.integers(1, 120))
def test_a_sketch_is_linear_and_the_same_for_one_seed(seed: int, a: int, dimension: int) -> None:
    x, y = torch.arange(104.0).double() - 50, (torch.arange(104.0).double() * 7) % 11
    parts = split(torch.stack([x, y, a * x + y]))
    first = reduced(Sketch(SIZES, dimension, seed), parts)
    assert torch.equal(a * first[0] + first[1], first[2])
    assert torch.equal(reduced(Sketch(SIZES, dimension, seed), parts), first)
    if dimension > 1:
        other = reduced(Sketch(SIZES, dimension, seed ^ 1), parts)
        assert not torch.equal(other, first)


def test_a_sketch_does_not_depend_on_the_batch_or_on_precision() -> None:
    vectors = normal(5, sum(SIZES)).float()
    sketch = Sketch(SIZES, 16, 0)
    together = reduced(sketch, split(vectors))
    for row in range(5):
        assert torch.equal(reduced(sketch, split(vectors[row : row + 1])), together[row : row + 1])
    wide = reduced(sketch, split(vectors.double()))
    torch.testing.assert_close(together.double(), wide, rtol=1e-5, atol=1e-5)


def test_the_sketch_of_a_seed_never_changes() -> None:
    """Vectors on disk mean nothing under another map: a change here orphans every index."""
    integers = torch.arange(104.0).double()[None] % 13 - 6
    digests = {
        dimension: hashlib.sha256(
            reduced(Sketch(SIZES, dimension, 2026), split(integers)).numpy().astype("<f8").tobytes()
        ).hexdigest()[:16]
        for dimension in (16, 50, 300)
    }
    assert digests == {16: "01784b5fcff740a4", 50: "2cf4db6481f86755", 300: "17ccf595312f8220"}
