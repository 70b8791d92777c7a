"""One nursery for all tests here: importing everything takes seconds."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.attempts import Attempts, Undisturbed
from faults.children import Nursery
from faults.work import told


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    opened = Nursery(tmp_path_factory.mktemp("nursery"))
    yield opened
    opened.close()


_known: dict[str, Undisturbed] = {}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory, where that can be: it is not the disk's speed that is tested."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as made:
        yield Path(made)


@pytest.fixture
def undisturbed(nursery: Nursery, kind: str, folder: Path) -> Undisturbed:
    if kind not in _known:
        attempts = Attempts(nursery, kind, folder / "undisturbed")
        ended = attempts.run()
        tasks = told(str(attempts.log))
        assert len(set(tasks)) == len(tasks) >= 20
        steps = list(ended.result)
        _known[kind] = Undisturbed(kind, attempts.state(), steps, tasks, ended.seconds)
    return _known[kind]


@pytest.fixture
def attempts(nursery: Nursery, kind: str, folder: Path) -> Attempts:
    return Attempts(nursery, kind, folder / "attempts")
