"""One thread for many requests: turns, a bounded queue, time limits, and the end."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest

from wherefrom.serve.errors import BusyError, ClosingError, TimeLimitError
from wherefrom.serve.worker import Worker


class Gate:
    """Work that runs until it is let go."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.open = threading.Event()

    def __call__(self) -> str:
        self.entered.set()
        assert self.open.wait(10)
        return "done"


async def ask(worker: Worker, *steps: Callable[[], Any]) -> list[Any]:
    with worker.admit() as turn:
        return [await turn.run(step) for step in steps]


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("waited in vain")


def play(
    scene: Callable[[Worker], Coroutine[Any, Any, None]], *, queue: int = 8, seconds: float = 20.0
) -> None:
    worker = Worker("test", queue=queue, seconds=seconds)
    try:
        asyncio.run(scene(worker))
    finally:
        worker.join()
    assert worker.admitted == 0


def test_all_work_is_done_in_one_thread_one_after_the_other() -> None:
    running = 0
    threads = set()

    def step() -> int:
        nonlocal running
        running += 1
        threads.add(threading.get_ident())
        time.sleep(0.001)
        assert running == 1
        running -= 1
        return 7

    async def scene(worker: Worker) -> None:
        found = await asyncio.gather(*(ask(worker, step, step) for _ in range(6)))
        assert found == [[7, 7]] * 6
        assert worker.busy_seconds >= 0.012

    play(scene)
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_requests_of_several_steps_take_turns() -> None:
    order: list[str] = []

    async def scene(worker: Worker) -> None:
        gate = Gate()
        first = asyncio.ensure_future(ask(worker, gate))
        await until(gate.entered.is_set)
        others = [
            asyncio.ensure_future(
                ask(worker, *(lambda name=name: order.append(name) for _ in range(3)))
            )
            for name in "ab"
        ]
        await asyncio.sleep(0.02)
        gate.open.set()
        await asyncio.gather(first, *others)

    play(scene)
    assert order[:2] == ["a", "b"]
    assert sorted(order[2:4]) == ["a", "b"]


def test_a_full_queue_turns_away_and_says_when_to_come_back() -> None:
    async def scene(worker: Worker) -> None:
        gate = Gate()
        waiting = [asyncio.ensure_future(ask(worker, gate)) for _ in range(3)]
        await until(lambda: worker.admitted == 3)
        with pytest.raises(BusyError, match="3 requests") as refused:
            await ask(worker, gate)
        assert int(refused.value.headers["Retry-After"]) >= 1
        gate.open.set()
        assert await asyncio.gather(*waiting) == [["done"]] * 3
        assert await ask(worker, lambda: 1) == [1]

    play(scene, queue=2)


def test_who_leaves_while_waiting_is_not_worked_for() -> None:
    worked = []

    async def scene(worker: Worker) -> None:
        gate = Gate()
        first = asyncio.ensure_future(ask(worker, gate))
        await until(gate.entered.is_set)
        left = asyncio.ensure_future(ask(worker, lambda: worked.append(1)))
        await until(lambda: worker.admitted == 2)
        left.cancel()
        with suppress(asyncio.CancelledError):
            await left
        assert worker.admitted == 1
        gate.open.set()
        await first
        await ask(worker, lambda: None)

    play(scene)
    assert worked == []


def test_who_leaves_while_worked_for_keeps_the_place_until_that_is_done() -> None:
    async def scene(worker: Worker) -> None:
        gate = Gate()
        left = asyncio.ensure_future(ask(worker, gate))
        await until(gate.entered.is_set)
        left.cancel()
        with suppress(asyncio.CancelledError):
            await left
        assert worker.admitted == 1
        with pytest.raises(BusyError):
            await ask(worker, gate)
        gate.open.set()
        await until(lambda: worker.admitted == 0)

    play(scene, queue=0)


@pytest.mark.parametrize("waits", [False, True])
def test_a_request_that_takes_too_long_is_told_so(waits: bool) -> None:
    async def scene(worker: Worker) -> None:
        gate = Gate()
        first = asyncio.ensure_future(ask(worker, gate))
        await until(gate.entered.is_set)
        asked = ask(worker, lambda: None) if waits else first
        with pytest.raises(TimeLimitError, match=r"within 0\.1 s"):
            await asked
        if waits:
            with pytest.raises(TimeLimitError):
                await first
        gate.open.set()
        await until(lambda: worker.admitted == 0)
        assert await ask(worker, lambda: 1) == [1]

    play(scene, seconds=0.1)


def test_the_time_of_a_request_is_that_of_all_its_steps() -> None:
    async def scene(worker: Worker) -> None:
        with pytest.raises(TimeLimitError):
            await ask(worker, *[lambda: time.sleep(0.03)] * 20)

    play(scene, seconds=0.2)


def test_errors_of_the_work_reach_who_asked_and_nobody_else() -> None:
    def fail() -> None:
        raise TimeoutError("of the work's own")

    async def scene(worker: Worker) -> None:
        found = await asyncio.gather(
            ask(worker, fail), ask(worker, lambda: 1), return_exceptions=True
        )
        assert isinstance(found[0], TimeoutError)
        assert found[1] == [1]

    play(scene)


def test_closing_answers_who_is_worked_for_and_turns_away_who_waits() -> None:
    async def scene(worker: Worker) -> None:
        gate = Gate()
        first = asyncio.ensure_future(ask(worker, gate, lambda: "second step"))
        await until(gate.entered.is_set)
        waiting = asyncio.ensure_future(ask(worker, lambda: None))
        await until(lambda: worker.admitted == 2)
        worker.close()
        with pytest.raises(ClosingError):
            await waiting
        with pytest.raises(ClosingError):
            await ask(worker, lambda: None)
        gate.open.set()
        assert await first == ["done", "second step"]

    play(scene)


def test_closing_lets_finish_who_waits_for_a_further_step() -> None:
    async def scene(worker: Worker) -> None:
        begun, other = Gate(), Gate()
        first = asyncio.ensure_future(ask(worker, begun, lambda: "second step"))
        await until(begun.entered.is_set)
        second = asyncio.ensure_future(ask(worker, other))
        await asyncio.sleep(0.02)
        begun.open.set()
        await until(other.entered.is_set)
        await asyncio.sleep(0.02)  # The first one's second step waits now.
        worker.close()
        other.open.set()
        assert await first == ["done", "second step"]
        assert await second == ["done"]

    play(scene)
