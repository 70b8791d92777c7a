"""How many of the true top k an answer may have missed, from a random sample scored exactly.

Stored scores lie off exact ones by many small errors, so these are close to normal, and
proportional to the norms of both vectors. In units of these norms (as cosines) the sample tells
their size sigma. What a stored cosine x then says of the exact one y depends on where the errors
come from:

* *blurred* (sketching, rounding): x is y and noise. The stored cosines of all documents are draws
  from the distribution F of exact ones, blurred; F is estimated by maximum likelihood on a grid
  (Kiefer and Wolfowitz 1956, by expectation maximisation), and P(Y >= y | x) follows from Bayes'
  rule with F as the prior.
* *left out* (coordinates that are not stored): y is x and what was left out, so
  P(Y >= y | x) = Q((y - x) / sigma), Q being the upper tail of the normal distribution.

Summed over all documents that were not scored, y being what each needs to pass the j-th of a list,
that is the expected number M_j of documents missed above it. The j-th is among the true k best if
no more than k - j were missed above it, which has the probability that a Poisson distribution with
mean M_j gives.

The interval takes sigma from both ends of its chi-squared interval (and from the candidates' own
errors, if these are larger), the numbers missed from both ends of their Poisson distributions, and
where an encoder leaves coordinates out, which is never all that it does, both models.
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
"""Random documents scored exactly, beside the candidates."""

_GRID = 400
_ITERATIONS = 60
_LARGEST_MEAN = 500.0  # exp(-mean) is no number far beyond; the normal limit is close
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
    part = 2.0 / (9.0 * count)
    high = (1.0 - part + _QUANTILE * math.sqrt(part)) ** 3
    low = max(1.0 - part - _QUANTILE * math.sqrt(part), 1e-3) ** 3
    return sigma, sigma / math.sqrt(high), sigma / math.sqrt(low)


def expected_missed(
    stored: NDArray[np.float64],
    left: NDArray[np.bool_],
    units: NDArray[np.float64],
    values: Sequence[float],
    sigma: float,
    *,
    blurred: bool,
) -> NDArray[np.float64]:
    """Expected number of documents, among those left out, that reach each of some values.

    Args:
        stored: Stored cosines of all documents, ``[document]``.
        left: Which of them were not scored exactly.
        units: What cosines are multiplied with to be values, positive where ``left``.
        values: Exact values of an answer's documents.
        sigma: Size of the cosines' errors.
        blurred: Whether they are noise in the stored cosines, or what these leave out.
    """
    if not left.any():
        return np.zeros(len(values))
    if not blurred:
        short = [value / units[left] - stored[left] for value in values]
        return np.array([_upper_tail(one, sigma).sum() for one in short])
    low, high = float(stored.min()), float(stored.max())
    step = max((high - low) / _GRID, np.finfo(float).tiny)
    cells = np.rint((stored - low) / step).astype(np.int64)
    counts = np.bincount(cells, minlength=_GRID + 1).astype(np.float64)
    # Errors smaller than the grid can tell are blurred to it.
    tails = _tails(counts, max(sigma / step, 0.5))
    own = cells[left]
    missed = []
    for value in values:
        at = np.clip(np.ceil((value / units[left] - low) / step), 0, _GRID + 1).astype(np.int64)
        missed.append(float(tails[own, at].sum()))
    return np.array(missed)


def _upper_tail(short: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    """Probability that a normal error of that size makes up for what is short."""
    if sigma == 0.0:
        return (short <= 0.0).astype(np.float64)
    scaled = torch.from_numpy(short) / (sigma * math.sqrt(2.0))
    return np.asarray(0.5 * torch.special.erfc(scaled).numpy())


def _tails(counts: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    """``P(exact >= j | stored = i)`` on the grid, ``[i, j]``, sigma in its steps."""
    steps = np.arange(len(counts), dtype=np.float64)
    likelihood = np.exp(-0.5 * np.square((steps[:, None] - steps[None]) / sigma))
    prior = np.full(len(counts), 1.0 / len(counts))
    for _ in range(_ITERATIONS):
        ratio = np.divide(counts, likelihood @ prior, out=np.zeros_like(counts), where=counts > 0)
        prior *= likelihood.T @ ratio
        prior /= prior.sum()
    joint = likelihood * prior
    total = joint.sum(1, keepdims=True)
    above = np.cumsum(joint[:, ::-1], axis=1)[:, ::-1]
    tails = np.divide(above, total, out=np.zeros_like(above), where=total > 0.0)
    return np.concatenate([tails, np.zeros((len(counts), 1))], 1)


def recall_of(k: int, missed: Sequence[Sequence[NDArray[np.float64]]], sample: int) -> Recall:
    """Recall of an answer's lists.

    Args:
        k: How many documents each list was to hold.
        missed: For each list the expected number missed above each document of it: the estimate
            first, then what it could be instead.
        sample: Documents scored exactly to learn the size of errors.
    """
    listed = sum(len(one[0]) for one in missed)
    if not listed:
        return Recall(1.0, 0.0, 1.0, CONFIDENCE, sample)
    tail = (1.0 - CONFIDENCE) / 2.0
    expected = fewest = most = 0.0
    for one in missed:
        room = [k - j for j in range(1, len(one[0]) + 1)]
        expected += sum(_reached(m, r) for m, r in zip(one[0], room, strict=True))
        worst, best = np.max(one, axis=0), np.min(one, axis=0)
        fewest += sum(_quantile(m, 1.0 - tail) <= r for m, r in zip(worst, room, strict=True))
        most += sum(_quantile(m, tail) <= r for m, r in zip(best, room, strict=True))
    estimate = float(expected) / listed
    return Recall(
        estimate,
        min(fewest / listed, estimate),
        max(most / listed, estimate),
        CONFIDENCE,
        sample,
    )


def _reached(mean: float, number: int) -> float:
    """Probability that a Poisson number is at most ``number``."""
    if mean > _LARGEST_MEAN:
        return 0.5 * math.erfc((mean - number - 0.5) / math.sqrt(2.0 * mean))
    term = total = math.exp(-mean)
    for i in range(1, number + 1):
        term *= mean / i
        total += term
    return min(total, 1.0)


def _quantile(mean: float, level: float) -> int:
    """The smallest number that a Poisson number does not exceed with that probability."""
    if mean > _LARGEST_MEAN:
        return max(0, round(mean + math.copysign(_QUANTILE, level - 0.5) * math.sqrt(mean)))
    number, term = 0, math.exp(-mean)
    total = term
    while total < level:
        number += 1
        term *= mean / number
        total += term
    return number
