"""Shells complete commands, options, choices and an index's columns, quickly, and run nothing."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from wherefrom.cli.accelerate import KINDS
from wherefrom.cli.completion import SHELLS, complete_columns, completion
from wherefrom.cli.main import commands

COLUMNS = {"year": "int64", "party": "string", "parts.of-it": "string", "été": "string"}
HARMFUL = (
    "$(touch gone)",
    "`touch gone`",
    "a;b",
    "-rf",
    "a b",
    "a\nplain,b",
    "\x1b[31m",
    "",
    "a'b",
)


def completed(*words: str, command: click.Command = commands) -> list[str]:
    """What the last word may become."""
    *before, incomplete = words
    complete = ShellComplete(command, {}, "wherefrom", "_WHEREFROM_COMPLETE")
    return [item.value for item in complete.get_completions(before, incomplete)]


@pytest.fixture
def index(tmp_path: Path) -> str:
    """A folder with the part of a manifest that completion reads; some columns mean harm."""
    columns = {**COLUMNS, **dict.fromkeys(HARMFUL, "string")}
    (tmp_path / "manifest.json").write_text(json.dumps({"metadata": columns}))
    return str(tmp_path)


@click.command()
@click.argument("index", type=click.Path(path_type=Path))
@click.option("--where", multiple=True, shell_complete=complete_columns)
def asking(index: Path, where: tuple[str, ...]) -> None:
    """Takes an index and a column of it."""


def test_commands_options_and_choices() -> None:
    assert set(completed("")) >= {"build", "query", "info"}
    assert completed("qu") == ["query"]
    assert completed("evaluate", "coun") == ["counterfactual"]
    assert completed("query", "my.index", "--normal") == ["--normalise"]
    assert completed("query", "my.index", "--sign", "op") == ["opponents"]
    assert tuple(completed("accelerate", "my.index", "--kind", "")) == KINDS
    assert completed("query", "my.index", "--backend", "lance") == ["lance-ivf"]


def test_columns_of_the_index(index: str) -> None:
    assert completed(index, "--where", "", command=asking) == list(COLUMNS)
    assert completed(index, "--where", "pa", command=asking) == ["party", "parts.of-it"]
    assert completed(index, "--where", "year=1", "--where", "y", command=asking) == ["year"]
    assert completed(index, "--where", "year<19", command=asking) == []
    found = ShellComplete(asking, {}, "asking", "_A").get_completions([index, "--where"], "year")
    assert [item.help for item in found] == ["int64"]


def test_filters_and_groups_of_a_query_start_with_columns(index: str) -> None:
    assert completed("query", index, "--where", "pa") == ["party", "parts.of-it"]
    assert completed("query", index, "--completion", "x", "--group-by", "y") == ["year"]


def test_columns_that_a_shell_might_act_on_are_left_to_the_user(index: str) -> None:
    found = completed(index, "--where", "", command=asking)
    assert found
    assert not set(found) & set(HARMFUL)


@pytest.mark.parametrize(
    "text", [None, "", "[]", "{", '{"metadata": 3}', '{"metadata": null}', "\udcff", "[1" * 50_000]
)
def test_what_is_no_index_completes_to_nothing(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        content = text.encode(errors="surrogateescape")
        (tmp_path / "manifest.json").write_bytes(content)
    assert completed(str(tmp_path), "--where", "", command=asking) == []
    assert completed("--where", "", command=asking) == []


@pytest.mark.parametrize("shell", SHELLS)
def test_scripts_are_for_the_shell_and_the_command(shell: str) -> None:
    result = CliRunner().invoke(completion, [shell])
    assert result.exit_code == 0, result.output
    assert f"_WHEREFROM_COMPLETE={shell}_complete" in result.stdout
    assert result.stderr == ""


def test_other_shells_are_refused() -> None:
    result = CliRunner().invoke(completion, ["tcsh"])
    assert result.exit_code == 2
    assert "'bash', 'zsh', 'fish'" in result.stderr


def test_a_real_bash_completes(tmp_path: Path) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash on this machine")
    program = tmp_path / "wherefrom"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nsys.argv[0] = 'wherefrom'\n"
        "from wherefrom.cli.main import main\nmain()\n"
    )
    program.chmod(0o755)
    script = CliRunner().invoke(completion, ["bash"]).stdout
    ask = 'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _wherefrom_completion wherefrom'
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    reply = "printf '%s\\n' \"${COMPREPLY[@]}\""
    words = ["wherefrom", "query", "my.index", "--sign", "pro"]
    finished = subprocess.run(
        [bash, "-c", f"{script}\n{ask}\n{reply}", "-", *words],
        env={**os.environ, "PATH": path, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert (finished.stdout, finished.stderr) == ("proponents\n", "")


def test_completion_is_quick_and_never_loads_torch(index: str) -> None:
    program = (
        "import sys\nfrom wherefrom.cli.main import commands\ntry:\n"
        "    commands(prog_name='wherefrom')\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'lancedb', 'pydantic', 'numpy'} & set(sys.modules)\n"
        "print(*sorted(heavy), file=sys.stderr)"
    )
    asked = {
        "_WHEREFROM_COMPLETE": "bash_complete",
        "COMP_WORDS": f"wherefrom query {index} --sign pro",
        "COMP_CWORD": "4",
    }

    def complete() -> tuple[float, subprocess.CompletedProcess[str]]:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        finished = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, **asked},
            capture_output=True,
            text=True,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime), finished

    complete()  # Writes the bytecode, which an installed package has already.
    seconds, finished = complete()
    assert finished.stdout == "plain,proponents\n"
    assert finished.stderr == "\n"
    assert seconds < 0.6  # Of a processor; 0.1 where nobody else uses it.
