"""``wherefrom delete``: take documents out of an index."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from wherefrom.cli.completion import complete_columns
from wherefrom.errors import QueryError

__all__ = ["DELETE_SCHEMA", "delete"]

DELETE_SCHEMA = "wherefrom-delete/1"


@click.command(short_help="Take documents out of an index.")
@click.argument("index", type=click.Path(path_type=Path))
@click.option(
    "--doc-id",
    "doc_ids",
    multiple=True,
    metavar="ID",
    help="A document; that of one that was cut into passages stands for all of them. May be "
    "repeated.",
)
@click.option(
    "--ids",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="A file of ids in UTF-8, one a line, with all blanks that belong to them.",
)
@click.option(
    "--where",
    "clauses",
    multiple=True,
    metavar="FILTER",
    shell_complete=complete_columns,
    help='Or all documents that pass a filter, as "year<1900". May be repeated; all must hold.',
)
@click.option(
    "--purge",
    is_flag=True,
    help="Write the index anew, so that no file of it holds their texts or codes.",
)
@click.option(
    "--missing-ok",
    is_flag=True,
    help="Pass over ids that the index does not hold, and filters that nothing passes.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a summary.")
@click.option("--quiet", is_flag=True, help="Show no summary.")
def delete(
    index: Path,
    doc_ids: tuple[str, ...],
    ids: Path | None,
    clauses: tuple[str, ...],
    purge: bool,
    missing_ok: bool,
    yes: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Take documents out of INDEX. The model is not needed.

    Nobody finds them from then on, but their texts stay in its files until it is purged (--purge,
    which also takes out what was deleted before). The curvature keeps what it learnt from them.
    Without a terminal to ask at, say --yes.
    """
    from wherefrom.cli.changing import interruptible, tell_change
    from wherefrom.maintenance.delete import delete as delete_documents
    from wherefrom.store import Manifest, parse_wheres

    named = [*doc_ids, *(_read_ids(ids) if ids is not None else ())]
    if named and clauses:
        raise click.UsageError("--where stands alone: give ids (--doc-id, --ids) or a filter")
    if not (named or clauses or purge):
        raise click.UsageError("say what to delete: --doc-id or --ids, or else --where")
    chosen: dict[str, Any] = (
        {"where": parse_wheres(clauses, Manifest.read(index).metadata)}
        if clauses
        else {"doc_ids": named}
    )
    if not yes:
        _confirm(index, named, clauses, purge=purge)
    started = time.perf_counter()
    with interruptible(index, "run the same command again"):
        change = delete_documents(index, purge=purge, missing_ok=missing_ok, **chosen)
    tell_change(index, change, DELETE_SCHEMA, started, as_json=as_json, quiet=quiet)


def _read_ids(file: Path) -> list[str]:
    try:
        # Ids are any text: only what ends a line of a file ends one, and blanks belong to them.
        lines = file.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise QueryError(f"{file} cannot be read ({error}); give a file of ids, one a line") from (
            error
        )
    found = [line for line in lines if line]
    if not found:
        raise QueryError(f"{file} holds no ids; write one a line")
    return found


def _confirm(index: Path, named: Sequence[str], clauses: Sequence[str], *, purge: bool) -> None:
    """Ask before anything goes.

    Raises:
        UsageError: There is nobody to ask.
        Abort: The answer is no.
    """
    count = f"{len(named)} document{'' if len(named) == 1 else 's'}"
    what = f"all documents with {' and '.join(clauses)}" if clauses else count
    if not named and not clauses:
        what = "for good what was deleted before"
    if not sys.stdin.isatty():
        raise click.UsageError(f"this deletes {what}; say --yes")
    click.confirm(
        f"Delete {what} from {index}{' for good' if purge else ''}?", abort=True, err=True
    )
