"""An index on object storage answers as the directory it was published from, whoever publishes."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import buckets
import wherefrom as wf
from buckets import Store
from tiny_lm import CONTEXT, save_tiny_lm, text_documents, tiny_llama, tiny_tokenizer
from wherefrom.cli.main import commands
from wherefrom.cli.publish import FETCH_SCHEMA, PUBLISH_SCHEMA
from wherefrom.cli.publish import fetch as fetch_command
from wherefrom.cli.publish import publish as publish_command
from wherefrom.errors import (
    IndexBusyError,
    IndexExistsError,
    IntegrityError,
    NotAnIndexError,
    StorageError,
)
from wherefrom.indexer.workshop import Workshop
from wherefrom.maintenance import fetch as fetching
from wherefrom.maintenance.fetch import fetch
from wherefrom.maintenance.index import Index
from wherefrom.maintenance.publish import building_folder, built_at, publish
from wherefrom.store import Location, Manifest, state
from wherefrom.store.cache import cache_folder
from wherefrom.store.directory import beside
from wherefrom.store.lock import writer_lock
from wherefrom.store.remote import RemoteFolder

MODEL = tiny_llama()
OBJECTIVE = wf.CausalLM(tiny_tokenizer(), context=CONTEXT)
QUESTION = {"prompt": "the union of states", "completion": " shall be preserved"}
DOCUMENTS = text_documents(20)
LATER = [wf.Document(f"later {i}", "gold silver trade ships " * (i + 1), {}) for i in range(3)]


def opened(place: str | Path) -> Index:
    return wf.open(place, model=MODEL, objective=OBJECTIVE)


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with buckets.store() as running:
        yield running


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """By generation, an index as it was built and after two changes; under 0, another one."""
    folder = tmp_path_factory.mktemp("states")
    built: dict[str, Any] = {
        "objective": OBJECTIVE,
        "encoder": "sketch",
        "bits": 8,
        "bytes_per_document": 64,
    }
    wf.build(MODEL, text_documents(20, seed=1), folder / "0", **built)
    wf.build(MODEL, DOCUMENTS, folder / "1", **built).accelerate("lance-ivf")
    shutil.copytree(folder / "1", folder / "2")
    changed = opened(folder / "2")
    changed.append(LATER)
    changed.delete([DOCUMENTS[3].doc_id])
    return {0: folder / "0", 1: folder / "1", 3: folder / "2"}


@pytest.fixture
def path(states: dict[int, Path], tmp_path: Path) -> Path:
    """The index as it was built, a copy of one's own."""
    return shutil.copytree(states[1], tmp_path / "my.index")


@pytest.fixture
def later(states: dict[int, Path], tmp_path: Path) -> Path:
    """The same index after it was changed, twice."""
    return shutil.copytree(states[3], tmp_path / "later.index")


