"""Every command that reports something does so as one JSON object, too, which names its schema."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import transformers
from click.testing import CliRunner

import wherefrom as wf
from answers import annotated, answer
from tiny_lm import save_tiny_lm, text_documents
from wherefrom.cli.main import commands
from wherefrom.demo import run as demo_run
from wherefrom.demo.corpus import QUESTIONS

ASKED = ["--prompt", "the union of states", "--completion", " shall be preserved"]
SPEAKS_OTHERWISE = {
    "serve": "answers over HTTP and MCP",
    "schema": "prints a JSON Schema and nothing else",
    "completion": "prints a shell's script",
}


def told(*arguments: str | os.PathLike[str]) -> dict[str, Any]:
    """What a command prints with ``--json``: one object on one line, in UTF-8."""
    result = CliRunner().invoke(commands, [*map(os.fspath, arguments), "--json"])
    assert result.exit_code == 0, result.output
    (line,) = result.stdout_bytes.decode().splitlines()
    fields = json.loads(line, parse_constant=pytest.fail)
    assert isinstance(fields, dict)
    return fields


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, documents, and an index of them."""
    folder = tmp_path_factory.mktemp("home")
    save_tiny_lm(folder / "model")
    transformers.utils.logging.disable_progress_bar()
    rows = [
        {"doc_id": document.doc_id, "text": document.text, **document.metadata}
        for document in text_documents(20)
    ]
    (folder / "docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "built.json").write_text(json.dumps(build(folder, "my.index")))
    return folder


def build(home: Path, index: str) -> dict[str, Any]:
    where = ["--model", str(home / "model"), "--index", str(home / index)]
    return told("build", home / "docs.jsonl", *where, "--quiet")


def leaves(group: click.Group, before: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """All commands that are no groups, by their whole names."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from leaves(command, (*before, name))
        else:
            yield " ".join((*before, name)), command


@pytest.mark.parametrize("name", [name for name, _ in leaves(commands)])
def test_every_command_can_speak_json(name: str) -> None:
    options = {
        option for parameter in dict(leaves(commands))[name].params for option in parameter.opts
    }
    assert ("--json" in options) != (name in SPEAKS_OTHERWISE)


def test_build(home: Path) -> None:
    built = json.loads((home / "built.json").read_text())
    assert built["schema"] == "wherefrom-build/1"
    assert built["documents"] == 20


def test_info(home: Path) -> None:
    assert told("info", home / "my.index")["schema"] == "wherefrom-info/1"


def test_query(home: Path) -> None:
    plain = told("query", home / "my.index", *ASKED, "-k", "2")
    assert plain["schema"] == "wherefrom-answer/2"
    assert plain["explanation"] is None


def test_sweeps(home: Path) -> None:
    swept = told("query", home / "my.index", *ASKED, "--dampings", "0.01,1")
    assert swept["schema"].startswith("wherefrom-")
    assert len(swept["rows"]) == 2


def test_accelerate(home: Path) -> None:
    pytest.importorskip("faiss")
    made = told("accelerate", home / "my.index", "--kind", "faiss-flat")
    assert made["schema"] == "wherefrom-accelerate/1"
    assert made["accelerator"]["rows"] == 20


def test_evaluations(home: Path) -> None:
    found = told("evaluate", "fidelity", home / "my.index", *ASKED, "-k", "10")
    assert found["schema"].startswith("wherefrom")
    assert found["kind"] == "fidelity"


def test_demo(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = annotated(answer())
    check = demo_run.EraCheck("Questions", 12.0, 80.0, 0.0, 1000)

    def found(directory: Path, progress: object) -> demo_run.DemoRun:
        index = wf.open(home / "my.index")
        report = directory / "report.html"
        return demo_run.DemoRun(((QUESTIONS[0], whole),), (check,), report, index, True, 61.5)

    monkeypatch.setattr(demo_run, "run_demo", found)
    assert told("demo", "--directory", tmp_path) == {
        "schema": "wherefrom-demo/1",
        "directory": str(tmp_path.resolve()),
        "index": str((tmp_path / "index").resolve()),
        "report": str((tmp_path / "report.html").resolve()),
        "documents": 20,
        "reused": True,
        "questions": [
            {
                "name": QUESTIONS[0].name,
                "years": list(QUESTIONS[0].years),
                "answer": json.loads(whole.to_json()),
            }
        ],
        "eras": [
            {"what": "Questions", "hits": 12.0, "random": 80.0, "as_near": 0.0, "draws": 1000}
        ],
        "seconds": 61.5,
    }
