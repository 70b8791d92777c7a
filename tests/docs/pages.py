"""What a page of the documentation asks its reader to type, in order."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from wherefrom.cli.main import commands

__all__ = ["DOCS", "ROOT", "Block", "Line", "blocks", "lines", "parsed"]

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

_BLOCK = re.compile(
    r"(?:^<!-- (?P<note>[^\n]*) -->\n)?"
    r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
_OPERATORS = frozenset("();<>|&")


@dataclass(frozen=True)
class Block:
    """A fenced block: its text, its language, the comment above it and the line it starts at."""

    text: str
    language: str
    note: str
    line: int

    @property
    def runs(self) -> bool:
        return not self.note.startswith("not run: ")

    @property
    def file(self) -> str | None:
        return self.note.removeprefix("file: ") if self.note.startswith("file: ") else None

    @property
    def exit_status(self) -> int:
        """What the block's last command ends with."""
        return int(self.note.removeprefix("exit: ")) if self.note.startswith("exit: ") else 0


@dataclass(frozen=True)
class Line:
    """A command of ours in a shell block, and the file its output goes to."""

    arguments: list[str]
    output: str | None


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            re.sub(rf"^{found['indent']}", "", found["text"], flags=re.MULTILINE),
            found["language"],
            found["note"] or "",
            text.count("\n", 0, found.start("language")) + 1,
        )
        for found in _BLOCK.finditer(text)
    ]


def lines(block: Block) -> Iterator[Line]:
    """The block's lines that call wherefrom, up to a pipe."""
    for line in block.text.replace("\\\n", " ").splitlines():
        reader = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=True)
        reader.whitespace_split = True
        words = list(reader)
        if not words or words[0] != "wherefrom":
            continue
        end = next((i for i, word in enumerate(words) if set(word) <= _OPERATORS), len(words))
        output = words[end + 1] if words[end : end + 1] == [">"] else None
        yield Line(words[1:end], output)


def parsed(arguments: list[str]) -> click.Context:
    """Read a command line as click does, and run nothing.

    Raises:
        click.UsageError: It is none.
    """
    command: click.Command = commands
    context = click.Context(commands, info_name="wherefrom")
    rest = arguments
    while isinstance(command, click.Group):
        name, found, rest = command.resolve_command(context, rest)
        assert found is not None
        assert name is not None
        command = found
        context = click.Context(command, info_name=name, parent=context)
    return command.make_context(context.info_name, list(rest), parent=context.parent)
