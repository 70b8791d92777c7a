from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import roc_auc_score

from wherefrom.errors import EvaluationError
from wherefrom.evaluation.statistics import (
    area_under_roc,
    bootstrap,
    mean_estimate,
    pearson,
    rank_correlations,
    shared_top,
    spearman,
)

_few = st.integers(-3, 3).map(float)


@given(arrays(np.float64, (7, 2), elements=_few))
def test_correlations_are_those_of_scipy(pairs: np.ndarray) -> None:
    a, b = pairs.T
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        assert pearson(a, b) == spearman(a, b) == 0.0
        return
    assert pearson(a, b) == pytest.approx(pearsonr(a, b).statistic, abs=1e-12)
    assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)


def test_a_constant_list_foretells_nothing_whatever_its_size() -> None:
    rising = np.arange(5.0)
    for constant in (0.0, 0.1, 1e300, 1e-300):
        assert pearson(rising, np.full(5, constant)) == 0.0
        assert pearson(np.full(5, constant), np.full(5, constant)) == 0.0
    assert pearson(rising * 1e-150, rising * 1e150) == pytest.approx(1.0)


def test_columns_are_correlated_one_by_one() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 9, 4))
    found = rank_correlations(a, b)
    assert found == pytest.approx([spearman(a[:, i], b[:, i]) for i in range(4)])


@given(arrays(np.float64, 8, elements=_few), st.lists(st.booleans(), min_size=8, max_size=8))
def test_area_under_roc_counts_pairs(scores: np.ndarray, positive: list[bool]) -> None:
    if len(set(positive)) == 1:
        with pytest.raises(EvaluationError, match="both kinds"):
            area_under_roc(scores, positive)
        return
    chosen = np.array(positive)
    pairs = list(product(scores[chosen], scores[~chosen]))
    counted = sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs)
    assert area_under_roc(scores, positive) == pytest.approx(counted)
    assert area_under_roc(scores, positive) == pytest.approx(roc_auc_score(positive, scores))


def test_shared_top() -> None:
    assert shared_top([3, 2, 1, 0], [0, 3, 2, 1], 2) == 0.5
    assert shared_top([3, 2, 1, 0], [3, 2, 1, 0], 3) == 1.0
    assert shared_top([1, 2], [2, 1], 5) == 1.0


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    held = 0
    for trial in range(200):
        estimate = mean_estimate(generator.normal(1.0, 2.0, 60), draws=400, seed=trial)
        held += estimate.low <= 1.0 <= estimate.high
    assert 0.89 <= held / 200 <= 0.99


def test_bootstrap_of_a_mean_is_the_interval_of_a_mean() -> None:
    values = np.random.default_rng(1).normal(size=50)
    by_positions = bootstrap(lambda rows: float(values[rows].mean()), 50, draws=2000)
    directly = mean_estimate(values, draws=2000)
    assert by_positions.value == directly.value == pytest.approx(values.mean())
    assert by_positions.low == pytest.approx(directly.low, abs=0.03)
    assert by_positions.high == pytest.approx(directly.high, abs=0.03)
    assert by_positions == bootstrap(lambda rows: float(values[rows].mean()), 50, draws=2000)
