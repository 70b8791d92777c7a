"""Where a build happens: one writer, replacements that are whole or not at all, work that is kept."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from wherefrom.errors import (
    CurvatureError,
    ExecutionError,
    IndexBusyError,
    IndexExistsError,
    StorageError,
    WherefromError,
)
from wherefrom.indexer.ledger import Work
from wherefrom.indexer.workplace import refuse_taken_path, workplace
from wherefrom.store import state
from wherefrom.store.directory import BUILD_FILE, MANIFEST_FILE, json_bytes
from wherefrom.store.lock import LOCK_FILE, writer_lock

MANIFEST = json_bytes({"format": "wherefrom-index"})


def finish(folder: Path, name: str) -> None:
    """What a build leaves, as far as a workplace can tell."""
    (folder / "name").write_text(name)
    (folder / MANIFEST_FILE).write_bytes(MANIFEST)
    (folder / BUILD_FILE).unlink()


def plan(folder: Path, *, rows: bool = False) -> None:
    work = Work(folder)
    work.make()
    work.file("plan.json").write_text("{}")
    if rows:
        work.file("encode").mkdir()
        work.file("encode").joinpath("00000000").write_text("")


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    path = tmp_path / "my.index"
    with workplace(path, {}, overwrite=False) as place:
        finish(place.folder, "old")
    return path


def test_a_build_ends_at_its_path_without_work_or_lock(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "my.index"
    with workplace(path, {"replay": "x"}, overwrite=False) as place:
        assert place.began
        assert place.folder == path
        assert state(path) == "unfinished"
        plan(path)
        finish(path, "new")
    assert sorted(entry.name for entry in path.iterdir()) == [MANIFEST_FILE, "name"]


def test_a_replacement_is_built_beside_and_takes_the_place(finished: Path) -> None:
    with workplace(finished, {}, overwrite=True) as place:
        assert place.folder != finished
        assert (finished / "name").read_text() == "old"
        plan(place.folder)
        finish(place.folder, "new")
    assert (finished / "name").read_text() == "new"
    assert [entry.name for entry in finished.parent.iterdir()] == ["my.index"]
    assert sorted(entry.name for entry in finished.iterdir()) == [MANIFEST_FILE, "name"]


@contextmanager
def failing(path: Path, error: BaseException, *, rows: bool, planned: bool) -> Iterator[None]:
    with (
        pytest.raises(type(error)) as caught,
        workplace(path, {}, overwrite=False) as place,
    ):
        if planned:
            plan(place.folder, rows=rows)
        raise error
    yield
    if isinstance(error, (StorageError, ExecutionError)) and planned:
        assert "run the same command again" in str(caught.value)


@pytest.mark.parametrize(
    ("error", "planned", "rows", "kept"),
    [
        (CurvatureError("x"), True, False, False),
        (CurvatureError("x"), True, True, True),
        (WherefromError("x"), True, False, False),
        (StorageError("x"), True, False, True),
        (ExecutionError("x"), True, False, True),
        (MemoryError("x"), True, False, True),
        (KeyboardInterrupt(), True, False, True),
        (StorageError("x"), False, False, False),
        (ZeroDivisionError("x"), False, False, False),
    ],
)
def test_work_is_kept_where_another_go_may_help(
    tmp_path: Path, error: BaseException, planned: bool, rows: bool, kept: bool
) -> None:
    path = tmp_path / "my.index"
    with failing(path, error, rows=rows, planned=planned):
        assert state(path) == ("unfinished" if kept else "absent")
    if kept:
        with workplace(path, {}, overwrite=False) as place:
            assert not place.began
            assert Work(path).file("plan.json").exists()
            finish(path, "new")


def test_another_go_that_fails_does_not_take_back_what_the_first_made(tmp_path: Path) -> None:
    path = tmp_path / "my.index"
    with failing(path, KeyboardInterrupt(), rows=False, planned=True):
        pass
    with pytest.raises(CurvatureError), workplace(path, {}, overwrite=False):
        raise CurvatureError("wrong corpus, say")
    assert Work(path).file("plan.json").exists()


def stop_at_rename(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    replace, calls = os.replace, [0]

    def stopping(source: str, target: str) -> None:
        if Path(source).is_dir():
            calls[0] += 1
            if calls[0] == number:
                raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", stopping)


def test_a_replacement_cut_between_its_renames_is_completed(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by kill -9, which no handler sees: the old index is put aside, the new one not in place."""
    with monkeypatch.context() as patch:
        replace = os.replace

        def killed(source: str, target: str) -> None:
            replace(source, target)
            if Path(target).suffix == ".replaced":
                patch.setattr(os, "replace", refuse)

        def refuse(source: str, target: str) -> None:
            raise SystemExit

        patch.setattr(os, "replace", killed)
        with pytest.raises(SystemExit), workplace(finished, {}, overwrite=True) as place:
            finish(place.folder, "new")
    assert state(finished) == "absent"
    with pytest.raises(IndexExistsError, match="finished index"):
        refuse_taken_path(finished, overwrite=False)
    assert (finished / "name").read_text() == "new"
    assert [entry.name for entry in finished.parent.iterdir()] == ["my.index"]


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "my.index"
    with workplace(path, {}, overwrite=False) as place:
        with pytest.raises(IndexBusyError, match=f"process {os.getpid()} on"):
            workplace(path, {}, overwrite=False).__enter__()
        assert state(path) == "unfinished"
        finish(place.folder, "one")


def test_a_lock_leaves_nothing_and_can_be_taken_again(tmp_path: Path) -> None:
    for _ in range(3):
        with writer_lock(tmp_path):
            assert (tmp_path / LOCK_FILE).exists()
            with pytest.raises(IndexBusyError), writer_lock(tmp_path):
                pass
            assert (tmp_path / LOCK_FILE).exists()
        assert list(tmp_path.iterdir()) == []


def test_a_lock_that_its_holder_removed_meanwhile_is_not_the_one_that_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opened before the holder let go, locked after: another file is there by then, or none."""
    path = tmp_path / LOCK_FILE
    real: Callable[..., int] = os.open
    opened: list[int] = []

    def open_old(name: object, flags: int, mode: int = 0o777) -> int:
        handle = real(name, flags, mode)
        if name == path and not opened:
            opened.append(handle)
            path.unlink()
        return handle

    monkeypatch.setattr(os, "open", open_old)
    with writer_lock(tmp_path):
        assert path.exists()
        with pytest.raises(IndexBusyError), writer_lock(tmp_path):
            pass
