"""A change that is killed has happened or has not, and happens when it is asked for again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from faults.children import Nursery
from maintenance.work import POOL, contents
from wherefrom.store import Manifest

CHANGES: dict[str, dict[str, Any]] = {
    "append": {"work": "maintenance.work:append", "start": 12, "stop": 20},
    "replace": {"work": "maintenance.work:append", "start": 3, "stop": 6, "replace": True},
    "delete": {"work": "maintenance.work:delete", "doc_ids": [POOL[0].doc_id, POOL[5].doc_id]},
    "purge": {"work": "maintenance.work:delete", "doc_ids": [POOL[2].doc_id], "purge": True},
    "compact": {"work": "maintenance.work:compact"},
}


@pytest.fixture(scope="module")
def changed(pristine: Path, nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index with some changes behind it: segments, and rows that are deleted."""
    path = Path(shutil.copytree(pristine, tmp_path_factory.mktemp("changed") / "my.index"))
    assert nursery.run("maintenance.work:append", path=str(path), start=20, stop=24).done
    gone = [POOL[21].doc_id, POOL[9].doc_id]
    assert nursery.run("maintenance.work:delete", path=str(path), doc_ids=gone).done
    return path


class Killing:
    """One change, killed at different steps."""

    def __init__(self, nursery: Nursery, name: str, before: Path, folder: Path) -> None:
        self.nursery = nursery
        self.arguments = CHANGES[name]
        self.pristine = before
        self.before = contents(before)
        self.path = folder / "my.index"
        self.reset()
        ended = self.run()
        assert ended.done, ended.traceback
        self.steps: list[str] = ended.result
        self.after = contents(self.path)

    def reset(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        shutil.copytree(self.pristine, self.path)

    def run(self, **disk: Any) -> Any:
        watched = {"root": str(self.path), **disk}
        return self.nursery.run(disk=watched, path=str(self.path), **self.arguments)

    def kill_at(self, step: int) -> bool:
        """Kill it, look, and let it end; whether it had happened by then."""
        self.reset()
        assert self.run(kill_at=step).killed
        published = Manifest.read(self.path).generation > Manifest.read(self.pristine).generation
        found = contents(self.path)
        assert found == (self.after if published else self.before), self.steps[step]
        ended = self.run()
        assert ended.done, ended.traceback
        assert contents(self.path) == self.after, self.steps[step]
        assert not (self.path / "work").exists()
        if self.arguments.get("purge"):
            text = POOL[2].text.encode()
            files = [file for file in self.path.rglob("*") if file.is_file()]
            assert not any(text in file.read_bytes() for file in files), self.steps[step]
        return published


@pytest.fixture
def killing(name: str, changed: Path, nursery: Nursery, tmp_path: Path) -> Killing:
    return Killing(nursery, name, changed, tmp_path)


@pytest.mark.parametrize("name", CHANGES)
def test_a_killed_change_has_happened_or_not(killing: Killing) -> None:
    last = len(killing.steps) - 1
    manifest = next(i for i, s in enumerate(killing.steps) if s == "replace manifest.json")
    assert not killing.kill_at(manifest // 2)
    assert not killing.kill_at(manifest)
    assert killing.kill_at(min(manifest + 1, last))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_killed_at_any_step_has_happened_or_not(killing: Killing) -> None:
    happened = [killing.kill_at(step) for step in range(len(killing.steps))]
    assert happened == sorted(happened)
    assert {True, False} == set(happened)
