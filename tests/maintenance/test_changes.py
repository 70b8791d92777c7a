"""An index after a change is the index of the documents that it then holds."""

from __future__ import annotations

import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import wherefrom as wf
from faults.children import Nursery
from maintenance.work import BUILT, LONG, POOL, QUESTIONS, build, contents, opened
from small_models import mlp
from wherefrom.errors import (
    CorpusError,
    IndexBusyError,
    IntegrityError,
    MismatchError,
    NotAnIndexError,
    QueryError,
    WherefromError,
)
from wherefrom.indexer import workshop
from wherefrom.maintenance import append as appending
from wherefrom.maintenance import writer as writing
from wherefrom.maintenance.delete import compact, delete
from wherefrom.maintenance.writer import Writer
from wherefrom.store import Manifest, begin_build, state
from wherefrom.store.lock import writer_lock

IDS = [document.doc_id for document in POOL]


def test_appended_documents_are_as_if_built(path: Path) -> None:
    index = opened(path)
    count = len(index)
    change = index.append(POOL[10:20])
    assert (change.added, change.same, change.removed) == (6, 4, 0)
    assert (change.documents, change.generation, change.warnings) == (count + 6, 2, ())
    assert index.doc_ids()[count:] == IDS[BUILT:20]
    exact, stored = (index.scores(QUESTIONS, tier=tier) for tier in ("exact", "stored"))
    np.testing.assert_allclose(stored, exact, rtol=1e-4, atol=1e-9)
    assert index.manifest.scale == 1 / len(index)
    answer = index.query(prompt="gold", completion=" silver trade ships", k=5)
    best = np.argsort(-exact[0], kind="stable")[:5]
    assert [hit.doc_id for hit in answer.proponents] == [index.doc_ids()[i] for i in best]
    np.testing.assert_allclose([h.score for h in answer.proponents], exact[0, best], rtol=1e-5)
    assert index.document(IDS[15]).text == POOL[15].text
    years = index.documents({"year": (">", 1935)}).documents
    assert {d.doc_id for d in years} == {
        d.doc_id for d in POOL[:20] if (d.metadata["year"] or 0) > 1935
    }


def test_appending_twice_is_appending_once(path: Path) -> None:
    index = opened(path)
    index.append(POOL[10:20])
    before = contents(index), index.manifest
    change = index.append(iter(POOL[10:20]))
    assert (change.added, change.same, change.generation) == (0, 10, 2)
    assert (contents(opened(path)), Manifest.read(path)) == before
    assert not (path / "work").exists()
    index.append([replace(POOL[12], metadata=dict(POOL[12].metadata))])
    assert Manifest.read(path) == before[1]


def test_a_corpus_is_appended_from_a_path(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "more.jsonl"
    file.write_text('{"doc_id": "x", "text": "gold and silver", "year": 1901, "colour": "red"}\n')
    index = opened(path)
    with pytest.raises(CorpusError, match=r"'colour'.*'year', 'party'.*leave others out"):
        index.append(file)
    assert index.append(file, metadata_columns=["year"]).added == 1
    assert index.document("x").metadata == {"year": 1901, "party": None}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (replace(POOL[3], text="another text of gold"), "replace=True"),
        (replace(POOL[3], metadata={"year": 3}), "replace=True"),
        (wf.Document("new", "gold", {"year": "1901"}), "int64"),
        (wf.Document("new", "gold", {"yaer": 1901}), "yaer"),
        (wf.Document("new", ""), "no token|none of the"),
    ],
)
def test_documents_that_do_not_fit_change_nothing(
    path: Path, document: wf.Document, message: str
) -> None:
    index = opened(path)
    before = contents(index)
    if document.text:
        with pytest.raises(CorpusError, match=message):
            index.append([POOL[20], document])
    else:
        change = index.append([POOL[3], document])
        assert (change.skipped, change.same, change.added) == (("new",), 1, 0)
    assert contents(opened(path)) == before
    assert Manifest.read(path).generation == 1
    assert index.append([POOL[20]]).added == 1


