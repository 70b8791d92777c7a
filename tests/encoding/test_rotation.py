"""Rotations and principal directions: orthogonal for every length, and spreading what they get."""

from __future__ import annotations

import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from wherefrom.encoding.pca import fit_pca
from wherefrom.encoding.rotation import Rotation
from wherefrom.errors import WherefromError


def matrix(rotation: Rotation) -> Tensor:
    return rotation(torch.eye(rotation.dimension, dtype=torch.float64))


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


@given(dimension=st.integers(1, 300), seed=st.integers(0, 2**64 - 1))
def test_a_rotation_of_any_length_is_orthogonal(dimension: int, seed: int) -> None:
    found = matrix(Rotation(dimension, seed))
    eye = torch.eye(dimension, dtype=torch.float64)
    torch.testing.assert_close(found @ found.T, eye, rtol=0.0, atol=1e-13)
    torch.testing.assert_close(matrix(Rotation(dimension, seed)), found, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("dimension", [128, 1024, 4096, 16384])
def test_at_a_power_of_two_it_is_the_hadamard_matrix_with_signs(dimension: int) -> None:
    """Each unit vector becomes entries of one size; products of any two sum to zero."""
    rotation = Rotation(dimension, 3)
    units = torch.zeros(3, dimension, dtype=torch.float64)
    for row, place in enumerate((0, 77, dimension - 1)):
        units[row, place] = 1.0
    found = rotation(units) * dimension**0.5
    torch.testing.assert_close(found.abs(), torch.ones_like(found), rtol=1e-14, atol=0.0)
    assert (found @ found.T - dimension * torch.eye(3)).abs().max() < 1e-9


@pytest.mark.parametrize("dimension", [100, 129, 500, 767, 1000, 1535, 2047])
def test_no_vector_stays_in_a_few_entries(dimension: int) -> None:
    """Wherever its energy lies, signs of the rotated one point much as those of a normal one."""
    rotation = Rotation(dimension, 1)
    spikes = torch.eye(dimension, dtype=torch.float64)[:: max(1, dimension // 50)]
    heavy = normal(50, dimension) ** 7
    ends = normal(50, dimension)
    ends[:, dimension // 3 :] *= 1e-3
    for kind, given_ in {"spikes": spikes, "heavy": heavy, "ends": ends}.items():
        turned = rotation(given_)
        cosines = turned.abs().sum(1) / (turned.norm(dim=1) * dimension**0.5)
        assert float(cosines.mean()) > 0.77, kind


def test_different_seeds_turn_differently_and_one_seed_never_changes() -> None:
    """Vectors on disk mean nothing under another rotation: a change here orphans every index."""
    digests = {}
    for dimension in (64, 100):
        turned = Rotation(dimension, 2026)(torch.arange(float(dimension)).double())
        rounded = (turned * 1000).round().to(torch.int64).numpy().astype("<i8")
        digests[dimension] = hashlib.sha256(rounded.tobytes()).hexdigest()[:16]
        other = Rotation(dimension, 2027)(torch.arange(float(dimension)).double())
        assert not torch.allclose(turned, other)
    assert digests == {64: "8dc454b42638ffa1", 100: "4fe25512f51e27b9"}


def test_a_rotation_does_not_depend_on_the_batch_and_keeps_its_argument() -> None:
    rotation = Rotation(777, 0)
    vectors = normal(5, 777)
    before = vectors.clone()
    together = rotation(vectors)
    assert torch.equal(vectors, before)
    for row in range(5):
        torch.testing.assert_close(rotation(vectors[row]), together[row], rtol=1e-12, atol=1e-13)
    narrow = rotation(vectors.float())
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow.double(), together, rtol=0.0, atol=1e-5)


@given(
    documents=st.integers(1, 30),
    reduced=st.integers(1, 30),
    rank=st.integers(0, 30),
    data=st.data(),
)
def test_principal_directions_are_orthonormal_and_the_best(
    documents: int, reduced: int, rank: int, data: st.DataObject
) -> None:
    """As much squared length as the singular values promise, whatever the sample's rank."""
    dimension = data.draw(st.integers(1, min(documents, reduced)))
    vectors = normal(documents, rank, seed=rank) @ normal(rank, reduced, seed=reduced)
    basis = fit_pca(vectors.float(), dimension)
    assert basis.shape == (reduced, dimension)
    assert basis.dtype == torch.float32
    eye = torch.eye(dimension, dtype=torch.float64)
    torch.testing.assert_close(basis.double().T @ basis.double(), eye, rtol=0.0, atol=1e-6)
    singular = torch.linalg.svdvals(vectors)
    captured = (vectors @ basis.double()).square().sum()
    best = singular[:dimension].square().sum()
    torch.testing.assert_close(captured, best, rtol=1e-5, atol=1e-9)
    first = (vectors @ basis.double()).square().sum(0)
    if dimension > 1 and min(documents, reduced, rank) > 1:
        assert float(first[0]) >= float(first[1]) * (1 - 1e-5)


def test_more_directions_than_documents_are_refused() -> None:
    with pytest.raises(WherefromError, match=r"pca=4 cannot be fitted on 3 vectors of 9 entries"):
        fit_pca(normal(3, 9), 4)
    with pytest.raises(WherefromError, match="give 1 to 2"):
        fit_pca(normal(3, 2), 3)
