"""Bundles: what they hold, that the same answers make the same bytes, and who can read them."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

import wherefrom as wf
from wherefrom.audit.asking import ask_all
from wherefrom.audit.bundle import write_bundle
from wherefrom.audit.canonical import canonical_json, sha256
from wherefrom.audit.entries import Entry, read_entries
from wherefrom.audit.recomputation import recompute
from wherefrom.audit.statement import PREDICATE_TYPE, STATEMENT_TYPE
from wherefrom.audit.verification import read_bundle
from wherefrom.errors import IntegrityError, MismatchError, StorageError
from wherefrom.store import Manifest

FILES = ["answers.jsonl", "environment.json", "manifest.json", "report.html", "statement.json"]


def plain(answer: wf.Answer) -> dict:
    return json.loads(canonical_json({**answer.to_dict(), "seconds": 0, "index": {}}))


def test_entries_are_the_library_s_answers(index: wf.Index, entries: list[Entry]) -> None:
    assert [entry.id for entry in entries] == ["union", "contrast", "nothing", "set"]
    where = {"year": ("<", 2000)}
    for number, asked in (
        (0, {"prompt": "the union of states", "completion": " shall be preserved"}),
        (1, {"prompt": "the war", "completion": " will end", "contrast": " will not end"}),
        (3, {"queries": entries[3].query}),
    ):
        answer = index.query(**asked, k=3, where=where)
        found = entries[number].answer
        assert found is not None
        assert found.explanation is not None
        assert found.similarity is not None
        assert [grouping.column for grouping in found.groups] == ["party"]
        bare = replace(found, explanation=None, similarity=None, groups=())
        assert plain(bare) == plain(answer)
    assert entries[2].failure is not None
    assert entries[2].failure.error == "QueryError"
    assert "empty" in entries[2].failure.detail
    whigs = [hit for hit in entries[0].answer.proponents if hit.metadata["party"] == "Whig"]
    assert [finding.doc_id for finding in entries[0].gate] == [hit.doc_id for hit in whigs]


def test_a_bundle_holds_five_files(evidence: Path, index: wf.Index, index_path: Path) -> None:
    assert sorted(file.name for file in evidence.iterdir()) == FILES
    copied = (evidence / "manifest.json").read_bytes()
    assert copied == (index_path / "manifest.json").read_bytes()
    lines = (evidence / "answers.jsonl").read_bytes()
    for line in lines.splitlines():
        fields = json.loads(line)
        assert canonical_json(fields) == line
        assert "seconds" not in fields
        assert fields.get("index", {}).get("path", "INDEX") == "INDEX"
    environment = json.loads((evidence / "environment.json").read_bytes())
    assert environment["wherefrom"] == wf.__version__
    assert environment["command"] == ["wherefrom", "bundle"]
    assert environment["versions"]["python"] == platform.python_version()
    assert environment["answered"]["device"] == "cpu"
    report = (evidence / "report.html").read_text("utf-8")
    assert "shall be preserved" in report
    assert "nothing was not answered: the completion is empty" in report


def test_a_bundle_says_nothing_of_this_machine(evidence: Path, index_path: Path) -> None:
    """But for the manifest, which names where the index was built from."""
    private = [str(index_path.parent), platform.node(), str(Path.home())]
    for name in FILES:
        if name != "manifest.json":
            text = (evidence / name).read_text("utf-8")
            assert [word for word in private if len(word) > 2 and word in text] == []


def test_the_statement_sums_up(evidence: Path, index: wf.Index, entries: list[Entry]) -> None:
    statement = json.loads((evidence / "statement.json").read_bytes())
    assert statement["_type"] == STATEMENT_TYPE
    assert statement["predicateType"] == PREDICATE_TYPE
    digests = {one["name"]: one["digest"]["sha256"] for one in statement["subject"]}
    for name in FILES[:-1]:
        assert digests.pop(name) == sha256((evidence / name).read_bytes())
    manifest = index.manifest
    assert digests == {
        "urn:wherefrom:index": manifest.digest,
        "urn:wherefrom:weights": manifest.model.weights_sha256,
        "urn:wherefrom:tokenizer": manifest.model.tokenizer_sha256,
        "urn:wherefrom:corpus": manifest.corpus.content_sha256,
    }
    predicate = statement["predicate"]
    assert [one["id"] for one in predicate["questions"]] == [entry.id for entry in entries]
    certificates = predicate["certificates"]
    assert (certificates["answers"], certificates["failed"]) == (3, 1)
    assert len(predicate["contracts"]) == 3
    verdicts = [finding.verdict for entry in entries for finding in entry.gate]
    assert predicate["gate"] == {
        "conditions": list(entries[0].fail_if),
        "fired": len(verdicts),
        "undecidable": 0,
    }


def test_in_toto_takes_the_statement(evidence: Path) -> None:
    """By the reference implementation."""
    pytest.importorskip("in_toto_attestation")
    from google.protobuf import json_format
    from in_toto_attestation.v1 import statement_pb2
    from in_toto_attestation.v1.statement import Statement

    read = statement_pb2.Statement()
    json_format.Parse((evidence / "statement.json").read_bytes(), read)
    Statement.copy_from_pb(read).validate()
    assert read.predicate_type == PREDICATE_TYPE


def test_the_same_answers_make_the_same_bytes(
    evidence: Path, index: wf.Index, entries: list[Entry], tmp_path: Path
) -> None:
    """Asked in another group, and read back from a file of answers, they are still the same."""
    asked = {"k": 3, "where": {"year": ("<", 2000)}}
    again = [
        entry
        for before in entries
        for entry in ask_all(index, [before], asked, wanted=before.wanted, fail_if=before.fail_if)
    ]
    lines = [json.dumps(entry.to_dict()).encode() + b"\n" for entry in again]
    for name, those in (("a", again), ("b", list(read_entries(lines, "lines")))):
        command = ["wherefrom", "bundle"]
        write_bundle(tmp_path / name, those, index.manifest, command=command, index=index)
        for file in FILES:
            assert (tmp_path / name / file).read_bytes() == (evidence / file).read_bytes()


def test_zip_files(evidence: Path, index: wf.Index, entries: list[Entry], tmp_path: Path) -> None:
    for name in ("a.zip", "b.zip"):
        statement = write_bundle(tmp_path / name, entries, index.manifest, index=index)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.namelist() == FILES
        assert archive.read("statement.json") == statement.to_bytes()
        assert archive.read("answers.jsonl") == (evidence / "answers.jsonl").read_bytes()
    assert read_bundle(tmp_path / "a.zip").problems == ()


def test_what_no_bundle_is_made_of(index: wf.Index, entries: list[Entry], tmp_path: Path) -> None:
    manifest = index.manifest
    (tmp_path / "taken").mkdir()
    for name in ("taken", "taken.zip"):
        (tmp_path / "taken.zip").touch()
        with pytest.raises(StorageError, match="exists already"):
            write_bundle(tmp_path / name, entries, manifest)
    with pytest.raises(StorageError, match="make it first"):
        write_bundle(tmp_path / "no" / "where", entries, manifest)
    with pytest.raises(IntegrityError, match="id 'union' of another line"):
        write_bundle(tmp_path / "twice", [entries[0], entries[0]], manifest)
    other = manifest.model_copy(update={"created": "2026-01-01T00:00:00+00:00"})
    assert isinstance(other, Manifest)
    with pytest.raises(MismatchError, match="answer 'union' is of the index with manifest"):
        write_bundle(tmp_path / "other", entries, other)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["taken", "taken.zip"]


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")
def test_statements_are_signed_by_standard_tools(evidence: Path, tmp_path: Path) -> None:
    """As the guide shows; a signature beside the statement belongs to the bundle."""
    signed = Path(shutil.copytree(evidence, tmp_path / "signed"))
    key = tmp_path / "key"
    sign = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(key)]
    subprocess.run(sign, check=True)
    statement = signed / "statement.json"
    how = ["-n", "wherefrom-evidence"]
    subprocess.run(
        ["ssh-keygen", "-q", "-Y", "sign", "-f", str(key), *how, str(statement)],
        check=True,
        capture_output=True,
    )
    bundle = read_bundle(signed)
    assert bundle.problems == ()
    assert bundle.signatures == ("statement.json.sig",)
    (tmp_path / "signers").write_text(f"auditor {key.with_suffix('.pub').read_text()}")
    check = ["ssh-keygen", "-Y", "verify", "-f", str(tmp_path / "signers"), "-I", "auditor"]
    check += [*how, "-s", str(signed / "statement.json.sig")]
    data = statement.read_bytes()
    assert subprocess.run(check, input=data, capture_output=True).returncode == 0
    assert subprocess.run(check, input=data + b" ", capture_output=True).returncode != 0


def test_bundles_do_not_depend_on_where_the_index_stands(
    evidence: Path, index_path: Path, tmp_path: Path
) -> None:
    """Years later it has another name."""
    moved = Path(shutil.copytree(index_path, tmp_path / "archived"))
    again = recompute(wf.open(moved), read_bundle(evidence).entries)
    assert again.problems == ()
    assert again.identical == again.answers
