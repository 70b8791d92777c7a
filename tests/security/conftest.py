"""An index that others may have made, and its model, for all tests of this folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import wherefrom as wf
from tiny_lm import save_tiny_lm, text_documents
from wherefrom.gradients.models import LoadedModel, load_model
from wherefrom.query import asker


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_lm(tmp_path_factory.mktemp("security") / "model")


@pytest.fixture(scope="session")
def built(model_path: Path) -> Path:
    """Never to be changed; tests change copies."""
    path = model_path.parent / "built.index"
    wf.build(str(model_path), text_documents(), path, seed=3)
    return path


@pytest.fixture
def index_path(built: Path, tmp_path: Path) -> Path:
    """A copy to do harm to."""
    return Path(shutil.copytree(built, tmp_path / "some.index"))


@pytest.fixture(scope="session")
def loaded(model_path: Path) -> LoadedModel:
    return load_model(str(model_path))


@pytest.fixture
def _kept_model(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opens indexes with the one model, wherever their manifests say it is."""
    monkeypatch.setattr(asker, "load_recorded", lambda **_: loaded)
