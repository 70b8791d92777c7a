"""Rules of the house that no single room can keep alone."""

from __future__ import annotations

import ast
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import wherefrom

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "wherefrom"
SOURCES = sorted(PACKAGE.rglob("*.py"))

RUN_COMMAND = """
import contextlib, io, sys
from wherefrom.cli.main import main

sys.argv = ["wherefrom", *sys.argv[1:]]
shown = io.StringIO()
try:
    with contextlib.redirect_stdout(shown):
        status = main()
except SystemExit as stop:
    status = stop.code
heavy = sorted({"torch", "transformers", "datasets"} & set(sys.modules))
print(status or 0, "Usage:" in shown.getvalue(), *heavy)
"""


def children_cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run_command(*arguments: str) -> str:
    """Exit status, whether a help page was shown, and which heavy libraries got loaded."""
    finished = subprocess.run(
        [sys.executable, "-c", RUN_COMMAND, *arguments],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    return finished.stdout.strip()


def test_help_is_quick_and_never_loads_torch() -> None:
    run_command("--help")  # Writes the bytecode, which an installed package has already.
    before = children_cpu_seconds()
    assert run_command("--help") == "0 True"
    assert children_cpu_seconds() - before < 1.0


@pytest.mark.parametrize("command", ["demo", "build", "query", "info"])
def test_help_of_a_command_never_loads_torch(command: str) -> None:
    assert run_command(command, "--help") == "0 True"


def test_python_dash_m_is_the_command() -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "wherefrom", "--help"], capture_output=True, text=True, cwd=ROOT
    )
    assert finished.returncode == 0, finished.stderr
    assert "Usage:" in finished.stdout


def test_importing_the_package_is_free_of_torch() -> None:
    finished = subprocess.run(
        [sys.executable, "-c", "import sys, wherefrom; print('torch' in sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert finished.stdout.strip() == "False"


def test_every_public_name_can_be_imported() -> None:
    missing = [name for name in wherefrom.__all__ if not hasattr(wherefrom, name)]
    assert missing == []
    assert {"Document", "Query", "build", "open"} <= set(wherefrom.__all__)
    assert len(set(wherefrom.__all__)) == len(wherefrom.__all__)


def test_public_names_are_all_listed() -> None:
    """What ``wherefrom/__init__.py`` takes from the rooms or defines itself is what it lists."""
    bound = set()
    for node in ast.walk(ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("wherefrom"):
            bound |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            bound.add(node.name)
    public = {name for name in bound if not name.startswith("_")}
    assert public == set(wherefrom.__all__) - {"__version__"}


def test_version_is_that_of_the_project_file() -> None:
    declared = re.search(
        r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert declared is not None
    assert wherefrom.__version__ == declared[1]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_is_short_enough_to_be_read(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def unsafe_constructs(tree: ast.AST) -> Iterator[str]:
    """What could run code out of a data file: pickles, ``eval`` and code shipped with a model."""
    picklers = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            names = []
        yield from (f"import {name}" for name in names if name.split(".")[0] in picklers)
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if called in {"eval", "exec", "__import__"}:
            yield called
        if called == "torch.load" and keywords.get("weights_only") != "True":
            yield called
        for flag in ("trust_remote_code", "allow_pickle"):
            if keywords.get(flag, "False") != "False":
                yield f"{flag}={keywords[flag]}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_runs_no_code_out_of_data(path: Path) -> None:
    assert list(unsafe_constructs(ast.parse(path.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "eval('1')",
        "torch.load(path)",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(path, trust_remote_code=flag)",
    ],
)
def test_unsafe_constructs_are_seen(source: str) -> None:
    assert len(list(unsafe_constructs(ast.parse(source)))) == 1


def test_changelog_has_a_place_for_what_is_next() -> None:
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_constraints_pin_every_dependency_exactly() -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pins = [line for line in text.splitlines() if line and not line.startswith("#")]
    loose = [pin for pin in pins if not re.match(r"[a-z0-9-]+==[0-9][^ +]*( ;|$)", pin)]
    assert loose == []
    assert "torch==2.13.0" in pins
