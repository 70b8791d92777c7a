"""``wherefrom query``: ask an index which documents made the model say something."""

from __future__ import annotations

import gc
from pathlib import Path

import click

from wherefrom.records import SCORE_CONTRACT, Sign

__all__ = ["query"]


def _valid_unicode(context: click.Context, option: click.Parameter, value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise click.BadParameter("not valid UTF-8; check the terminal's encoding") from error
    return value


@click.command(
    short_help="Ask which documents made the model say something.", epilog=SCORE_CONTRACT
)
@click.argument("index", type=click.Path(path_type=Path))
@click.option(
    "--prompt",
    default="",
    callback=_valid_unicode,
    help="What the model was given; empty by default.",
)
@click.option(
    "--completion",
    required=True,
    callback=_valid_unicode,
    help="What it said. Prompt and completion are joined as they are: mind the space between them.",
)
@click.option(
    "-k",
    type=click.IntRange(min=1),
    default=10,
    metavar="N",
    show_default=True,
    help="At most how many proponents and how many opponents.",
)
@click.option(
    "--sign",
    type=click.Choice(["both", "proponents", "opponents"]),
    default="both",
    show_default=True,
    help="Proponents have positive scores, opponents negative ones.",
)
@click.option(
    "--where",
    "clauses",
    multiple=True,
    metavar="FILTER",
    help='Search some documents only: "year<1900", "party in Whig,Democratic", "party is missing". '
    "May be repeated; all must hold.",
)
@click.option(
    "--model",
    metavar="DIR",
    help="The model that the index was built with; by default where the index says it is.",
)
@click.option(
    "--device", metavar="NAME", default="auto", show_default=True, help="auto, cpu, cuda, ..."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@click.option(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Also write a self-contained HTML report.",
)
@click.option(
    "--width",
    type=click.IntRange(min=40),
    metavar="COLUMNS",
    help="Width of the tables; that of the terminal by default.",
)
def query(
    index: Path,
    prompt: str,
    completion: str,
    k: int,
    sign: Sign,
    clauses: tuple[str, ...],
    model: str | None,
    device: str,
    as_json: bool,
    html: Path | None,
    width: int | None,
) -> None:
    """Ask INDEX which documents made the model say COMPLETION after PROMPT.

    Scores are in nats of the completion's log-likelihood per added copy of a document. A positive
    score marks a proponent: with one more copy of it the completion gets more likely.
    """
    # A process that lives for seconds keeps what little garbage it makes.
    gc.disable()
    from wherefrom.cli.render import answer_table, emit_json, terminal
    from wherefrom.store import Manifest, parse_wheres

    # Mistakes in the index's path or the filter show here, before torch takes its seconds to load.
    where = parse_wheres(clauses, Manifest.read(index).metadata)

    from wherefrom.api import open as open_index

    opened = open_index(index, model=model, device=device)
    answer = opened.query(prompt=prompt, completion=completion, k=k, sign=sign, where=where)
    if as_json:
        emit_json(answer.to_dict())
    else:
        answer_table(answer, terminal(width))
    if html is not None:
        click.echo(f"Report: {answer.to_html(html)}", err=True)
