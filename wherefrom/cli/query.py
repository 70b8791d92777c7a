"""``wherefrom query``: ask an index which documents made the model say something."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from wherefrom.cli import values
from wherefrom.cli.accelerate import KINDS
from wherefrom.records import SCORE_CONTRACT, Reduce

__all__ = ["BACKENDS", "query"]

BACKENDS = ("scan", *KINDS)

_UNSWEPT = (
    "sign",
    "clauses",
    "normalise",
    "rerank",
    "rerank_seconds",
    "candidates",
    "damping",
    "refine",
    "refine_damping",
    "refine_documents",
    "backend",
    "html",
)
"""What a sweep over dampings, of both signs and of all documents' stored scores, leaves undone."""


@click.command(
    short_help="Ask which documents made the model say something.", epilog=SCORE_CONTRACT
)
@click.argument("index", type=click.Path(path_type=Path))
@click.option(
    "--prompt",
    callback=values.valid_unicode,
    help="What the model was given, empty by default; for a classifier, the text.",
)
@click.option(
    "--completion",
    callback=values.valid_unicode,
    help="What it said; for a classifier, the label. Prompt and completion are joined as they are: "
    "mind the space between them.",
)
@click.option(
    "--contrast",
    callback=values.valid_unicode,
    help="What it might have said instead: scores are then of the completion's log-likelihood "
    "minus that of the contrast.",
)
@click.option(
    "--queries",
    type=click.Path(allow_dash=True, path_type=Path),
    metavar="FILE",
    help="Ask about many outputs as one, in place of the three above: JSON lines with completion "
    "and, as needed, prompt and contrast; - is standard input.",
)
@click.option(
    "--reduce",
    type=click.Choice(["mean", "sum"]),
    help="How --queries become one: the mean of what they measure (the default) or the sum.",
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
    "--normalise",
    type=click.Choice(["none", "cosine", "relatif"]),
    default="none",
    show_default=True,
    help="Rank by scores, by cosines in the whitened space, or by scores divided by the documents' "
    "norms (l-RelatIF), which keeps long and unusual documents from crowding out the rest.",
)
@click.option(
    "--rerank",
    type=click.Choice(["auto", "stored", "recompute"]),
    default="auto",
    show_default=True,
    help="Show scores of the stored vectors, or run the best documents again for exact ones; auto "
    "does so where it fits --rerank-seconds.",
)
@click.option(
    "--rerank-seconds",
    callback=values.seconds,
    default="5",
    show_default=True,
    metavar="SECONDS",
    help="What auto may take, by the speed that the build measured.",
)
@click.option(
    "--candidates",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    metavar="N",
    help="How many documents of each sign to run again.",
)
@click.option(
    "--damping",
    callback=values.damping,
    metavar="NUMBER",
    help="Another damping than the index's, in units of a layer's mean eigenvalue.",
)
@click.option(
    "--refine",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="STEPS",
    help="Refine the query by so many steps of conjugate gradients on the Gauss-Newton matrix of "
    "all layers; each runs the documents forward, twice, and backward. 5 will do as a rule.",
)
@click.option(
    "--refine-damping",
    callback=values.damping,
    metavar="NUMBER",
    help="Damping of that matrix, in units of the mean eigenvalue of all layers.",
)
@click.option(
    "--refine-documents",
    type=click.IntRange(min=1),
    metavar="N",
    help="On how many documents, drawn at random, that matrix stands; all by default. Those it "
    "does not know come out too large.",
)
@click.option(
    "--backend",
    type=click.Choice(BACKENDS),
    default="scan",
    show_default=True,
    help="What proposes candidates: the scan of all vectors, or what wherefrom accelerate made. "
    "Scores do not depend on it.",
)
@click.option(
    "--sweep-damping",
    is_flag=True,
    help="Show how stable the ranking is from a tenth to ten times the index's damping, instead of "
    "the answer.",
)
@click.option(
    "--dampings",
    callback=values.dampings,
    metavar="LIST",
    help="Show how stable the ranking is under these dampings, as 0.01,0.1,1, instead of the "
    "answer.",
)
@click.option(
    "--model",
    metavar="DIR",
    help="The model (or adapter) that the index was built with; by default where the index says "
    "it is.",
)
@click.option(
    "--base-model",
    metavar="DIR",
    help="The model that the adapter is for; by default where the index says it is.",
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
@click.pass_context
def query(
    ctx: click.Context,
    /,
    index: Path,
    prompt: str | None,
    completion: str | None,
    contrast: str | None,
    queries: Path | None,
    reduce: Reduce | None,
    k: int,
    clauses: tuple[str, ...],
    sweep_damping: bool,
    dampings: tuple[float, ...] | None,
    model: str | None,
    base_model: str | None,
    device: str,
    as_json: bool,
    html: Path | None,
    width: int | None,
    **options: Any,
) -> None:
    """Ask INDEX which documents made the model say COMPLETION after PROMPT.

    Scores are in nats of the completion's log-likelihood per added copy of a document. A positive
    score marks a proponent: with one more copy of it the completion gets more likely.
    """
    # A process that lives for seconds keeps what little garbage it makes.
    gc.disable()
    _require_one_question(prompt, completion, contrast, queries, reduce)
    sweep = sweep_damping or dampings is not None
    if sweep:
        _refuse(ctx, _UNSWEPT, "does not go with a sweep over dampings; leave it out")
    _require_consistent(ctx, options)
    from wherefrom.cli.failures import one_line_warnings
    from wherefrom.cli.query_file import read_queries
    from wherefrom.cli.render import answer_table, emit_json, terminal
    from wherefrom.cli.stability import sweep_table
    from wherefrom.store import Manifest, find_accelerator, parse_wheres

    # Mistakes in the index's path, the filter, the backend or the file show here, before torch
    # takes its seconds to load.
    manifest = Manifest.read(index)
    where = parse_wheres(clauses, manifest.metadata)
    if options["backend"] != "scan":
        find_accelerator(options["backend"], manifest.accelerators, index)
    asked: dict[str, Any] = {"prompt": prompt or "", "completion": completion, "contrast": contrast}
    if queries is not None:
        asked = {"queries": read_queries(queries), "reduce": reduce or "mean"}

    from wherefrom.api import open as open_index

    opened = open_index(index, model=model, base_model=base_model, device=device)
    if sweep:
        found = opened.sweep_damping(**asked, dampings=dampings, k=k)
        if as_json:
            emit_json(found.to_dict())
        else:
            sweep_table(found, terminal(width))
        return
    with one_line_warnings():
        answer = opened.query(**asked, k=k, where=where, **options)
    if as_json:
        emit_json(answer.to_dict())
    else:
        answer_table(answer, terminal(width))
    if html is not None:
        click.echo(f"Report: {answer.to_html(html)}", err=True)


def _require_one_question(
    prompt: str | None,
    completion: str | None,
    contrast: str | None,
    queries: Path | None,
    reduce: Reduce | None,
) -> None:
    """Refuse a question that is asked in two ways, or in none."""
    if queries is None:
        if completion is None:
            raise click.UsageError("give --completion (and --prompt), or --queries")
        if reduce is not None:
            raise click.UsageError("--reduce goes with --queries; leave it out")
        return
    given = {"--prompt": prompt, "--completion": completion, "--contrast": contrast}
    for name, value in given.items():
        if value is not None:
            raise click.UsageError(f"{name} does not go with --queries; write it into the file")


def _require_consistent(ctx: click.Context, options: dict[str, Any]) -> None:
    """Refuse options that another one leaves without effect, or that exclude each other."""
    if options["refine"]:
        _refuse(ctx, ["damping"], "does not go with --refine; give --refine-damping")
    else:
        _refuse(ctx, ["refine_damping", "refine_documents"], "goes with --refine; give its steps")
    if options["rerank"] == "stored":
        _refuse(
            ctx,
            ["candidates", "rerank_seconds"],
            "goes with recomputing; leave --rerank stored out",
        )
    if options["normalise"] != "none" and options["backend"] != "scan":
        _refuse(ctx, ["backend"], "ranks by scores and so does not go with --normalise")


def _refuse(ctx: click.Context, names: Sequence[str], why: str) -> None:
    """Refuse options that were given."""
    for parameter in ctx.command.params:
        if parameter.name not in names:
            continue
        if ctx.get_parameter_source(parameter.name) is not ParameterSource.DEFAULT:
            raise click.UsageError(f"{parameter.opts[0]} {why}")
