"""A build that is killed, again and again, goes on and ends as if nothing had happened.

Killed by SIGKILL: before any of the steps that it does to the disk, and at any moment. The same
call goes on with it; the index is the same to the last bit, and no more work was done twice than
one task a kill.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from faults.attempts import KINDS, Attempts, Undisturbed
from faults.children import Nursery

QUICK = ["tensors", "text"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_build_twice_is_the_same_index(
    attempts: Attempts, undisturbed: Undisturbed
) -> None:
    attempts.run()
    attempts.assert_same(undisturbed)


@pytest.mark.parametrize("kind", QUICK)
def test_a_build_killed_at_a_step_ends_the_same(
    attempts: Attempts, undisturbed: Undisturbed
) -> None:
    """One build, killed along its whole way: every attempt comes a bit further."""
    for _ in range(7):
        ended = attempts.run(kill_at=max(4, len(undisturbed.steps) // 7))
        attempts.assert_unfinished_or_right(undisturbed)
        if ended.done:
            break
    assert attempts.kills >= 5
    attempts.run()
    attempts.assert_same(undisturbed)


@pytest.mark.parametrize("kind", QUICK)
def test_a_build_killed_at_any_moment_ends_the_same(
    attempts: Attempts, undisturbed: Undisturbed
) -> None:
    until_done(attempts, undisturbed, random.Random(0), most=6)
    attempts.assert_same(undisturbed)


def until_done(attempts: Attempts, undisturbed: Undisturbed, rng: random.Random, most: int) -> None:
    for _ in range(most):
        if attempts.run_for(rng.uniform(0.02, 1.0) * undisturbed.seconds).done:
            return
        attempts.assert_unfinished_or_right(undisturbed)
    attempts.run()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_a_build_killed_at_every_step_ends_the_same(
    nursery: Nursery, undisturbed: Undisturbed, folder: Path
) -> None:
    for step in range(len(undisturbed.steps)):
        attempts = Attempts(nursery, undisturbed.kind, folder / str(step))
        assert attempts.run(kill_at=step).killed, undisturbed.steps[step]
        attempts.assert_unfinished_or_right(undisturbed)
        attempts.run()
        attempts.assert_same(undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_a_hundred_kills_at_any_moment(
    nursery: Nursery, undisturbed: Undisturbed, folder: Path
) -> None:
    rng, kills, round_ = random.Random(1), 0, 0
    while kills < 100:
        attempts = Attempts(nursery, undisturbed.kind, folder / str(round_))
        until_done(attempts, undisturbed, rng, most=20)
        attempts.assert_same(undisturbed)
        kills, round_ = kills + attempts.kills, round_ + 1
