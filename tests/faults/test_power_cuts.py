"""The power fails: what was never synced is gone, and the build still goes on to the same index.

Two kinds of disks: on one all that was not synced is lost, names of files included; on the other
names survive (as journals of metadata keep them) and point to empty files.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from faults.attempts import KINDS, Attempts, Undisturbed, look, spread
from faults.children import Nursery
from faults.disk import after_power_cut

DISKS = {"nothing unsynced survives": False, "names survive": True}


def cut(nursery: Nursery, folder: Path, kind: str, step: int, *, entries_survive: bool) -> Attempts:
    """Cut the power before a step, and look at the disk afterwards."""
    before = Attempts(nursery, kind, folder / "before")
    journal = folder / "journal"
    journal.mkdir(parents=True)
    ended = before.run(kill_at=step, journal=str(journal))
    after = Attempts(nursery, kind, folder / "after")
    after.kills = int(ended.killed)
    after.folder.mkdir()
    if before.log.exists():
        shutil.copy(before.log, after.log)
    after_power_cut(
        before.index.parent, journal, after.index.parent, entries_survive=entries_survive
    )
    return after


@pytest.mark.parametrize("disk", DISKS)
@pytest.mark.parametrize("kind", ["tensors"])
def test_a_build_goes_on_after_a_power_cut(
    nursery: Nursery, undisturbed: Undisturbed, folder: Path, disk: str
) -> None:
    assert_right_after(nursery, undisturbed, folder, disk, spread(len(undisturbed.steps), 5))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("disk", DISKS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_build_goes_on_after_a_power_cut_at_every_step(
    nursery: Nursery, undisturbed: Undisturbed, folder: Path, disk: str
) -> None:
    assert_right_after(nursery, undisturbed, folder, disk, range(len(undisturbed.steps)))


def assert_right_after(
    nursery: Nursery, undisturbed: Undisturbed, folder: Path, disk: str, steps: Any
) -> None:
    for step in steps:
        after = cut(
            nursery,
            folder / str(step),
            undisturbed.kind,
            step,
            entries_survive=DISKS[disk],
        )
        after.assert_unfinished_or_right(undisturbed)
        after.run()
        after.assert_same(undisturbed)


@pytest.mark.parametrize("disk", DISKS)
@pytest.mark.parametrize("kind", ["tensors"])
def test_a_finished_index_outlives_a_power_cut(
    nursery: Nursery, undisturbed: Undisturbed, folder: Path, disk: str
) -> None:
    after = cut(nursery, folder, undisturbed.kind, 10**6, entries_survive=DISKS[disk])
    assert look(nursery, after.index, undisturbed.kind) == undisturbed.state
