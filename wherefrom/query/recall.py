"""How many of the true top k an answer may have missed, from a random sample scored exactly.

Stored scores lie off exact ones by noise: sketching and rounding add up many small errors, so they
are close to normal and proportional to the norms of both vectors. The sample tells how large they
are; a document that was no candidate, with stored score ``s``, then reaches the threshold ``t`` of
an answer with probability ``Q((t - s) / (sigma |q| |phi|))``, Q being the upper tail of the normal
distribution. The sum over all of them is the expected number of documents missed.

The interval takes sigma from both ends of its chi-squared interval, and the number missed from both
ends of a Poisson distribution with that mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from wherefrom.gradients.counter import key_of, uniforms
from wherefrom.records import Recall

__all__ = ["CONFIDENCE", "SAMPLE", "drawn", "expected_missed", "noise_interval", "recall_of"]

CONFIDENCE = 0.95
SAMPLE = 32
"""Documents scored exactly to learn the size of errors."""

_QUANTILE = 1.959963984540054  # of the normal distribution at (1 + CONFIDENCE) / 2


def drawn(count: int, ordinals: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """So many of the documents, at random but fixed by the seed, ascending."""
    order = uniforms(key_of(seed, 7), ordinals.astype(np.uint64), 1)[:, 0]
    return np.sort(ordinals[np.argsort(order, kind="stable")[:count]])


def noise_interval(errors: NDArray[np.float64]) -> tuple[float, float, float]:
    """Size of errors of mean zero: root mean square, and both ends of its interval.

    The chi-squared quantiles are Wilson and Hilferty's (1931).
    """
    count = len(errors)
    if not count:
        return 0.0, 0.0, 0.0
    sigma = float(np.sqrt(np.mean(np.square(errors))))
    spread = 2.0 / (9.0 * count)
    high = (1.0 - spread + _QUANTILE * math.sqrt(spread)) ** 3
    low = max(1.0 - spread - _QUANTILE * math.sqrt(spread), 1e-3) ** 3
    return sigma, sigma / math.sqrt(high), sigma / math.sqrt(low)


def expected_missed(
    threshold: float,
    estimates: NDArray[np.float64],
    reach: NDArray[np.float64],
    sigmas: Sequence[float],
) -> list[float]:
    """Expected number of documents that reach a threshold, for several sizes of errors.

    Args:
        threshold: Of the exact value.
        estimates: Stored values of the documents.
        reach: Norm of the query times theirs, the unit of errors.
        sigmas: Sizes of errors.
    """
    found = []
    for sigma in sigmas:
        with np.errstate(divide="ignore", invalid="ignore"):
            z = (threshold - estimates) / (sigma * reach)
        z = np.where(np.isnan(z), np.inf, z)
        tail = 0.5 * torch.special.erfc(torch.from_numpy(z) / math.sqrt(2.0)).numpy()
        found.append(float(tail.sum()))
    return found


def recall_of(listed: int, missed: Sequence[float], sample: int) -> Recall:
    """Recall of lists of so many documents.

    Args:
        listed: Documents in the lists.
        missed: Expected numbers of missed ones: the estimate, its low and its high end.
        sample: Documents scored exactly.
    """
    if not listed:
        return Recall(1.0, 0.0, 1.0, CONFIDENCE, sample)
    tail = (1.0 - CONFIDENCE) / 2.0
    expected, fewest, most = missed
    lost = [_poisson(fewest, tail), _poisson(most, 1.0 - tail)]
    best, worst = (max(0.0, 1.0 - number / listed) for number in lost)
    return Recall(max(0.0, 1.0 - expected / listed), worst, best, CONFIDENCE, sample)


def _poisson(mean: float, level: float) -> int:
    """The smallest number whose cumulative Poisson probability reaches a level."""
    if mean > 700.0:  # where exp(-mean) is no number any more, the normal limit is close
        return max(0, round(mean + math.copysign(_QUANTILE, level - 0.5) * math.sqrt(mean)))
    number, term = 0, math.exp(-mean)
    reached = term
    while reached < level:
        number += 1
        term *= mean / number
        reached += term
    return number