def test_a_document_takes_the_place_of_another(path: Path) -> None:
    index = opened(path)
    given = [replace(POOL[3], text="another text of gold and silver"), POOL[4], POOL[20]]
    change = index.append(given, replace=True)
    assert (change.added, change.removed, change.same) == (2, 1, 1)
    assert index.document(IDS[3]).text == "another text of gold and silver"
    assert index.doc_ids()[-2:] == [IDS[3], IDS[20]]
    assert index.doc_ids().count(IDS[3]) == 1
    metadata = replace(POOL[5], metadata={"year": 3})
    assert index.append([metadata], replace=True).removed == 1
    assert index.document(IDS[5]).metadata["year"] == 3


def test_passages_come_and_go_together(path: Path) -> None:
    index = opened(path)
    passages = [doc_id for doc_id in index.doc_ids() if doc_id.startswith(LONG.doc_id)]
    assert len(passages) > 2
    assert index.manifest.corpus.parents == BUILT + 1
    assert index.append([LONG]).same == len(passages)
    change = index.append([replace(LONG, text="gold and silver")], replace=True)
    assert (change.added, change.removed) == (1, len(passages))
    assert index.manifest.corpus.parents == BUILT + 1
    change = index.append([LONG], replace=True)
    assert (change.added, change.removed) == (len(passages), 1)
    assert index.delete([passages[0]]).removed == 1
    assert index.manifest.corpus.parents == BUILT + 1
    assert index.delete([LONG.doc_id]).removed == len(passages) - 1
    assert index.manifest.corpus.parents == BUILT
    assert index.doc_ids() == IDS[:BUILT]


def test_deleted_documents_are_gone_from_answers(path: Path) -> None:
    index = opened(path)
    whole = dict(zip(index.doc_ids(), index.scores(QUESTIONS)[0], strict=True))
    assert index.query(prompt="gold", completion=" silver trade ships").proponents
    before = index.manifest
    gone = [IDS[0], IDS[7]]
    assert index.delete(gone).removed == 2
    left = [doc_id for doc_id in whole if doc_id not in gone]
    assert index.doc_ids() == left
    expected = [whole[d] * len(whole) / len(left) for d in left]
    np.testing.assert_allclose(index.scores(QUESTIONS)[0], expected, rtol=1e-6)
    np.testing.assert_allclose(
        index.scores(QUESTIONS, tier="stored")[0], expected, rtol=1e-4, atol=1e-9
    )
    answer = index.query(prompt="gold", completion=" silver trade ships", k=50)
    assert answer.certificate.certified
    assert not {hit.doc_id for hit in (*answer.proponents, *answer.opponents)} & {*gone}
    np.testing.assert_allclose(
        index.self_influence(),
        np.square(index.table.rows(range(len(index))).norms) / len(index),
    )
    with pytest.raises(QueryError, match=r"no document 'speech 00'"):
        index.delete([IDS[0], "nor this"])
    assert index.delete([IDS[0]], missing_ok=True).generation == 2
    corpus = index.manifest.corpus
    assert (corpus.documents, corpus.parents) == (len(left), before.corpus.parents - 2)
    assert corpus.tokens == index.table.rows(range(len(index))).tokens.sum()
    assert corpus.content_sha256 != before.corpus.content_sha256
    (record,) = index.manifest.history
    assert (record.kind, record.generation, record.added, record.removed) == ("delete", 2, 0, 2)


def test_documents_are_deleted_by_a_filter(path: Path) -> None:
    index = opened(path)
    kept = [d.doc_id for d in POOL[:BUILT] if d.metadata["party"] != "Whig"]
    index.delete(where={"party": "Whig"})
    assert index.doc_ids()[: len(kept)] == kept
    assert index.append(POOL[:BUILT]).added == BUILT - len(kept)


