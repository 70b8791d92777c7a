"""Bases: orthogonal, the same on whichever side of the sum over tokens, shared inputs kept once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from curvature.contract import close
from curvature.reference import case_of, pairs
from wherefrom.curvature.bases import DenseBasis, Eigenbasis, GradientRotation, StandardBasis
from wherefrom.curvature.kinds import make_curvature
from wherefrom.gradients.extractor import LayerPair


def orthogonal(size: int) -> Tensor:
    return torch.linalg.qr(torch.randn(size, size, dtype=torch.float64)).Q


def pair(tokens: int, d_out: int, d_in: int) -> LayerPair:
    activations = torch.randn(4, tokens, d_in, dtype=torch.float64)
    deltas = torch.randn(4, tokens, d_out, dtype=torch.float64)
    return LayerPair(0, activations, deltas, 0, 4 * tokens, True)


@pytest.mark.parametrize("tokens", [1, 4, 5, 9])
@pytest.mark.parametrize(("d_out", "d_in"), [(3, 7), (7, 3), (5, 5)])
def test_either_side_may_be_rotated_before_the_sum(tokens: int, d_out: int, d_in: int) -> None:
    given = pair(tokens, d_out, d_in)
    gradients = torch.einsum("bto,bti->boi", given.deltas, given.activations)
    basis = Eigenbasis(orthogonal(d_in), orthogonal(d_out))
    found = GradientRotation((basis,))(given)
    close(found, basis.q_out.T @ gradients @ basis.q_in, 1e-12)
    close(basis.raw(found), gradients, 1e-12)


def test_dense_and_standard_bases() -> None:
    given = pair(3, 4, 2)
    gradients = torch.einsum("bto,bti->boi", given.deltas, given.activations)
    basis = DenseBasis(orthogonal(8))
    found = GradientRotation((basis,))(given)
    close(found.flatten(1), gradients.flatten(1) @ basis.q, 1e-12)
    close(basis.raw(found), gradients, 1e-12)
    assert torch.equal(GradientRotation((StandardBasis(),))(given), gradients)


def test_rotated_activations_are_kept_for_one_input_and_one_basis() -> None:
    """Two layers read one tensor; if their eigenvectors differ, so do their coordinates."""
    first = pair(2, 5, 6)
    second = replace(first, layer=1, deltas=torch.randn_like(first.deltas))
    q_out = orthogonal(5)
    shared = Eigenbasis(orthogonal(6), q_out)
    for other in (shared, Eigenbasis(shared.q_in, orthogonal(5)), Eigenbasis(orthogonal(6), q_out)):
        rotation = GradientRotation((shared, other))
        for given, basis in ((first, shared), (second, other), (first, shared)):
            gradients = torch.einsum("bto,bti->boi", given.deltas, given.activations)
            close(rotation(given), basis.q_out.T @ gradients @ basis.q_in, 1e-12)
    renewed = replace(first, activations=torch.randn_like(first.activations))
    assert not torch.allclose(rotation(renewed), rotation(first))


@pytest.mark.parametrize("kind", ["ekfac", "kfac"])
def test_eigenvectors_of_a_shared_input_are_stored_once(kind: str) -> None:
    fitted = make_curvature(kind).fit(pairs(case_of("llama-mlp"), "sampled"))
    names = [layer.name.split(".")[-1] for layer in fitted.layers]
    assert names == ["gate_proj", "up_proj", "down_proj"] * 2
    state = fitted.state()
    assert {key for key in state if key.endswith("q_in")} == {f"{i}.q_in" for i in (0, 2, 3, 5)}
    assert fitted.bases[1].q_in is fitted.bases[0].q_in


def test_eigenvectors_lie_by_rows_as_they_come_back_from_a_file() -> None:
    """Or products with them would have other bits before they were stored than after."""
    fitted = make_curvature("ekfac").fit(pairs(case_of("llama-mlp"), "sampled"))
    for basis in fitted.bases:
        assert basis.q_in.is_contiguous()
        assert basis.q_out.is_contiguous()


@pytest.mark.parametrize("tokens", [1, 3, 40])
@pytest.mark.parametrize(("rows", "columns"), [(6, 7), (1, 2), (2, 7), (6, 1), (5, 6), (0, 0)])
def test_a_rectangle_is_a_part_and_the_whole_is_never_formed(
    tokens: int, rows: int, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless it is the whole; one side at least is short before the sum over tokens."""
    given = pair(tokens, 6, 7)
    basis = Eigenbasis(orthogonal(7), orthogonal(6))
    whole = GradientRotation((basis,))(given)
    chosen = torch.randperm(6)[:rows], torch.randperm(7)[:columns]
    summed = []
    bmm = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda a, b: summed.append(bmm(a, b)) or summed[-1])
    found = GradientRotation((basis,), [chosen])(given)
    assert found.shape == (4, rows, columns)
    torch.testing.assert_close(found, whole[:, chosen[0][:, None], chosen[1]])
    (once,) = summed
    assert once.shape[1] == rows or once.shape[2] == columns
