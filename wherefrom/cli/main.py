"""The ``wherefrom`` command: its group, loaded piece by piece, and the one place errors end up in.

Exit status: 0 done, 1 failed (one line on stderr says why and what to do), 2 wrong usage, 3 stopped
by a gate, 130 interrupted.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Any

import click

from wherefrom import __version__
from wherefrom.cli.failures import one_line_failures
from wherefrom.cli.startup import prepare_process
from wherefrom.records import SCORE_CONTRACT

__all__ = ["commands", "main"]

_COMMANDS = {
    "demo": "wherefrom.cli.demo:demo",
    "build": "wherefrom.cli.build:build",
    "query": "wherefrom.cli.query:query",
    "info": "wherefrom.cli.info:info",
    "append": "wherefrom.cli.append:append",
    "delete": "wherefrom.cli.delete:delete",
    "compact": "wherefrom.cli.compact:compact",
    "publish": "wherefrom.cli.publish:publish",
    "fetch": "wherefrom.cli.publish:fetch",
    "accelerate": "wherefrom.cli.accelerate:accelerate",
    "evaluate": "wherefrom.cli.evaluate:evaluate",
    "bundle": "wherefrom.cli.bundle:bundle",
    "verify": "wherefrom.cli.verify:verify",
    "serve": "wherefrom.cli.serve:serve",
    "schema": "wherefrom.cli.schema:schema",
    "completion": "wherefrom.cli.completion:completion",
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are named.

    Args:
        homes: ``module:attribute`` of each command, in the order of the help page.
        attributes: As for :class:`click.Group`.
    """

    def __init__(self, *, homes: Mapping[str, str], **attributes: Any) -> None:
        super().__init__(**attributes)
        self._homes = dict(homes)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands."""
        return list(self._homes)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; ``None`` if there is none of that name."""
        if cmd_name not in self._homes:
            return None
        module, attribute = self._homes[cmd_name].split(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; one that is misspelt is told from those that are nearly so.

        Raises:
            UsageError: There is no such command.
        """
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = get_close_matches(args[0], self._homes, n=1)
            if near:
                told = f"{error.message} Did you mean '{near[0]}'?"
                raise click.UsageError(told, ctx) from error
            raise

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what it fails with becomes one line."""
        with one_line_failures():
            return super().invoke(ctx)


@click.group(
    cls=LazyGroup,
    homes=_COMMANDS,
    epilog=SCORE_CONTRACT,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="wherefrom", message="%(prog)s %(version)s")
def commands() -> None:
    """Which training documents made this model say that?

    Index the documents once by their influence on a model, then ask which of them made a
    completion more likely (proponents) or less likely (opponents).
    """
    prepare_process()


def main() -> None:
    """Entry point of the ``wherefrom`` script.

    Raises:
        SystemExit: Always, with the exit status.
    """
    commands(prog_name="wherefrom")
