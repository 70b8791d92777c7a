"""Leave-one-out and leave-group-out: do scores foretell what training without documents does?

A group of documents is left out, a model is trained on all others, and what it says is set against
what the model trained on everything says (Koh and Liang 2017, sections 5.2 and 5.3; Koh et al. 2019
for groups). Both models have the same seed, so that first weights and order differ as little as
possible by chance. What chance does all the same is measured over several seeds and reported beside
the effect: a single document among many often changes a network less than its seed does, and then
no score can be judged by it (Basu et al. 2021).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wherefrom.errors import EvaluationError
from wherefrom.evaluation.agreement import (
    Changes,
    agreement,
    require_changes,
)
from wherefrom.evaluation.evidence import Evidence, Figure, plain
from wherefrom.evaluation.lds import OTHER_SEEDS
from wherefrom.evaluation.retraining import NO_CHANCE, Retrainer
from wherefrom.evaluation.statistics import (
    Scores,
    bootstrap,
    linear_correlations,
    question_notes,
    require_scores,
)

__all__ = [
    "RETRAINING",
    "Removals",
    "group_sums",
    "leave_out",
    "one_document_each",
    "random_groups",
    "removed",
]

_FEW_GROUPS = 10

RETRAINING = "retraining"
"""The method that the effect's size and its noise are figures of."""


@dataclass(frozen=True, slots=True, eq=False)
class Removals:
    """What leaving groups out did.

    Attributes:
        groups: Documents left out, bool ``[group, document]``.
        nats: What was lost by it, value with all documents minus value without the group, float64
            ``[group, seed, question]``; positive where the group is a proponent.
        by_chance: Whether seeds make a difference; see ``Outcomes``.
    """

    groups: NDArray[np.bool_]
    nats: NDArray[np.float64]
    by_chance: bool = True

    def mean(self) -> Changes:
        """Over seeds, ``[group, question]``."""
        mean: Changes = self.nats.mean(1)
        return mean

    def noise(self) -> float:
        """Standard error of that mean: root mean square over groups and questions, in nats.

        Of a group against the others: what the model with all documents does by chance is the same
        for all groups, and counts for nothing in a correlation.

        Raises:
            EvaluationError: There is one seed.
        """
        groups, seeds, _ = self.nats.shape
        if seeds < 2:
            raise EvaluationError("one seed shows no noise; retrain with at least two")
        apart = self.nats - self.nats.mean(0)
        variance = float((apart.var(1, ddof=1) / seeds).mean()) * groups / (groups - 1)
        return float(np.sqrt(variance))

    def effect(self) -> float:
        """Standard deviation over groups: root mean square over questions, in nats.

        Where there are several seeds, without the noise that the mean over them still holds; zero
        where that is all there is.
        """
        seen = float(self.mean().var(0, ddof=1).mean())
        noise = self.noise() if self.nats.shape[1] > 1 else 0.0
        return float(np.sqrt(max(0.0, seen - noise**2)))


def one_document_each(
    documents: int, chosen: Sequence[int] | NDArray[np.int64]
) -> NDArray[np.bool_]:
    """A group for each chosen document, bool ``[group, document]``.

    Raises:
        EvaluationError: A position is out of range or given twice.
    """
    places = np.asarray(chosen, np.int64)
    unique = np.unique(places)
    if len(unique) != len(places) or (len(unique) and not 0 <= unique[0] <= unique[-1] < documents):
        raise EvaluationError(
            f"documents to leave out must be different positions from 0 to {documents - 1}"
        )
    groups = np.zeros((len(places), documents), np.bool_)
    groups[np.arange(len(places)), places] = True
    return groups


def random_groups(documents: int, count: int, size: int, seed: int) -> NDArray[np.bool_]:
    """``count`` random groups of ``size`` documents each, bool ``[group, document]``.

    Raises:
        EvaluationError: A group would be empty or hold all documents.
    """
    if not 0 < size < documents:
        raise EvaluationError(f"groups of {size} of {documents} documents; leave out some, not all")
    generator = np.random.default_rng(seed)
    groups = np.zeros((count, documents), np.bool_)
    for row in groups:
        row[generator.permutation(documents)[:size]] = True
    return groups


def removed(groups: NDArray[np.bool_], retrainer: Retrainer, seeds: Sequence[int]) -> Removals:
    """Train on everything and without each group, with every seed.

    Args:
        groups: Documents to leave out, bool ``[group, document]``.
        retrainer: Trains, measures, keeps.
        seeds: Of the models, the same with and without.

    Raises:
        EvaluationError: A group is empty or leaves nothing; there are too few of them; training is
            not deterministic or diverged.
        StorageError: Retrainings cannot be kept.
    """
    if groups.ndim != 2 or groups.dtype != np.bool_:
        raise EvaluationError(f"groups are {groups.dtype} {groups.shape}; bool [group, document]")
    require_changes(len(groups))
    if not groups.any(1).all() or groups.all(1).any():
        raise EvaluationError("a group is empty or holds all documents; leave out some, not all")
    members = np.concatenate([np.ones((1, groups.shape[1]), np.bool_), ~groups])
    outcomes = retrainer.outcomes(members, seeds)
    return Removals(groups, outcomes.nats[0] - outcomes.nats[1:], outcomes.by_chance)


