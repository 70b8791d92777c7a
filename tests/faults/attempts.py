"""Attempts at a build that something happens to, and what they have to end as."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

import wherefrom as wf
from faults.children import Ended, Nursery
from faults.work import told
from wherefrom.errors import UnfinishedIndexError

__all__ = ["KINDS", "Attempts", "Undisturbed", "assert_equal", "look", "spread"]

KINDS = {
    "tensors": {"work": "faults.work:build_tensors"},
    "text": {"work": "faults.work:build_text", "encoder": "sketch", "bits": 4},
    "kfac": {"work": "faults.work:build_tensors", "curvature": "kfac", "encoder": "energy"},
}


@dataclass(frozen=True)
class Undisturbed:
    """A build that nothing happened to.

    Attributes:
        kind: Of :data:`KINDS`.
        state: What :func:`faults.work.look` sees.
        steps: What it does to the disk.
        tasks: What it carries out.
        seconds: It takes.
    """

    kind: str
    state: dict[str, Any]
    steps: list[str]
    tasks: list[str]
    seconds: float


@dataclass
class Attempts:
    """Runs of the same build, at one place."""

    nursery: Nursery
    kind: str
    folder: Path
    kills: int = 0
    ends: list[Ended] = field(default_factory=list)

    @property
    def index(self) -> Path:
        return self.folder / "disk" / "my.index"

    @property
    def log(self) -> Path:
        return self.folder / "tasks.log"

    def order(
        self,
        clock: str | None = None,
        options: Mapping[str, Any] | None = None,
        **disk: Any,
    ) -> dict[str, Any]:
        self.index.parent.mkdir(parents=True, exist_ok=True)
        watched = {"root": str(self.index.parent), "log": str(self.log), **disk}
        return {
            **KINDS[self.kind],
            "disk": watched,
            "path": str(self.index),
            "clock": clock,
            **(options or {}),
        }

    def run(self, *, fails: bool = False, **disk: Any) -> Ended:
        """Run, to its end or a kill; only what ``fails`` may end in an error."""
        ended = self.nursery.run(**self.order(**disk))
        return ended if fails and ended.error else self._noted(ended)

    def run_for(self, seconds: float) -> Ended:
        """Run, and kill it after a while."""
        child = self.nursery.start(**self.order())
        time.sleep(seconds)
        with suppress(ProcessLookupError):  # It may have been faster.
            child.kill()
        return self._noted(child.wait())

    def _noted(self, ended: Ended) -> Ended:
        if self.kills and ended.error == "IndexExistsError":
            # The last kill came too late: all was done.
            assert "finished" in ended.message
            return replace(ended, error=None, status=0)
        assert ended.killed or ended.done, ended.traceback or ended
        self.kills += ended.killed
        self.ends.append(ended)
        return ended

    def state(self) -> dict[str, Any]:
        return look(self.nursery, self.index, self.kind)

    def assert_unfinished_or_right(self, undisturbed: Undisturbed) -> None:
        """Whoever comes between two attempts is told, or finds all of it."""
        if (self.index / "manifest.json").exists():
            found, wanted = self.state(), undisturbed.state
            assert_equal({**found, "names": None}, {**wanted, "names": None})
        elif self.index.exists():
            with pytest.raises((UnfinishedIndexError, wf.errors.NotAnIndexError)):
                wf.open(self.index)

    def assert_same(self, undisturbed: Undisturbed) -> None:
        assert_equal(self.state(), undisturbed.state)
        assert [p.name for p in self.index.parent.iterdir()] == [self.index.name]
        done = Counter(told(str(self.log)))
        assert done.keys() == set(undisturbed.tasks)
        again = done - Counter(undisturbed.tasks)
        assert again.total() <= self.kills, f"done again: {again}"


def assert_equal(found: Any, wanted: Any, place: str = "") -> None:
    """Equal, or the first difference, named."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for name in sorted(found.keys() | wanted.keys()):
            assert_equal(found.get(name), wanted.get(name), f"{place}/{name}")
        return
    assert found == wanted, f"{place}: {found!r:.300} is not {wanted!r:.300}"


def look(nursery: Nursery, index: Path, kind: str) -> dict[str, Any]:
    seen = nursery.run("faults.work:look", path=str(index), scores=kind == "text")
    assert seen.done, seen.traceback
    return dict(seen.result)


def spread(count: int, wanted: int) -> list[int]:
    """So many of ``range(count)``, far apart, the last included."""
    return sorted({count - 1 - (i * count) // wanted for i in range(wanted)})
