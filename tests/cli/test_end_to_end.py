"""Build, ask and inspect a real index through the commands, with a tiny Llama."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import pytest
import transformers
from click.testing import CliRunner, Result

import wherefrom as wf
from answers import answer
from tiny_lm import save_tiny_lm, text_documents
from wherefrom.cli.main import commands
from wherefrom.demo import run as demo_run
from wherefrom.demo.corpus import QUESTIONS
from wherefrom.store import Manifest, state

ASKED = ["--prompt", "the union of states", "--completion", " shall be preserved"]


def run(*arguments: str | os.PathLike[str]) -> Result:
    return CliRunner().invoke(commands, [os.fspath(argument) for argument in arguments])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a corpus of twenty documents and an empty one, and its index."""
    folder = tmp_path_factory.mktemp("home")
    save_tiny_lm(folder / "model")
    # The commands see to that where they are the first to import transformers.
    transformers.utils.logging.disable_progress_bar()
    with (folder / "docs.jsonl").open("w") as stream:
        for document in [*text_documents(20), wf.Document("nothing", "")]:
            row = {"doc_id": document.doc_id, "text": document.text, **document.metadata}
            stream.write(json.dumps(row) + "\n")
    result = build(folder, "--json")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    (folder / "built.json").write_text(result.stdout)
    return folder


def build(home: Path, *options: str, index: str = "my.index") -> Result:
    named = ["--model", str(home / "model"), "--index", str(home / index)]
    return run("build", home / "docs.jsonl", *named, "--seed", "3", *options)


def ask(home: Path, *options: str | os.PathLike[str]) -> Result:
    return run("query", home / "my.index", *ASKED, *options)


def error_line(result: Result) -> str:
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("wherefrom: error: ")
    return line


def test_build_sums_up(home: Path) -> None:
    built = json.loads((home / "built.json").read_text())
    assert built["schema"] == "wherefrom-build/1"
    assert (built["documents"], built["skipped"], built["skipped_count"]) == (20, ["nothing"], 1)
    assert built["seconds"] > 0
    assert (built["encoder"], built["bytes_per_document"]) == ("none 720, fp32", 2880)
    assert built["fidelity"] is None


