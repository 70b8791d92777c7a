"""All stages in a row: the same on both sides, alone and together with others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from curvature.reference import case_of, extractor_of, shifted
from encoding.encoders import KINDS, ask, encode, fit, sizes, whole
from small_models import Case
from wherefrom.curvature.fitted import FittedCurvature
from wherefrom.encoding.encoder import Encoder
from wherefrom.encoding.factory import make_encoder
from wherefrom.encoding.pca import fit_pca
from wherefrom.encoding.rotation import Rotation
from wherefrom.encoding.stages import Stages
from wherefrom.encoding.together import encode_together
from wherefrom.gradients.batches import Batch
from wherefrom.gradients.fisher import true_gradients

NAME = "llama-mlp"
ALL = {
    "none": Stages("none", 720, 32, rotate=False),
    "none rotated": Stages("none", 720, 32),
    "sketch": Stages("sketch", 100, 4, rotate=False, seed=2),
    "sketch of some": Stages("sketch", 100, 1, sketched=130, seed=2),
    "sketch pca rotated": Stages("sketch", 90, 1, pca=5, seed=3),
    "energy": Stages("energy", 80, 4, rotate=False),
    "energy rotated": Stages("energy", 81, 4),
    "random": Stages("random", 60, 16, rotate=False),
    "random pca": Stages("random", 60, 16, pca=3, rotate=False),
}
BLIND = ["none", "sketch", "sketch pca rotated", "random"]
"""Those that need no eigenvalues."""


@cache
def made(stages: str, kind: str = "ekfac") -> Encoder:
    fitted, wanted = fit(NAME, kind), ALL[stages]
    if wanted.pca is None:
        return make_encoder(fitted, wanted)
    case = case_of(NAME)
    plain = make_encoder(fitted, replace(wanted, pca=None, rotate=False))
    sample = encode(case, plain, list(range(case.count)))[0]
    return make_encoder(fitted, wanted, fit_pca(torch.from_numpy(sample), wanted.pca))


def solved_by(
    case: Case, fitted: FittedCurvature, asking: FittedCurvature, batch: Batch
) -> Sequence[Tensor]:
    extractor, coordinates = extractor_of(case), fitted.coordinates()
    found: list[Tensor] = [torch.empty(0)] * len(fitted.layers)

    def keep(pair: object) -> None:
        found[pair.layer] = asking.solve(pair.layer, coordinates(pair))

    with extractor.session():
        true_gradients(extractor, batch, keep)
    return found


def together(
    encoders: Sequence[Encoder], rows: list[int], whitened: Callable[[int, Tensor], None]
) -> list[np.ndarray]:
    case = case_of(NAME)
    extractor = extractor_of(case)
    with extractor.session():
        return encode_together(encoders, extractor, case.batch(rows), whitened)


@pytest.mark.parametrize("stages", ALL)
def test_a_document_asked_for_is_its_own_vector(stages: str) -> None:
    """Documents and queries go through one map, whatever its stages."""
    case, encoder = case_of(NAME), made(stages)
    rows = list(range(case.count))
    vectors, norms = encode(case, encoder, rows)
    assert vectors.shape == (case.count, ALL[stages].dimension)
    assert encoder.dimension == ALL[stages].dimension
    psi = ask(case, encoder, case.batch(rows))[0]
    assert psi.dtype == np.float64
    np.testing.assert_array_equal(psi.astype(np.float32), vectors)
    if ALL[stages].reduce != "energy":
        np.testing.assert_array_equal(norms, encode(case, whole(fit(NAME)), rows)[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damping", [None, 30.0])
def test_a_solution_found_elsewhere_is_encoded_as_the_querys_own(
    kind: str, damping: float | None
) -> None:
    case, fitted = case_of(NAME), fit(NAME, kind)
    batch = shifted(case, [0, 3, 4])
    asking = fitted if damping is None else fitted.with_damping(damping)
    solved = solved_by(case, fitted, asking, batch)
    before = [part.clone() for part in solved]
    for stages in ALL if fitted.expected_energy(0) is not None else BLIND:
        encoder = made(stages, kind)
        expected = ask(case, encoder, batch, damping)[0]
        found = encoder.encode_solved(solved)
        assert found.dtype == np.float64
        allowed = 1e-10 * np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=allowed)
    assert all(torch.equal(one, other) for one, other in zip(before, solved, strict=True))


def test_a_rotation_turns_what_was_reduced_and_products_stay() -> None:
    case = case_of(NAME)
    batch = shifted(case, [1, 2])
    plain, turned = (ask(case, made(name), batch)[0] for name in ("none", "none rotated"))
    expected = Rotation(720, 0)(torch.from_numpy(plain)).numpy()
    np.testing.assert_allclose(turned, expected, rtol=1e-12, atol=1e-13)
    assert not np.allclose(turned, plain, rtol=0.1)
    np.testing.assert_allclose(turned @ turned.T, plain @ plain.T, rtol=1e-10)


def test_a_pca_projects_what_was_reduced_and_is_turned_after_it() -> None:
    case, encoder = case_of(NAME), made("sketch pca rotated")
    stages = ALL["sketch pca rotated"]
    plain = make_encoder(fit(NAME), replace(stages, pca=None, rotate=False))
    batch = shifted(case, [1, 2])
    reduced = torch.from_numpy(ask(case, plain, batch)[0])
    expected = Rotation(5, stages.seed)(reduced @ encoder.pca.double()).numpy()
    np.testing.assert_allclose(ask(case, encoder, batch)[0], expected, rtol=1e-12, atol=1e-13)
    assert encoder.basis_bytes == 4 * 90 * 5
    assert plain.basis_bytes == 0
    rows = list(range(case.count))
    one, other = encode(case, plain, rows)[0], encode(case, encoder, rows)[0]
    captured = (other.astype(float) ** 2).sum() / (one.astype(float) ** 2).sum()
    assert 0.9 < captured <= 1.0 + 1e-6


def test_encoders_together_make_what_each_makes_alone() -> None:
    """In whatever order, and the whitened gradients are handed over unharmed."""
    case = case_of(NAME)
    rows = list(range(case.count))
    full = encode(case, whole(fit(NAME)), rows)[0]
    names = list(ALL)
    for order in (
        names,
        names[::-1],
        ["sketch of some", "sketch", "sketch of some"],
    ):
        seen: dict[int, Tensor] = {}
        found = together([made(name) for name in order], rows, seen.__setitem__)
        for name, vectors in zip(order, found, strict=True):
            alone = encode(case, made(name), rows)[0]
            allowed = 1e-6 * np.abs(alone).max()
            np.testing.assert_allclose(vectors, alone, rtol=1e-6, atol=allowed, err_msg=name)
            assert vectors.dtype == np.float32
        parts = torch.cat([seen[i] for i in range(len(seen))], 1)
        assert parts.shape[1] == sum(sizes(fit(NAME)))
        np.testing.assert_array_equal(parts.float().numpy(), full)


def test_encoders_of_different_curvatures_are_not_run_together() -> None:
    with pytest.raises(ValueError, match="one fitted curvature"):
        together([made("sketch"), made("sketch", "kfac")], [0], lambda layer, phi: None)
    with pytest.raises(ValueError, match="one fitted curvature"):
        together([], [0], lambda layer, phi: None)


@pytest.mark.parametrize("stages", ["sketch of some", "energy rotated", "random"])
def test_vectors_do_not_depend_on_the_batch(stages: str) -> None:
    case, encoder = case_of(NAME), made(stages)
    batched = encode(case, encoder, list(range(case.count)))[0]
    for row in range(case.count):
        alone = encode(case, encoder, [row])[0][0]
        allowed = 1e-6 * np.abs(batched).max()
        np.testing.assert_allclose(alone, batched[row], rtol=1e-6, atol=allowed)
