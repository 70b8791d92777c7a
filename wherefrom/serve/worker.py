"""One thread that works for many requests, a bounded number of them at a time.

A request is admitted once and then submits its steps one by one. Steps are done in the order they
come in, so that requests of several steps take turns. A request that is given up while its step
waits takes that step with it; a step that runs is finished, and keeps its place until then.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from wherefrom.serve.errors import BusyError, ClosingError, TimeLimitError

__all__ = ["Turn", "Worker"]

T = TypeVar("T")
_FORGET = 0.8
"""Share of the old mean that a new measurement leaves, for the time to come back after."""


class Worker:
    """A thread with a bounded queue.

    Args:
        name: Of the thread.
        queue: Requests that may wait while one is worked for.
        seconds: What a request may take, waiting included.

    Attributes:
        busy_seconds: How long the thread has worked.
        closing: Whether requests are turned away.
    """

    def __init__(self, name: str, *, queue: int, seconds: float) -> None:
        self.busy_seconds = 0.0
        self.closing = False
        self._queue = queue
        self._seconds = seconds
        self._mean = 0.0
        self._turns: set[Turn] = set()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)

    @property
    def admitted(self) -> int:
        """Requests that are worked for or wait."""
        return len(self._turns)

    @contextmanager
    def admit(self) -> Iterator[Turn]:
        """Take a request in.

        Raises:
            BusyError: The queue is full.
            ClosingError: The service is shutting down.
        """
        if self.closing:
            raise _closing()
        if len(self._turns) > self._queue:
            after = max(1, math.ceil(self._mean * len(self._turns)))
            raise BusyError(
                f"{len(self._turns)} requests are being answered or wait, as many as allowed; "
                f"ask again in {after} s",
                after,
            )
        turn = Turn(self, self._thread, time.monotonic() + self._seconds, self._seconds)
        self._turns.add(turn)
        try:
            yield turn
        finally:
            self._mean = _FORGET * self._mean + (1 - _FORGET) * turn.worked
            turn.leave(self._turns.discard)

    def close(self) -> None:
        """Turn away who comes and who waits; who has been worked for already is served."""
        self.closing = True
        for turn in list(self._turns):
            turn.give_up()

    def join(self) -> None:
        """Wait for the thread to finish what it is at."""
        self._thread.shutdown(wait=True)


class Turn:
    """A request that was admitted; see :class:`Worker`.

    Attributes:
        worked: Seconds that the thread has worked for it.
    """

    def __init__(
        self, worker: Worker, thread: ThreadPoolExecutor, deadline: float, seconds: float
    ) -> None:
        self._worker = worker
        self._thread = thread
        self._deadline = deadline
        self._seconds = seconds
        self.worked = 0.0
        self._begun = False
        self._job: Future[Any] | None = None

    async def run(self, work: Callable[[], T]) -> T:
        """Have a step done by the thread.

        Args:
            work: What to call there. Its exceptions are raised here.

        Raises:
            ClosingError: The service shut down before the request's first step began.
            TimeLimitError: The request's time is up; if the step runs already, its result is lost.
        """
        if self._worker.closing and not self._begun:
            raise _closing()
        job = self._thread.submit(self._timed, work)
        self._job = job
        waited = asyncio.wrap_future(job)
        try:
            await asyncio.wait({waited}, timeout=max(0.0, self._deadline - time.monotonic()))
        finally:
            in_time = waited.done()
            waited.cancel()
        if not in_time:
            raise TimeLimitError(
                f"no answer within {self._seconds:g} s; ask for less, or again when fewer others do"
            )
        if waited.cancelled():
            raise _closing()
        return waited.result()

    def give_up(self) -> None:
        """Drop the step that waits, if no step of this request has begun yet."""
        if self._job is not None and not self._begun:
            self._job.cancel()

    def leave(self, discard: Callable[[Turn], None]) -> None:
        """Give the place back, at once or when the step that still runs is done."""
        if self._job is None:
            discard(self)
        else:
            self._job.add_done_callback(lambda _: discard(self))

    def _timed(self, work: Callable[[], T]) -> T:
        self._begun = True
        started = time.monotonic()
        try:
            return work()
        finally:
            seconds = time.monotonic() - started
            self.worked += seconds
            self._worker.busy_seconds += seconds


def _closing() -> ClosingError:
    return ClosingError("the service is shutting down; ask again when it is back")
