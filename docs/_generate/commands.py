"""The help page of every command, as ``wherefrom COMMAND --help`` prints it."""

from __future__ import annotations

from collections.abc import Iterator

import click

from wherefrom.cli.main import commands

__all__ = ["every_command", "help_pages"]

_WIDTH = 96


def every_command(
    command: click.Command = commands, words: tuple[str, ...] = ("wherefrom",)
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Each command with the words that call it, groups before their commands."""
    yield words, command
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=words[-1])
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is not None and not child.hidden:
                yield from every_command(child, (*words, name))


def help_pages() -> str:
    """All of them in Markdown, a heading each."""
    return "\n\n".join(_page(words, command) for words, command in every_command())


def _page(words: tuple[str, ...], command: click.Command) -> str:
    context = click.Context(
        command, info_name=" ".join(words), terminal_width=_WIDTH, max_content_width=_WIDTH
    )
    return f"## {' '.join(words)}\n\n```text\n{command.get_help(context)}\n```"
