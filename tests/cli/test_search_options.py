"""Encoders, tiers, rankings, refinement and backends, through the commands."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import transformers
from click.testing import CliRunner, Result

import wherefrom as wf
from tiny_lm import save_tiny_lm, text_documents
from wherefrom.cli.main import commands
from wherefrom.query.questions import EncodedQuestion
from wherefrom.store import Manifest

PROMPT, COMPLETION = "the union of states", " shall be preserved"
ASKED = ["--prompt", PROMPT, "--completion", COMPLETION]
DOCUMENTS = 150
SKETCH = ["--encoder", "sketch", "--bits", "1", "--bytes-per-document", "80"]


def run(*arguments: str | os.PathLike[str]) -> Result:
    return CliRunner().invoke(commands, [os.fspath(argument) for argument in arguments])


def done(*arguments: str | os.PathLike[str]) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return result.stdout


def words(text: str) -> str:
    return " ".join(text.split())


def error_line(result: Result) -> str:
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("wherefrom: error: ")
    return line


def asked(index: Path, *options: str) -> dict:
    return json.loads(done("query", index, *ASKED, "--json", *options))


def hits(told: dict) -> list[dict]:
    return [*told["proponents"], *told["opponents"]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``model``, documents, and ``my.index``, a sketch of one bit an entry."""
    folder = tmp_path_factory.mktemp("home")
    save_tiny_lm(folder / "model")
    transformers.utils.logging.disable_progress_bar()
    rows = [
        {"doc_id": document.doc_id, "text": document.text, **document.metadata}
        for document in text_documents(DOCUMENTS)
    ]
    (folder / "docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "built.txt").write_text(done(*build(folder, "my.index", *SKETCH)))
    return folder


def build(home: Path, index: str, *options: str) -> list[str]:
    named = ["--model", str(home / "model"), "--index", str(home / index)]
    return ["build", str(home / "docs.jsonl"), *named, "--fit-documents", "40", *options]


def test_builds_say_what_their_encoder_keeps(home: Path) -> None:
    told = words((home / "built.txt").read_text())
    encoder = Manifest.read(home / "my.index").encoder
    fidelity = encoder.fidelity
    assert fidelity is not None
    assert f"encoder {encoder.name}: 80 bytes per document" in told
    assert f"fidelity {fidelity.recall:.1%} of the true top 10 are among its best 25" in told
    assert f"random subsets correlate at {fidelity.correlation:.3f}" in told
    info = words(done("info", home / "my.index"))
    assert f"encoder {encoder.name}: 80 bytes per document, seed 0 fidelity" in info
    assert "asked for at most 80 bytes per document tried sketch 640" in info
    assert info.count("(chosen)") == 1
    assert "random document/query pairs" in info
    assert "ms per document, as the build measured" in info


def test_encoders_by_fidelity(home: Path) -> None:
    name, *arguments = build(home, "fidelity.index", "--fidelity", "0.8", "--json")
    told = json.loads(done(name, *arguments))
    assert min(told["fidelity"]["recall"], told["fidelity"]["correlation"]) >= 0.8
    manifest = Manifest.read(home / "fidelity.index")
    choice = manifest.encoder.choice
    assert choice is not None
    assert (choice.fidelity, choice.bytes_per_document) == (0.8, None)
    assert told["bytes_per_document"] == manifest.encoder.bytes_per_document
    assert "--fidelity=0.8" in shlex.split(manifest.replay)
    info = words(done("info", home / "fidelity.index"))
    assert f"asked for fidelity 0.8 tried {choice.tried[0].encoder}: " in info


def test_principal_components_count_their_basis(home: Path) -> None:
    options = ["--encoder", "none", "--pca", "16", "--bits", "8", "--bytes-per-document", "400"]
    done(*build(home, "pca.index", *options, "--quiet"))
    encoder = Manifest.read(home / "pca.index").encoder
    assert (encoder.pca, encoder.bits, encoder.dimension) == (16, 8, 16)
    assert encoder.bytes_per_document == pytest.approx(16 + 4 * 16 * encoder.reduced / DOCUMENTS)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--bytes-per-document", "10"], "at least 64"),
        (["--encoder", "none", "--bits", "8", "--bytes-per-document", "100"], "needs 720"),
    ],
)
def test_budgets_that_are_too_small_leave_nothing(
    home: Path, options: list[str], told: str
) -> None:
    assert told in error_line(run(*build(home, "new", *options)))
    assert not (home / "new").exists()


