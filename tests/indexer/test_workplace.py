"""Where a build happens: one writer, replacements whole or not at all, work that is kept."""

from __future__ import annotations

import os
from collections.abc import Callable
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
from wherefrom.indexer import workplace as places
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


@pytest.fixture(params=["one step", "two renames"])
def swap(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether directories can change places in one step here."""
    if request.param == "two renames":
        monkeypatch.setattr(places, "exchange", lambda one, other: False)
    return str(request.param)


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


def test_a_replacement_is_built_beside_and_takes_the_place(finished: Path, swap: str) -> None:
    with workplace(finished, {}, overwrite=True) as place:
        assert place.folder != finished
        assert (finished / "name").read_text() == "old"
        plan(place.folder)
        finish(place.folder, "new")
    assert (finished / "name").read_text() == "new"
    assert [entry.name for entry in finished.parent.iterdir()] == ["my.index"]
    assert sorted(entry.name for entry in finished.iterdir()) == [MANIFEST_FILE, "name"]


def fail(path: Path, error: BaseException, *, rows: bool, planned: bool) -> None:
    with workplace(path, {}, overwrite=False) as place:
        if planned:
            plan(place.folder, rows=rows)
        raise error


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
    with pytest.raises(type(error)) as caught:
        fail(path, error, rows=rows, planned=planned)
    if isinstance(error, (StorageError, ExecutionError)) and planned:
        assert "run the same command again" in str(caught.value)
    assert state(path) == ("unfinished" if kept else "absent")
    if kept:
        with workplace(path, {}, overwrite=False) as place:
            assert not place.began
            assert Work(path).file("plan.json").exists()
            finish(path, "new")


def test_another_go_that_fails_does_not_take_back_what_the_first_made(tmp_path: Path) -> None:
    path = tmp_path / "my.index"
    with pytest.raises(KeyboardInterrupt):
        fail(path, KeyboardInterrupt(), rows=False, planned=True)
    with pytest.raises(CurvatureError), workplace(path, {}, overwrite=False):
        raise CurvatureError("wrong corpus, say")
    assert Work(path).file("plan.json").exists()


def test_a_replacement_cut_between_its_renames_is_completed(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by kill -9: the old index is put aside, the new one not in place."""
    with monkeypatch.context() as patch:
        patch.setattr(places, "exchange", lambda one, other: False)
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
    before = sorted(entry.name for entry in finished.parent.iterdir())
    with pytest.raises(IndexExistsError, match="finished index"):
        refuse_taken_path(finished, overwrite=False)
    assert sorted(entry.name for entry in finished.parent.iterdir()) == before
    with pytest.raises(IndexExistsError), workplace(finished, {}, overwrite=False):
        pass
    assert (finished / "name").read_text() == "new"
    assert [entry.name for entry in finished.parent.iterdir()] == ["my.index"]


def replaced(path: Path) -> None:
    with workplace(path, {}, overwrite=True) as place:
        plan(place.folder)
        finish(place.folder, "new")


def test_a_build_that_was_cut_after_its_swap_is_done(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(places, "_remove", lambda folder: (_ for _ in ()).throw(SystemExit()))
        with pytest.raises(SystemExit):
            replaced(finished)
    if state(finished) == "absent":
        pytest.skip("directories cannot change places in one step here")
    assert (finished / "name").read_text() == "new"
    assert len(list(finished.parent.iterdir())) == 2
    with workplace(finished, {}, overwrite=True, is_this=lambda work: True) as place:
        assert place.folder == finished
        assert state(finished) == "finished"
    assert [entry.name for entry in finished.parent.iterdir()] == ["my.index"]
    assert sorted(entry.name for entry in finished.iterdir()) == [MANIFEST_FILE, "name"]


def test_an_index_that_was_finished_meanwhile_is_not_built_over(tmp_path: Path) -> None:
    """The path was free when the build was asked for; another was faster."""
    path = tmp_path / "my.index"
    refuse_taken_path(path, overwrite=False)
    with workplace(path, {}, overwrite=False) as place:
        finish(place.folder, "faster")
    with (
        pytest.raises(IndexExistsError, match="finished index"),
        workplace(path, {}, overwrite=False),
    ):
        pass
    assert (path / "name").read_text() == "faster"
    with (
        pytest.raises(IndexExistsError, match="finished index"),
        workplace(path, {}, overwrite=True, is_this=lambda work: True) as place,
    ):
        place.begin_anew()
    assert (path / "name").read_text() == "faster"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_database_of_somebody_else_is_left_alone(tmp_path: Path, overwrite: bool) -> None:
    table = tmp_path / "documents.lance"
    table.mkdir()
    with (
        pytest.raises(IndexExistsError, match="no index"),
        workplace(tmp_path, {}, overwrite=overwrite),
    ):
        pass
    assert table.is_dir()


def test_what_no_build_makes_is_never_removed(tmp_path: Path) -> None:
    path = tmp_path / "my.index"
    with pytest.raises(KeyboardInterrupt):
        fail(path, KeyboardInterrupt(), rows=False, planned=True)
    (path / "my notes.txt").write_text("precious")
    with pytest.raises(IndexExistsError), workplace(path, {}, overwrite=True) as place:
        place.begin_anew()
    assert (path / "my notes.txt").read_text() == "precious"


def test_what_was_put_beside_a_build_that_failed_stays(tmp_path: Path) -> None:
    path = tmp_path / "my.index"

    def build() -> None:
        with workplace(path, {}, overwrite=False) as place:
            plan(place.folder)
            (path / "my notes.txt").write_text("precious")
            raise CurvatureError("x")

    with pytest.raises(CurvatureError):
        build()
    assert [entry.name for entry in path.iterdir()] == ["my notes.txt"]


def test_a_new_index_is_locked_until_its_builder_is_done_with_it(
    finished: Path, monkeypatch: pytest.MonkeyPatch, swap: str
) -> None:
    remove, seen = places._remove, []

    def busy(folder: Path) -> None:
        if (finished / "name").exists() and (finished / "name").read_text() == "new":
            with pytest.raises(IndexBusyError), writer_lock(finished):
                pass
            seen.append(folder)
        remove(folder)

    monkeypatch.setattr(places, "_remove", busy)
    with workplace(finished, {}, overwrite=True) as place:
        finish(place.folder, "new")
    assert seen
    with writer_lock(finished):
        pass


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
