"""Processes that train side by side, each with a trainer and a measurement of its own."""

from __future__ import annotations

import multiprocessing
import pickle
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from wherefrom.errors import EvaluationError
from wherefrom.evaluation.measurement import Measurement
from wherefrom.evaluation.trainers import Run, Trainer

if TYPE_CHECKING:
    from multiprocessing.synchronize import Event

__all__ = ["Keep", "measured", "packed", "train_apart"]

Keep = Callable[[Run, NDArray[np.float64]], None]
"""Takes the measurements of a finished run; the same run may come twice."""


def measured(
    trainer: Trainer, measurement: Measurement, runs: Sequence[Run]
) -> Iterator[tuple[Run, NDArray[np.float64]]]:
    """Train and measure in this process."""
    for run, module in zip(runs, trainer.train(runs), strict=True):
        yield run, measurement(module)


def packed(trainer: Trainer, measurement: Measurement) -> bytes:
    """Both as they are sent to each worker, once.

    Raises:
        EvaluationError: They cannot be sent.
    """
    try:
        return pickle.dumps((trainer, measurement))
    except Exception as error:
        raise EvaluationError(
            f"the trainer cannot be sent to other processes ({type(error).__name__}: "
            f"{' '.join(str(error).split())}); they find a function by its name, so define it with "
            "def at the top of a file (no lambda, none within a function), or train with one worker"
        ) from error


def train_apart(
    sent: bytes,
    shares: Sequence[Sequence[Run]],
    workers: int,
    keep: Keep,
    told: Callable[[], None],
) -> None:
    """Train shares of the runs in processes of one thread each.

    Whatever ends it early (Ctrl-C, a run that fails, an error of ``told``), the runs at work are
    finished and kept, and no other is begun.

    Args:
        sent: From :func:`packed`.
        shares: Runs that a trainer is given together.
        workers: Processes.
        keep: Called in this process with every finished run.
        told: Called after it.

    Raises:
        EvaluationError: A process died, or could not begin.
    """
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    executor = ProcessPoolExecutor(min(workers, len(shares)), context, _prepare, (sent, stop))
    shared = {}
    try:
        for share in shares:
            shared[executor.submit(_work, share)] = share
        for future in as_completed(shared):
            for run, nats in zip(shared[future], future.result(), strict=True):
                keep(run, nats)
                told()
    except BrokenProcessPool as error:
        raise EvaluationError(
            "a process that trains was killed or could not begin; train with fewer workers if "
            "memory ran out, and start them under `if __name__ == '__main__':` from a script"
        ) from error
    finally:
        stop.set()
        # Once: a second call without cancel_futures would let what waits be trained.
        executor.shutdown(wait=True, cancel_futures=True)
        for future, share in shared.items():
            if not future.cancelled() and future.exception() is None:
                for run, nats in zip(share, future.result(), strict=False):
                    keep(run, nats)


class _Worker:
    """State of a process that trains."""

    sent: bytes = b""
    stop: Event
    ready: tuple[Trainer, Measurement] | None = None


def _prepare(sent: bytes, stop: Event) -> None:
    # Ctrl-C reaches every process of a terminal; the one that started the others ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Workers share the cores: more threads than cores would cost ten times as much.
    torch.set_num_threads(1)
    _Worker.sent, _Worker.stop = sent, stop


def _work(runs: Sequence[Run]) -> list[NDArray[np.float64]]:
    """Measurements of the runs, or of those that were finished when it was to stop."""
    found: list[NDArray[np.float64]] = []
    if _Worker.stop.is_set():
        return found
    if _Worker.ready is None:
        # Here and not in _prepare: an error would be lost there.
        _Worker.ready, _Worker.sent = pickle.loads(_Worker.sent), b""
    trainer, measurement = _Worker.ready
    for _, nats in measured(trainer, measurement, runs):
        found.append(nats)
        if _Worker.stop.is_set():
            break
    return found
