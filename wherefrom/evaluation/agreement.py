"""How well predicted changes of a model's answers agree with changes that were measured."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from wherefrom.errors import EvaluationError
from wherefrom.evaluation.evidence import Figure
from wherefrom.evaluation.statistics import interval, linear_correlations, rank_correlations

__all__ = ["LEAST_CHANGES", "Changes", "agreement", "require_changes"]

LEAST_CHANGES = 3
"""Two points always lie on a line."""

Changes = NDArray[np.float64]
"""Float64 ``[change, question]`` in nats."""


def require_changes(count: int) -> None:
    """Refuse fewer changes than a correlation needs.

    Raises:
        EvaluationError: There are fewer than ``LEAST_CHANGES``.
    """
    if count < LEAST_CHANGES:
        raise EvaluationError(
            f"{count} changes are too few to correlate; measure at least {LEAST_CHANGES} (50 for "
            "a figure to report)"
        )


def agreement(
    predicted: Mapping[str, Changes],
    measured: Changes,
    *,
    reference: str | None = None,
    draws: int = 200,
    seed: int = 0,
) -> list[Figure]:
    """Pearson's and Spearman's correlation over changes, means over questions, with intervals.

    Intervals are of other changes *and* other questions: both are resampled, the same for all
    methods, so that differences between methods are of pairs.

    Args:
        predicted: ``[change, question]`` by each method.
        measured: Likewise.
        reference: A method that the others are compared with, ``Pearson above ...``.
        draws: Of the bootstrap.
        seed: Of its draws.

    Raises:
        EvaluationError: There are too few changes, shapes differ, or the reference is unknown.
    """
    if reference is not None and reference not in predicted:
        raise EvaluationError(f"reference {reference!r} is none of {', '.join(predicted)}")
    for method, values in predicted.items():
        if values.shape != measured.shape:
            raise EvaluationError(
                f"{method!r} predicts changes of shape {values.shape}, measured were "
                f"{measured.shape}; give [change, question]"
            )
    changes, questions = measured.shape
    require_changes(changes)
    own = {method: _means(values, measured) for method, values in predicted.items()}
    drawn = {method: np.zeros((draws, 2)) for method in predicted}
    generator = np.random.default_rng(seed)
    for draw in range(draws):
        chosen = np.ix_(
            generator.integers(0, changes, changes), generator.integers(0, questions, questions)
        )
        for method, values in predicted.items():
            drawn[method][draw] = _means(values[chosen], measured[chosen])
    figures = []
    for place, name in enumerate(("Pearson", "Spearman")):
        for method, means in own.items():
            found = drawn[method][:, place]
            figures.append(Figure.of(method, name, interval(float(means[place]), found)))
            if reference is not None and method != reference:
                gained = float(means[place] - own[reference][place])
                difference = interval(gained, found - drawn[reference][:, place])
                figures.append(Figure.of(method, f"{name} above {reference}", difference))
    return figures


def _means(predicted: Changes, measured: Changes) -> NDArray[np.float64]:
    """Pearson's and Spearman's correlation, means over questions."""
    linear = linear_correlations(predicted, measured).mean()
    return np.array([linear, rank_correlations(predicted, measured).mean()])
