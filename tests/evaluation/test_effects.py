from __future__ import annotations

import numpy as np
import pytest

from wherefrom.evaluation.effects import beyond_draws, crossed_mean


@pytest.mark.parametrize(("draws", "seeds"), [(3, 2), (10, 5), (20, 1)])
def test_a_random_set_of_one_query_seldom_stands_out(draws: int, seeds: int) -> None:
    """Sets differ by 1, seeds by .3, single trainings by .2."""
    generator = np.random.default_rng(0)
    found = 0
    for _ in range(400):
        sets = generator.normal(size=1 + draws)
        noise = 0.3 * generator.normal(size=(seeds, 1))
        changes = sets + noise + 0.2 * generator.normal(size=(seeds, 1 + draws))
        effect = beyond_draws(changes[None, :, 0], changes[None, :, 1:])
        assert effect.p is not None
        found += effect.p <= 0.05
    assert found / 400 <= 0.08


def test_a_set_that_is_far_from_random_ones_stands_out() -> None:
    generator = np.random.default_rng(0)
    drawn = generator.normal(size=(1, 2, 10))
    effect = beyond_draws(np.full((1, 2), -20.0), drawn)
    assert effect.p is not None
    assert effect.p < 1e-3
    assert effect.value == pytest.approx(-20.0 - drawn.mean())


def test_one_draw_gives_no_interval_and_many_queries_are_a_mean() -> None:
    generator = np.random.default_rng(0)
    alone = beyond_draws(generator.normal(size=(1, 3)), generator.normal(size=(1, 3, 1)))
    assert (alone.error, alone.p) == (None, None)
    values, drawn = generator.normal(size=(6, 3)), generator.normal(size=(6, 3, 4))
    assert beyond_draws(values, drawn) == crossed_mean(values[:, :, None] - drawn)
