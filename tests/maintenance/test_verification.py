"""Everything in an index is checked, what is wrong is named, and what can be is made again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner

import wherefrom as wf
from damage import Damage
from tiny_lm import save_tiny_lm, text_documents, tiny_llama, tiny_tokenizer
from wherefrom.cli.main import commands
from wherefrom.errors import IndexBusyError, NotAnIndexError, QueryError, UnfinishedIndexError
from wherefrom.maintenance.delete import delete
from wherefrom.maintenance.inspection import MOST_NAMED, Inspection
from wherefrom.records import Document
from wherefrom.store import DocumentTable, Manifest, ScanCopy, file_sha256
from wherefrom.store.directory import begin_build
from wherefrom.store.facts import FACTS_FILE
from wherefrom.store.lock import writer_lock

QUESTION = {"prompt": "a quiet", "completion": " word", "rerank": "stored", "k": 3}
DOCUMENTS = [
    replace(document, metadata={"year": i, "party": "ab"[i % 2]})
    for i, document in enumerate(text_documents(15)[:14])
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and an index of it with two segments and some rows deleted."""
    home = tmp_path_factory.mktemp("home")
    model = save_tiny_lm(home / "model")
    index = wf.build(
        str(model), DOCUMENTS[:11], home / "i", encoder="sketch", bytes_per_document=64
    )
    index.delete([DOCUMENTS[2].doc_id])
    index.append(DOCUMENTS[11:])
    return home


@pytest.fixture
def path(home: Path, tmp_path: Path) -> Path:
    """A copy of that index, to be damaged."""
    shutil.copytree(home / "i", tmp_path / "i")
    return tmp_path / "i"


def flipped(path: Path, name: str, byte: int = -1) -> str:
    """Turn a bit of the file called ``name``; its path within the index."""
    (file,) = sorted(path.rglob(name))[:1]
    data = bytearray(file.read_bytes())
    data[byte] ^= 4
    file.write_bytes(data)
    return file.relative_to(path).as_posix()


def resealed(path: Path, **changes: Any) -> None:
    """Give the index another manifest, right in itself."""
    Manifest.read(path).model_copy(update=changes).write(path)


def segment_with(path: Path, number: int, name: str, data: bytes) -> None:
    """Put other data into a file of the scan copy, and its digest into the manifest."""
    scan = Manifest.read(path).scan
    file = path / "scan" / str(number) / name
    file.write_bytes(data)
    segments = tuple(
        one.model_copy(update={"files": {**one.files, name: file_sha256(file)}})
        if one.number == number
        else one
        for one in scan.segments
    )
    resealed(path, scan=scan.model_copy(update={"segments": segments}))


def told(path: Path) -> list[tuple[str, str]]:
    found = wf.verify(path, digests_only=True)
    return [(problem.kind, problem.where) for problem in found.problems]


def test_a_whole_index_is_whole(path: Path) -> None:
    phases: dict[str, tuple[int, int]] = {}
    found = wf.verify(
        path, sample=6, progress=lambda p, done, total: phases.update({p: (done, total)})
    )
    assert found.ok
    assert found.problems == found.repaired == found.notes == ()
    manifest = Manifest.read(path)
    names = {file.name for file in path.rglob("*") if file.is_file()}
    unnamed = {"manifest.json", "writer.lock", "latest_version_hint.json"}
    named = [f for f in path.rglob("*") if f.is_file() and f.name not in unnamed]
    assert found.checked == {"manifest": 1, "files": len(named), "rows": 13}
    assert FACTS_FILE in names
    assert found.manifest_sha256 == manifest.digest
    assert found.reencoded is not None
    assert found.reencoded.documents == 6
    assert found.reencoded.equal + found.reencoded.within == 6
    assert found.reencoded.largest < 1e-5
    assert all(done == total for done, total in phases.values())
    assert len(phases) == 3


def test_an_open_index_verifies_itself(home: Path) -> None:
    index = wf.open(home / "i")
    assert index.verify(sample=3).reencoded == wf.verify(home / "i", sample=3).reencoded
    with pytest.raises(QueryError, match="sample=-1"):
        index.verify(sample=-1)
    with pytest.raises(QueryError, match="sample=-1"):
        wf.verify(home / "i", sample=-1)


def test_a_damaged_manifest_is_named(path: Path) -> None:
    for byte in (0, 300, -30):
        whole = (path / "manifest.json").read_bytes()
        flipped(path, "manifest.json", byte)
        assert told(path) == [("manifest", "manifest.json")]
        (path / "manifest.json").write_bytes(whole)
    (path / "manifest.json").unlink()
    (problem,) = wf.verify(path).problems
    assert (problem.where, problem.detail) == ("manifest.json", "is missing")
    assert wf.verify(path, repair=True).repaired == ()