@pytest.fixture
def url(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    buckets.reach(monkeypatch, store.endpoint, tmp_path)
    return f"{store.bucket()}/my.index"


def answers(index: Index) -> list[dict[str, Any]]:
    """What an index says, but for where it is and how long that took."""
    asked: list[dict[str, Any]] = [{}, {"where": {"party": "Whig"}}, {"rerank": "stored"}]
    found = [index.query(**QUESTION, **options).to_dict() for options in asked]
    for answer in found:
        del answer["seconds"], answer["index"]["path"]
    return found


def contents(place: str | Path | Index) -> list[Any]:
    """What an index holds, which takes no model."""
    index = place if isinstance(place, Index) else wf.open(place)
    return [
        index.manifest.digest,
        index.doc_ids(),
        index.vectors().tobytes(),
        index.self_influence().tobytes(),
        index.documents({"party": "Whig"}),
    ]


def test_a_published_index_answers_to_the_last_bit_alike(path: Path, url: str) -> None:
    done = publish(path, url)
    local, remote = opened(path), opened(url)
    assert done.changed
    assert done.manifest_sha256 == local.manifest.digest == remote.manifest.digest
    assert str(remote.location) == url
    assert remote.query(**QUESTION).to_dict()["index"]["path"] == url
    assert answers(remote) == answers(local)
    assert contents(remote) == contents(local)
    assert remote.document("speech 07") == local.document("speech 07")
    assert remote.documents({"party": None}) == local.documents({"party": None})


def test_its_accelerators_are_fetched_when_they_are_asked(path: Path, url: str) -> None:
    publish(path, url)
    local, remote = opened(path), opened(url)
    assert not (remote.path / "vectors.lance").exists()
    by_it = [index.query(**QUESTION, backend="lance-ivf") for index in (local, remote)]
    assert (remote.path / "vectors.lance").exists()
    assert by_it[0].proponents == by_it[1].proponents


def test_only_what_is_new_is_uploaded(path: Path, later: Path, url: str) -> None:
    first = publish(path, url)
    before = buckets.objects(url)
    assert (first.uploaded, first.kept) == (len(before) - 1, 0)
    again = publish(path, url)
    assert (again.changed, again.uploaded, again.kept) == (False, 0, first.uploaded)
    second = publish(later, url)
    after = buckets.objects(url)
    assert second.generation == 3
    assert second.uploaded == len(after.keys() - before.keys()) > 0
    assert second.kept > 0
    assert {name: after[name] for name in before if name != "manifest.json"} == {
        name: size for name, size in before.items() if name != "manifest.json"
    }
    kinds = {name.partition("/")[0] for name in after}
    assert kinds == {"manifest.json", "objects", "tables"}


def test_readers_keep_what_they_opened_until_they_refresh(
    path: Path, later: Path, url: str
) -> None:
    publish(path, url)
    reader = wf.open(url)
    publish(later, url)
    assert contents(reader) == contents(path)
    assert contents(url) == contents(later)
    assert reader.refresh()
    assert contents(reader) == contents(later)


def test_readers_see_one_state_or_the_other_whole(path: Path, later: Path, url: str) -> None:
    expected = [contents(path), contents(later)]
    publish(path, url)
    seen: list[str] = []
    wrong: list[object] = []
    done = threading.Event()

    def read() -> None:
        while True:
            last = done.is_set()
            try:
                found = contents(url)
                if found not in expected:
                    wrong.append(found)
                seen.append(found[0])
            except Exception as error:
                wrong.append(error)
            if last:
                return

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    publish(later, url)
    done.set()
    for reader in readers:
        reader.join()
    assert wrong == []
    assert seen[-1] == Manifest.read(later).digest


class Killed(BaseException):
    """The end of a process, as far as the store can tell."""


def killed_at(operation: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Let no write after the first ``operation`` ones reach the store; how many were tried."""
    tried = 0
    lock = threading.Lock()

    def limited(real: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            nonlocal tried
            with lock:
                tried += 1
                if tried > operation:
                    raise Killed
            real(*arguments)

        return call

    for name in ("upload", "write"):
        monkeypatch.setattr(RemoteFolder, name, limited(getattr(RemoteFolder, name)))
    return lambda: tried


def test_killed_anywhere_a_publication_has_changed_nothing(
    path: Path, later: Path, url: str
) -> None:
    publish(path, url)
    published = RemoteFolder(url).read("manifest.json")
    assert published is not None
    writes = 0
    while True:
        with pytest.MonkeyPatch.context() as patch:
            # Each attempt goes on where the last was killed: all but its one write are there.
            killed_at(1, patch)
            try:
                publish(later, url)
                break
            except Killed:
                writes += 1
        now = RemoteFolder(url).read("manifest.json")
        assert now is not None
        assert now.data == published.data
    assert writes > 5
    assert contents(url) == contents(later)


KILLED = """
import os, signal, sys, threading
from wherefrom.maintenance.publish import publish
from wherefrom.store.remote import RemoteFolder
left = int(sys.argv[3])
lock = threading.Lock()
def limited(real):
    def call(*arguments):
        global left
        with lock:
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)
    return call
RemoteFolder.upload = limited(RemoteFolder.upload)
RemoteFolder.write = limited(RemoteFolder.write)
publish(sys.argv[1], sys.argv[2])
"""


def test_a_killed_process_leaves_what_was_published(path: Path, later: Path, url: str) -> None:
    publish(path, url)
    command = [sys.executable, "-c", KILLED, str(later), url, "3"]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == -signal.SIGKILL, finished.stderr
    assert contents(url) == contents(path)
    assert publish(later, url).kept > 3
    assert contents(url) == contents(later)


def test_another_index_is_not_overwritten_unasked(
    path: Path, states: dict[int, Path], url: str
) -> None:
    publish(path, url)
    other = states[0]
    reader = wf.open(url)
    with pytest.raises(IndexExistsError, match=r"holds another index \(built .*, 20 documents\)"):
        publish(other, url)
    assert contents(url) == contents(path)
    assert publish(other, url, replace=True).changed
    assert contents(url) == contents(other)
    assert contents(reader) == contents(path)


def test_an_earlier_state_does_not_take_the_place_of_a_later_one(
    path: Path, later: Path, url: str
) -> None:
    publish(later, url)
    with pytest.raises(IndexExistsError, match="a later state, generation 3 and not 1; fetch that"):
        publish(path, url)
    publish(path, url, replace=True)
    assert contents(url) == contents(path)


def test_of_two_branches_the_second_is_refused(path: Path, later: Path, url: str) -> None:
    mine = opened(path)
    mine.delete([DOCUMENTS[5].doc_id])
    publish(later, url)
    with pytest.raises(IndexExistsError, match="changed in another place"):
        publish(path, url)
    with pytest.raises(IntegrityError, match="another branch"):
        publish(path, url, replace=True)
    assert contents(url) == contents(later)


def test_of_two_at_once_one_publishes(
    path: Path, later: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else publishes when all but the manifest of this publication is there."""
    publish(path, url)
    write = RemoteFolder.write

    def late(self: RemoteFolder, name: str, *arguments: Any) -> None:
        if name == "manifest.json":
            monkeypatch.setattr(RemoteFolder, "write", write)
            other = opened(path)
            other.delete([DOCUMENTS[5].doc_id])
            publish(path, f"{url}-else")  # Not in the way.
            stored = self.read(name)
            self.write(name, Manifest.read(path).to_bytes(), stored)
        write(self, name, *arguments)

    monkeypatch.setattr(RemoteFolder, "write", late)
    with pytest.raises(IndexBusyError, match="written by another at the same time"):
        publish(later, url)
    assert Manifest.read(url).digest == Manifest.read(path).digest


def test_pruning_leaves_what_is_published(path: Path, later: Path, url: str) -> None:
    publish(path, url)
    done = publish(later, url, prune=True)
    assert done.removed > 0
    fresh = f"{url}-fresh"
    publish(later, fresh)
    assert buckets.objects(url) == buckets.objects(fresh)
    assert contents(url) == contents(later)
    assert publish(later, url, prune=True).removed == 0


def test_what_is_purged_is_gone_from_the_store(path: Path, url: str) -> None:
    publish(path, url)
    reader = wf.open(url)
    doomed = DOCUMENTS[2]
    opened(path).delete([doomed.doc_id], purge=True)
    publish(path, url, prune=True)
    remote = RemoteFolder(url)
    for name in buckets.objects(url):
        stored = remote.read(name)
        assert stored is not None
        assert doomed.text.encode() not in stored.data, name
    assert contents(url) == contents(path)
    with pytest.raises(IntegrityError, match="open it again"):
        contents(reader)


def test_what_another_pruned_meanwhile_is_uploaded_again(
    path: Path, later: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(path, url)
    write = RemoteFolder.write

    def prune_first(self: RemoteFolder, name: str, *arguments: Any) -> None:
        if name == "manifest.json":
            self.remove([name for name in self.sizes("objects")])
        write(self, name, *arguments)

    monkeypatch.setattr(RemoteFolder, "write", prune_first)
    publish(later, url)
    assert contents(url) == contents(later)


def test_a_damaged_file_is_not_published(path: Path, url: str) -> None:
    file = path / "encoder.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(IntegrityError, match=r"encoder\.safetensors .*nothing was published"):
        publish(path, url)
    assert "manifest.json" not in buckets.objects(url)


def test_a_damaged_object_is_named(path: Path, url: str) -> None:
    publish(path, url)
    digest = Manifest.read(path).files()["encoder.safetensors"]
    buckets.damage(url, f"objects/{digest}")
    with pytest.raises(IntegrityError, match=rf"{url}/objects/{digest} \(encoder\.safetensors\)"):
        opened(url)


def test_a_damaged_row_is_named(path: Path, url: str) -> None:
    publish(path, url)
    index = opened(url)
    (data,) = [name for name in buckets.objects(url) if "/documents.lance/data/" in name]
    stored = RemoteFolder(url).read(data)
    assert stored is not None
    at = stored.data.index(DOCUMENTS[0].text.encode())
    changed = bytearray(stored.data)
    changed[at] ^= 1
    RemoteFolder(url).write(data, bytes(changed), stored)
    with pytest.raises(IntegrityError, match=DOCUMENTS[0].doc_id):
        opened(url).document(DOCUMENTS[0].doc_id)
    del index


def test_it_is_not_changed_where_it_is(path: Path, url: str) -> None:
    publish(path, url)
    index = opened(url)
    changes: list[Callable[[], object]] = [
        lambda: index.append(LATER),
        lambda: index.delete([DOCUMENTS[0].doc_id]),
        lambda: index.accelerate("lance-ivf"),
        lambda: publish(url, f"{url}-again"),
        lambda: wf.verify(url),
        index.verify,
    ]
    before = buckets.objects(url)
    for change in changes:
        with pytest.raises(StorageError, match="an index is asked but neither"):
            change()
    assert buckets.objects(url) == before


def test_a_fetched_index_is_the_published_one(path: Path, url: str, tmp_path: Path) -> None:
    publish(path, url)
    made = fetch(url, tmp_path / "fetched")
    assert contents(made) == contents(path)
    assert Manifest.read(made) == Manifest.read(path)
    found = wf.verify(made, model=MODEL, objective=OBJECTIVE)
    assert (found.problems, found.notes) == ((), ())
    index = opened(made)
    index.append(LATER)
    publish(made, url)
    assert contents(url) == contents(made)
    with pytest.raises(IndexExistsError, match="exists already"):
        fetch(url, made)


def test_a_fetch_goes_on_where_it_was_interrupted(
    path: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(path, url)
    download = RemoteFolder.download
    fetched: list[str] = []

    def limited(self: RemoteFolder, name: str, *arguments: Any) -> None:
        if len(fetched) == 4:
            raise Killed
        download(self, name, *arguments)
        fetched.append(name)

    monkeypatch.setattr(RemoteFolder, "download", limited)
    with pytest.raises(Killed):
        fetch(url, tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists()
    monkeypatch.setattr(RemoteFolder, "download", download)
    assert contents(fetch(url, tmp_path / "fetched")) == contents(path)


def test_a_writer_at_work_is_waited_for(path: Path, url: str) -> None:
    with writer_lock(path), pytest.raises(IndexBusyError):
        publish(path, url)


def test_where_an_index_for_a_url_is_built(path: Path, url: str) -> None:
    folder = building_folder(url, overwrite=False)
    assert folder == building_folder(f"{url}/", overwrite=False)
    assert folder != building_folder(f"{url}-else", overwrite=False)
    assert cache_folder() in folder.parents
    folder.parent.mkdir(parents=True)
    shutil.copytree(path, folder)
    with pytest.raises(IndexExistsError, match=rf"wherefrom publish {folder} {url}"):
        building_folder(url, overwrite=False)
    publish(folder, url)
    with pytest.raises(IndexExistsError, match="holds an index already"):
        building_folder(url, overwrite=False)
    assert building_folder(url, overwrite=True) == folder


def test_the_commands(path: Path, url: str, tmp_path: Path) -> None:
    run = CliRunner()
    told = run.invoke(publish_command, [str(path), url])
    assert told.exit_code == 0, told.output
    assert url in told.output
    again = run.invoke(publish_command, [str(path), url, "--prune", "--json"])
    done = json.loads(again.stdout)
    assert done.pop("schema") == PUBLISH_SCHEMA
    assert (done["url"], done["changed"], done["removed"]) == (url, False, 0)
    made = tmp_path / "made"
    fetched = run.invoke(fetch_command, [url, str(made), "--json"])
    assert json.loads(fetched.stdout) == {"schema": FETCH_SCHEMA, "url": url, "path": str(made)}
    assert Manifest.read(made) == Manifest.read(path)
    assert Location(made).directory == made


def test_an_index_is_built_for_a_url(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    built: dict[str, Any] = {
        "objective": OBJECTIVE,
        "encoder": "sketch",
        "bits": 8,
        "bytes_per_document": 64,
    }
    write = RemoteFolder.write

    def refused(self: RemoteFolder, *arguments: Any) -> None:
        raise StorageError("access was denied")

    monkeypatch.setattr(RemoteFolder, "write", refused)
    with pytest.raises(StorageError, match="access was denied"):
        wf.build(MODEL, DOCUMENTS, url, **built)
    monkeypatch.setattr(RemoteFolder, "write", write)
    # What took hours is not lost, nor built again unasked.
    with pytest.raises(IndexExistsError, match=r"built already.*wherefrom publish") as told:
        wf.build(MODEL, DOCUMENTS, url, **built)
    folder = Path(str(told.value).partition("(wherefrom publish ")[2].rpartition(f" {url}")[0])
    publish(folder, url)
    assert contents(url) == contents(folder)
    with pytest.raises(IndexExistsError, match="holds an index already"):
        wf.build(MODEL, DOCUMENTS, url, **built)
    again = wf.build(MODEL, text_documents(20, seed=1), url, overwrite=True, **built)
    assert str(again.location) == url
    assert again.manifest == Manifest.read(url)
    assert len(again.query(**QUESTION).proponents) > 0


def test_what_a_build_for_a_url_records_and_says(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The URL, however often it is made anew; only what an interruption left is in the cache."""
    save_tiny_lm(tmp_path / "model")
    rows = ({"doc_id": one.doc_id, "text": one.text} for one in text_documents(8))
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # Where relative paths, or a URL taken for one, would be.
    monkeypatch.chdir(tmp_path)
    command = ["docs.jsonl", "--model", "model", "--index", url, "--encoder", "none", "--json"]
    run, encode = CliRunner(), Workshop._encode

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Workshop, "_encode", interrupted)
    stopped = run.invoke(commands, ["build", *command])
    folder = built_at(url)
    assert (stopped.exit_code, state(folder)) == (130, "unfinished")
    assert f"{folder} is left unfinished" in stopped.stderr
    monkeypatch.setattr(Workshop, "_encode", encode)
    told = run.invoke(commands, ["build", *command])
    assert told.exit_code == 0, told.output
    assert "going on with the build" in told.stderr
    assert json.loads(told.stdout)["index"] == url
    replay = shlex.split(Manifest.read(url).replay)
    assert f"--index={url}" in replay
    assert f"--model={tmp_path / 'model'}" in replay
    assert str(tmp_path / "docs.jsonl") in replay
    assert str(cache_folder()) not in " ".join(replay)
    estimated = run.invoke(commands, ["build", *command, "--overwrite", "--dry-run"])
    assert json.loads(estimated.stdout)["path"] == url
    again = run.invoke(commands, [*replay[1:], "--overwrite", "--json"])
    assert json.loads(again.stdout)["index"] == url
    assert sorted(entry.name for entry in tmp_path.iterdir() if "s3" in entry.name) == []


def test_a_fetch_that_goes_on_holds_nothing_that_was_taken_down_meanwhile(
    path: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(path, url)
    target, text = tmp_path / "fetched.index", DOCUMENTS[3].text.encode()
    count = len(fetching.published_parts(Manifest.read(path)))

    def stop(phase: str, done: int, total: int) -> None:
        if done == count:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(url, target, progress=stop)
    left = beside(target, "fetched")
    data = next(left.glob("documents.lance/data/*.lance"))
    data.rename(data.with_name(f".{data.name}.part"))
    assert any(text in file.read_bytes() for file in left.rglob("*") if file.is_file())
    opened(path).delete([DOCUMENTS[3].doc_id], purge=True)
    publish(path, url, prune=True)
    fetch(url, target)
    assert contents(target) == contents(path)
    assert not any(text in file.read_bytes() for file in target.rglob("*") if file.is_file())
    assert wf.verify(target, digests_only=True).notes == ()


def require_only_prune_helps(path: Path, url: str) -> None:
    """Change the index so that it has a version by a number that is taken, and publish it."""
    with opened(path) as index:
        index.delete([DOCUMENTS[5].doc_id])
        index.delete([DOCUMENTS[6].doc_id])
    with pytest.raises(IntegrityError, match="or say --prune if nobody else publishes"):
        publish(path, url)
    publish(path, url, prune=True)
    assert contents(url) == contents(path)


def test_what_a_publication_left_bars_nobody_who_prunes(
    path: Path, later: Path, url: str, tmp_path: Path
) -> None:
    """Published, replaced by the state before, and then changed otherwise."""
    publish(path, url)
    publish(later, url)
    publish(path, url, replace=True)
    require_only_prune_helps(path, url)
    fetch(url, tmp_path / "fetched.index")


def test_what_the_published_state_names_is_never_written_over(
    path: Path, later: Path, url: str
) -> None:
    publish(path, url)
    publish(later, url)
    with opened(path) as index:
        index.delete([DOCUMENTS[5].doc_id])
        index.delete([DOCUMENTS[6].doc_id])
    with pytest.raises(IntegrityError, match="another branch of the index was; publish to another"):
        publish(path, url, replace=True, prune=True)
    assert contents(url) == contents(later)


def test_places_that_hold_no_index_are_one_line(path: Path, url: str, tmp_path: Path) -> None:
    with pytest.raises(NotAnIndexError, match="does not exist"):
        publish(tmp_path / "nowhere", url)
    publish(path, url)
    (tmp_path / "left").mkdir()
    (tmp_path / "left" / "writer.lock").touch()
    fetch(url, tmp_path / "left")
    assert contents(tmp_path / "left") == contents(path)


def test_a_first_publication_that_was_killed_bars_nobody_who_prunes(
    path: Path, later: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(folder: RemoteFolder, name: str, *given: Any) -> None:
        if name == "manifest.json":
            raise Killed
        write(folder, name, *given)

    write = RemoteFolder.write
    with monkeypatch.context() as patch:
        patch.setattr(RemoteFolder, "write", killed)
        with pytest.raises(Killed):
            publish(later, url)
    require_only_prune_helps(path, url)
