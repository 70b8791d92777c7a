"""Evaluations that train nothing again: ``fidelity``, ``mislabeled``, ``selftest``."""

from __future__ import annotations

from pathlib import Path

import click

from wherefrom.cli.evaluate_options import (
    Asked,
    Opened,
    Shown,
    asked_options,
    numbers,
    opened_options,
    seed_option,
    shown_options,
)
from wherefrom.cli.evaluate_report import evaluating, show_evidence

__all__ = ["fidelity", "mislabeled", "selftest"]

_INDEX = click.argument("index", type=click.Path(path_type=Path))


@click.command(short_help="Do the stored vectors keep the uncompressed scores?")
@_INDEX
@asked_options
@click.option(
    "-k",
    callback=numbers,
    metavar="LIST",
    help="Among how many of the best by stored scores to look for the true top 10; 10,100 by "
    "default.",
)
@click.option(
    "--no-layers",
    is_flag=True,
    help="Leave out what is told of each layer, which holds its scores of every document.",
)
@opened_options
@seed_option
@shown_options
def fidelity(
    index: Path,
    asked: Asked,
    k: tuple[int, ...] | None,
    no_layers: bool,
    opened: Opened,
    seed: int,
    shown: Shown,
) -> None:
    """Fidelity of INDEX: its stored scores against uncompressed ones, of every document.

    Nothing is trained again: this says what compression loses, not whether scores are true.
    """
    asked.require()
    with evaluating(shown):
        from wherefrom.cli.evaluate_subject import opened_index, read_asked
        from wherefrom.evaluation.fidelity import index_fidelity

        found = opened_index(index, opened)
        evidence = index_fidelity(
            found, read_asked(index, asked), k=k, by_layer=not no_layers, seed=seed
        )
    show_evidence(evidence, shown)


@click.command(short_help="Which documents look mislabeled, or out of place?")
@_INDEX
@click.option(
    "--truth",
    metavar="COLUMN",
    help="Metadata column that says of each document whether it is flawed, where that is known.",
)
@click.option(
    "--held-out",
    type=click.Path(allow_dash=True, path_type=Path),
    metavar="FILE",
    help="Trusted questions, as --queries of the other evaluations: rank by harm to them, too.",
)
@click.option(
    "--top",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    metavar="N",
    help="How many suspects to list.",
)
@opened_options
@seed_option
@shown_options
def mislabeled(
    index: Path,
    truth: str | None,
    held_out: Path | None,
    top: int,
    opened: Opened,
    seed: int,
    shown: Shown,
) -> None:
    """Suspects of INDEX: documents ranked by their influence on themselves.

    For a classifier those whose label may be wrong, with the label that the model would give; for
    other models unusual documents. Loss and gradient norm, which say much the same for less, stand
    beside it.
    """
    with evaluating(shown):
        from wherefrom.cli.evaluate_subject import opened_index, read_asked
        from wherefrom.evaluation.mislabeled import mislabeled_of_index

        asked = None if held_out is None else Asked(None, None, None, held_out)
        trusted = None if asked is None else read_asked(index, asked)
        evidence = mislabeled_of_index(
            opened_index(index, opened), truth=truth, held_out=trusted, show=top, seed=seed
        )
    show_evidence(evidence, shown)
    if not shown.as_json:
        from wherefrom.cli.evaluate_table import suspects_table
        from wherefrom.cli.render import terminal

        suspects_table(evidence, terminal(shown.width))


@click.command(short_help="Does this installation compute true scores? On digits, in a minute.")
@shown_options
def selftest(shown: Shown) -> None:
    """Check this installation: scores of small models of digits against retraining.

    Needs no index and no network, and takes about a minute. Exit status 1, and a line for each
    miss, where a figure is not what it should be.
    """
    with evaluating(shown) as progress:
        from wherefrom.evaluation.selftest import failures
        from wherefrom.evaluation.selftest import selftest as run

        evidence = run(progress)
    show_evidence(evidence, shown)
    missed = failures(evidence)
    for line in missed:
        click.echo(f"wherefrom: error: {line}", err=True)
    if missed:
        raise click.exceptions.Exit(1)
