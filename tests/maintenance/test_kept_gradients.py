"""A purge says what it cannot take out: gradients that some curvatures keep one by one."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.numpy import load_file

from maintenance.work import POOL, build
from wherefrom.maintenance.delete import delete
from wherefrom.store import Manifest
from wherefrom.store.directory import ENCODER_FILE


@pytest.mark.parametrize("kind", ["ekfac", "diagonal", "exact", "datainf", "lissa"])
def test_a_purge_tells_of_gradients_that_the_curvature_keeps(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "my.index"
    layer = "model.layers.0.mlp.gate_proj"
    build(path, curvature=kind, layers=layer, fit_documents=6)
    tensors = load_file(path / ENCODER_FILE)
    kept = [name for name in tensors if name.endswith("gradients")]
    named = [POOL[0].doc_id]
    assert delete(path, named).warnings == ()
    change = delete(path, [POOL[1].doc_id], purge=True)
    assert change.warnings == Manifest.read(path).history[-1].warnings
    if kind in ("datainf", "lissa"):
        (warning,) = change.warnings
        assert ENCODER_FILE in warning
        assert kind in warning
        assert "build again" in warning
        assert any(len(tensors[name]) >= 6 for name in kept)
    else:
        assert change.warnings == ()
        assert not kept
