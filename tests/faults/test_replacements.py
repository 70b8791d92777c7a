"""A build that replaces an index is killed: there is the old index or the new one, and no third."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from faults.attempts import Attempts, assert_equal, look
from faults.children import Nursery

NEW = {"documents": 45, "overwrite": True}


class Replacing:
    """An index, another that takes its place, and both as they are when nothing happens."""

    def __init__(self, nursery: Nursery, folder: Path) -> None:
        self.nursery = nursery
        self.kind = "tensors"
        self.old = self._attempts(folder / "old")
        self.old.run()
        self.new = self._attempts(folder / "new")
        self.new.run()
        self.steps = list(self.new.run(options=NEW).result)
        self.states = {"old": self.old.state(), "new": self.new.state()}
        self.folder = folder

    def _attempts(self, folder: Path) -> Attempts:
        return Attempts(self.nursery, self.kind, folder)

    def killed_at(self, step: int) -> None:
        attempts = self._attempts(self.folder / f"killed at {step}")
        shutil.copytree(self.old.index.parent, attempts.index.parent)
        assert attempts.run(kill_at=step, options=NEW).killed, self.steps[step]
        found = self._state(attempts.index)
        name = "old" if found["manifest"] == self.states["old"]["manifest"] else "new"
        assert_equal({**found, "names": None}, {**self.states[name], "names": None})
        attempts.run(options=NEW)
        assert_equal(attempts.state(), self.states["new"])
        assert [p.name for p in attempts.index.parent.iterdir()] == [attempts.index.name]

    def _state(self, index: Path) -> dict[str, Any]:
        return look(self.nursery, index, self.kind)


@pytest.fixture
def replacing(nursery: Nursery, folder: Path) -> Replacing:
    return Replacing(nursery, folder)


def test_a_replacement_killed_as_it_takes_its_place_leaves_one_of_the_two(
    replacing: Replacing,
) -> None:
    """The last steps, one by one, among which the swap is."""
    count = len(replacing.steps)
    for step in (count // 2, *range(count - 7, count)):
        replacing.killed_at(step)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_replacement_killed_at_any_step_leaves_one_of_the_two(replacing: Replacing) -> None:
    for step in range(len(replacing.steps)):
        replacing.killed_at(step)