def test_stored_scores_are_certified(home: Path) -> None:
    index = home / "my.index"
    told = asked(index, "--rerank", "stored", "-k", "3")
    certificate = told["certificate"]
    assert (certificate["tier"], certificate["certified"]) == ("stored", True)
    assert certificate["next_proponent"] <= told["proponents"][-1]["score"]
    assert certificate["next_opponent"] <= -told["opponents"][-1]["score"]
    shown = words(done("query", index, *ASKED, "--rerank", "stored", "-k", "3"))
    bound = f"{certificate['next_proponent']:.3g} nats for proponents"
    assert f"rule them out (at most {bound} and " in shown


def test_exact_scores_of_few_candidates_have_an_estimated_recall(home: Path) -> None:
    index = home / "my.index"
    options = ["--rerank", "recompute", "--candidates", "12", "-k", "4"]
    told = asked(index, *options)
    certificate, recall = told["certificate"], told["certificate"]["recall"]
    assert (certificate["tier"], certificate["certified"]) == ("exact", False)
    assert certificate["candidates"] < DOCUMENTS
    assert 0.0 <= recall["low"] <= recall["estimate"] <= recall["high"] <= 1.0
    shown = words(done("query", index, *ASKED, *options))
    assert f"Not certified: the best of {certificate['candidates']} candidates among" in shown
    assert f"of the true top 4 + 4 (95% interval {recall['low']:.0%} to " in shown
    scores = wf.open(index).scores([wf.Query(PROMPT, COMPLETION)])[0]
    exact = dict(zip(wf.open(index).doc_ids(), scores, strict=True))
    found = {hit["doc_id"]: hit["score"] for hit in hits(told)}
    assert found == pytest.approx({name: exact[name] for name in found}, rel=1e-4, abs=1e-7)


def test_the_time_allowed_decides_the_tier(home: Path) -> None:
    index = home / "my.index"
    assert asked(index, "--rerank-seconds", "0")["certificate"]["tier"] == "stored"
    told = asked(index, "--rerank-seconds", "inf")["certificate"]
    assert (told["tier"], told["certified"], told["candidates"]) == ("exact", True, DOCUMENTS)


@pytest.mark.parametrize("normalise", ["cosine", "relatif"])
def test_rankings_by_another_value(home: Path, normalise: str) -> None:
    index = home / "my.index"
    options = ["--normalise", normalise, "--rerank", "stored", "-k", "5"]
    told = asked(index, *options)
    values = [hit[normalise] for hit in told["proponents"]]
    assert values == sorted(values, reverse=True)
    plain = asked(index, "--rerank", "stored", "-k", "5")
    assert [h["doc_id"] for h in told["proponents"]] != [h["doc_id"] for h in plain["proponents"]]
    answer = wf.open(index).query(
        prompt=PROMPT, completion=COMPLETION, k=5, normalise=normalise, rerank="stored"
    )
    assert hits(told) == hits(json.loads(answer.to_json()))
    assert "; ranked by " in words(done("query", index, *ASKED, *options))


def test_refined_questions(home: Path) -> None:
    index = home / "my.index"
    options = ["--refine", "2", "--refine-damping", "5", "--refine-documents", "9"]
    result = run("query", index, *ASKED, "--json", "--rerank", "stored", *options)
    assert result.exit_code == 0, result.output
    (warning,) = result.stderr.splitlines()
    assert warning.startswith("wherefrom: warning: the index stores 1-bit")
    told = json.loads(result.stdout)
    assert (told["refined"], told["damping"]) == (2, 5.0)
    assert 0.0 < told["residual"] < 1.0
    shown = words(run("query", index, *ASKED, "--rerank", "recompute", *options).stdout)
    assert "refined 2 steps of conjugate gradients" in shown
    assert "all layers, damping 5 residual" in shown