def test_what_is_no_index_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotAnIndexError, match="does not exist"):
        wf.verify(tmp_path / "absent")
    with pytest.raises(NotAnIndexError):
        wf.verify(tmp_path)
    begin_build(tmp_path / "half", {})
    with pytest.raises(UnfinishedIndexError):
        wf.verify(tmp_path / "half")


def test_damaged_rows_are_named_by_their_documents(path: Path) -> None:
    """All that were written, not only the first."""
    data = sorted((path / "documents.lance" / "data").iterdir(), key=lambda f: f.stat().st_size)[-1]
    whole = data.read_bytes()
    damaged = [d for d in DOCUMENTS[3:11] if whole.count(d.text.encode()) == 1][:2]
    for document in damaged:
        text = document.text.encode()
        whole = whole.replace(text, text[:-1] + b"~")
    data.write_bytes(whole)
    found = wf.verify(path, sample=5)
    rows = [problem for problem in found.problems if problem.kind == "row"]
    assert len(damaged) == len(rows) == 2
    for document, row in zip(damaged, rows, strict=True):
        assert f"{document.doc_id!r} differs from its digest" in row.detail
    assert not any(problem.rebuildable for problem in found.problems)
    assert found.checked["rows"] == 11
    assert found.reencoded is not None  # The rest of the rows was encoded again.
    assert found.reencoded.documents == 5
    assert wf.verify(path, repair=True, digests_only=True).repaired == ()
    index = wf.open(path)
    with pytest.raises(wf.WherefromError, match="differs from its digest"):
        index.vectors()


def test_where_nothing_can_be_read_not_every_row_is_named(path: Path) -> None:
    shutil.rmtree(path / "documents.lance" / "data")
    found = wf.verify(path, sample=5)
    rows = [problem for problem in found.problems if problem.kind == "row"]
    assert 0 < len(rows) <= MOST_NAMED
    assert found.checked["rows"] == 0


def test_a_scan_copy_that_differs_from_the_rows_is_named(path: Path) -> None:
    """Though its digest is the manifest's."""
    codes = path / "scan" / "1" / "codes.npy"
    data = bytearray(codes.read_bytes())
    data[128 + 64 * 4] ^= 1
    segment_with(path, 1, "codes.npy", bytes(data))
    found = wf.verify(path, digests_only=True)
    (problem,) = found.problems
    assert problem.kind == "scan"
    assert DOCUMENTS[4].doc_id in problem.detail
    repaired = wf.verify(path, digests_only=True, repair=True)
    assert repaired.ok
    assert repaired.repaired == ("the scan copy",)


def test_facts_that_differ_from_the_rows_are_named(path: Path) -> None:
    facts = path / "scan" / "1" / FACTS_FILE
    data = facts.read_bytes()
    year = np.arange(5, 11).astype("<i8").tobytes()
    assert data.count(year) == 1
    segment_with(path, 1, FACTS_FILE, data.replace(year, b"\7" + year[1:]))
    (problem,) = wf.verify(path, digests_only=True).problems
    assert problem.kind == "scan"
    assert DOCUMENTS[5].doc_id in problem.detail
    before = wf.open(path)
    assert 5 not in before.table.facts.column("year")
    assert wf.verify(path, repair=True, digests_only=True).ok
    assert 5 in wf.open(path).table.facts.column("year")


def test_repair_makes_copies_again_and_changes_no_answer(path: Path) -> None:
    pytest.importorskip("faiss")
    index = wf.open(path)
    index.accelerate("faiss-flat")
    index.accelerate("lance-ivf")
    asked = [index.query(**QUESTION, backend=b) for b in ("scan", "faiss-flat", "lance-ivf")]
    before = [(a.proponents, a.opponents) for a in asked]
    damaged = {
        flipped(path, "norm.npy"),
        flipped(path, "facts.arrow"),
        flipped(path, "*.idx"),
        flipped(path, "faiss-flat.index"),
        flipped(path, "*.txn", 20),
        flipped(path, "latest_version_hint.json"),
    }
    (path / "scan" / "1" / "lost.npy").unlink()
    damaged.add("scan/1/lost.npy")
    generation = Manifest.read(path).generation
    found = wf.verify(path, digests_only=True)
    assert {problem.where for problem in found.problems} == damaged
    assert all(problem.rebuildable for problem in found.problems)

    with writer_lock(path), pytest.raises(IndexBusyError):
        wf.verify(path, digests_only=True, repair=True)
    repaired = wf.verify(path, sample=4, repair=True)
    assert repaired.ok, repaired.problems
    assert "the accelerator faiss-flat" in repaired.repaired
    manifest = Manifest.read(path)
    assert manifest.generation == generation + 1
    assert manifest.history[-1].kind == "repair"
    again = wf.open(path)
    asked = [again.query(**QUESTION, backend=b) for b in ("scan", "faiss-flat", "lance-ivf")]
    assert [(a.proponents, a.opponents) for a in asked] == before


