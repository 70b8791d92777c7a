"""What is to go is named exactly, goes entirely, and says so."""

from __future__ import annotations

import random
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import wherefrom as wf
from maintenance.test_verification import flipped
from maintenance.work import POOL, contents, opened
from tiny_lm import text_documents, tiny_llama, tiny_tokenizer
from wherefrom.cli.delete import _read_ids
from wherefrom.cli.main import commands
from wherefrom.errors import CorpusError, IntegrityError, QueryError
from wherefrom.indexer import estimate as estimating
from wherefrom.maintenance.delete import delete
from wherefrom.maintenance.writer import Writer
from wherefrom.store import Manifest
from wherefrom.store.directory import beside

IDS = [document.doc_id for document in POOL]


@pytest.mark.parametrize("given", ["12", 12, [12], b"12", [IDS[0], None]])
def test_what_is_no_list_of_ids_deletes_nothing(path: Path, given: Any) -> None:
    """A single id is a sequence, too: of its characters."""
    with pytest.raises(QueryError, match="give a list of ids"):
        opened(path).delete(given, missing_ok=True)
    assert Manifest.read(path).generation == 1


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (b"a\nb\n", ["a", "b"]),
        (b"\xef\xbb\xbfa\r\n\r\nb", ["a", "b"]),
        (b"letter 1 \n\tletter 2\n", ["letter 1 ", "\tletter 2"]),
        ("a\u2028b\x0bc\x85d\n".encode(), ["a\u2028b\x0bc\x85d"]),
    ],
)
def test_ids_in_a_file_are_what_stands_between_line_ends(
    tmp_path: Path, written: bytes, read: list[str]
) -> None:
    (tmp_path / "ids").write_bytes(written)
    assert _read_ids(tmp_path / "ids") == read


def test_a_filter_that_nothing_passes_is_no_success(path: Path) -> None:
    with pytest.raises(QueryError, match="no document passes the filter"):
        delete(path, where={"party": "Wigh"}, purge=True)
    assert Manifest.read(path).generation == 1
    assert delete(path, where={"party": "Wigh"}, missing_ok=True).removed == 0


