"""Scaling and reducing: the encoder equals explicit scaling of dense gradients."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import dense
from curvature.reference import case_of, extractor_of, pairs, shifted, truth
from encoding.encoders import CASES, KINDS, WHITENING, ask, encode, fit, sizes, sketched, whole
from small_models import Case
from wherefrom.curvature.eigen import FittedEigen
from wherefrom.curvature.kinds import make_curvature
from wherefrom.encoding.encoder import Encoder
from wherefrom.encoding.factory import make_encoder
from wherefrom.encoding.reduction import NoReduction, Sketch
from wherefrom.encoding.stages import Stages
from wherefrom.errors import CurvatureError, ModelError
from wherefrom.gradients.batches import Batch


def whitened(case: Case, fitted: FittedEigen, row: int) -> list[Tensor]:
    """``vec(Q_S^T G Q_A) / sqrt(Lambda + lambda)`` of each layer, by dense gradients."""
    result = []
    for layer, basis, values in zip(fitted.layers, fitted.bases, fitted.eigenvalues, strict=True):
        gradient = dense.weight_gradient(case.model, layer.name, case.score(row))
        rotated = basis.q_out.T @ gradient @ basis.q_in
        result.append((rotated / (values + fitted.damping * values.mean()).sqrt()).reshape(-1))
    return result


# Documents.


@pytest.mark.parametrize("name", CASES)
def test_vectors_are_whitened_gradients(name: str) -> None:
    case, fitted = case_of(name), fit(name)
    assert isinstance(fitted, FittedEigen)
    vectors, norms = encode(case, whole(fitted), list(range(4)))
    for row in range(4):
        expected = torch.cat(whitened(case, fitted, row)).numpy()
        allowed = 1e-6 * np.abs(expected).max()
        np.testing.assert_allclose(vectors[row], expected, rtol=1e-6, atol=allowed)
        assert norms[row] == pytest.approx(np.linalg.norm(expected), rel=1e-9)
    assert vectors.dtype == np.float32


@pytest.mark.parametrize("name", ["mlp-bias", "llama-mlp"])
def test_a_sketched_vector_is_the_sketch_of_the_whole_one(name: str) -> None:
    """Whitening, signs and adding up layer by layer lose nothing; norms are those before."""
    case, fitted = case_of(name), fit(name)
    assert isinstance(fitted, FittedEigen)
    encoder = sketched(fitted)
    vectors, norms = encode(case, encoder, list(range(case.count)))
    assert vectors.shape == (case.count, encoder.dimension) == (case.count, 24)
    for row in range(case.count):
        layers = whitened(case, fitted, row)
        sketch = Sketch(sizes(fitted), 24, seed=5)
        buffer = sketch.buffer(1, layers[0])
        for i, part in enumerate(layers):
            sketch.add(i, (part * sketch.scaling(i, torch.ones_like(part)))[None], buffer)
        expected = sketch.finish(buffer)[0].numpy()
        allowed = 1e-6 * np.abs(expected).max()
        np.testing.assert_allclose(vectors[row], expected, rtol=1e-6, atol=allowed)
        assert norms[row] == pytest.approx(float(torch.cat(layers).norm()), rel=1e-9)


@pytest.mark.parametrize("name", ["mlp-bias", "llama-mlp"])
@pytest.mark.parametrize("reduction", ["none", "sketch"])
def test_shares_of_layers_sum_to_the_product(name: str, reduction: str) -> None:
    """A layer left out takes its share away: with ``none`` exactly that and nothing else."""
    case, fitted = case_of(name), fit(name)
    assert isinstance(fitted, FittedEigen)
    rows = list(range(case.count))

    def vectors(kept: int | None) -> np.ndarray:
        """With the whitening of all layers but one blown out of existence."""
        values = [
            v if kept in (None, i) else torch.full_like(v, 1e60)
            for i, v in enumerate(fitted.eigenvalues)
        ]
        chosen = replace(fitted, eigenvalues=tuple(values))
        reduced = 40 if reduction == "sketch" else sum(sizes(fitted))
        stages = Stages(reduction, reduced, 32, rotate=False, seed=3)
        return encode(case, make_encoder(chosen, stages), rows)[0].astype(np.float64)

    together = vectors(None)
    parts = [vectors(i) for i in range(len(fitted.layers))]
    allowed = 1e-6 * np.abs(together).max()
    np.testing.assert_allclose(sum(parts), together, rtol=1e-5, atol=allowed)
    if reduction == "none":
        shares = sum(part @ part.T for part in parts)
        product = together @ together.T
        np.testing.assert_allclose(shares, product, rtol=1e-6, atol=1e-6 * product.max())


@pytest.mark.parametrize("kind", KINDS)
def test_norms_are_those_of_the_vectors_before_the_reduction(kind: str) -> None:
    """And square to ``g^T (G + lambda)^-1 g`` where documents are whitened."""
    case, fitted = case_of("shared"), fit("shared", kind)
    rows = list(range(case.count))
    psi = ask(case, whole(fitted), case.batch(rows))[0]
    vectors, norms = encode(case, whole(fitted), rows)
    np.testing.assert_allclose(norms, np.linalg.norm(vectors, axis=1), rtol=1e-6)
    assert encode(case, sketched(fitted), rows)[1].tobytes() == norms.tobytes()
    if kind in WHITENING:
        np.testing.assert_allclose(norms**2, (psi * vectors).sum(1), rtol=1e-5)
        np.testing.assert_array_equal(psi.astype(np.float32), vectors)


def test_vectors_do_not_depend_on_the_batch() -> None:
    case = case_of("llama-mlp")
    encoder = whole(fit("llama-mlp"))
    together, norms = encode(case, encoder, list(range(case.count)))
    for row in range(case.count):
        alone, norm = encode(case, encoder, [row])
        np.testing.assert_allclose(alone[0], together[row], rtol=1e-6, atol=1e-6)
        assert norm[0] == pytest.approx(norms[row], rel=1e-10)
    assert encode(case, encoder, [2, 0])[0].tobytes() == encode(case, encoder, [2, 0])[0].tobytes()


# Queries.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["mlp-bias", "conv-groups", "llama-mlp"])
@pytest.mark.parametrize("factor", [None, 1.0, 0.2, 9.0])
def test_a_query_times_a_document_is_the_damped_solve(
    name: str, kind: str, factor: float | None
) -> None:
    """Whatever the query's damping, and to float32's precision, in which documents are stored."""
    case, fitted = case_of(name), fit(name, kind)
    damping = None if factor is None else factor * fitted.damping
    asking = fitted if damping is None else fitted.with_damping(damping)
    batch = shifted(case, range(case.count))
    psi, residual = ask(case, whole(fitted), batch, damping)
    phi, _ = encode(case, whole(fitted), list(range(case.count)))
    assert psi.dtype == np.float64
    expected = np.zeros((case.count, case.count))
    for i, (layer, known) in enumerate(zip(fitted.layers, truth(name, "empirical"), strict=True)):
        units = torch.eye(layer.size, dtype=torch.float64).reshape(-1, *layer.shape)
        basis = fitted.raw(i, units).flatten(1).T
        solved = asking.solve(i, (known.queries @ basis).reshape(-1, *layer.shape)).flatten(1)
        expected += (solved @ (known.documents @ basis).T).numpy()
    allowed = 1e-6 * np.linalg.norm(psi, axis=1)[:, None] * np.linalg.norm(phi, axis=1)
    assert bool((np.abs(psi @ phi.T - expected) <= allowed).all())
    assert (residual is not None) is (kind == "lissa")


@pytest.mark.parametrize("kind", ["ekfac", "datainf-scanned"])
@pytest.mark.parametrize("damping", [None, 2.0])
def test_a_sketched_query_is_the_sketch_of_the_whole_one(kind: str, damping: float | None) -> None:
    """Both sides go through one map, signs included."""
    case, fitted = case_of("llama-mlp"), fit("llama-mlp", kind)
    batch = shifted(case, [0, 2, 5])
    psi = ask(case, whole(fitted), batch, damping)[0]
    found = ask(case, sketched(fitted), batch, damping)[0]
    sketch = Sketch(sizes(fitted), 24, seed=5)
    buffer = sketch.buffer(3, torch.from_numpy(psi))
    for i, part in enumerate(torch.split(torch.from_numpy(psi), sizes(fitted), 1)):
        sketch.add(i, part * sketch.scaling(i, torch.ones_like(part[0])), buffer)
    expected = sketch.finish(buffer).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())


@pytest.mark.parametrize("kind", KINDS)
def test_asking_with_another_damping_leaves_no_trace(kind: str) -> None:
    case, encoder = case_of("mlp-bias"), sketched(fit("mlp-bias", kind))
    batch = shifted(case, [0, 1, 2])
    before, stored = ask(case, encoder, batch)[0], encode(case, encoder, [3, 4])[0]
    other = ask(case, encoder, batch, 30.0)[0]
    assert not np.allclose(other, before, rtol=1e-2)
    assert ask(case, encoder, batch)[0].tobytes() == before.tobytes()
    assert ask(case, encoder, batch, 30.0)[0].tobytes() == other.tobytes()
    assert encode(case, encoder, [3, 4])[0].tobytes() == stored.tobytes()
    fresh = sketched(fit("mlp-bias", kind))
    assert ask(case, fresh, batch, 30.0)[0].tobytes() == other.tobytes()


def test_bad_dampings_are_refused() -> None:
    case, encoder = case_of("mlp-bias"), whole(fit("mlp-bias"))
    for damping in (-1.0, float("nan"), float("inf")):
        with pytest.raises(CurvatureError, match="is not allowed"):
            ask(case, encoder, case.batch([0]), damping)
    with pytest.raises(CurvatureError, match=r"is singular and damping is 0"):
        ask(case, encoder, case.batch([0]), 0.0)


def test_what_an_encoder_keeps_is_for_one_precision() -> None:
    """A scaling kept from a float64 batch must not be used on a float32 one, nor the other way."""
    wide, fitted = case_of("mlp-bias"), fit("mlp-bias", "diagonal")
    encoder = whole(fitted)
    before = encode(wide, encoder, [0, 1])[0]

    def batch(rows: list[int]) -> Batch:
        given = wide.batch(rows)
        return replace(given, inputs=given.inputs.float())

    narrow = replace(wide, model=copy.deepcopy(wide.model).float(), batch=batch)
    found = encode(narrow, encoder, [0, 1])[0]
    fresh = encode(narrow, whole(fitted), [0, 1])[0]
    assert found.tobytes() == fresh.tobytes()
    np.testing.assert_allclose(found, before, rtol=1e-3, atol=1e-5 * np.abs(before).max())


def test_an_encoder_keeps_nothing_of_another_damping() -> None:
    case, rows = case_of("mlp-bias"), [0, 1]
    source = pairs(case, "empirical")
    first, other = (make_curvature("ekfac", damping).fit(source) for damping in (0.1, 10.0))
    reduction = NoReduction(sizes(first))
    encoder = Encoder(first, reduction)
    before = encode(case, encoder, rows)[0]
    damped = encode(case, Encoder(other, reduction), rows)[0]
    assert encode(case, encoder, rows)[0].tobytes() == before.tobytes()
    assert encode(case, Encoder(first, reduction), rows)[0].tobytes() == before.tobytes()
    assert np.linalg.norm(damped) < 0.5 * np.linalg.norm(before)


def test_a_loss_that_is_not_finite_names_its_document() -> None:
    case = case_of("mlp-bias")
    encoder = whole(fit("mlp-bias"))
    extractor = extractor_of(case)
    batch = case.batch([0, 1, 2])
    inputs = batch.inputs.clone()
    inputs[1] = float("nan")
    poisoned = replace(batch, inputs=inputs)
    for run in (encoder.encode, encoder.encode_query):
        with extractor.session(), pytest.raises(ModelError, match="'d1' is not finite"):
            run(extractor, poisoned)
