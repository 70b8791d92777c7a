"""Options that ``wherefrom query`` and ``wherefrom bundle`` share, in the order of their help."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from wherefrom.cli import values
from wherefrom.cli.accelerate import KINDS
from wherefrom.cli.completion import complete_columns
from wherefrom.errors import FilterError

if TYPE_CHECKING:
    from wherefrom.audit.entries import Wanted
    from wherefrom.store import Manifest

__all__ = [
    "BACKENDS",
    "Asked",
    "answer_options",
    "batch_options",
    "gate_options",
    "model_options",
    "refuse",
    "require_batch",
    "require_consistent",
    "wanted_options",
]

BACKENDS = ("scan", *KINDS)

_ANSWER = (
    "k",
    "sign",
    "normalise",
    "rerank",
    "rerank_seconds",
    "candidates",
    "damping",
    "refine",
    "refine_damping",
    "refine_documents",
    "backend",
)
_Command = TypeVar("_Command", bound=Callable[..., Any])


def _in_order(*options: Callable[[Any], Any]) -> Callable[[_Command], _Command]:
    """One decorator for several options; the first stands first in the help."""

    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


batch_options = _in_order(
    click.option(
        "--batch",
        type=click.Path(allow_dash=True, path_type=Path),
        metavar="FILE",
        help="Ask many questions, each by itself: JSON lines with completion and, as needed, "
        "prompt, contrast, an id and further fields, which are carried through; - is standard "
        "input.",
    ),
    click.option(
        "--inspect-log",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="The same for the outputs in a log of Inspect (.eval or .json).",
    ),
    click.option(
        "--incorrect", is_flag=True, help="Of such a log, wrong and missing answers only."
    ),
    click.option("--scorer", metavar="NAME", help="By which scorer, where the log has several."),
)
"""Many questions."""

answer_options = _in_order(
    click.option(
        "-k",
        type=click.IntRange(min=1),
        default=10,
        metavar="N",
        show_default=True,
        help="At most how many proponents and how many opponents.",
    ),
    click.option(
        "--sign",
        type=click.Choice(["both", "proponents", "opponents"]),
        default="both",
        show_default=True,
        help="Proponents have positive scores, opponents negative ones.",
    ),
    click.option(
        "--where",
        "clauses",
        multiple=True,
        metavar="FILTER",
        shell_complete=complete_columns,
        help='Search some documents only: "year<1900", "party in Whig,Democratic", "party is '
        'missing". May be repeated; all must hold.',
    ),
    click.option(
        "--normalise",
        type=click.Choice(["none", "cosine", "relatif"]),
        default="none",
        show_default=True,
        help="Rank by scores, by cosines in the whitened space, or by scores divided by the "
        "documents' norms (l-RelatIF), which keeps long and unusual documents from crowding out "
        "the rest.",
    ),
    click.option(
        "--rerank",
        type=click.Choice(["auto", "stored", "recompute"]),
        default="auto",
        show_default=True,
        help="Show scores of the stored vectors, or run the best documents again for exact ones; "
        "auto does so where it fits --rerank-seconds.",
    ),
    click.option(
        "--rerank-seconds",
        callback=values.seconds,
        default="5",
        show_default=True,
        metavar="SECONDS",
        help="What auto may take, by the speed that the build measured.",
    ),
    click.option(
        "--candidates",
        type=click.IntRange(min=1),
        default=100,
        show_default=True,
        metavar="N",
        help="How many documents of each sign to run again.",
    ),
    click.option(
        "--damping",
        callback=values.damping,
        metavar="NUMBER",
        help="Another damping than the index's, in units of a layer's mean eigenvalue.",
    ),
    click.option(
        "--refine",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        metavar="STEPS",
        help="Refine the query by so many steps of conjugate gradients on the Gauss-Newton matrix "
        "of all layers; each runs the documents forward, twice, and backward. 5 will do as a rule.",
    ),
    click.option(
        "--refine-damping",
        callback=values.damping,
        metavar="NUMBER",
        help="Damping of that matrix, in units of the mean eigenvalue of all layers.",
    ),
    click.option(
        "--refine-documents",
        type=click.IntRange(min=1),
        metavar="N",
        help="On how many documents, drawn at random, that matrix stands; all by default. Those it "
        "does not know come out too large.",
    ),
    click.option(
        "--backend",
        type=click.Choice(BACKENDS),
        default="scan",
        show_default=True,
        help="What proposes candidates: the scan of all vectors, or what wherefrom accelerate "
        "made. Scores do not depend on it.",
    ),
)
"""How to answer: the options of :class:`~wherefrom.query.options.QueryOptions`."""

wanted_options = _in_order(
    click.option(
        "--explain",
        is_flag=True,
        help="Also tell what each hit's score is made of, by layer and by token.",
    ),
    click.option(
        "--similar",
        "similarity",
        is_flag=True,
        help="Also tell how alike hits and question are in words, and name the documents that are "
        "most like it.",
    ),
    click.option(
        "--group-by",
        multiple=True,
        metavar="COLUMN",
        shell_complete=complete_columns,
        help="Also sum the influence of all documents by a metadata column; one of numbers in "
        "bins, as year:10. May be repeated.",
    ),
)
"""What else to tell of an answer."""

gate_options = _in_order(
    click.option(
        "--fail-if",
        multiple=True,
        metavar="CONDITION",
        help="End with exit status 3 if this holds of a hit, as \"proponent.source == 'blocked' "
        'and percentile > 99", or of the answer, as "answer.certified == false"; and if it cannot '
        "be decided. Sees the -k hits of a sign only. May be repeated; any one will do.",
    ),
)
"""Conditions that stop a pipeline."""

model_options = _in_order(
    click.option(
        "--model",
        metavar="DIR",
        help="The model (or adapter) that the index was built with; by default where the index "
        "says it is.",
    ),
    click.option(
        "--base-model",
        metavar="DIR",
        help="The model that the adapter is for; by default where the index says it is.",
    ),
    click.option(
        "--device", metavar="NAME", default="auto", show_default=True, help="auto, cpu, cuda, ..."
    ),
)
"""The model to ask."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the options come to.

    Attributes:
        options: Arguments of :meth:`wherefrom.Index.query` but for the question.
        wanted: What else to tell of answers.
        fail_if: Conditions of the gate.
        gate_sees_hits: Whether one of them is about hits.
    """

    options: dict[str, Any]
    wanted: Wanted
    fail_if: tuple[str, ...]
    gate_sees_hits: bool

    @classmethod
    def checked(cls, given: Mapping[str, Any], index: Path, manifest: Manifest) -> Asked:
        """Check options against an index, before its model is loaded.

        Raises:
            FilterError: A filter, a condition or a column does not fit the index.
            QueryError: The backend was not made.
        """
        from wherefrom.audit.entries import Wanted
        from wherefrom.audit.gate import Gate
        from wherefrom.store import find_accelerator, parse_wheres

        options = {name: given[name] for name in _ANSWER}
        options["where"] = parse_wheres(given["clauses"], manifest.metadata)
        if options["backend"] != "scan":
            find_accelerator(options["backend"], manifest.accelerators, index)
        gate = Gate.parse(given["fail_if"], manifest.metadata, options["sign"])
        sees_hits = any(condition.hits is not None for condition in gate.conditions)
        group_by = dict(_column_and_bins(text, manifest) for text in given["group_by"])
        wanted = Wanted(given["explain"], given["similarity"], group_by)
        return cls(options, wanted, given["fail_if"], sees_hits)


def _column_and_bins(text: str, manifest: Manifest) -> tuple[str, int | None]:
    """What to group by: a column, or a column and a number of bins.

    Raises:
        FilterError: There is no such column.
    """
    column, _, bins = text.rpartition(":")
    if text not in manifest.metadata and column in manifest.metadata and bins.isdecimal():
        return column, int(bins)
    if text not in manifest.metadata:
        raise FilterError(
            f"no metadata column {text!r} to group by; the index has "
            f"{', '.join(manifest.metadata) or 'none'}"
        )
    return text, None


def require_batch(ctx: click.Context) -> None:
    """Refuse choices among the samples of a log that is not given.

    Raises:
        UsageError: There are such.
    """
    if ctx.params["inspect_log"] is None:
        refuse(ctx, ["incorrect", "scorer"], "goes with --inspect-log; leave it out")
    elif not ctx.params["incorrect"]:
        refuse(ctx, ["scorer"], "goes with --incorrect; leave it out")


def require_consistent(ctx: click.Context) -> None:
    """Refuse options that another one leaves without effect, or that exclude each other.

    Raises:
        UsageError: There are such.
    """
    given = ctx.params
    if given["refine"]:
        refuse(ctx, ["damping"], "does not go with --refine; give --refine-damping")
    else:
        refuse(ctx, ["refine_damping", "refine_documents"], "goes with --refine; give its steps")
    if given["rerank"] == "stored":
        refuse(
            ctx,
            ["candidates", "rerank_seconds"],
            "goes with recomputing; leave --rerank stored out",
        )
    if given["normalise"] != "none" and given["backend"] != "scan":
        refuse(ctx, ["backend"], "ranks by scores and so does not go with --normalise")


def refuse(ctx: click.Context, names: Sequence[str], why: str) -> None:
    """Refuse options that were given.

    Raises:
        UsageError: One was.
    """
    for parameter in ctx.command.params:
        if parameter.name not in names:
            continue
        if ctx.get_parameter_source(parameter.name) is not ParameterSource.DEFAULT:
            raise click.UsageError(f"{parameter.opts[0]} {why}")