def test_not_everything_is_deleted_by_accident(path: Path) -> None:
    index = opened(path)
    for given in ({"doc_ids": index.doc_ids()}, {"where": {}}, {"where": {"year": ("<", 9999)}}):
        if given.get("where"):
            index.delete(where={"year": None})
            index.delete([d for d in index.doc_ids() if d.startswith(LONG.doc_id)])
        with pytest.raises(QueryError, match="remove the folder"):
            index.delete(**given)
    for given in ({}, {"doc_ids": ["x"], "where": {"year": 1}}):
        with pytest.raises(QueryError, match="one of the two"):
            index.delete(**given)


def test_readers_keep_what_they_opened(path: Path) -> None:
    reader, index = opened(path), opened(path)
    before, scores = contents(reader), reader.scores(QUESTIONS).tobytes()
    index.append(POOL[14:20])
    index.delete([IDS[1], IDS[16]])
    index.append([replace(POOL[2], text="something else")], replace=True)
    assert contents(reader) == before
    assert reader.scores(QUESTIONS).tobytes() == scores
    answer = reader.query(prompt="gold", completion=" silver", k=3, where={"year": ("<", 1900)})
    assert all(hit.doc_id in before["doc_ids"] for hit in answer.proponents)
    assert reader.refresh()
    assert contents(reader) == contents(index)
    assert not reader.refresh()
    index.compact()
    assert contents(reader)["texts"] == contents(index)["texts"]


def test_a_purge_leaves_no_trace(path: Path) -> None:
    index = opened(path)
    secret = "the nation xyzzy gold plugh congress"
    index.append([wf.Document("secret", secret), wf.Document("other secret", secret + " 2")])
    index.delete(["other secret"])
    (ordinal,) = index.table.facts.find(["secret"]).values()
    code = index.table.rows([ordinal]).stored.codes.tobytes()
    held = [file for file in path.rglob("*") if file.is_file() and b"xyzzy" in file.read_bytes()]
    assert held, "the test would see nothing: texts are compressed"
    assert any(code in file.read_bytes() for file in path.rglob("*") if file.is_file())
    expected = [d for d in contents(index)["doc_ids"] if d != "secret"]
    change = index.delete(["secret"], purge=True)
    assert (change.removed, index.doc_ids()) == (1, expected)
    for file in path.rglob("*"):
        if file.is_file():
            data = file.read_bytes()
            assert b"xyzzy" not in data, file
            assert code not in data, file
            assert b"secret" not in data, file
    assert not (path / "documents.lance").exists()
    assert [segment.first_row for segment in index.manifest.scan.segments] == [0]
    assert index.manifest.store.deleted is None
    exact, stored = (index.scores(QUESTIONS, tier=tier) for tier in ("exact", "stored"))
    np.testing.assert_allclose(stored, exact, rtol=1e-4, atol=1e-9)
    assert index.append(POOL[14:16]).added == 2


def test_what_was_deleted_before_is_purged_without_naming_it(path: Path) -> None:
    index = opened(path)
    index.append([wf.Document("secret", "the nation xyzzy gold")])
    index.delete(["secret"])
    assert index.delete([], purge=True).removed == 0
    assert not any(b"xyzzy" in f.read_bytes() for f in path.rglob("*") if f.is_file())


def test_a_purge_is_told_to_those_who_read_on(path: Path) -> None:
    reader, index = opened(path), opened(path)
    index.delete([IDS[0]], purge=True)
    with pytest.raises(IntegrityError, match="purged or compacted since") as caught:
        reader.document(IDS[1])
    assert "\n" not in str(caught.value)
    assert reader.refresh()
    assert reader.document(IDS[1]).text == POOL[1].text


