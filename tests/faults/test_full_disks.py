"""The disk refuses a write, any of them: one line says so, and the same call goes on afterwards."""

from __future__ import annotations

import errno
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.attempts import KINDS, Attempts, Undisturbed, spread
from faults.children import Ended, Nursery

REFUSALS = {"full": errno.ENOSPC, "quota": errno.EDQUOT, "failing": errno.EIO}


def assert_refused(ended: Ended) -> None:
    assert ended.error == "StorageError", ended.traceback or ended
    assert "\n" not in ended.message
    assert "cannot" in ended.message


def refused_then_right(attempts: Attempts, undisturbed: Undisturbed, step: int, code: int) -> None:
    """Refuse a step, and from then on all; then make room and go on."""
    ended = attempts.run(fails=True, refuse_from=step, code=code)
    if ended.error is not None:
        assert_refused(ended)
    attempts.assert_unfinished_or_right(undisturbed)
    attempts.kills += 1  # As much may have been lost as by a kill.
    attempts.run()
    attempts.assert_same(undisturbed)


@pytest.mark.parametrize("kind", ["tensors"])
def test_no_step_that_is_refused_loses_anything(
    nursery: Nursery, undisturbed: Undisturbed, folder: Path
) -> None:
    codes = list(REFUSALS.values())
    for number, step in enumerate(spread(len(undisturbed.steps), 8)):
        attempts = Attempts(nursery, undisturbed.kind, folder / str(step))
        refused_then_right(attempts, undisturbed, step, codes[number % len(codes)])


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_no_step_at_all_that_is_refused_loses_anything(
    nursery: Nursery, undisturbed: Undisturbed, folder: Path
) -> None:
    for step in range(len(undisturbed.steps)):
        attempts = Attempts(nursery, undisturbed.kind, folder / str(step))
        refused_then_right(attempts, undisturbed, step, errno.ENOSPC)


@pytest.fixture
def disk(attempts: Attempts) -> Iterator[Path]:
    """A file system of its own, where the tests may mount one."""
    folder = attempts.index.parent
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("no right to mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def resize(disk: Path, kibibytes: int) -> None:
    options = f"remount,size={kibibytes}k"
    subprocess.run(["mount", "-o", options, str(disk)], check=True, capture_output=True)


@pytest.mark.parametrize("kind", ["tensors"])
def test_a_disk_that_is_really_full_loses_nothing(
    attempts: Attempts, undisturbed: Undisturbed, disk: Path
) -> None:
    """It grows a little whenever the build has stopped, which then comes a bit further."""
    stopped = 0
    for kibibytes in (*range(16, 400, 48), 1 << 14):
        resize(disk, kibibytes)
        ended = attempts.run(fails=True)
        if ended.done:
            break
        assert_refused(ended)
        stopped += 1
    assert stopped >= 3
    attempts.kills = stopped
    attempts.assert_same(undisturbed)


@pytest.mark.parametrize("kind", ["tensors"])
def test_a_limit_on_the_size_of_files_loses_nothing(
    attempts: Attempts, undisturbed: Undisturbed
) -> None:
    for limit in (256, 2048, 4096):
        ended = attempts.run(fails=True, largest_file=limit)
        if ended.error is not None:
            assert_refused(ended)
            attempts.kills += 1
    assert attempts.kills
    attempts.run()
    attempts.assert_same(undisturbed)


@pytest.fixture
def open_to_all(nursery: Nursery, kind: str) -> Iterator[Attempts]:
    """Attempts in a folder that somebody without rights can reach."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        attempts = Attempts(nursery, kind, Path(folder))
        attempts.log.touch()
        attempts.log.chmod(0o666)
        attempts.index.parent.mkdir()
        yield attempts
        set_rights(attempts.index.parent, folders=0o755, files=0o644)


def set_rights(folder: Path, *, folders: int, files: int) -> None:
    for path in [folder, *folder.rglob("*")]:
        path.chmod(folders if path.is_dir() else files)


@pytest.mark.parametrize("kind", ["tensors"])
def test_a_folder_that_may_not_be_written_is_named(
    open_to_all: Attempts, undisturbed: Undisturbed
) -> None:
    """Before the build, and when it becomes so while it stands half-done."""
    attempts, folder = open_to_all, open_to_all.index.parent
    set_rights(folder, folders=0o555, files=0o444)
    assert_refused(attempts.run(fails=True, nobody=True))
    assert list(folder.iterdir()) == []
    set_rights(folder, folders=0o755, files=0o644)
    assert attempts.run(kill_at=len(undisturbed.steps) // 2).killed
    set_rights(folder, folders=0o555, files=0o444)
    before = sorted(folder.rglob("*"))
    assert_refused(attempts.run(fails=True, nobody=True))
    assert sorted(folder.rglob("*")) == before
    set_rights(folder, folders=0o755, files=0o644)
    attempts.run()
    attempts.assert_same(undisturbed)