def group_sums(scores: Scores, groups: NDArray[np.bool_]) -> Changes:
    """What scores foretell of leaving groups out: their sums, ``[group, question]``.

    Raises:
        EvaluationError: Scores and groups are of other documents.
    """
    if scores.ndim != 2 or scores.shape[1] != groups.shape[1]:
        raise EvaluationError(
            f"scores of shape {scores.shape} for groups of {groups.shape[1]} documents; give "
            "[query, document]"
        )
    sums: Changes = groups.astype(np.float64) @ scores.T
    return sums


def leave_out(
    scores: Mapping[str, Scores],
    groups: NDArray[np.bool_],
    retrainer: Retrainer,
    seeds: Sequence[int],
    *,
    subject: str,
    reference: str | None = None,
    draws: int = 200,
) -> Evidence:
    """Correlations of predicted with actual changes, beside the noise of the actual ones.

    For each method ``Pearson`` and ``Spearman``, means over questions, and ``slope``: actual nats
    per predicted one, by least squares over all changes of all questions; 1 where the scale is
    right too. Of ``retraining`` the ``effect``, what groups differ by, and the ``noise``, the
    standard error of it over seeds.

    Args:
        scores: ``[query, document]`` of each method, in nats per added copy.
        groups: Documents to leave out, bool ``[group, document]``.
        retrainer: Trains, measures, keeps.
        seeds: Of the models, the same with and without a group.
        subject: What was retrained, in words.
        reference: A method that the others are compared with, ``Pearson above ...``.
        draws: Of the bootstrap, which resamples groups and questions.

    Raises:
        EvaluationError: See :func:`removed`; or shapes do not fit.
        StorageError: Retrainings cannot be kept.
    """
    require_scores(scores, len(retrainer.measurement), groups.shape[-1])
    predicted = {method: group_sums(found, groups) for method, found in scores.items()}
    removals = removed(groups, retrainer, seeds)
    actual = removals.mean()
    figures = agreement(predicted, actual, reference=reference, draws=draws)
    figures += [_slope(method, values, actual, draws) for method, values in predicted.items()]
    notes = list(question_notes(actual.shape[1]))
    if len(groups) < _FEW_GROUPS:
        notes.append(f"{len(groups)} changes are few to correlate: intervals say next to nothing.")
    effect = removals.effect()
    figures.append(Figure(RETRAINING, "effect", effect, unit="nats"))
    if not removals.by_chance:
        notes.append(NO_CHANCE)
    elif len(seeds) > 1:
        noise = removals.noise()
        figures.append(Figure(RETRAINING, "noise", noise, unit="nats"))
        halves = removals.nats[:, ::2].mean(1), removals.nats[:, 1::2].mean(1)
        figures += agreement({OTHER_SEEDS: halves[0]}, halves[1], draws=draws)
        if noise > effect:
            notes.append(
                f"The noise of the actual changes over {len(seeds)} seeds ({noise:.2g} nats) is "
                f"larger than what the groups differ by ({effect:.2g} nats): these correlations "
                "judge chance more than they judge scores."
            )
    else:
        notes.append("One seed: how much of the actual changes is chance is not known.")
    sizes = groups.sum(1)
    return Evidence(
        "loo",
        subject,
        tuple(figures),
        {
            "groups": len(groups),
            "smallest_group": int(sizes.min()),
            "largest_group": int(sizes.max()),
            "documents": groups.shape[1],
            "queries": actual.shape[1],
            "seeds": [int(seed) for seed in seeds],
            "bootstrap_draws": draws,
        },
        tuple(notes),
        {
            "pearson_per_query": plain(
                {m: linear_correlations(values, actual) for m, values in predicted.items()}
            ),
            "groups": plain([np.flatnonzero(group) for group in groups]),
            "actual": plain(removals.nats),
            "predicted": plain(predicted),
        },
    )


def _slope(method: str, predicted: Changes, actual: Changes, draws: int) -> Figure:
    """Least squares of actual on predicted changes, each question's mean taken off."""
    x, y = predicted - predicted.mean(0), actual - actual.mean(0)
    products, squares = (x * y).sum(1), (x * x).sum(1)

    def slope(rows: NDArray[np.int64]) -> float:
        scale = float(squares[rows].sum())
        return float(products[rows].sum()) / scale if scale > 0.0 else 0.0

    return Figure.of(method, "slope", bootstrap(slope, len(x), draws=draws))
