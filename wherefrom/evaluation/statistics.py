"""How scores agree with each other and with the truth, and how sure that is.

Intervals are percentiles of the bootstrap (Efron and Tibshirani 1993, chapter 13): what the
statistic would have been on other draws of the same size from the same distribution.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from wherefrom.errors import EvaluationError

__all__ = [
    "CONFIDENCE",
    "Estimate",
    "Scores",
    "area_under_roc",
    "bootstrap",
    "interval",
    "mean_estimate",
    "pearson",
    "rank_correlations",
    "shared_top",
    "spearman",
]

Scores = NDArray[np.float64]
"""Float64 ``[query, document]``, positive for proponents."""

CONFIDENCE = 0.95
"""Of all intervals."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A statistic with its interval.

    Attributes:
        value: On all that was measured.
        low: Lower end of the interval.
        high: Upper end.
    """

    value: float
    low: float
    high: float


def pearson(a: ArrayLike, b: ArrayLike) -> float:
    """Correlation of two lists; 0 where one is constant, for it foretells nothing."""
    return float(_correlations(np.asarray(a, np.float64), np.asarray(b, np.float64)))


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Correlation of the ranks of two lists, ties sharing the mean of theirs; see `pearson`."""
    return float(_correlations(rankdata(a), rankdata(b)))


def rank_correlations(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """`spearman` of each column of ``a`` with the same column of ``b``.

    Args:
        a: ``[observation, column]``.
        b: Likewise.

    Returns:
        float64 ``[column]``.
    """
    return _correlations(rankdata(a, axis=0), rankdata(b, axis=0))


def area_under_roc(scores: ArrayLike, positive: ArrayLike) -> float:
    """Chance that a positive scores higher than a negative, a tie counting half; 0.5 is no use.

    Raises:
        EvaluationError: There are only positives or only negatives.
    """
    ranks, chosen = rankdata(scores), np.asarray(positive, np.bool_)
    count, others = int(chosen.sum()), int((~chosen).sum())
    if not count or not others:
        raise EvaluationError(
            f"{count} positive and {others} other documents; an area under the ROC curve needs "
            "both kinds"
        )
    return float((ranks[chosen].sum() - count * (count + 1) / 2) / (count * others))


def shared_top(a: ArrayLike, b: ArrayLike, k: int) -> float:
    """Share of the ``k`` highest of ``b`` that are among the ``k`` highest of ``a``."""
    highest = [set(np.argsort(-np.asarray(x), kind="stable")[:k].tolist()) for x in (a, b)]
    return len(highest[0] & highest[1]) / len(highest[1])


def bootstrap(
    statistic: Callable[[NDArray[np.int64]], float],
    size: int,
    *,
    draws: int = 1000,
    seed: int = 0,
) -> Estimate:
    """A statistic of ``size`` observations, with its interval.

    Args:
        statistic: Of the observations at the positions it is given, some perhaps more than once.
        size: How many there are.
        draws: Samples, each of ``size`` observations drawn with replacement.
        seed: Of the draws.
    """
    generator = np.random.default_rng(seed)
    drawn = [statistic(generator.integers(0, size, size)) for _ in range(draws)]
    return interval(statistic(np.arange(size)), np.array(drawn))


def interval(value: float, drawn: NDArray[np.float64]) -> Estimate:
    """A statistic with the interval that its values on resampled observations span."""
    tail = (1.0 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tail, 1.0 - tail])
    return Estimate(value, float(low), float(high))


def mean_estimate(values: ArrayLike, *, draws: int = 1000, seed: int = 0) -> Estimate:
    """The mean of a list with its interval."""
    observed = np.asarray(values, np.float64)
    chosen = np.random.default_rng(seed).integers(0, len(observed), (draws, len(observed)))
    return interval(float(observed.mean()), observed[chosen].mean(1))


def _correlations(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the columns of ``a`` and ``b``, over the first dimension."""
    a, b = a - a.mean(0), b - b.mean(0)
    scale = np.sqrt((a * a).sum(0) * (b * b).sum(0))
    # Rounding of the mean leaves something of a constant list too.
    constant = scale <= 1e-12 * np.maximum(1e-300, np.abs(a).max(0) * np.abs(b).max(0))
    return np.where(constant, 0.0, (a * b).sum(0) / np.where(constant, 1.0, scale))
