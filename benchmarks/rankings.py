"""How two lists of scores agree, and how well one score tells two kinds of document apart."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["area_under_roc", "shared_top", "spearman"]

Scores = NDArray[np.float64]


def spearman(a: Scores, b: Scores) -> float:
    """Rank correlation; scores are not expected to tie."""
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def shared_top(a: Scores, b: Scores, k: int) -> float:
    """Share of the k highest of ``b`` that are among the k highest of ``a``."""
    return len(set(np.argsort(-a)[:k].tolist()) & set(np.argsort(-b)[:k].tolist())) / k


def area_under_roc(scores: Scores, positive: NDArray[np.bool_]) -> float:
    """Chance that a positive document scores higher than another one; 0.5 is no use."""
    ranks = _ranks(scores)
    count = int(positive.sum())
    above = ranks[positive].sum() - count * (count - 1) / 2
    return float(above / (count * (len(scores) - count)))


def _ranks(scores: Scores) -> NDArray[np.int64]:
    return np.argsort(np.argsort(scores, kind="stable"), kind="stable")
