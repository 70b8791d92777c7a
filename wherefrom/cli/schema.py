"""``wherefrom schema``: print the JSON Schema of answers."""

from __future__ import annotations

import click

__all__ = ["schema"]


@click.command(short_help="Print the JSON Schema of answers.")
def schema() -> None:
    """Print the JSON Schema (draft 2020-12) of what ``query --json`` prints.

    Any validator of JSON Schema checks an answer against it; an answer says by ``schema`` which
    version it is of.
    """
    from wherefrom.query.export.schema import answer_schema

    click.echo(answer_schema(), nl=False)
