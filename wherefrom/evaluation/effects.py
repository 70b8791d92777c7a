"""Means of measurements that vary with several things at once: queries, seeds, random draws.

A mean over queries, seeds and random draws has the variance of each, added:

    error^2 = sum_f Var(means of the levels of f) / n_f        over factors f of n_f > 1 levels

which counts the noise of single trainings once for each factor, so it errs on the side of caution;
intervals and p-values are Student's with Satterthwaite's (1946) degrees of freedom.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from wherefrom.evaluation.statistics import CONFIDENCE

__all__ = ["Effect", "beyond_draws", "crossed_mean"]


@dataclass(frozen=True, slots=True)
class Effect:
    """A mean over crossed factors.

    Attributes:
        value: The mean.
        error: Its standard error; ``None`` where no factor has two levels.
        low: Lower end of its 95 % interval, likewise.
        high: Upper end.
        p: Of a mean of zero, two-sided.
    """

    value: float
    error: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None


def crossed_mean(values: NDArray[np.float64]) -> Effect:
    """The mean of all entries; each dimension is a factor whose levels are a sample of many.

    Args:
        values: An entry for each combination of levels.
    """
    value = float(values.mean())
    factors = []
    for axis, levels in enumerate(values.shape):
        if levels > 1:
            means = values.mean(tuple(i for i in range(values.ndim) if i != axis))
            factors.append((float(means.var(ddof=1)) / levels, levels - 1))
    return _effect(value, factors)


def beyond_draws(values: NDArray[np.float64], drawn: NDArray[np.float64]) -> Effect:
    """How far the change by chosen sets lies from that by sets drawn at random.

    Over several queries, whose chosen sets are as many, it is the mean difference. The set of a
    single query is one set: it is compared with *another* random one, whose own chance counts
    beside that of the mean of all draws, ``Var(draws) (1 + 1 / n)``. Else more draws would make any
    set, a random one too, look chosen.

    Args:
        values: Of chosen sets, ``[query, seed]``.
        drawn: Of random sets, ``[query, seed, draw]``.
    """
    differences = values[:, :, None] - drawn
    queries, seeds, draws = drawn.shape
    if queries > 1:
        return crossed_mean(differences)
    value = float(differences.mean())
    if draws < 2:
        return Effect(value)
    factors = [(float(drawn.mean((0, 1)).var(ddof=1)) * (1 + 1 / draws), draws - 1)]
    if seeds > 1:
        factors.append((float(differences.mean((0, 2)).var(ddof=1)) / seeds, seeds - 1))
    return _effect(value, factors)


def _effect(value: float, factors: Sequence[tuple[float, int]]) -> Effect:
    """A mean from the variance and the degrees of freedom of each factor."""
    if not factors:
        return Effect(value)
    variance = sum(own for own, _ in factors)
    error = math.sqrt(variance)
    if error == 0.0:
        return Effect(value, 0.0, value, value, 1.0 if value == 0.0 else 0.0)
    # Shares of the variance, not variances: the square of a small one may be no number.
    freedom = 1.0 / sum((own / variance) ** 2 / degrees for own, degrees in factors)
    reach = float(student.ppf((1.0 + CONFIDENCE) / 2, freedom)) * error
    p = 2.0 * float(student.sf(abs(value) / error, freedom))
    return Effect(value, error, value - reach, value + reach, p)