def test_opening_goes_on_with_what_is_published_meanwhile(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Manifest.read.__func__
    changes = [lambda: compact(path), lambda: delete(path, [IDS[0]], purge=True)]

    def overtaken(cls: type[Manifest], place: Path) -> Manifest:
        found = read(cls, place)
        if changes:
            changing = changes.pop()
            with monkeypatch.context() as patch:
                patch.setattr(Manifest, "read", classmethod(read))
                changing()
        return found

    monkeypatch.setattr(Manifest, "read", classmethod(overtaken))
    index = opened(path)
    assert (index.manifest.generation, changes) == (3, [])
    assert len(contents(index)["read"]) == len(index)


def test_compacting_changes_no_answer(path: Path) -> None:
    index = opened(path)
    index.append(POOL[14:20])
    index.delete([IDS[1], IDS[16]])
    before = contents(index)
    change = index.compact()
    after = contents(index)
    assert after == before
    assert (change.generation, change.removed, change.added) == (4, 0, 0)
    assert len(index.manifest.scan.segments) == 1
    assert index.manifest.corpus == Manifest.read(path).corpus
    index.append(POOL[20:22])
    assert sorted(p.name for p in path.iterdir() if p.name.startswith("documents")) == [
        "documents-4.lance"
    ]


def test_one_writer_at_a_time(path: Path, nursery: Nursery) -> None:
    index = opened(path)
    before = contents(index)
    told: list[BaseException] = []

    def attempt() -> None:
        try:
            index.delete([IDS[0]])
        except IndexBusyError as error:
            told.append(error)

    with writer_lock(path):
        for act in (lambda: index.append(POOL[14:16]), lambda: index.compact(), attempt):
            if act is attempt:
                thread = threading.Thread(target=act)
                thread.start()
                thread.join()
            else:
                with pytest.raises(IndexBusyError, match="wait until it is done"):
                    act()
        ended = nursery.run("maintenance.work:delete", path=str(path), doc_ids=[IDS[0]])
    assert len(told) == 1
    assert ended.error == "IndexBusyError"
    assert contents(opened(path)) == before
    assert nursery.run("maintenance.work:delete", path=str(path), doc_ids=[IDS[0]]).done


def test_an_interrupted_append_goes_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appending, "encode_shard_size", lambda dimension: 2)
    performed: list[int] = []
    perform = workshop.Workshop.perform

    def stumbling(self: workshop.Workshop, task: workshop.Task) -> workshop.Outcome:
        if len(performed) == 3:
            performed.append(-1)
            raise KeyboardInterrupt
        performed.append(task.index)
        return perform(self, task)

    monkeypatch.setattr(workshop.Workshop, "perform", stumbling)
    index = opened(path)
    before = contents(index)
    with pytest.raises(KeyboardInterrupt):
        index.append(POOL[10:26])
    assert contents(opened(path)) == before
    assert opened(path).append(POOL[10:26]).added == 12
    assert performed == [0, 1, 2, -1, 3, 4, 5]
    undisturbed = Path(shutil.copytree(path, path.with_name("other.index")))
    twice = contents(undisturbed)
    assert len(twice["read"]) == len(before["read"]) + 12
    assert not (path / "work").exists()


