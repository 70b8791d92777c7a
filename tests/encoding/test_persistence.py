"""A fitted encoder comes back from disk with its bits, and nothing else is taken for one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from curvature.reference import case_of, shifted
from encoding.encoders import CASES, KINDS, SKETCHED, ask, encode, fit, sketched
from wherefrom.curvature.fitted import FittedCurvature
from wherefrom.encoding.encoder import Encoder
from wherefrom.encoding.factory import make_encoder
from wherefrom.encoding.pca import fit_pca
from wherefrom.encoding.persistence import load_encoder, save_encoder
from wherefrom.encoding.stages import Stages
from wherefrom.errors import CurvatureError, IntegrityError, WherefromError


def read(path: Path, fitted: FittedCurvature, **changes: object) -> Encoder:
    given = {
        "kind": fitted.kind,
        "damping": fitted.damping,
        "documents": fitted.documents,
        "report": fitted.report,
        "stages": SKETCHED,
        "device": torch.device("cpu"),
        "layers": fitted.layers,
        **changes,
    }
    return load_encoder(path, **given)


@pytest.mark.parametrize(
    ("name", "kind"), [(name, "ekfac") for name in CASES] + [("llama-mlp", k) for k in KINDS[1:]]
)
def test_an_encoder_comes_back_from_disk_with_the_same_bits(
    tmp_path: Path, name: str, kind: str
) -> None:
    case, fitted = case_of(name), fit(name, kind)
    encoder = sketched(fitted)
    save_encoder(encoder, tmp_path / "encoder")
    restored = read(tmp_path / "encoder", fitted)
    rows = list(range(case.count))
    for one, other in zip(encode(case, encoder, rows), encode(case, restored, rows), strict=True):
        assert one.tobytes() == other.tobytes()
    batch = shifted(case, rows)
    for damping in (None, 30.0):
        one, residual = ask(case, encoder, batch, damping)
        other, again = ask(case, restored, batch, damping)
        assert one.tobytes() == other.tobytes()
        assert residual == again
    assert restored.curvature.kind == fitted.kind
    assert restored.curvature.damping == fitted.damping
    save_encoder(restored, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "encoder").read_bytes()
    reseeded = read(tmp_path / "encoder", fitted, stages=replace(SKETCHED, seed=6))
    assert not np.array_equal(encode(case, reseeded, rows)[0], encode(case, encoder, rows)[0])


def test_what_is_no_encoder_is_refused(tmp_path: Path) -> None:
    """Flipped bits are found by the file's digest, which is checked where the index is opened."""
    fitted = fit("mlp-bias")
    path = tmp_path / "encoder"
    save_encoder(sketched(fitted), path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match="cannot be read"):
        read(path, fitted)
    path.unlink()
    with pytest.raises(IntegrityError, match="cannot be read"):
        read(path, fitted)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "identity"])
def test_an_encoder_of_other_layers_is_refused(tmp_path: Path, kind: str) -> None:
    fitted = fit("mlp-bias", kind)
    save_encoder(sketched(fitted), tmp_path / "encoder")
    with pytest.raises(CurvatureError, match="another shape"):
        read(tmp_path / "encoder", fitted, layers=fitted.layers[::-1])
    other = fit("llama-mlp")
    with pytest.raises(CurvatureError, match=r"shape|lacks"):
        read(tmp_path / "encoder", fitted, layers=other.layers)


def test_an_encoder_of_another_kind_is_refused(tmp_path: Path) -> None:
    """What one kind stores is not taken for another's."""
    fitted = fit("mlp-bias", "diagonal")
    save_encoder(sketched(fitted), tmp_path / "encoder")
    for kind in ("ekfac", "kfac", "exact", "datainf", "lissa"):
        with pytest.raises(CurvatureError, match="lacks"):
            read(tmp_path / "encoder", fitted, kind=kind)
    with pytest.raises(CurvatureError, match="needs a newer wherefrom"):
        read(tmp_path / "encoder", fitted, kind="shampoo")


def test_the_basis_of_a_pca_comes_back_too(tmp_path: Path) -> None:
    case, fitted = case_of("llama-mlp"), fit("llama-mlp")
    rows = list(range(case.count))
    stages = Stages("sketch", 50, 4, sketched=70, pca=4, seed=9)
    plain = make_encoder(fitted, replace(stages, pca=None, rotate=False))
    basis = fit_pca(torch.from_numpy(encode(case, plain, rows)[0]), 4)
    encoder = make_encoder(fitted, stages, basis)
    save_encoder(encoder, tmp_path / "encoder")
    restored = read(tmp_path / "encoder", fitted, stages=stages)
    assert restored.basis_bytes == 4 * 50 * 4
    assert restored.dimension == stages.dimension == 4
    assert torch.equal(restored.pca, basis)
    for one, other in zip(encode(case, encoder, rows), encode(case, restored, rows), strict=True):
        assert one.tobytes() == other.tobytes()
    batch = shifted(case, rows)
    assert ask(case, encoder, batch)[0].tobytes() == ask(case, restored, batch)[0].tobytes()
    for other in (replace(stages, pca=3), replace(stages, pca=None), replace(stages, reduced=51)):
        with pytest.raises(WherefromError, match=r"basis has shape \(50, 4\)"):
            read(tmp_path / "encoder", fitted, stages=other)
    save_encoder(plain, tmp_path / "plain")
    with pytest.raises(WherefromError, match=r"shape None, the encoder's stages need \(50, 4\)"):
        read(tmp_path / "plain", fitted, stages=stages)
