"""The encoder equals explicit whitening of dense gradients, and comes back from disk unchanged."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import dense
from small_models import CASES, Case
from wherefrom.curvature.ekfac import EKFAC, FittedEKFAC
from wherefrom.encoding.encoder import Encoder
from wherefrom.encoding.persistence import encoder_bytes, load_encoder
from wherefrom.encoding.reduction import NoReduction, Sketch, make_reduction
from wherefrom.errors import CurvatureError, IntegrityError, ModelError
from wherefrom.gradients.extractor import GradientExtractor
from wherefrom.gradients.fisher import PseudoGradients
from wherefrom.gradients.layers import select_layers

KINDS = ["mlp-bias", "mlp-no-bias", "shared", "llama-mlp", "gpt2-linear"]


def extractor_of(case: Case) -> GradientExtractor:
    return GradientExtractor(case.model, case.objective, select_layers(case.model, case.layers))


def fit(case: Case, damping: float = 0.1) -> FittedEKFAC:
    rows = list(range(case.count))
    source = PseudoGradients(extractor_of(case), lambda: [case.batch(rows)], "sampled")
    return EKFAC(damping).fit(source)


def sizes(fitted: FittedEKFAC) -> tuple[int, ...]:
    return tuple(layer.size for layer in fitted.layers)


def encode(case: Case, encoder: Encoder, rows: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Vectors and norms."""
    extractor = extractor_of(case)
    with extractor.session():
        encoded = encoder.encode(extractor, case.batch(rows))
    return encoded.vectors, encoded.norms


def whitened(case: Case, fitted: FittedEKFAC, row: int) -> list[Tensor]:
    """``vec(Q_S^T G Q_A) / sqrt(Lambda + lambda)`` of each layer, by dense gradients."""
    result = []
    for layer, basis, values in zip(fitted.layers, fitted.bases, fitted.eigenvalues, strict=True):
        gradient = dense.weight_gradient(case.model, layer.name, case.score(row))
        rotated = basis.q_out.T @ gradient @ basis.q_in
        result.append((rotated / (values + fitted.damping * values.mean()).sqrt()).reshape(-1))
    return result


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_are_whitened_gradients(kind: str) -> None:
    case = CASES[kind]()
    fitted = fit(case)
    vectors, norms = encode(case, Encoder(fitted, NoReduction(sizes(fitted))), list(range(4)))
    for row in range(4):
        expected = torch.cat(whitened(case, fitted, row)).numpy()
        allowed = 1e-6 * np.abs(expected).max()
        np.testing.assert_allclose(vectors[row], expected, rtol=1e-6, atol=allowed)
        assert norms[row] == pytest.approx(np.linalg.norm(expected), rel=1e-9)
    assert vectors.dtype == np.float32


@pytest.mark.parametrize("kind", ["mlp-bias", "llama-mlp"])
def test_a_sketched_vector_is_the_sketch_of_the_whole_one(kind: str) -> None:
    """Whitening, signs and adding up layer by layer lose nothing; norms are those before."""
    case = CASES[kind]()
    fitted = fit(case)
    encoder = Encoder(fitted, Sketch(sizes(fitted), 24, seed=5))
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


@pytest.mark.parametrize("kind", ["mlp-bias", "llama-mlp"])
@pytest.mark.parametrize("reduction", ["none", "sketch"])
def test_shares_of_layers_sum_to_the_product(kind: str, reduction: str) -> None:
    """A layer left out takes its share away: with ``none`` exactly that and nothing else."""
    case = CASES[kind]()
    fitted = fit(case)
    rows = list(range(case.count))

    def vectors(kept: int | None) -> np.ndarray:
        """With the whitening of all layers but one blown out of existence."""
        values = [
            v if kept in (None, i) else torch.full_like(v, 1e60)
            for i, v in enumerate(fitted.eigenvalues)
        ]
        chosen = replace(fitted, eigenvalues=tuple(values))
        made = make_reduction(reduction, sizes(fitted), 40, 3)
        return encode(case, Encoder(chosen, made), rows)[0].astype(np.float64)

    whole = vectors(None)
    parts = [vectors(i) for i in range(len(fitted.layers))]
    np.testing.assert_allclose(sum(parts), whole, rtol=1e-5, atol=1e-6 * np.abs(whole).max())
    if reduction == "none":
        shares = sum(part @ part.T for part in parts)
        product = whole @ whole.T
        np.testing.assert_allclose(shares, product, rtol=1e-6, atol=1e-6 * product.max())