def test_another_change_discards_an_interrupted_append(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = opened(path)
    with monkeypatch.context() as patch:
        patch.setattr(appending, "changed_corpus", lambda *a, **k: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            index.append(POOL[14:20])
    assert (path / "work").is_dir()
    index.delete([IDS[0]])
    assert not (path / "work").exists()
    assert index.append(POOL[20:23]).added == 3
    assert index.doc_ids()[-3:] == IDS[20:23]


def test_accelerators_are_left_behind(path: Path) -> None:
    index = opened(path)
    index.accelerate("lance-ivf")
    asked = {"prompt": "gold", "completion": " silver", "backend": "lance-ivf"}
    assert index.query(**asked).proponents
    reader = opened(path)
    assert index.append(POOL[14:16]).accelerators == ("lance-ivf",)
    with pytest.raises(IntegrityError, match="not in the manifest"):
        index.query(**asked)
    assert reader.query(**asked).proponents
    with pytest.raises(IntegrityError, match="changed since it was opened"):
        reader.accelerate("lance-ivf")
    index.accelerate("lance-ivf")
    stored = index.query(**asked, rerank="stored", k=4)
    scanned = index.query(prompt="gold", completion=" silver", rerank="stored", k=4)
    assert [h.doc_id for h in stored.proponents] == [h.doc_id for h in scanned.proponents]
    index.delete([IDS[0]])
    index.delete([IDS[1]])
    assert not (path / "vectors.lance").exists()


@pytest.mark.parametrize("differs", ["created", "model", "encoder"])
def test_an_index_built_anew_is_not_changed_through_the_old_one(path: Path, differs: str) -> None:
    index = opened(path)
    before = contents(index)
    manifest = Manifest.read(path)
    changes = {
        "created": "2020-01-01T00:00:00.000000+00:00",
        "model": manifest.model.model_copy(update={"weights_sha256": "0" * 64}),
        "encoder": manifest.encoder.model_copy(update={"file_sha256": "0" * 64}),
    }
    manifest.model_copy(update={differs: changes[differs]}).write(path)
    anew = Manifest.read(path)
    for act in (
        lambda: index.append(POOL[14:16]),
        lambda: index.delete([IDS[0]]),
        lambda: index.delete(where={"party": "Whig"}, purge=True),
        index.compact,
        index.refresh,
    ):
        with pytest.raises(MismatchError, match="built anew"):
            act()
    assert Manifest.read(path) == anew
    assert (contents(index), index.manifest) == (before, manifest)


def test_opening_goes_on_with_an_index_that_takes_the_place_of_another(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = path.with_name("other.index")
    build(other, bits=4)
    expected = contents(other)
    reader, read = opened(path), Manifest.read.__func__

    def overtaken(cls: type[Manifest], place: Path) -> Manifest:
        found = read(cls, place)
        if other.exists():
            path.rename(path.with_name("aside.index"))
            other.rename(path)
        return found

    monkeypatch.setattr(Manifest, "read", classmethod(overtaken))
    index = opened(path)
    assert (index.manifest.generation, reader.manifest.generation) == (1, 1)
    assert contents(index) == expected
    with pytest.raises(MismatchError, match="built anew"):
        reader.refresh()


@pytest.mark.parametrize("role", ["replaced", "building"])
def test_an_index_that_was_replaced_goes_with_the_next_change(
    path: Path, role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = Path(shutil.copytree(path, path.with_name(f".{path.name}.{role}")))
    if role == "replaced":
        (left / "work").mkdir()  # Of an append to it that was interrupted.
    with monkeypatch.context() as patch:
        remove = writing._remove

        def killed(entry: Path) -> None:
            if entry.parent == left and entry.name == "encoder.safetensors":
                raise KeyboardInterrupt
            remove(entry)

        patch.setattr(writing, "_remove", killed)
        with pytest.raises(KeyboardInterrupt):
            delete(path, [IDS[0]])
    assert state(left) == "finished"
    assert not (left / "documents.lance").exists()
    monkeypatch.chdir(path)
    assert delete(".", [IDS[0]], purge=True).warnings == ()
    assert not left.exists()


@pytest.mark.parametrize("finished", [True, False])
def test_a_purge_names_the_build_beside_the_index(path: Path, finished: bool) -> None:
    left = path.with_name(f".{path.name}.building")
    if finished:  # But for the exchange.
        shutil.copytree(path, left)
    else:
        begin_build(left, {})
    (left / "work").mkdir()
    index = opened(path)
    assert index.delete([IDS[1]]).warnings == ()
    with pytest.warns(
        UserWarning, match=r"^\.my\.index\.building beside the index .*command again"
    ):
        change = index.delete([IDS[0]], purge=True)
    assert len(change.warnings) == 1
    assert index.manifest.history[-1].warnings == change.warnings
    assert left.exists()


def test_a_purge_that_was_killed_at_its_end_is_completed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        publish = Writer.publish

        def killed(self: Writer, *given: object, **named: object) -> None:
            publish(self, *given, **named)  # type: ignore[arg-type]
            raise KeyboardInterrupt

        patch.setattr(Writer, "publish", killed)
        with pytest.raises(KeyboardInterrupt):
            delete(path, [IDS[0]], purge=True)
    assert (path / "documents.lance").exists()
    change = delete(path, [IDS[0]], purge=True)
    assert (change.generation, change.removed) == (2, 0)
    assert "left over have been removed now" in change.warnings[0]
    assert not (path / "documents.lance").exists()
    for options in ({}, {"purge": True}):
        with pytest.raises(QueryError, match="holds no document"):
            delete(path, [IDS[0]], **options)


def test_a_row_that_is_replaced_twice_counts_once(path: Path) -> None:
    index = opened(path)
    passages = [doc_id for doc_id in index.doc_ids() if doc_id.startswith(LONG.doc_id)]
    before = index.manifest.corpus
    given = [replace(LONG, text="gold and silver"), wf.Document(passages[0], "war or peace")]
    change = index.append(given, replace=True)
    assert (change.added, change.removed) == (2, len(passages))
    corpus = index.manifest.corpus
    assert corpus.tokens == index.table.rows(range(len(index))).tokens.sum()
    assert (corpus.documents, corpus.parents) == (len(index), before.parents + 1)
    # Nothing of this one is predicted: it goes, and nothing comes.
    assert index.append([replace(POOL[0], text="")], replace=True).removed == 1
    assert index.manifest.corpus.parents == before.parents


@pytest.mark.parametrize("executor", ["torchrun", "threads"])
def test_what_cannot_append_is_refused(path: Path, executor: str) -> None:
    with pytest.raises(WherefromError, match=r"choose one of 'serial', 'processes', 'ray'$"):
        opened(path).append(POOL[14:16], executor=executor)


def test_a_rank_of_torchrun_appends_by_itself(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "nowhere"}.items():
        monkeypatch.setenv(name, value)
    assert opened(path).append(POOL[14:16]).added == 2


def test_an_append_goes_on_with_its_threads_or_those_given_anew(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(appending, "encode_shard_size", lambda dimension: 2)
    perform, here = workshop.Workshop.perform, torch.get_num_threads()
    seen: list[tuple[int, int]] = []

    def stumbling(self: workshop.Workshop, task: workshop.Task) -> workshop.Outcome:
        seen.append((self.plan.threads, torch.get_num_threads()))
        if len(seen) in (2, 4):
            raise KeyboardInterrupt
        return perform(self, task)

    monkeypatch.setattr(workshop.Workshop, "perform", stumbling)
    for threads in (2, None):
        with pytest.raises(KeyboardInterrupt):
            opened(path).append(POOL[14:22], threads=threads)
        assert torch.get_num_threads() == here
    assert opened(path).append(POOL[14:22], threads=3).added == 8
    assert seen == [(2, 2)] * 4 + [(3, 3)] * 2


def test_a_plan_that_cannot_be_read_is_not_gone_on_with(path: Path) -> None:
    (path / "work").mkdir()
    (path / "work" / "plan.json").write_text('{"of": "another version"}')
    assert opened(path).append(POOL[14:16]).added == 2


def test_only_indexes_are_changed(tmp_path: Path) -> None:
    with pytest.raises(NotAnIndexError):
        delete(tmp_path, ["x"])
    assert list(tmp_path.iterdir()) == []


def test_tensor_examples_are_known_by_their_content(tmp_path: Path) -> None:
    x = torch.randn(30, 5, generator=torch.Generator().manual_seed(1)).double()
    y = torch.arange(30) % 3
    path = tmp_path / "my.index"
    index = wf.build(mlp(), (x[:20], y[:20]), path, encoder="none", device="cpu")
    more = torch.cat([x[15:25], x[24:25]]), torch.cat([y[15:25], y[24:25]])
    change = index.append(more)
    assert (change.added, change.same, len(index)) == (6, 5, 26)
    assert len(set(index.doc_ids())) == 26
    assert index.append(more).added == 0
    exact, stored = (index.scores((x[:2], y[:2]), tier=tier) for tier in ("exact", "stored"))
    np.testing.assert_allclose(stored, exact, rtol=1e-5, atol=1e-9)
    index.delete(index.doc_ids()[20:22], purge=True)
    assert index.append(more).added == 2
    with pytest.raises(CorpusError, match="same types and shapes"):
        index.append((x[:2].float(), y[:2]))
    with pytest.raises(CorpusError, match="over tensors"):
        index.append(POOL[:2])
