"""The baseline: Gaussian Kronecker projections, unbiased, with an equal share for every layer."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from wherefrom.encoding.projection import RandomProjection

SHAPES = [(6, 8), (1, 1), (9, 5), (3, 30)]
SIZES = tuple(d_out * d_in for d_out, d_in in SHAPES)


def projected(reduction: RandomProjection, vectors: Tensor) -> Tensor:
    buffer = reduction.buffer(len(vectors), vectors)
    for i, part in reversed(list(enumerate(torch.split(vectors, SIZES, 1)))):
        reduction.add(i, part * reduction.scaling(i, torch.ones_like(part[0])), buffer)
    return reduction.finish(buffer)


def matrix(dimension: int, seed: int) -> Tensor:
    """``[coordinate, entry]``."""
    units = torch.eye(sum(SIZES), dtype=torch.float64)
    return projected(RandomProjection(SHAPES, dimension, seed), units)


@pytest.mark.parametrize("dimension", [4, 40, 100, sum(SIZES)])
def test_layers_have_equal_shares_and_kronecker_matrices(dimension: int) -> None:
    """No layer more than its weights; each entry is ``p_out^T X p_in``."""
    found = matrix(dimension, 1)
    owned = [part.abs().sum(0) > 0 for part in torch.split(found, SIZES)]
    assert torch.equal(sum(o.int() for o in owned), torch.ones(dimension, dtype=torch.int32))
    shares = [int(o.sum()) for o in owned]
    assert all(share <= size for share, size in zip(shares, SIZES, strict=True))
    full = [s for s, size in zip(shares, SIZES, strict=True) if s < size]
    assert not full or max(full) - min(full) <= 1
    for part, shape in zip(torch.split(found, SIZES), SHAPES, strict=True):
        for column in part.T:
            if bool(column.any()):
                singular = torch.linalg.svdvals(column.reshape(shape))
                assert singular[1:].sum() < 1e-6 * singular[0]


def test_inner_products_are_unbiased() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, sum(SIZES), dtype=torch.float64, generator=generator)
    pair = torch.stack([x, x + 0.3 * y])
    drawn = [projected(RandomProjection(SHAPES, 40, seed), pair) for seed in range(800)]
    products = torch.stack([one @ other for one, other in drawn])
    error = float(products.std()) / 800**0.5
    assert abs(float(products.mean()) - float(pair[0] @ pair[1])) < 4 * error
    assert error < 0.02 * float(pair[0] @ pair[1])


@given(seed=st.integers(0, 2**64 - 1), dimension=st.integers(1, sum(SIZES)))
def test_it_is_linear_and_the_same_for_one_seed(seed: int, dimension: int) -> None:
    x = torch.arange(float(sum(SIZES))).double()
    pair = torch.stack([x, x % 7, 2 * x + x % 7])
    first = projected(RandomProjection(SHAPES, dimension, seed), pair)
    assert first.shape == (3, dimension)
    torch.testing.assert_close(2 * first[0] + first[1], first[2], rtol=1e-9, atol=1e-6)
    assert torch.equal(projected(RandomProjection(SHAPES, dimension, seed), pair), first)
    assert not torch.equal(projected(RandomProjection(SHAPES, dimension, seed ^ 1), pair), first)


def test_the_projection_of_a_seed_never_changes() -> None:
    """Vectors on disk mean nothing under another map: a change here orphans every index."""
    found = matrix(40, 2026)
    checks = [float(found.sum()), float((found * torch.arange(1.0, 41.0)).abs().sum())]
    assert checks == pytest.approx([-2.2189664, 7087.479504], rel=1e-6)