def test_a_damaged_accelerator_alone_leaves_the_index_as_it_is(path: Path) -> None:
    index = wf.open(path)
    index.accelerate("lance-ivf")
    before = Manifest.read(path)
    place = flipped(path / "vectors.lance", "*.lance", 64)
    assert told(path) == [("accelerator", f"vectors.lance/{place}")]
    assert wf.verify(path, digests_only=True, repair=True).ok
    after = Manifest.read(path)
    assert after.digest == before.digest
    assert after.accelerators != before.accelerators


def test_what_only_the_build_has_is_not_repaired(path: Path) -> None:
    place = flipped(path, "encoder.safetensors")
    found = wf.verify(path, repair=True)
    assert [(p.kind, p.where, p.rebuildable) for p in found.problems] == [("encoder", place, False)]
    assert "restore the index" in found.problems[0].remedy
    assert found.repaired == ()
    assert "the encoder is damaged" in found.notes[0]


def test_unknown_files_are_noted_and_harmless(path: Path) -> None:
    (path / "scan" / "9").mkdir()
    (path / "scan" / "9" / "codes.npy").touch()
    (path / "notes.txt").touch()
    found = wf.verify(path, digests_only=True)
    assert found.ok
    assert "1 files of earlier states or interrupted changes" in found.notes[0]
    assert "does not name: notes.txt (1 in all)" in found.notes[1]


def rewritten(path: Path, change: Callable[[list[Document]], None], **columns: Any) -> None:
    """Give the index other rows, right by all digests: its own after ``change``, or ``columns``."""
    manifest = Manifest.read(path)
    table = DocumentTable.open(path, manifest)
    rows = table.rows(np.arange(len(table)))
    documents, layout = rows.documents(), table.layout
    change(documents)
    norms = columns.get("norms", rows.norms)
    batch = layout.encode(0, documents, rows.stored, norms, rows.tokens, {})
    if "content_hash" in columns:
        at = batch.schema.get_field_index("content_hash")
        batch = batch.set_column(at, batch.schema.field(at), columns["content_hash"])
        batch = layout.numbered(batch, 0)  # with new digests
    other = DocumentTable.create(
        path,
        metadata=layout.metadata,
        dimension=layout.dimension,
        bits=layout.bits,
        name="documents-9",
    )
    other.add([batch])
    scan = ScanCopy.build(other, path / "scan", number=9)
    resealed(path, store=other.seal(), scan=scan)


def unchanged(documents: list[Document]) -> None:
    """Leave them as they are."""


def test_vectors_of_another_text_are_found(path: Path) -> None:
    """Rows that are right by all digests, but were encoded from other texts."""
    swapped = []

    def swap(documents: list[Document]) -> None:
        one, other = documents[3], documents[7]
        documents[3], documents[7] = replace(one, text=other.text), replace(other, text=one.text)
        swapped.extend([one.doc_id, other.doc_id])

    rewritten(path, swap)
    assert wf.verify(path, digests_only=True).ok
    found = wf.verify(path, sample=100)
    assert found.reencoded is not None
    assert set(found.reencoded.differing) == set(swapped)
    assert [problem.kind for problem in found.problems] == ["encoding", "encoding"]
    assert found.reencoded.largest > 0.1


def test_rows_that_were_wrong_when_they_were_written_are_named(home: Path, tmp_path: Path) -> None:
    """No digest tells these."""

    def twice(documents: list[Document]) -> None:
        documents[4] = replace(documents[4], doc_id=documents[2].doc_id)

    count = len(DOCUMENTS) - 1
    norms = np.ones(count)
    norms[5] = np.inf
    hashes = pa.array([bytes(16)] * count, pa.binary(16))
    wrong: dict[str, tuple[Any, dict[str, Any], int, str]] = {
        "ids": (twice, {}, 1, "more than one row"),
        "norm": (unchanged, {"norms": norms}, 1, "norm or scale"),
        "content": (unchanged, {"content_hash": hashes}, count, "content hash"),
    }
    for name, (change, columns, expected, told_of) in wrong.items():
        shutil.copytree(home / "i", tmp_path / name)
        rewritten(tmp_path / name, change, **columns)
        problems = wf.verify(tmp_path / name, digests_only=True).problems
        assert len(problems) == expected
        assert {problem.kind for problem in problems} == {"row"}
        assert all(told_of in problem.detail for problem in problems)


