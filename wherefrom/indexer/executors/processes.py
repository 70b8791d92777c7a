"""Tasks in several processes of this machine, each with a model of its own."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Literal

from wherefrom.errors import ExecutionError
from wherefrom.indexer.executors.base import Done, Outcome, Task
from wherefrom.indexer.job import Job
from wherefrom.indexer.workshop import Workshop

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized

__all__ = ["ProcessExecutor"]

_DEATHS_ALLOWED = 3
_PARENT_DEATH_SIGNAL = 1  # prctl's PR_SET_PDEATHSIG


class ProcessExecutor:
    """Worker processes that load the model once and are given tasks as they become free.

    A worker that dies takes down its pool: tasks that were not finished are given to a new one. A
    worker does not outlive the process that started it.

    Args:
        workers: How many.
        threads: Of torch in each worker.
    """

    name = "processes"
    remote = True
    staging: Literal["files", "fragments"] = "files"

    def __init__(self, workers: int, threads: int) -> None:
        self.workers = workers
        self._threads = threads
        self._job: Job | None = None
        self._pool: ProcessPoolExecutor | None = None

    def run(self, job: Job, tasks: Sequence[Task], done: Done) -> None:
        """Carry out all tasks.

        Raises:
            WherefromError: A task failed.
            ExecutionError: Workers died again and again without finishing one.
        """
        if job is not self._job:
            self.close()
            self._job = job
        left = dict.fromkeys(tasks)
        deaths = 0
        while left:
            before = len(left)
            died = self._round(job, left, done)
            deaths = 0 if len(left) < before else deaths + 1
            if died is None:
                continue
            self.close()
            if deaths >= _DEATHS_ALLOWED:
                raise ExecutionError(
                    f"worker processes died {deaths} times while {died}, without a word (killed "
                    "for lack of memory? or a script without if __name__ == '__main__'?); run the "
                    "same command again with fewer --workers or a smaller --batch-size"
                )

    def _round(self, job: Job, left: dict[Task, None], done: Done) -> Task | None:
        """Give out what is left; a task that was under way when a worker died, if one did."""
        pool = self._open_pool(job)
        waiting = iter(list(left))
        running: dict[Future[Outcome], Task] = {}
        try:
            while True:
                # Few at a time: what is handed to the pool cannot be taken back on an error.
                while len(running) < 2 * self.workers and (task := next(waiting, None)) is not None:
                    running[pool.submit(_perform, task)] = task
                if not running:
                    return None
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    task = running[future]
                    outcome = future.result()
                    del running[future]
                    del left[task]
                    done(outcome)
        except BrokenProcessPool:
            return min(running.values())
        except BaseException:
            for future in running:
                future.cancel()
            raise

    def _open_pool(self, job: Job) -> ProcessPoolExecutor:
        if self._pool is None:
            # Forking a process that has run torch deadlocks in OpenMP.
            context = multiprocessing.get_context("spawn")
            numbers = context.Value("i", 0)
            self._pool = ProcessPoolExecutor(
                self.workers,
                context,
                initializer=_begin,
                initargs=(job, os.getpid(), numbers, self._threads),
            )
        return self._pool

    def close(self, *, failed: bool = False) -> None:
        """End the workers, whatever they are doing."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        processes = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


_job: Job
_number = 0
_workshop: Workshop | None = None


def _begin(job: Job, parent: int, numbers: Synchronized[int], threads: int) -> None:
    """Make this worker end with its parent, and leave interruptions to it."""
    global _job, _number
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:  # It died before it could be watched.
        os._exit(1)
    import torch

    torch.set_num_threads(threads)
    _job = job
    with numbers.get_lock():
        _number = numbers.value
        numbers.value += 1


def _perform(task: Task) -> Outcome:
    """Carry out a task, loading the model for the first one, whose caller is told what fails."""
    global _workshop
    if _workshop is None:
        _workshop = _job.open(_number)
    return _workshop.perform(task)
