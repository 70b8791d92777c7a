"""``wherefrom evaluate pbrf``: responses of the trained weights, and beside them leave-one-out."""

from __future__ import annotations

from pathlib import Path

import click

from wherefrom.cli import values
from wherefrom.cli.evaluate_options import (
    Asked,
    Compared,
    Opened,
    Retrained,
    Shown,
    asked_options,
    choose_option,
    compared_options,
    opened_options,
    retrained_options,
    seed_option,
    shown_options,
)
from wherefrom.cli.evaluate_report import evaluating, resumable, show_evidence

__all__ = ["pbrf"]


@click.command(short_help="Do scores foretell what moving the trained weights a little does?")
@click.argument("index", type=click.Path(path_type=Path))
@asked_options
@click.option(
    "--documents",
    type=click.IntRange(min=1),
    default=25,
    show_default=True,
    metavar="N",
    help="How many documents to up-weight, one at a time.",
)
@choose_option
@click.option(
    "--step",
    type=float,
    default=1.0,
    show_default=True,
    metavar="COPIES",
    help="Copies to add; -1 leaves the document out.",
)
@click.option(
    "--damping",
    callback=values.damping,
    metavar="NUMBER",
    help="One damping for all layers, in units of their mean eigenvalue; each layer's own by "
    "default, as the index has it.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0, max=1, min_open=True, max_open=True),
    default=1e-2,
    show_default=True,
    metavar="SHARE",
    help="What may be left of the gradient at the minimum; or, on a kink of ReLUs, of the root of "
    "what ten steps still gain.",
)
@click.option(
    "--most",
    type=click.IntRange(min=1),
    default=2000,
    show_default=True,
    metavar="N",
    help="After how many passes over all documents to give a response up.",
)
@click.option(
    "--leave-one-out",
    is_flag=True,
    help="Also train without each of these documents, so that the gap between the two is seen; "
    "takes --train or --base-model.",
)
@retrained_options
@compared_options
@opened_options
@seed_option
@shown_options
def pbrf(
    index: Path,
    asked: Asked,
    documents: int,
    choose: str,
    step: float,
    damping: float | None,
    tolerance: float,
    most: int,
    leave_one_out: bool,
    retrained: Retrained,
    compared: Compared,
    opened: Opened,
    seed: int,
    shown: Shown,
) -> None:
    """Proximal Bregman responses of INDEX: what influence of a network does foretell.

    From the trained weights, minimises the proximal Bregman objective with a document up-weighted
    (Bae et al. 2022) and compares the change with scores. Takes tens of passes over all documents
    for each. Leaving the documents out is another thing, and trains anew: see `loo`.
    """
    asked.require()
    compared.require()
    if leave_one_out:
        retrained.require(opened)
    with evaluating(shown) as progress:
        from wherefrom.cli.evaluate_subject import (
            chosen_documents,
            noting_choice,
            prepare,
            reference,
            require_documents,
        )
        from wherefrom.evaluation.agreement import require_changes
        from wherefrom.evaluation.evidence import beside
        from wherefrom.evaluation.leave_out import leave_out, one_document_each
        from wherefrom.evaluation.pbrf import proximal_bregman, proximal_responses

        require_changes(documents)
        work = prepare(index, asked, opened)
        require_documents(documents, len(work.subject))
        retrainer = work.retrainer(opened, retrained, progress) if leave_one_out else None
        scores = work.scores(compared, seed)
        chosen = chosen_documents(scores, documents, choose, seed)
        responses = proximal_responses(
            work.subject,
            chosen,
            work.index.curvature,
            damping=damping,
            step=step,
            tolerance=tolerance,
            most=most,
            progress=lambda done, total: progress("responses", done, total),
        )
        evidence = proximal_bregman(
            scores, responses, subject=work.subject.name, reference=reference(scores, "dot")
        )
        if retrainer is not None:
            with resumable(retrainer):
                left_out = leave_out(
                    {**scores, "pbrf": responses.as_scores(len(work.subject))},
                    one_document_each(len(work.subject), responses.documents),
                    retrainer,
                    range(retrained.seeds),
                    subject=work.subject.name,
                )
            evidence = beside(evidence, "leave-one-out", left_out)
        evidence = work.recorded(evidence, retrainer, choose=choose)
        evidence = noting_choice(evidence, choose)
    show_evidence(evidence, shown)