def test_query_is_the_library_s_answer(home: Path) -> None:
    result = ask(home, "-k", "3", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    answer = wf.open(home / "my.index").query(
        prompt="the union of states", completion=" shall be preserved", k=3
    )
    expected = json.loads(answer.to_json())
    assert {**told, "seconds": 0} == {**expected, "seconds": 0}
    assert len(told["proponents"]) == 3
    assert told["contract"].startswith("score = nats")


def test_query_shows_tables_and_writes_a_report(home: Path, tmp_path: Path) -> None:
    result = ask(home, "-k", "2", "--width", "120", "--html", tmp_path / "report.html")
    assert result.exit_code == 0, result.output
    assert "the union of states| shall be preserved" in result.stdout
    assert "Proponents" in result.stdout
    assert "Opponents" in result.stdout
    assert result.stderr == f"Report: {(tmp_path / 'report.html').resolve()}\n"
    assert "<mark> shall be preserved</mark>" in (tmp_path / "report.html").read_text("utf-8")


def test_query_of_one_sign_and_some_documents(home: Path) -> None:
    options = ["--sign", "opponents", "--where", "year<1900", "--where", "party is present"]
    told = json.loads(ask(home, "--json", *options).stdout)
    assert told["proponents"] == []
    matching = [
        document.doc_id
        for document in text_documents(20)
        if (document.metadata["year"] or 9999) < 1900 and document.metadata["party"]
    ]
    assert told["certificate"]["documents"] == len(matching)
    assert told["opponents"]
    assert {hit["doc_id"] for hit in told["opponents"]} < set(matching)


def test_query_mistakes(home: Path, tmp_path: Path) -> None:
    index = home / "my.index"
    assert "empty" in error_line(run("query", index, "--prompt", "the", "--completion", ""))
    assert "context" in error_line(run("query", index, "--completion", " the" * 99))
    assert "missing" in error_line(ask(home, "--model", tmp_path / "missing"))
    other = save_tiny_lm(tmp_path / "other", seed=9)
    assert "weights" in error_line(ask(home, "--model", other))


def test_build_mistakes_leave_nothing(home: Path, tmp_path: Path) -> None:
    before = sorted(entry.name for entry in home.iterdir())
    assert "--overwrite" in error_line(build(home))
    assert "nonsense" in error_line(build(home, "--layers", "nonsense*", index="new"))
    named = ["--model", str(home / "model"), "--index", str(home / "new")]
    assert "absent.jsonl" in error_line(run("build", home / "absent.jsonl", *named))
    (tmp_path / "bad.jsonl").write_text('{"text": "the union"}\n{"text": \n')
    assert "2" in error_line(run("build", tmp_path / "bad.jsonl", *named))
    assert sorted(entry.name for entry in home.iterdir()) == before


def test_options_reach_the_index(home: Path) -> None:
    options = ["--layers", "attention", "--damping", "0.5", "--fisher", "empirical"]
    options += ["--encoder", "sketch", "--bytes-per-document", "64", "--bits", "4"]
    options += ["--fit-documents", "0.5"]
    options += ["--metadata", "year", "--context", "6", "--batch-size", "2", "--device", "cpu"]
    result = build(home, *options, index="other.index")
    assert result.exit_code == 0, result.output
    assert "1 without a scored token: nothing" in result.stdout
    assert "encoder    sketch 128, rotated, 4 bits: 64 bytes per document" in result.stdout
    assert "of the true top 10 are among its best 10; sums of scores" in result.stdout
    manifest = wf.open(home / "other.index").manifest
    assert all("self_attn" in layer.name for layer in manifest.layers)
    assert (manifest.curvature.damping, manifest.curvature.fisher) == (0.5, "empirical")
    assert manifest.curvature.fit_documents < manifest.corpus.documents
    assert (manifest.curvature.seed, manifest.encoder.bytes_per_document) == (3, 64)
    assert list(manifest.metadata) == ["year"]
    assert manifest.objective.options["context"] == 6
    assert manifest.corpus.documents > manifest.corpus.parents


def test_replay_builds_the_same_index_from_anywhere(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = wf.open(home / "my.index")
    vectors = first.vectors()
    name, *arguments = shlex.split(first.manifest.replay)
    assert name == "wherefrom"
    monkeypatch.chdir(tmp_path)
    result = run(*arguments, "--overwrite", "--quiet")
    assert (result.exit_code, result.stdout) == (0, ""), result.output
    second = wf.open(home / "my.index")
    assert second.manifest.replay == first.manifest.replay
    assert (second.vectors() == vectors).all()


@pytest.mark.parametrize(
    ("index", "options", "left"),
    [
        ("late", [], "late is left unfinished; run the same command again to go on"),
        ("my.index", ["--overwrite"], "my.index is as it was before"),
    ],
)
def test_interrupted_builds_say_what_is_left(
    home: Path, monkeypatch: pytest.MonkeyPatch, index: str, options: list[str], left: str
) -> None:
    from wherefrom.encoding.encoder import Encoder

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Encoder, "encode", interrupt)
    result = build(home, *options, index=index)
    assert result.exit_code == 130
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("wherefrom: interrupted: ")
    assert line.endswith(left)
    if index == "late":
        info = run("info", home / index)
        assert info.exit_code == 1
        assert "unfinished" in info.stderr
        monkeypatch.undo()
        again = build(home, index=index)
        assert again.exit_code == 0
        assert "going on with the build begun at 20" in again.stderr
    assert state(home / index) == "finished"


def test_unfinished_builds_of_something_else_are_not_overwritten_unasked(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wherefrom.encoding.encoder import Encoder

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    half = str(tmp_path / "half")
    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "encode", interrupt)
        assert build(home, index=half).exit_code == 130
    result = build(home, "--damping", "0.3", "--quiet", index=half)
    assert result.exit_code == 1
    assert "--overwrite" in error_line(result)
    assert "damping was null and is 0.3 now" in result.stderr
    assert build(home, "--damping", "0.3", "--overwrite", "--quiet", index=half).exit_code == 0
    assert Manifest.read(tmp_path / "half").curvature.damping == 0.3


def test_demo_shows_what_it_found(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    eras = demo_run.EraCheck("Questions", 12.0, 80.0, 0.0, 1000)

    def found(directory: Path, progress: object) -> demo_run.DemoRun:
        return demo_run.DemoRun(
            ((QUESTIONS[0], answer()),),
            (eras,),
            directory / "report.html",
            wf.open(home / "my.index"),
            False,
            61.4,
        )

    monkeypatch.setattr(demo_run, "run_demo", found)
    result = run("demo", "--directory", tmp_path)
    assert result.exit_code == 0, result.output
    for expected in (
        QUESTIONS[0].name,
        "The Union shall| be preserved",
        "+0.0123",
        f"over 20 passages made in {tmp_path}; report: {tmp_path / 'report.html'}; 61 s",
        f"wherefrom query {tmp_path / 'index'} --prompt",
    ):
        assert expected in result.stdout
    assert eras.in_words() in " ".join(result.stdout.split())


def test_interrupted_demo_says_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo_run, "run_demo", interrupt)
    result = run("demo", "--directory", tmp_path)
    assert result.exit_code == 130
    (line,) = result.stderr.splitlines()
    assert line.endswith(f"kept in {tmp_path}; run the demo again to go on")
