"""``wherefrom verify``: whether a bundle of evidence is what it says, or an index what it was."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wherefrom.cli.query_options import model_options, refuse
from wherefrom.cli.verify_index import is_index, verify_index

if TYPE_CHECKING:
    from wherefrom.audit.recomputation import Recomputation
    from wherefrom.audit.verification import Bundle, Problem

__all__ = ["VERIFY_SCHEMA", "verify"]

VERIFY_SCHEMA = "wherefrom-verify/1"


@click.command(short_help="Check a bundle of evidence, or an index, and repair it.")
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--index",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The index that was asked: compare its manifest, ask all questions again, and compare the "
    "answers to the last bit.",
)
@click.option(
    "--digests-only",
    is_flag=True,
    help="Load no model: of a bundle, compare the index's manifest, but ask nothing again; of an "
    "index, encode nothing again.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0.0, max=1.0),
    metavar="NUMBER",
    help="Let scores differ by so much of an answer's largest one, as 1e-6, for another machine "
    "rounds otherwise.",
)
@click.option(
    "--statement-sha256",
    metavar="HEX",
    help="What wherefrom bundle told when it made the bundle.",
)
@click.option(
    "--batch",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The questions that were asked: none may be missing, more, or another one.",
)
@click.option(
    "--fail-if",
    multiple=True,
    metavar="CONDITION",
    help="A condition that all answers must have been held against. Give all of them.",
)
@click.option(
    "--other-version",
    is_flag=True,
    help="Let a report pass that another version of wherefrom wrote, which cannot be made again to "
    "compare.",
)
@click.option(
    "--sample",
    type=click.IntRange(min=0),
    default=64,
    show_default=True,
    help="Of an index: so many documents are encoded again and compared with what is stored.",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Of an index: of their choice."
)
@click.option(
    "--repair",
    is_flag=True,
    help="Of an index: make again what can be made from what is whole, and publish it.",
)
@model_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def verify(ctx: click.Context, /, path: Path, **given: Any) -> None:
    """Check the index or the bundle at PATH.

    Everything that does not fit is named, a line each on stderr; the exit status is then 1.

    Of an index, every file, every document and every copy of it is compared with its digest, and a
    sample of the documents is encoded again by the model. It works where an index cannot be opened
    any more.

    A bundle is a directory or a zip file that wherefrom bundle wrote.

    Who changes all files of a bundle alike makes another bundle. Asking again (--index) finds
    changed answers in it, but not that a question was left out, or a gate: for that compare with
    what you know (--statement-sha256, --batch, --fail-if), or sign the statement. Signatures are
    checked with the tool that made them.
    """
    if is_index(path):
        names = ["index", "tolerance", "statement_sha256", "batch", "fail_if", "other_version"]
        refuse(ctx, names, f"is for bundles, and {path} is an index; leave it out")
        if not verify_index(path, given):
            ctx.exit(1)
        return
    refuse(ctx, ["sample", "seed", "repair"], f"is for an index, which {path} is not")
    if given["index"] is None:
        names = ["digests_only", "tolerance", "model", "base_model", "device"]
        refuse(ctx, names, "goes with --index; name the index that was asked")
    if given["digests_only"]:
        names = ["tolerance", "model", "base_model", "device"]
        refuse(ctx, names, "is for asking again; leave --digests-only out")
    from wherefrom.audit.verification import Problem, read_bundle
    from wherefrom.cli.render import emit_json
    from wherefrom.store import Manifest

    bundle = read_bundle(path, other_version=given["other_version"])
    problems = [*bundle.problems, *_unexpected(bundle, given)]
    again = None
    if given["index"] is not None:
        manifest = Manifest.read(given["index"])
        if bundle.manifest is not None and manifest.digest != bundle.manifest.digest:
            detail = "is not the index that was asked: its manifest is another one"
            problems.append(Problem("index", str(given["index"]), detail))
        elif not problems and not given["digests_only"]:
            again = _ask_again(bundle, given)
            problems += again.problems
    if given["as_json"]:
        emit_json(_summary(bundle, problems, again))
    else:
        asked = given["index"] is not None and not given["digests_only"]
        _tell(bundle, problems, again, asked=asked)
    if problems:
        ctx.exit(1)


def _unexpected(bundle: Bundle, given: dict[str, Any]) -> list[Problem]:
    """Where the bundle is not what the user knows of it."""
    from wherefrom.audit.verification import unexpected
    from wherefrom.cli.query_file import read_batch

    return unexpected(
        bundle,
        statement_sha256=given["statement_sha256"],
        questions=None if given["batch"] is None else read_batch(given["batch"]),
        fail_if=given["fail_if"] or None,
    )


def _ask_again(bundle: Bundle, given: dict[str, Any]) -> Recomputation:
    from wherefrom.api import open as open_index
    from wherefrom.audit.recomputation import recompute
    from wherefrom.cli.failures import one_line_warnings
    from wherefrom.cli.progress import progress_bars

    models = {name: given[name] for name in ("model", "base_model", "device")}
    index = open_index(given["index"], **models)
    with one_line_warnings(), progress_bars() as progress:
        return recompute(index, bundle.entries, tolerance=given["tolerance"], progress=progress)


def _summary(
    bundle: Bundle, problems: list[Problem], again: Recomputation | None
) -> dict[str, Any]:
    """What was found, as plain values."""
    asked_again = None
    if again is not None:
        asked_again = {
            "answers": again.answers,
            "identical": again.identical,
            "largest_difference": again.largest_difference,
        }
    return {
        "schema": VERIFY_SCHEMA,
        "path": str(bundle.path),
        "ok": not problems,
        "problems": [asdict(problem) for problem in problems],
        "questions": len(bundle.entries),
        "unaskable": _unaskable(bundle),
        "manifest_sha256": None if bundle.manifest is None else bundle.manifest.digest,
        "statement_sha256": bundle.statement_sha256,
        "signatures": list(bundle.signatures),
        "report_checked": bundle.report_checked,
        "asked_again": asked_again,
    }


def _tell(
    bundle: Bundle, problems: list[Problem], again: Recomputation | None, *, asked: bool
) -> None:
    """Say what was found, problems on stderr, and what was not looked for though it was asked."""
    from wherefrom.query.printable import printable

    for problem in problems:
        line = printable(f"{problem.where} {problem.detail}")
        click.echo(f"wherefrom: verify: {problem.kind}: {line}", err=True)
    for name in bundle.signatures:
        click.echo(f"{name} is there; check it with the tool that made it.", err=True)
    if not problems and not bundle.report_checked:
        click.echo("report.html was not compared: another version of wherefrom wrote it.", err=True)
    if problems:
        count = "1 thing does" if len(problems) == 1 else f"{len(problems):,} things do"
        rest = "; nothing was asked again" if asked and again is None else ""
        click.echo(f"{printable(str(bundle.path))} is not what it says: {count} not fit{rest}.")
        return
    if unaskable := _unaskable(bundle):
        click.echo(
            f"{unaskable:,} on record could not be asked in the first place, which nothing here "
            "can check: a signature alone vouches for it.",
            err=True,
        )
    if again is None:
        told = f"files and statement fit together, {len(bundle.entries):,} questions; none was "
        told += "asked again"
    elif again.identical == again.answers:
        told = f"{again.answers:,} questions asked again, all with the same answers to the last bit"
    else:
        told = (
            f"{again.answers:,} questions asked again, {again.identical:,} with the same answers "
            "to the last bit, the others' scores within "
            f"{again.largest_difference:.2g} of the largest"
        )
    click.echo(f"{printable(str(bundle.path))}: {told}.")


def _unaskable(bundle: Bundle) -> int:
    """How many outputs are on record that were never asked about, and cannot be checked."""
    return sum(entry.query is None for entry in bundle.entries)
