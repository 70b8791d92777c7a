"""The check of the answers' years against chance."""

from __future__ import annotations

import pytest

from wherefrom.demo.run import check_eras

YEARS = list(range(1800, 1900))


def test_distances_are_means_over_queries() -> None:
    found = [((1850, 1859), [1850, 1855, 1862]), ((1800, 1800), [1810])]
    check = check_eras("two queries", found, YEARS)
    assert check.hits == pytest.approx(((0 + 0 + 3) / 3 + 10) / 2)
    away = [[max(1850 - y, y - 1859, 0) for y in YEARS], [y - 1800 for y in YEARS]]
    assert check.random == pytest.approx(sum(sum(a) / len(a) for a in away) / 2)


def test_chance_is_the_share_of_random_draws_as_near() -> None:
    """One hit at distance 10 or less: of years 1800-1899, 11 in 100 are as near to 1800."""
    check = check_eras("one", [((1800, 1800), [1810])], YEARS)
    assert check.as_near == pytest.approx(0.11, abs=0.01)
    assert "as near" in check.in_words()
    assert check == check_eras("one", [((1800, 1800), [1810])], YEARS), "seeded"


def test_hits_at_random_are_not_called_near() -> None:
    found = [((y, y), YEARS[::7]) for y in YEARS[::10]]
    assert check_eras("random", found, YEARS).as_near > 0.05
