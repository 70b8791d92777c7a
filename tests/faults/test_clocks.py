"""Clocks that jump: while a build runs, and by years between its attempts."""

from __future__ import annotations

import os

import pytest

from faults.attempts import Attempts, Undisturbed
from faults.work import JUMPS


@pytest.mark.parametrize("jumps", JUMPS)
@pytest.mark.parametrize("kind", ["tensors"])
def test_the_index_does_not_depend_on_the_clock(
    attempts: Attempts, undisturbed: Undisturbed, jumps: str
) -> None:
    attempts.run(kill_at=len(undisturbed.steps) // 2, clock=jumps)
    assert attempts.kills == 1
    for number, path in enumerate(attempts.index.rglob("*")):
        seconds = (0, 2**31 - 1, 4 * 10**9)[number % 3]  # Files from 1970, 2038 and 2096.
        os.utime(path, (seconds, seconds))
    attempts.assert_unfinished_or_right(undisturbed)
    attempts.run(clock=jumps)
    attempts.assert_same(undisturbed)
