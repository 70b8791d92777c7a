"""Sums by group against pandas; intervals against every resample there is, and by simulation."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise, product
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from wherefrom.errors import QueryError
from wherefrom.query.interpretation.explanation import Group
from wherefrom.query.interpretation.groups import MOST_GROUPS, grouping
from wherefrom.records import MetadataValue

VALUES = st.sampled_from(["Whig", "Democratic", None, "d'Or"])
NUMBERS = st.floats(-1e6, 1e6)
Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]


def normal(random: np.random.Generator, count: int) -> NDArray[np.float64]:
    return random.standard_normal(count)


def log_normal(random: np.random.Generator, count: int) -> NDArray[np.float64]:
    return np.exp(1.5 * random.standard_normal(count))


def grouped(values: list[Any], scores: Any, **options: Any) -> dict[MetadataValue, Group]:
    found = grouping(values, np.asarray(scores, np.float64), "party", "stored", **options)
    assert [group.total for group in found.groups] == sorted(
        (group.total for group in found.groups), reverse=True
    )
    return {group.value: group for group in found.groups}


@given(st.lists(st.tuples(VALUES, NUMBERS), max_size=30))
def test_totals_are_those_of_pandas(rows: list[tuple[str | None, float]]) -> None:
    values, scores = [value for value, _ in rows], [score for _, score in rows]
    found = grouped(values, scores, draws=5)
    frame = pd.DataFrame({"party": pd.Series(values, dtype=object), "score": scores})
    by = frame.groupby("party", dropna=False)["score"]
    expected = {
        None if pd.isna(value) else value: (len(part), part.sum(), part.mean())
        for value, part in by
    }
    assert found.keys() == expected.keys()
    for value, (count, total, mean) in expected.items():
        assert found[value].documents == count
        assert found[value].total == pytest.approx(total, rel=1e-9, abs=1e-6)
        assert found[value].mean == pytest.approx(mean, rel=1e-9, abs=1e-6)


@given(st.lists(st.tuples(VALUES, NUMBERS), min_size=1, max_size=20), st.randoms())
def test_the_order_of_documents_changes_no_bit(rows: list[Any], random: Any) -> None:
    before = grouping(*_columns(rows), "party", "exact", draws=40)
    random.shuffle(rows)
    assert grouping(*_columns(rows), "party", "exact", draws=40) == before


def _columns(rows: list[Any]) -> tuple[list[Any], NDArray[np.float64]]:
    return [value for value, _ in rows], np.array([score for _, score in rows])


def test_totals_do_not_drown() -> None:
    found = grouped(["a"] * 3, [1e17, 1.0, -1e17])
    assert found["a"].total == 1.0


def test_intervals_are_quantiles_of_all_resamples() -> None:
    scores = np.array([-1.0, 0.25, 2.0, 7.0, 7.5])
    every = np.sort([sum(chosen) for chosen in product(scores, repeat=5)])
    for confidence in (0.95, 0.5):
        group = grouped(["a"] * 5, scores, confidence=confidence, draws=20_000)["a"]
        for end, share in ((group.low, 0.5 - confidence / 2), (group.high, 0.5 + confidence / 2)):
            below, up_to = (np.searchsorted(every, end, side) for side in ("left", "right"))
            assert below / len(every) - 0.01 < share < up_to / len(every) + 0.01


@pytest.mark.parametrize("draw", [normal, log_normal])
@pytest.mark.parametrize("count", [4096, 4097, 30_000])
def test_intervals_of_large_groups_are_those_of_plain_resamples(draw: Draw, count: int) -> None:
    random = np.random.default_rng(count)
    scores = draw(random, count)
    group = grouped(["a"] * count, scores)["a"]
    totals = [scores[random.integers(0, count, count)].sum() for _ in range(1000)]
    deviation = math.sqrt(count) * scores.std()
    for end, share in ((group.low, 0.025), (group.high, 0.975)):
        # Three standard errors of such a quantile from 1,000 and 2,000 draws.
        assert abs(end - np.quantile(totals, share)) < 0.3 * deviation


def test_draws_and_seeds_decide_the_interval() -> None:
    scores = normal(np.random.default_rng(0), 50)
    first, again, other = (grouped(["a"] * 50, scores, seed=seed)["a"] for seed in (1, 1, 2))
    assert first == again
    assert first.low != other.low
    assert first.total == other.total
    found = grouping(["a"] * 50, scores, "party", "exact", confidence=0.8, draws=7)
    assert (found.column, found.tier, found.confidence, found.draws) == ("party", "exact", 0.8, 7)
    assert found.groups[0].high - found.groups[0].low < first.high - first.low


def test_one_document_has_no_interval() -> None:
    (group,) = grouped(["a"], [-2.5]).values()
    assert group == Group("a", 1, -2.5, -2.5, -2.5, -2.5)


@pytest.mark.parametrize(
    ("draw", "truth", "least", "most"),
    [(normal, 0.0, 0.89, 0.97), (log_normal, math.exp(1.125), 0.74, 0.88)],
)
def test_coverage_is_what_is_said_of_it(
    draw: Draw, truth: float, least: float, most: float
) -> None:
    """Intervals of 95 %, for groups of thirty: 94 %, and 81 % under heavy tails."""
    random = np.random.default_rng(5)
    groups = grouped(np.repeat(np.arange(400), 30).tolist(), draw(random, 12_000), draws=500)
    held = [group.low <= 30 * truth <= group.high for group in groups.values()]
    assert least < np.mean(held) < most


def test_numbers_fall_into_bins_of_like_size() -> None:
    years = [1790 + 2 * i for i in range(100)] + [None] * 5
    random = np.random.default_rng(0)
    order = random.permutation(len(years))
    found = grouped([years[i] for i in order], np.ones(105), bins=4)
    assert {value: group.documents for value, group in found.items()} == {
        "1790 to 1838": 25,
        "1840 to 1888": 25,
        "1890 to 1938": 25,
        "1940 to 1988": 25,
        None: 5,
    }


@given(st.lists(st.one_of(st.none(), st.integers(-5, 5)), max_size=40), st.integers(2, 8))
def test_bins_part_no_equal_numbers_and_leave_no_gaps(values: list[Any], bins: int) -> None:
    found = grouped(values, np.ones(len(values)), bins=bins, draws=2)
    named = {value: group for value, group in found.items() if value is not None}
    assert len(named) <= bins
    spans = sorted(tuple(map(int, str(value).split(" to "))) for value in named)
    assert all(before[1] < after[0] for before, after in pairwise(spans))
    for low, high in spans:
        inside = [value for value in values if value is not None and low <= value <= high]
        assert named[f"{low} to {high}"].documents == len(inside)
        assert (min(inside), max(inside)) == (low, high)
    missing = found[None].documents if None in found else 0
    assert missing + sum(group.documents for group in named.values()) == len(values)


def test_bins_of_fractions_are_named_in_full() -> None:
    found = grouped([0.5, 1.25, 1e6, 1234567.5], [1.0] * 4, bins=2)
    assert set(found) == {"0.5 to 1.25", "1000000.0 to 1234567.5"}


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (list(range(MOST_GROUPS + 1)), {}, "1,001 values, more than 1,000 groups; give bins=10"),
        ([str(i) for i in range(1001)], {}, "group by a column of fewer values, or filter with wh"),
        (["Whig", None], {"bins": 4}, "bins=4 is for columns of numbers, and 'party' holds 'Whig'"),
        ([True], {"bins": 4}, "holds True; leave bins out"),
        ([1, 2], {"bins": 1}, "bins=1 is not allowed; give 2 or more"),
        ([1], {"confidence": 1.0}, "confidence=1, draws=2000: give a confidence between 0 and 1"),
        ([1], {"draws": 0}, "at least one draw"),
    ],
)
def test_what_makes_no_groups_is_refused(values: list[Any], options: Any, message: str) -> None:
    with pytest.raises(QueryError, match=message):
        grouped(values, np.ones(len(values)), **options)


def test_a_thousand_values_are_allowed() -> None:
    assert len(grouped(list(range(MOST_GROUPS)), np.ones(MOST_GROUPS))) == MOST_GROUPS


def test_values_and_scores_go_together() -> None:
    with pytest.raises(ValueError, match="2 values and 3 scores"):
        grouped([1, 2], np.ones(3))


def test_nothing_has_no_groups() -> None:
    assert grouped([], []) == grouped([], [], bins=3) == {}