def test_another_model_is_named(home: Path, path: Path) -> None:
    other = save_tiny_lm(path.parent / "other", seed=5)
    found = wf.verify(path, model=str(other), sample=2)
    (problem,) = found.problems
    assert problem.kind == "model"
    assert "weights" in problem.detail
    assert found.checked["rows"] == 13


def test_an_index_without_its_model_is_checked_as_far_as_it_goes(tmp_path: Path) -> None:
    model, objective = tiny_llama(), wf.CausalLM(tiny_tokenizer())
    wf.build(model, text_documents(8), tmp_path / "i", objective=objective, encoder="sketch")
    found = wf.verify(tmp_path / "i")
    assert found.ok
    assert "from a model in memory" in found.notes[0]
    again = wf.verify(tmp_path / "i", model=model, objective=objective).reencoded
    assert again is not None
    assert again.documents == 8


def test_the_command_says_what_is_wrong(path: Path) -> None:
    def run(*arguments: object) -> Any:
        return CliRunner().invoke(commands, ["verify", *map(str, arguments)])

    whole = run(path, "--sample", 3)
    assert whole.exit_code == 0, whole.output
    assert "whole. 13 rows" in whole.stdout
    assert "3 documents encoded again" in whole.stdout
    with Damage("missing", "scan/1/scale.npy").done(path):
        damaged = run(path, "--digests-only")
        assert damaged.exit_code == 1
        assert damaged.stdout.endswith("is damaged: 1 thing is wrong.\n")
        assert damaged.stderr.startswith("wherefrom: verify: scan: scan/1/scale.npy is missing; ")
        plain = run(path, "--digests-only", "--json")
        assert plain.exit_code == 1
        fields = json.loads(plain.stdout)
        assert fields["schema"] == "wherefrom-verification/1"
        assert not fields["ok"]
        assert fields["problems"][0]["where"] == "scan/1/scale.npy"
        assert "--repair" in run(path, "--digests-only").stderr
    (path / "scan" / "1" / "scale.npy").unlink()
    mended = run(path, "--repair")
    assert mended.exit_code == 0
    assert "repaired: the scan copy" in mended.stderr
    for wrong in (["--tolerance", "1e-3"], ["--index", path], ["--fail-if", "x"]):
        assert run(path, *wrong).exit_code == 2
    assert run(path.parent, "--repair").exit_code == 2


def test_a_damaged_list_of_deleted_rows_is_refused(path: Path) -> None:
    """By its digest, though the rows that are read would tell, too."""
    place = flipped(path, "deleted-*.npy")
    with pytest.raises(wf.WherefromError, match="its SHA-256 is not the manifest's"):
        wf.open(path)
    kinds = {problem.where: problem.kind for problem in wf.verify(path, digests_only=True).problems}
    assert kinds[place] == "documents"


def test_a_writer_at_work_is_no_damage(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was looked at is taken away in the middle; then all is looked at once more."""
    looks: list[int] = []
    before = Manifest.read(path).generation

    def files(inspection: Inspection) -> None:
        looks.append(inspection.manifest.generation)
        if len(looks) == 1:
            delete(path, ["speech 03"], purge=True)
        whole(inspection)

    whole = Inspection.files
    monkeypatch.setattr(Inspection, "files", files)
    found = wf.verify(path, digests_only=True)
    assert found.ok
    assert looks == [before, before + 1]
    assert found.manifest_sha256 == Manifest.read(path).digest


def test_damage_is_told_of_a_state_that_stays(path: Path) -> None:
    flipped(path, "encoder.safetensors")
    assert [one.kind for one in wf.verify(path, digests_only=True).problems] == ["encoder"]


def test_nothing_is_encoded_again_where_too_many_rows_are_damaged(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not all of them are known then, and the model is not to blame for one that is not."""
    for module in ("inspection", "verification"):
        monkeypatch.setattr(f"wherefrom.maintenance.{module}.MOST_NAMED", 1)
    shutil.rmtree(path / "documents.lance" / "data")
    found = wf.verify(path, sample=5)
    assert "no document was encoded again: too many rows are damaged" in found.notes
    assert not [problem for problem in found.problems if problem.kind == "model"]
