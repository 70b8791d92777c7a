"""The linear datamodelling score: do scores add up to what retraining does?

Over many random subsets of the documents, the sum of a query's scores within a subset is set
against what a model trained on that subset alone says, by rank correlation (Park et al. 2023, TRAK,
section 2.2).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from wherefrom.errors import EvaluationError
from wherefrom.evaluation.evidence import Evidence, Figure, plain
from wherefrom.evaluation.retraining import NO_CHANCE, Outcomes, require_subsets
from wherefrom.evaluation.statistics import (
    Scores,
    interval,
    question_notes,
    rank_correlations,
    require_scores,
)

__all__ = ["CEILING", "OTHER_SEEDS", "datamodelling_scores", "linear_datamodelling"]

OTHER_SEEDS = "retraining, other seeds"
"""What one half of the seeds foretells of the other."""

CEILING = "ceiling"
"""What perfect scores would reach: where halves of the seeds correlate by c, the mean over all of
them correlates with its expectation by sqrt(2c / (1 + c)) (Spearman-Brown). Chance is foretold by
nothing."""


def datamodelling_scores(scores: Scores, outcomes: Outcomes) -> NDArray[np.float64]:
    """The score of each query; their mean is the linear datamodelling score.

    Args:
        scores: ``[query, document]``, positive for proponents.
        outcomes: Of models trained on subsets.

    Returns:
        float64 ``[query]``.

    Raises:
        EvaluationError: Scores and outcomes are of other queries or documents.
    """
    require_scores({"scores": scores}, outcomes.nats.shape[2], outcomes.members.shape[1])
    return rank_correlations(_sums(scores, outcomes), outcomes.mean())


def linear_datamodelling(
    scores: Mapping[str, Scores],
    outcomes: Outcomes,
    *,
    subject: str,
    reference: str | None = None,
    draws: int = 200,
    seed: int = 0,
) -> Evidence:
    """The linear datamodelling score of several methods, with intervals.

    Intervals are of other subsets *and* other queries: both are resampled, the same for all
    methods, so that differences between methods are of pairs.

    Args:
        scores: ``[query, document]`` of each method.
        outcomes: Of models trained on subsets.
        subject: What was retrained, in words.
        reference: A method that the others are compared with, ``LDS above ...``.
        draws: Of the bootstrap.
        seed: Of its draws.

    Raises:
        EvaluationError: There are fewer than 20 subsets, or shapes do not fit.
    """
    subsets, seeds, queries = outcomes.nats.shape
    require_subsets(subsets)
    if reference is not None and reference not in scores:
        raise EvaluationError(f"reference {reference!r} is none of {', '.join(scores)}")
    require_scores(scores, queries, outcomes.members.shape[1])
    own = {method: datamodelling_scores(found, outcomes) for method, found in scores.items()}
    sums = {method: _sums(found, outcomes) for method, found in scores.items()}
    truth = {method: outcomes.mean() for method in scores}
    if seeds > 1:
        sums[OTHER_SEEDS] = outcomes.nats[:, ::2].mean(1)
        truth[OTHER_SEEDS] = outcomes.nats[:, 1::2].mean(1)
        own[OTHER_SEEDS] = rank_correlations(sums[OTHER_SEEDS], truth[OTHER_SEEDS])
    drawn = _resampled(sums, truth, draws, seed)
    figures = []
    for method, per_query in own.items():
        estimate = interval(float(per_query.mean()), drawn[method])
        figures.append(Figure.of(method, "LDS", estimate))
        if reference is not None and method not in (reference, OTHER_SEEDS):
            gained = float(per_query.mean() - own[reference].mean())
            name = f"LDS above {reference}"
            figures.append(
                Figure.of(method, name, interval(gained, drawn[method] - drawn[reference]))
            )
    if seeds > 1:
        other = _perfect(np.array([own[OTHER_SEEDS].mean()]))[0]
        ceiling = interval(float(other), _perfect(drawn[OTHER_SEEDS]))
        figures.append(Figure.of(CEILING, "LDS", ceiling))
    notes = list(question_notes(queries))
    if not outcomes.by_chance:
        notes.append(NO_CHANCE)
    elif seeds == 1:
        notes.append("One model a subset: the noise between seeds is part of the truth here.")
    return Evidence(
        "lds",
        subject,
        tuple(figures),
        {
            "subsets": subsets,
            "models_per_subset": seeds,
            "queries": queries,
            "documents": outcomes.members.shape[1],
            "bootstrap_draws": draws,
        },
        tuple(notes),
        {"lds_per_query": plain(own), "nats": plain(outcomes.nats)},
    )


def _sums(scores: Scores, outcomes: Outcomes) -> NDArray[np.float64]:
    """Of scores within each subset, ``[subset, query]``."""
    sums: NDArray[np.float64] = outcomes.members.astype(np.float64) @ scores.T
    return sums


def _perfect(between: NDArray[np.float64]) -> NDArray[np.float64]:
    """What perfect scores reach, from the correlation between halves of the seeds."""
    positive = np.maximum(between, 0.0)
    reached: NDArray[np.float64] = np.sqrt(2 * positive / (1 + positive))
    return reached


def _resampled(
    sums: Mapping[str, NDArray[np.float64]],
    truth: Mapping[str, NDArray[np.float64]],
    draws: int,
    seed: int,
) -> dict[str, NDArray[np.float64]]:
    """Mean rank correlation of each method on resampled subsets and queries, ``[draw]``."""
    generator = np.random.default_rng(seed)
    subsets, queries = next(iter(truth.values())).shape
    drawn: dict[str, list[float]] = {method: [] for method in sums}
    for _ in range(draws):
        rows = generator.integers(0, subsets, subsets)
        columns = generator.integers(0, queries, queries)
        for method, values in sums.items():
            correlated = rank_correlations(values[rows], truth[method][rows])
            drawn[method].append(float(correlated[columns].mean()))
    return {method: np.array(values) for method, values in drawn.items()}