def test_vectors_do_not_depend_on_the_batch() -> None:
    case = CASES["llama-mlp"]()
    fitted = fit(case)
    encoder = Encoder(fitted, NoReduction(sizes(fitted)))
    together, norms = encode(case, encoder, list(range(case.count)))
    for row in range(case.count):
        alone, norm = encode(case, encoder, [row])
        np.testing.assert_allclose(alone[0], together[row], rtol=1e-6, atol=1e-6)
        assert norm[0] == pytest.approx(norms[row], rel=1e-10)
    assert encode(case, encoder, [2, 0])[0].tobytes() == encode(case, encoder, [2, 0])[0].tobytes()


def test_an_encoder_keeps_nothing_of_another_damping() -> None:
    case = CASES["mlp-bias"]()
    fitted = fit(case)
    reduction = NoReduction(sizes(fitted))
    first = Encoder(fitted, reduction)
    before = encode(case, first, [0, 1])[0]
    other = encode(case, Encoder(fitted.with_damping(10.0), reduction), [0, 1])[0]
    assert encode(case, first, [0, 1])[0].tobytes() == before.tobytes()
    assert encode(case, Encoder(fitted, reduction), [0, 1])[0].tobytes() == before.tobytes()
    assert np.linalg.norm(other) < 0.5 * np.linalg.norm(before)


def write(path: Path, encoder: Encoder) -> str:
    data = encoder_bytes(encoder)
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def read(path: Path, sha256: str, fitted: FittedEKFAC, **changes: object) -> Encoder:
    given = {
        "damping": fitted.damping,
        "documents": fitted.documents,
        "reduction": "sketch",
        "dimension": 24,
        "seed": 5,
        "device": torch.device("cpu"),
        "layers": fitted.layers,
        **changes,
    }
    return load_encoder(path, sha256, **given)


@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_comes_back_from_disk_with_the_same_bits(tmp_path: Path, kind: str) -> None:
    case = CASES[kind]()
    fitted = fit(case)
    encoder = Encoder(fitted, Sketch(sizes(fitted), 24, seed=5))
    sha256 = write(tmp_path / "encoder", encoder)
    restored = read(tmp_path / "encoder", sha256, fitted)
    rows = list(range(case.count))
    for one, other in zip(encode(case, encoder, rows), encode(case, restored, rows), strict=True):
        assert one.tobytes() == other.tobytes()
    assert restored.curvature.damping == 0.1
    assert encoder_bytes(restored) == encoder_bytes(encoder)
    reseeded = read(tmp_path / "encoder", sha256, fitted, seed=6)
    assert not np.array_equal(encode(case, reseeded, rows)[0], encode(case, encoder, rows)[0])


def test_damaged_encoders_are_refused(tmp_path: Path) -> None:
    case = CASES["mlp-bias"]()
    fitted = fit(case)
    path = tmp_path / "encoder"
    sha256 = write(path, Encoder(fitted, Sketch(sizes(fitted), 24, seed=5)))
    data = path.read_bytes()
    for position in (0, 9, len(data) // 2, len(data) - 1):
        flipped = bytearray(data)
        flipped[position] ^= 4
        path.write_bytes(flipped)
        with pytest.raises(IntegrityError, match="SHA-256"):
            read(path, sha256, fitted)
    path.write_bytes(data[:-1])
    with pytest.raises(IntegrityError, match="SHA-256"):
        read(path, sha256, fitted)
    path.unlink()
    with pytest.raises(IntegrityError, match="cannot be read"):
        read(path, sha256, fitted)


def test_an_encoder_of_other_layers_is_refused(tmp_path: Path) -> None:
    case = CASES["mlp-bias"]()
    fitted = fit(case)
    sha256 = write(tmp_path / "encoder", Encoder(fitted, Sketch(sizes(fitted), 24, seed=5)))
    with pytest.raises(CurvatureError, match="another shape"):
        read(tmp_path / "encoder", sha256, fitted, layers=fitted.layers[::-1])
    other = fit(CASES["llama-mlp"]())
    with pytest.raises(CurvatureError, match=r"shape|lacks"):
        read(tmp_path / "encoder", sha256, other)


def test_a_loss_that_is_not_finite_names_its_document() -> None:
    case = CASES["mlp-bias"]()
    fitted = fit(case)
    encoder = Encoder(fitted, NoReduction(sizes(fitted)))
    extractor = extractor_of(case)
    batch = case.batch([0, 1, 2])
    inputs = batch.inputs.clone()
    inputs[1] = float("nan")
    with extractor.session(), pytest.raises(ModelError, match="'d1' is not finite"):
        encoder.encode(extractor, replace(batch, inputs=inputs))
