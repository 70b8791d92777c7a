"""``wherefrom bundle``: answers as evidence, with a statement that can be signed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from wherefrom.cli.query_options import (
    Asked,
    answer_options,
    batch_options,
    gate_options,
    model_options,
    refuse,
    require_batch,
    require_consistent,
    wanted_options,
)
from wherefrom.records import SCORE_CONTRACT

if TYPE_CHECKING:
    from wherefrom.audit.entries import Entry
    from wherefrom.maintenance.index import Index

__all__ = ["BUNDLE_SCHEMA", "bundle"]

BUNDLE_SCHEMA = "wherefrom-bundle/1"
_ANSWERED = ("index", "answers", "out", "as_json")
"""What goes with answers that were given before; everything else is a way to ask."""


@click.command(
    short_help="Write answers as evidence that can be signed and checked.", epilog=SCORE_CONTRACT
)
@click.argument("index", type=click.Path(path_type=Path))
@batch_options
@click.option(
    "--answers",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Ask nothing: take what wherefrom query --jsonl wrote.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    metavar="PATH",
    help="The bundle: a new directory, or a zip file if the name ends so.",
)
@answer_options
@wanted_options
@gate_options
@model_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def bundle(ctx: click.Context, /, index: Path, **given: Any) -> None:
    """Ask INDEX and write the answers as evidence.

    The bundle holds the answers, a report, the index's manifest, versions, and an in-toto
    Statement with the SHA-256 of each, which standard tools sign. The same answers make the same
    bytes. Check it with wherefrom verify.

    Exit status, where questions are asked: 3 if a condition of --fail-if holds or cannot be
    decided; 1 if a question could not be answered. The bundle is written all the same.
    """
    sources = [name for name in ("batch", "inspect_log", "answers") if given[name] is not None]
    if len(sources) != 1:
        raise click.UsageError("give one of --batch, --inspect-log and --answers")
    if given["answers"] is not None:
        asking = [
            parameter.name
            for parameter in ctx.command.params
            if parameter.name is not None and parameter.name not in _ANSWERED
        ]
        refuse(ctx, asking, "is a way to ask, and so does not go with --answers; leave it out")
    require_consistent(ctx)
    require_batch(ctx)
    from wherefrom.audit.bundle import write_bundle
    from wherefrom.audit.contents import require_free
    from wherefrom.cli.batch import batch_summary, finish_batch
    from wherefrom.cli.render import emit_json
    from wherefrom.store import Manifest

    manifest = Manifest.read(index)
    require_free(given["out"])
    command = _command(ctx)
    asked = None
    if given["answers"] is not None:
        entries = _answered(given["answers"])
        statement = write_bundle(given["out"], entries, manifest, command=command)
    else:
        asked = Asked.checked(given, index, manifest)
        opened, entries = _ask(index, asked, given)
        statement = write_bundle(given["out"], entries, manifest, command=command, index=opened)
    if given["as_json"]:
        summary = {**batch_summary(entries), "schema": BUNDLE_SCHEMA}
        emit_json({**summary, "path": str(given["out"]), "statement_sha256": statement.digest})
    else:
        click.echo(
            f"{len(entries):,} questions and their answers are in {given['out']}; "
            f"statement SHA-256 {statement.digest}"
        )
    if asked is not None:
        finish_batch(ctx, entries, asked)


def _ask(index: Path, asked: Asked, given: Mapping[str, Any]) -> tuple[Index, list[Entry]]:
    """Ask the questions that are given."""
    from wherefrom.api import open as open_index
    from wherefrom.audit.asking import ask_all
    from wherefrom.cli.batch import BatchSource, collect
    from wherefrom.cli.failures import one_line_warnings
    from wherefrom.cli.gate import warn_unmatched

    source = BatchSource.checked(given)
    models = {name: given[name] for name in ("model", "base_model", "device")}
    opened = open_index(index, **models)
    batch = source.questions(opened)
    warn_unmatched(asked.fail_if, opened, asked.options["sign"])
    with one_line_warnings():
        entries = ask_all(opened, batch, asked.options, wanted=asked.wanted, fail_if=asked.fail_if)
        return opened, collect(entries, len(batch), None)


def _answered(path: Path) -> list[Entry]:
    """Answers that were given before.

    Raises:
        QueryError: The file cannot be read or is empty.
        IntegrityError: A line is no answer.
    """
    from wherefrom.audit.entries import read_entries
    from wherefrom.errors import QueryError

    try:
        with path.open("rb") as lines:
            entries = list(read_entries(lines, str(path)))
    except OSError as error:
        raise QueryError(
            f"cannot read {path}: {error.strerror}; give what wherefrom query --jsonl wrote"
        ) from error
    if not entries:
        raise QueryError(f"{path} holds no answer; give what wherefrom query --jsonl wrote")
    return entries


def _command(ctx: click.Context) -> list[str]:
    """How the answers came about: the command line, with names in the place of paths."""
    words = ["wherefrom", "bundle"]
    for parameter in ctx.command.params:
        given = ctx.get_parameter_source(str(parameter.name)) is not ParameterSource.DEFAULT
        if not given or parameter.name in ("out", "as_json"):
            continue
        value = ctx.params[str(parameter.name)]
        if isinstance(parameter, click.Argument):
            words.append(_name(value))
        elif isinstance(parameter, click.Option) and parameter.is_flag:
            words.append(parameter.opts[0])
        else:
            for one in value if parameter.multiple else (value,):
                text = _name(one) if parameter.name in ("model", "base_model") else one
                words += [parameter.opts[0], _name(text)]
    return words


def _name(value: object) -> str:
    return value.name or str(value) if isinstance(value, Path) else str(value)
