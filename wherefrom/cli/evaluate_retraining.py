"""Evaluations that train the model again: ``lds``, ``loo`` and ``counterfactual``."""

from __future__ import annotations

from pathlib import Path

import click

from wherefrom.cli.evaluate_options import (
    Asked,
    Compared,
    Opened,
    Retrained,
    Shown,
    asked_options,
    choose_option,
    compared_options,
    numbers,
    opened_options,
    retrained_options,
    seed_option,
    shown_options,
)
from wherefrom.cli.evaluate_report import evaluating, resumable, show_evidence

__all__ = ["counterfactual", "lds", "loo"]

_INDEX = click.argument("index", type=click.Path(path_type=Path))


@click.command(short_help="Do sums of scores rank models trained on halves of the documents?")
@_INDEX
@asked_options
@click.option(
    "--subsets",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    metavar="N",
    help="How many random halves of the documents to train on; at least 20.",
)
@retrained_options
@compared_options
@opened_options
@seed_option
@shown_options
def lds(
    index: Path,
    asked: Asked,
    subsets: int,
    retrained: Retrained,
    compared: Compared,
    opened: Opened,
    seed: int,
    shown: Shown,
) -> None:
    """Linear datamodeling score of INDEX: train on random halves, compare with sums of scores.

    The rank correlation, mean over queries, of what models trained on random halves of the
    documents say with the sums of scores over these halves. `ceiling` is what scores that were
    perfect would reach, for chance in training is foretold by nothing.
    """
    asked.require()
    compared.require()
    retrained.require(opened)
    with evaluating(shown) as progress:
        from wherefrom.cli.evaluate_subject import prepare, reference
        from wherefrom.evaluation.lds import linear_datamodelling
        from wherefrom.evaluation.retraining import random_halves, require_subsets

        require_subsets(subsets)
        work = prepare(index, asked, opened)
        retrainer = work.retrainer(opened, retrained, progress)
        scores = work.scores(compared, seed)
        halves = random_halves(len(work.subject), subsets, seed)
        with resumable(retrainer):
            outcomes = retrainer.outcomes(halves, range(retrained.seeds))
        evidence = linear_datamodelling(
            scores,
            outcomes,
            subject=work.subject.name,
            reference=reference(scores, "dot"),
            seed=seed,
        )
        evidence = work.recorded(
            evidence, retrainer, halves_seed=seed, seeds=list(range(retrained.seeds))
        )
    show_evidence(evidence, shown)


@click.command(short_help="Do scores foretell what training without documents does?")
@_INDEX
@asked_options
@click.option(
    "--groups",
    type=click.IntRange(min=1),
    default=25,
    show_default=True,
    metavar="N",
    help="How many documents, or groups of them, to leave out, one at a time.",
)
@click.option(
    "--group-size",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Documents in a group.",
)
@choose_option
@retrained_options
@compared_options
@opened_options
@seed_option
@shown_options
def loo(
    index: Path,
    asked: Asked,
    groups: int,
    group_size: int,
    choose: str,
    retrained: Retrained,
    compared: Compared,
    opened: Opened,
    seed: int,
    shown: Shown,
) -> None:
    """Leave-one-out of INDEX: train without a document, or a group, and compare with scores.

    Correlations of measured with predicted changes, mean over queries. `noise` is what the measured
    changes differ by between seeds alone.
    """
    asked.require()
    compared.require()
    retrained.require(opened)
    if choose == "largest" and group_size > 1:
        raise click.UsageError("--choose largest takes single documents; leave --group-size out")
    with evaluating(shown) as progress:
        from wherefrom.cli.evaluate_subject import (
            chosen_documents,
            noting_choice,
            prepare,
            reference,
            require_documents,
        )
        from wherefrom.evaluation.agreement import require_changes
        from wherefrom.evaluation.leave_out import leave_out, one_document_each, random_groups

        require_changes(groups)
        work = prepare(index, asked, opened)
        retrainer = work.retrainer(opened, retrained, progress)
        documents = len(work.subject)
        if group_size > 1:
            left_out = random_groups(documents, groups, group_size, seed)
        else:
            require_documents(groups, documents)
        scores = work.scores(compared, seed)
        if group_size == 1:
            chosen = chosen_documents(scores, groups, choose, seed)
            left_out = one_document_each(documents, chosen)
        with resumable(retrainer):
            evidence = leave_out(
                scores,
                left_out,
                retrainer,
                range(retrained.seeds),
                subject=work.subject.name,
                reference=reference(scores, "dot"),
            )
        evidence = work.recorded(evidence, retrainer, choose=choose)
        evidence = noting_choice(evidence, choose)
    show_evidence(evidence, shown)


@click.command(short_help="What is lost by training without a query's top documents?")
@_INDEX
@asked_options
@click.option(
    "-k",
    callback=numbers,
    default="10",
    show_default=True,
    metavar="LIST",
    help="How many documents to remove, as 10,50.",
)
@click.option("--opponents", is_flag=True, help="Remove the documents scored lowest, too.")
@click.option(
    "--random-draws",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    metavar="N",
    help="Random sets of each size to remove in comparison, shared by all questions; against fewer "
    "than 5 a single question shows little.",
)
@retrained_options
@compared_options
@opened_options
@seed_option
@shown_options
def counterfactual(
    index: Path,
    asked: Asked,
    k: tuple[int, ...],
    opponents: bool,
    random_draws: int,
    retrained: Retrained,
    compared: Compared,
    opened: Opened,
    seed: int,
    shown: Shown,
) -> None:
    """The receipt of an answer of INDEX: remove a query's top documents and train again.

    The measured change of what the model says, against removing as many random documents and the
    top documents of simpler rankings.
    """
    asked.require()
    compared.require()
    retrained.require(opened)
    with evaluating(shown) as progress:
        from wherefrom.cli.evaluate_subject import prepare, reference
        from wherefrom.evaluation.counterfactual import removals, require_removed
        from wherefrom.evaluation.receipts import receipt, with_receipts

        work = prepare(index, asked, opened)
        require_removed(k, len(work.subject))
        retrainer = work.retrainer(opened, retrained, progress)
        scores = work.scores(compared, seed)
        with resumable(retrainer):
            evidence = removals(
                scores,
                retrainer,
                subject=work.subject.name,
                k=k,
                seeds=range(retrained.seeds),
                opponents=opponents,
                random_draws=random_draws,
                reference=reference(scores, "bm25", "dot"),
                doc_ids=work.subject.doc_ids,
                seed=seed,
            )
        evidence = with_receipts(work.recorded(evidence, retrainer), work.subject.questions)
    show_evidence(evidence, shown)
    if not shown.as_json:
        from wherefrom.cli.render import terminal

        terminal(shown.width).print(f"\n{receipt(evidence)}")
