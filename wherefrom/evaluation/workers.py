"""Processes that train side by side, each with a trainer and a measurement of its own."""

from __future__ import annotations

import copy
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from wherefrom.errors import EvaluationError
from wherefrom.evaluation.measurement import Measurement
from wherefrom.evaluation.trainers import Run, Trainer

if TYPE_CHECKING:
    from multiprocessing.synchronize import Event

__all__ = ["Apart", "Keep", "measured", "processes"]

Keep = Callable[[Run, NDArray[np.float64]], None]
"""Takes the measurements of a finished run; the same run may come twice."""


def measured(
    trainer: Trainer, measurement: Measurement, runs: Sequence[Run]
) -> Iterator[tuple[Run, NDArray[np.float64]]]:
    """Train and measure in this process."""
    for run, module in zip(runs, trainer.train(runs), strict=True):
        yield run, measurement(module)


@contextmanager
def processes(trainer: Trainer, measurement: Measurement, workers: int) -> Iterator[Apart]:
    """Processes of one thread each, which begin at once.

    Whatever ends it early (Ctrl-C, a run that fails, an error of ``told``), the runs at work are
    finished and kept, and no other is begun.

    Args:
        trainer: Sent to each process once.
        measurement: The same.
        workers: Processes.

    Yields:
        What trains in them.

    Raises:
        EvaluationError: The trainer cannot be sent.
    """
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    given = (trainer, measurement, stop)
    executor = ProcessPoolExecutor(workers, context, _prepare, given)
    apart = Apart(executor)
    try:
        try:
            executor.submit(_begin)
        except Exception as error:
            raise EvaluationError(
                f"the trainer cannot be sent to other processes ({type(error).__name__}: "
                f"{' '.join(str(error).split())}); they find a function by its name, so define it "
                "with def at the top of a file (no lambda, none within a function), or train with "
                "one worker"
            ) from error
        yield apart
    finally:
        stop.set()
        # Once: a second call without cancel_futures would let what waits be trained.
        executor.shutdown(wait=True, cancel_futures=True)
        apart.keep_finished()


class Apart:
    """Trains in the processes of an executor; see :func:`processes`."""

    def __init__(self, executor: ProcessPoolExecutor) -> None:
        self._executor = executor
        self._shared: dict[Future[list[NDArray[np.float64]]], Sequence[Run]] = {}
        self._keep: Keep | None = None

    def train(self, shares: Sequence[Sequence[Run]], keep: Keep, told: Callable[[], None]) -> None:
        """Train shares of the runs.

        Args:
            shares: Runs that a trainer is given together.
            keep: Called in this process with every finished run.
            told: Called after it.

        Raises:
            EvaluationError: A process died, or could not begin.
        """
        self._keep = keep
        try:
            for share in shares:
                self._shared[self._executor.submit(_work, share)] = share
            for future in as_completed(self._shared):
                for run, nats in zip(self._shared[future], future.result(), strict=True):
                    keep(run, nats)
                    told()
        except BrokenProcessPool as error:
            raise EvaluationError(
                "a process that trains was killed or could not begin; train with fewer workers if "
                "memory ran out, and start them under `if __name__ == '__main__':` from a script"
            ) from error

    def keep_finished(self) -> None:
        """Keep what was finished after an error, once no process is at work."""
        for future, share in self._shared.items():
            finished = future.done() and not future.cancelled() and future.exception() is None
            if finished and self._keep is not None:
                for run, nats in zip(share, future.result(), strict=False):
                    self._keep(run, nats)


class _Worker:
    """State of a process that trains."""

    stop: Event
    ready: tuple[Trainer, Measurement]


def _prepare(trainer: Trainer, measurement: Measurement, stop: Event) -> None:
    # Ctrl-C reaches every process of a terminal; the one that started the others ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Workers share the cores: more threads than cores would cost ten times as much.
    torch.set_num_threads(1)
    # Tensors arrive in memory that processes share: a trainer that writes into its own would
    # write into those of all.
    _Worker.ready, _Worker.stop = copy.deepcopy((trainer, measurement)), stop


def _begin() -> None:
    """Processes are started by the first call."""


def _work(runs: Sequence[Run]) -> list[NDArray[np.float64]]:
    """Measurements of the runs, or of those that were finished when it was to stop."""
    found: list[NDArray[np.float64]] = []
    if _Worker.stop.is_set():
        return found
    trainer, measurement = _Worker.ready
    for _, nats in measured(trainer, measurement, runs):
        found.append(nats)
        if _Worker.stop.is_set():
            break
    return found
