"""A tiny index and a server over it, for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

pytest.importorskip("fastapi")

import wherefrom as wf
from served import Running, running, served_documents
from tiny_lm import save_tiny_lm


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_lm(tmp_path_factory.mktemp("served") / "model")


@pytest.fixture(scope="session")
def index_path(model_path: Path) -> Path:
    path = model_path.parent / "served.index"
    wf.build(str(model_path), served_documents(), path, seed=3)
    return path


@pytest.fixture(scope="session")
def index(index_path: Path) -> wf.Index:
    return wf.open(index_path)


@pytest.fixture(scope="session")
def server(index: wf.Index) -> Iterator[Running]:
    """A server without a token."""
    with running(index) as found:
        yield found


@pytest.fixture
def client(server: Running) -> Iterator[httpx.Client]:
    with server.client() as found:
        yield found
