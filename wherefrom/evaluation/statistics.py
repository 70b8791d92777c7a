"""How scores agree with each other and with the truth, and how sure that is.

Intervals are percentiles of the bootstrap (Efron and Tibshirani 1993, chapter 13): what the
statistic would have been on other draws of the same size from the same distribution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
    "linear_correlations",
    "mean_estimate",
    "pearson",
    "question_notes",
    "rank_correlations",
    "require_scores",
    "shared_top",
    "spearman",
]

Scores = NDArray[np.float64]
"""Float64 ``[query, document]``, positive for proponents."""

CONFIDENCE = 0.95
"""Of all intervals."""

_FEW_QUESTIONS = 10


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


def require_scores(scores: Mapping[str, Scores], queries: int, documents: int) -> None:
    """Refuse scores of other queries or documents, and such as are no numbers.

    Raises:
        EvaluationError: The method is named.
    """
    for method, found in scores.items():
        if found.shape != (queries, documents):
            raise EvaluationError(
                f"scores of {method!r} have shape {found.shape}; give [query, document], here "
                f"[{queries}, {documents}]"
            )
        if not np.isfinite(found).all():
            raise EvaluationError(
                f"scores of {method!r} hold NaN or infinity; leave the method out"
            )


def question_notes(count: int) -> tuple[str, ...]:
    """What a reader must know of intervals over so few questions."""
    if count == 1:
        return ("One question: intervals are for this question alone, and say nothing of others.",)
    if count < _FEW_QUESTIONS:
        return (f"{count} questions are few to speak for others; intervals are wide.",)
    return ()


def linear_correlations(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """`pearson` of each column of ``a`` with the same column of ``b``; see `rank_correlations`."""
    return _correlations(np.asarray(a, np.float64), np.asarray(b, np.float64))


def _correlations(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the columns of ``a`` and ``b``, over the first dimension."""
    centred, lengths = [], []
    for values in (a, b):
        apart = values - values.mean(0)
        length = np.sqrt((apart * apart).sum(0))
        # The mean of a constant list is rounded: what is left of it then is no variation.
        noise = 4 * np.finfo(np.float64).eps * len(values) * np.abs(values).max(0)
        centred.append(apart)
        lengths.append(np.where(length <= noise, 0.0, length))
    # One after the other: the product of two small lengths may be no number.
    left, right = (
        np.divide(apart, length, out=np.zeros_like(apart), where=length > 0.0)
        for apart, length in zip(centred, lengths, strict=True)
    )
    found: NDArray[np.float64] = (left * right).sum(0)
    return found
