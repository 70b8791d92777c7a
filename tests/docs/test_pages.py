"""The code of the documentation runs as it stands, page by page, on a tiny model."""

from __future__ import annotations

import doctest
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

import wherefrom as wf
from docs.pages import DOCS, ROOT, Block, blocks, lines, parsed
from wherefrom.cli.main import commands

PAGES = sorted(
    path
    for path in [ROOT / "README.md", *DOCS.rglob("*.md")]
    if path.parent.name != "experiments" and path.stem not in ("figures", "lab-notes")
)
RUN = [path for path in PAGES if path.name != "README.md" and path != DOCS / "evaluation.md"]
"""Pages whose blocks run; tests/cli/test_evaluate.py runs those of the guide to evaluation."""

BUILDS_ITS_OWN = "hugging-face.md"
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.fixture
def here(workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "work"
    shutil.copytree(workplace, folder)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    return folder


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT's own
@pytest.mark.parametrize("page", RUN, ids=name)
def test_the_code_of_a_page_runs(page: Path, here: Path, request: pytest.FixtureRequest) -> None:
    if page.name == BUILDS_ITS_OWN:
        shutil.rmtree(here / "my.index")
    if page.name == "object-storage.md":
        request.getfixturevalue("bucket")
    names: dict[str, Any] = {"__name__": page.stem}
    if page.name == "guide.md":
        names["index"] = wf.open("my.index")
    if page.name == "tutorial.md":
        shutil.copytree("my.index", "wherefrom-demo/index")
    for block in blocks(page):
        if block.file:
            Path(block.file).write_text(block.text, encoding="utf-8")
        elif block.language == "python" and block.runs:
            run_python(page, block, names)
        elif block.language == "shell" and block.runs:
            run_shell(page, block)


def run_python(page: Path, block: Block, names: dict[str, Any]) -> None:
    if ">>> " in block.text:
        test = doctest.DocTestParser().get_doctest(
            block.text, names, name(page), str(page), block.line
        )
        report: list[str] = []
        runner = doctest.DocTestRunner(optionflags=FLAGS)
        runner.run(test, out=report.append, clear_globs=False)
        assert runner.failures == 0, "".join(report)
        names.update(test.globs)
    else:
        code = "\n" * block.line + block.text  # so that tracebacks name the page's own lines
        exec(compile(code, str(page), "exec"), names)


def run_shell(page: Path, block: Block) -> None:
    called = list(lines(block))
    for line in called:
        result = CliRunner().invoke(commands, line.arguments)
        expected = block.exit_status if line is called[-1] else 0
        assert result.exit_code == expected, (name(page), block.line, line, result.output)
        if line.output is not None:
            Path(line.output).write_text(result.stdout, encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_command_lines_of_a_page_parse(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("digits.py").touch()  # the guide to evaluation writes it, in another test
    for block in blocks(page):
        if block.language in ("shell", "console", ""):
            for line in lines_of(page, block):
                try:
                    parsed(line)
                except click.UsageError as error:
                    pytest.fail(f"{name(page)}:{block.line}: {line}: {error.message}")


def lines_of(page: Path, block: Block) -> list[list[str]]:
    try:
        return [line.arguments for line in lines(block)]
    except ValueError:  # prose in a fence without a language: no shell line
        assert not block.language, f"{name(page)}:{block.line}"
        return []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_code_that_is_not_run_compiles(page: Path) -> None:
    for block in blocks(page):
        if block.language == "python" and ">>> " not in block.text:
            compile(block.text, f"{name(page)}:{block.line}", "exec")


def test_json_on_the_pages_is_json() -> None:
    checked = 0
    for page in PAGES:
        for block in blocks(page):
            if block.language == "json":
                parts = block.text.splitlines() if block.file else [block.text]
                for part in parts:
                    assert isinstance(json.loads(part), Mapping), f"{name(page)}:{block.line}"
                    checked += 1
    assert checked > 0