@pytest.mark.parametrize("kind", ["lance-ivf", "faiss-flat"])
def test_backends_propose_and_never_decide(home: Path, tmp_path: Path, kind: str) -> None:
    if kind.startswith("faiss"):
        pytest.importorskip("faiss")
    index = shutil.copytree(home / "my.index", tmp_path / "copy")
    assert f"'{kind}'" in error_line(run("query", index, *ASKED, "--backend", kind))
    told = json.loads(done("accelerate", index, "--kind", kind, "--json"))
    assert told["schema"] == "wherefrom-accelerate/1"
    assert told["accelerator"]["kind"] == kind
    assert told["manifest_sha256"] == Manifest.read(index).digest
    assert f"backend {kind}, 150 vectors, by " in words(done("info", index))
    with_it = asked(index, "--rerank", "stored", "--backend", kind, "-k", "2")
    without = asked(index, "--rerank", "stored", "-k", "2")
    assert hits(with_it) == hits(without)
    assert with_it["certificate"]["backend"] == kind
    shown = words(done("accelerate", index, "--kind", kind))
    assert f"backend {kind}, by {told['accelerator']['library']} vectors 150 of 640" in shown
    (record,) = Manifest.read(index).accelerators
    (index / next(iter(record.files))).write_bytes(b"changed")
    assert "SHA-256" in error_line(run("query", index, *ASKED, "--backend", kind))
    assert hits(asked(index, "--rerank", "stored", "-k", "2")) == hits(without)


def test_accelerators_are_made_without_the_model_and_never_read_unrecorded(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = shutil.copytree(home / "my.index", tmp_path / "copy")
    before = (index / "manifest.json").read_bytes()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the index was opened, and its model with it")

    with monkeypatch.context() as patched:
        patched.setattr(wf.Index, "__init__", refuse)
        done("accelerate", index, "--kind", "lance-ivf")
    (index / "manifest.json").write_bytes(before)
    line = error_line(run("query", index, *ASKED, "--backend", "lance-ivf"))
    assert "not in the manifest" in line


def test_more_than_there_are_is_all_of_them(home: Path) -> None:
    told = asked(home / "my.index", "-k", "9999", "--rerank", "stored")
    assert len(hits(told)) <= DOCUMENTS
    assert told["certificate"]["candidates"] == DOCUMENTS
    assert told["certificate"]["certified"]


@pytest.mark.parametrize("rerank", ["stored", "recompute"])
def test_a_filter_that_nothing_passes_is_an_answer(home: Path, rerank: str) -> None:
    options = ["--where", "year>99999", "--rerank", rerank]
    told = asked(home / "my.index", *options)
    assert hits(told) == []
    assert told["certificate"]["documents"] == 0
    shown = words(done("query", home / "my.index", *ASKED, *options))
    assert "No document passes the filter. Nothing was searched" in shown


def test_an_unknown_column_names_the_known_ones(home: Path) -> None:
    line = error_line(run("query", home / "my.index", *ASKED, "--where", "colour==red"))
    assert "colour" in line
    assert "year" in line


def test_a_changed_encoder_is_refused(home: Path, tmp_path: Path) -> None:
    index = shutil.copytree(home / "my.index", tmp_path / "copy")
    file = index / "encoder.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert "encoder.safetensors" in error_line(run("query", index, *ASKED))


def test_a_query_that_is_no_number_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wherefrom.query import respond

    def broken(*_: object) -> EncodedQuestion:
        return EncodedQuestion(np.full(640, np.nan, np.float32), 0.0, None, 0.1)

    monkeypatch.setattr(respond, "encode", broken)
    assert "NaN" in error_line(run("query", home / "my.index", *ASKED))