def test_a_purge_takes_what_an_estimate_left(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(estimating.Rehearsal, "_measure", killed)
        patch.setattr(estimating, "_remove", lambda index: None)
        with pytest.raises(Killed):
            wf.estimate(
                tiny_llama(), POOL, path, objective=wf.CausalLM(tiny_tokenizer()), overwrite=True
            )
    left = beside(path, "estimate")
    text = POOL[2].text.encode()
    assert any(text in file.read_bytes() for file in left.rglob("*") if file.is_file())
    change = delete(path, [IDS[2]], purge=True)
    assert not any(text in f.read_bytes() for f in path.parent.rglob("*") if f.is_file())
    assert not [note for note in change.warnings if "estimate" in note]


def test_a_purge_names_what_a_fetch_left(path: Path) -> None:
    (beside(path, "fetched") / "documents.lance").mkdir(parents=True)
    change = delete(path, [IDS[2]], purge=True)
    assert [note for note in change.warnings if "fetching an index to this place" in note]


def test_what_stands_beside_an_index_is_found_by_a_link_to_it(path: Path, tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "current"
    link.symlink_to(path)
    assert beside(link, "building") == beside(path, "building")


def test_a_document_whose_row_is_damaged_can_be_deleted_and_come_again(path: Path) -> None:
    """One bit among many rows is no reason to build again."""
    (lost,) = IDS[5:6]
    row = opened(path).table.rows([5])
    stored = next((path / "documents.lance" / "data").glob("*.lance"))
    data = bytearray(stored.read_bytes())
    data[data.index(POOL[5].text.encode())] ^= 1
    stored.write_bytes(data)
    del row
    with pytest.raises(IntegrityError, match=f"document {lost!r} .* delete the document"):
        contents(path)
    found = wf.verify(path, digests_only=True)
    assert [problem.where for problem in found.problems if problem.kind == "row"] == [
        f"document {lost!r}"
    ]
    change = delete(path, [lost])
    assert change.removed == 1
    assert "was damaged" in change.warnings[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert opened(path).append([POOL[5]]).added == 1
        assert wf.verify(path, digests_only=True, repair=True).ok
    assert opened(path).document(lost).text == POOL[5].text


def test_an_index_is_not_blamed_for_a_model_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tiny_lm import save_tiny_lm

    save_tiny_lm(tmp_path / "model")
    wf.build(tmp_path / "model", text_documents(8), tmp_path / "i", encoder="none").close()
    (tmp_path / "model").rename(tmp_path / "moved")
    found = wf.verify(tmp_path / "i")
    assert found.ok
    assert found.reencoded is None
    assert "name the model (--model)" in found.notes[0]
    assert not wf.verify(tmp_path / "i", model=tmp_path / "nowhere").ok
    again = wf.verify(tmp_path / "i", model=tmp_path / "moved")
    assert again.reencoded is not None
    assert again.ok


def test_a_csv_keeps_the_types_of_the_index(tmp_path: Path) -> None:
    """Each file by itself would be of other types."""
    objective, model = wf.CausalLM(tiny_tokenizer()), tiny_llama()
    rows = ["A1", "22", "7", "true"]
    lines = [f"d{i},the union of states {i},{code}" for i, code in enumerate(rows)]
    (tmp_path / "all.csv").write_text("\n".join(["doc_id,text,code", *lines]))
    (tmp_path / "some.csv").write_text(
        "\n".join(["doc_id,text,code", lines[1], "d9,gold silver trade,8"])
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        index = wf.build(
            model, tmp_path / "all.csv", tmp_path / "i", objective=objective, encoder="none"
        )
        change = index.append(tmp_path / "some.csv")
    assert (change.same, change.added) == (1, 1)
    assert index.document("d9").metadata == {"code": "8"}


@pytest.mark.parametrize("name", ["committed.json", "encoder.json", "plan.json"])
def test_an_append_begins_again_where_its_work_is_damaged(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    class Killed(BaseException):
        pass

    def stop(phase: str, done: int, total: int) -> None:
        if phase.startswith("encoding") and done > 6:
            raise Killed

    other = Path(shutil.copytree(path, tmp_path / "other.index"))
    with monkeypatch.context() as patch:
        patch.setattr("wherefrom.maintenance.append.encode_shard_size", lambda dimension: 3)
        patch.setattr("wherefrom.indexer.committing._COMMIT_BYTES", 1)
        with pytest.raises(Killed):
            opened(path).append(POOL[14:24], progress=stop)
    flipped(path, name, 5)
    opened(path).append(POOL[14:24])
    opened(other).append(POOL[14:24])
    assert contents(path) == contents(other)


def test_what_is_skipped_each_time_is_counted_once(path: Path) -> None:
    blank = wf.Document("blank", " ", {})
    for i in range(3):
        opened(path).append([blank, POOL[20 + i]])
    corpus = Manifest.read(path).corpus
    assert (corpus.skipped, corpus.skipped_count) == (("blank",), 1)


def test_metadata_that_are_no_mapping_are_one_line(path: Path) -> None:
    with pytest.raises(CorpusError, match="metadata is None; give a mapping"):
        opened(path).append([wf.Document("x", "gold silver", None)])  # type: ignore[arg-type]


def test_what_a_purge_left_when_it_was_interrupted_is_named(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All was done but the removal of the old files, which hold the text."""
    text, sweeps = POOL[2].text.encode(), []

    def interrupted(writer: Writer, **given: Any) -> bool:
        sweeps.append(writer)
        if len(sweeps) == 2:
            raise KeyboardInterrupt
        return sweep(writer, **given)

    sweep = Writer.sweep
    with monkeypatch.context() as patch:
        patch.setattr(Writer, "sweep", interrupted)
        result = CliRunner().invoke(
            commands, ["delete", str(path), "--doc-id", IDS[2], "--purge", "--yes"]
        )
    assert result.exit_code == 130
    assert "is changed, and files of the state before are still in it" in result.stderr
    assert any(text in file.read_bytes() for file in path.rglob("*") if file.is_file())
    (problem,) = wf.verify(path, digests_only=True).problems
    assert (problem.kind, problem.rebuildable) == ("file", True)
    assert "are left of what was purged" in problem.detail
    repaired = wf.verify(path, digests_only=True, repair=True)
    assert (repaired.ok, repaired.repaired) == (True, ("what a purge had left was removed",))
    assert not any(text in file.read_bytes() for file in path.rglob("*") if file.is_file())


def test_ids_that_are_not_there_are_told(path: Path) -> None:
    change = delete(path, [IDS[1], "nobody", "no one"], missing_ok=True)
    assert (change.removed, change.missing) == (1, ("nobody", "no one"))


class Killed(BaseException):
    pass


def begun(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An append that was killed when some of its documents were committed."""

    def stop(phase: str, done: int, total: int) -> None:
        if phase.startswith("encoding") and done > 6:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("wherefrom.maintenance.append.encode_shard_size", lambda dimension: 3)
        patch.setattr("wherefrom.indexer.committing._COMMIT_BYTES", 1)
        with pytest.raises(Killed):
            opened(path).append(POOL[14:24], progress=stop)


def test_what_an_append_has_done_is_not_taken_for_what_a_purge_left(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    delete(path, [IDS[2]], purge=True)
    begun(path, monkeypatch)
    found = wf.verify(path, digests_only=True, repair=True)
    assert (found.ok, found.repaired) == (True, ())
    assert (path / "work" / "committed.json").exists()


def test_a_purge_by_filter_that_was_interrupted_can_be_given_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweeps: list[Writer] = []

    def interrupted(writer: Writer, **given: Any) -> bool:
        sweeps.append(writer)
        if len(sweeps) == 2:
            raise Killed
        return sweep(writer, **given)

    sweep, gone = Writer.sweep, {"party": "Whig"}
    with monkeypatch.context() as patch:
        patch.setattr(Writer, "sweep", interrupted)
        with pytest.raises(Killed):
            delete(path, where=gone, purge=True)
    assert "seems to have been interrupted" in delete(path, where=gone, purge=True).warnings[0]
    with pytest.raises(QueryError, match="no document passes"):
        delete(path, where=gone, purge=True)


def test_a_row_that_is_damaged_costs_no_append(path: Path) -> None:
    stored = next((path / "documents.lance" / "data").glob("*.lance"))
    data = bytearray(stored.read_bytes())
    data[data.index(POOL[5].text.encode())] ^= 1
    stored.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        change = opened(path).append(POOL[14:36])
        assert change.added == 22
        assert any("could not be measured again" in note for note in change.warnings)
        tokens = Manifest.read(path).corpus.tokens
        assert opened(path).delete([IDS[5]]).removed == 1
        assert opened(path).append([POOL[5]]).added == 1
    assert Manifest.read(path).corpus.tokens == tokens


@pytest.mark.parametrize("part", ["data/*.lance", "_versions/*.manifest"])
def test_an_append_whose_rows_are_damaged_begins_again(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    other = Path(shutil.copytree(path, tmp_path / "other.index"))
    before = set((path / "documents.lance").glob(part))
    begun(path, monkeypatch)
    made = min(set((path / "documents.lance").glob(part)) - before)
    data = bytearray(made.read_bytes())
    data[len(data) // 3 : len(data) // 3 + 64] = bytes(64)
    made.write_bytes(data)
    assert contents(path) == contents(other)
    opened(path).append(POOL[14:24])
    opened(other).append(POOL[14:24])
    assert contents(path) == contents(other)


def test_no_bit_of_what_was_never_published_bars_what_was(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = contents(path)
    begun(path, monkeypatch)
    newest = min((path / "documents.lance" / "_versions").glob("*.manifest"))
    kept = newest.read_bytes()
    chance = random.Random(0)
    for place in chance.sample(range(8 * len(kept)), 60):
        data = bytearray(kept)
        data[place // 8] ^= 1 << place % 8
        newest.write_bytes(data)
        assert contents(path) == whole, place
        assert delete(path, ["nobody"], missing_ok=True).removed == 0
        newest.write_bytes(kept)
