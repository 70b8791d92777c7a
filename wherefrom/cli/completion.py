"""``wherefrom completion``: the script that has a shell complete commands, options and columns.

Completion runs at every press of the key: nothing heavy is imported for it, and what cannot be read
completes to nothing rather than to an error.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import click
from click.shell_completion import CompletionItem, get_completion_class

__all__ = ["SHELLS", "complete_columns", "completion"]

SHELLS = ("bash", "zsh", "fish")

_PROGRAM = "wherefrom"
_VARIABLE = "_WHEREFROM_COMPLETE"
_HARMLESS = re.compile(r"\w[\w.-]*")
"""A shell puts what it completes on the command line as it is, and an index may come from anywhere:
names with other characters, which a shell might act on, are for the user to write."""


_WHERE = """\b
bash  wherefrom completion bash > ~/.local/share/bash-completion/completions/wherefrom
zsh   wherefrom completion zsh > ~/.zfunc/_wherefrom    (in a folder of $fpath)
fish  wherefrom completion fish > ~/.config/fish/completions/wherefrom.fish
"""


@click.command(short_help="Print the script that completes commands in a shell.", epilog=_WHERE)
@click.argument("shell", metavar="SHELL", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print a script that has SHELL complete commands, options, and an index's columns.

    SHELL is bash, zsh or fish.
    """
    found = get_completion_class(shell)
    if found is None:
        raise click.UsageError(f"click has no completion for {shell}; take one of bash, zsh, fish")
    click.echo(found(click.Command(_PROGRAM), {}, _PROGRAM, _VARIABLE).source())


def complete_columns(
    context: click.Context, option: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Metadata columns of the index on the command line, each with its type.

    Args:
        context: Holds the arguments so far, ``index`` among them.
        option: That takes a column, or a filter, which starts with one.
        incomplete: What was typed of it.
    """
    # Before an option that still lacks its value, click leaves arguments among the words it has no
    # place for.
    index = context.params.get("index") or next(iter(context.args), None)
    return [
        CompletionItem(name, help=kind)
        for name, kind in _columns(index).items()
        if name.startswith(incomplete) and _HARMLESS.fullmatch(name)
    ]


def _columns(index: str | os.PathLike[str] | None) -> dict[str, str]:
    """Columns and their types as the manifest says; none where there is no such thing."""
    if index is None:
        return {}
    try:
        path = Path(index).expanduser() / "manifest.json"
        columns = json.loads(path.read_text(encoding="utf-8"))["metadata"]
        return {str(name): str(kind) for name, kind in columns.items()}
    except (OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError):
        return {}
