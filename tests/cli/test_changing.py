"""The commands that change an index: append, delete, compact."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import wherefrom as wf
from tiny_lm import save_tiny_lm, text_documents
from wherefrom.cli.main import commands
from wherefrom.store import Manifest
from wherefrom.store.lock import writer_lock

DOCUMENTS = text_documents(20)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, an index of some documents, and the others in a file."""
    folder = tmp_path_factory.mktemp("home")
    save_tiny_lm(folder / "model")
    write(folder / "more.jsonl", DOCUMENTS[10:])
    wf.build(folder / "model", DOCUMENTS[:12], folder / "my.index", encoder="none", device="cpu")
    return folder


@pytest.fixture
def index(home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(home / "my.index", tmp_path / "my.index"))


def write(file: Path, documents: list[wf.Document]) -> None:
    rows = ({"doc_id": d.doc_id, "text": d.text, **d.metadata} for d in documents)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(*arguments: object, given: str | None = None) -> Result:
    return CliRunner().invoke(commands, [str(one) for one in arguments], input=given)


def told(*arguments: object) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def held(index: Path) -> list[str]:
    return wf.open(index).doc_ids()


def test_append(index: Path, home: Path) -> None:
    corpus = home / "more.jsonl"
    found = told("append", index, corpus)
    assert found["schema"] == "wherefrom-append/1"
    assert (found["added"], found["same"], found["documents"]) == (8, 2, 20)
    assert found["manifest_sha256"] == Manifest.read(index).digest
    assert found["drift"]["documents"] == 8
    again = run("append", index, corpus, "--device", "cpu")
    assert again.exit_code == 0
    assert "there already" in again.stdout
    assert held(index) == [d.doc_id for d in DOCUMENTS]
    assert run("append", index, corpus, "--quiet").output == ""


def test_replace(index: Path, tmp_path: Path) -> None:
    file = tmp_path / "other.jsonl"
    write(file, [wf.Document(DOCUMENTS[0].doc_id, "gold and silver")])
    refused = run("append", index, file)
    assert refused.exit_code == 1
    assert refused.stderr.startswith("wherefrom: error: the index holds another document")
    assert len(refused.stderr.splitlines()) == 1
    assert told("append", index, file, "--replace")["removed"] == 1
    assert held(index)[-1] == DOCUMENTS[0].doc_id


def test_delete(index: Path, tmp_path: Path) -> None:
    ids = [d.doc_id for d in DOCUMENTS[:12]]
    found = told("delete", index, "--doc-id", ids[0], "--doc-id", ids[3], "--yes")
    assert found["schema"] == "wherefrom-delete/1"
    assert (found["removed"], found["documents"]) == (2, 10)
    file = tmp_path / "ids.txt"
    file.write_text(f"{ids[5]}\n\n {ids[0]} \n")
    assert "no document" in run("delete", index, "--ids", file, "--yes").stderr
    assert told("delete", index, "--ids", file, "--yes", "--missing-ok")["removed"] == 1
    assert told("delete", index, "--where", "year<1830", "--yes")["removed"] == 2
    assert held(index) == [ids[i] for i in (4, 6, 7, 8, 9, 10, 11)]
    purged = run("delete", index, "--purge", "--yes")
    assert purged.exit_code == 0, purged.output
    assert [p.name for p in index.glob("documents*")] == ["documents-5.lance"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say what to delete"),
        (["--doc-id", "x", "--where", "year<1"], "--where stands alone"),
        (["--doc-id", "x"], "say --yes"),
        (["--where", "year<1850"], "all documents with year<1850; say --yes"),
    ],
)
def test_nothing_is_deleted_by_accident(index: Path, arguments: list[str], message: str) -> None:
    result = run("delete", index, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert Manifest.read(index).generation == 1


def test_a_file_of_ids_must_hold_some(index: Path, tmp_path: Path) -> None:
    for content, message in ((b"\n", "holds no ids"), (b"\xff\xfe", "cannot be read")):
        file = tmp_path / "ids.txt"
        file.write_bytes(content)
        result = run("delete", index, "--ids", file, "--yes")
        assert result.exit_code == 1
        assert message in result.stderr


def test_compact(index: Path) -> None:
    found = told("compact", index)
    assert (found["schema"], found["generation"]) == ("wherefrom-compact/1", 2)
    assert held(index) == [d.doc_id for d in DOCUMENTS[:12]]
    assert run("compact", index, "--quiet").output == ""


def test_accelerators_that_are_left_behind_are_told(index: Path) -> None:
    assert run("accelerate", index, "--kind", "lance-ivf").exit_code == 0
    result = run("delete", index, "--doc-id", DOCUMENTS[0].doc_id, "--yes")
    assert "make it again with wherefrom accelerate" in result.stderr
    assert "removed" in result.stdout


def test_a_busy_index_is_one_line(index: Path) -> None:
    with writer_lock(index):
        result = run("compact", index)
    assert result.exit_code == 1
    assert "wait until it is done" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_append_does_not_offer_torchrun(index: Path, home: Path) -> None:
    result = run("append", index, home / "more.jsonl", "--executor", "torchrun")
    assert result.exit_code == 2
    assert "is not one of 'serial', 'processes', 'ray'" in result.stderr


def test_info_tells_the_generation_and_what_changed(index: Path, home: Path) -> None:
    fresh = run("info", index).stdout.splitlines()
    (generation,) = (number for number, line in enumerate(fresh) if line.startswith("generation"))
    assert fresh[generation].split() == ["generation", "1"]
    assert fresh[generation + 1].startswith("versions")
    for command in (
        ("append", index, home / "more.jsonl"),
        ("delete", index, "--doc-id", DOCUMENTS[3].doc_id, "--yes"),
        ("delete", index, "--doc-id", DOCUMENTS[4].doc_id, "--purge", "--yes"),
        *[("compact", index)] * 9,
    ):
        assert run(*command, "--quiet").exit_code == 0
    history = Manifest.read(index).history
    fields = told("info", index)["manifest"]
    assert (fields["generation"], len(fields["history"])) == (13, 12)
    lines = [" ".join(line.split()) for line in run("info", index).stdout.splitlines()]
    start = lines.index("generation 13")
    assert lines[start + 1] == "changes 2 more before these; --json lists all"
    assert lines[start + 2] == f"4 {history[2].when} purge: 1 removed"
    assert lines[start + 11] == f"13 {history[-1].when} compact"
    assert lines[start + 12].startswith("versions")


def test_info_tells_what_changes_warned_of(index: Path) -> None:
    told("delete", index, "--doc-id", DOCUMENTS[3].doc_id, "--yes")
    manifest = Manifest.read(index)
    (change,) = manifest.history
    noted = change.model_copy(update={"added": 3, "drift": 1.25, "warnings": ("mind the gap",)})
    manifest.model_copy(update={"history": (noted,)}).write(index)
    shown = " ".join(run("info", index).stdout.split())
    counts = "3 added, 1 removed, 1.25 times the whitened energy of the build"
    assert f"delete: {counts} warning mind the gap versions" in shown
