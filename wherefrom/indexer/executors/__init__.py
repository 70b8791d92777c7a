"""Executors: the same tasks in this process, in several, or on several machines."""

from __future__ import annotations

import os

from wherefrom.errors import WherefromError
from wherefrom.indexer.executors.base import Executor, Outcome, Task

__all__ = ["EXECUTORS", "Executor", "Outcome", "Task", "make_executor"]

EXECUTORS = ("serial", "processes", "ray", "torchrun")


def make_executor(name: str | None, *, workers: int | None, threads: int) -> Executor:
    """An executor by its name.

    Args:
        name: ``serial``, ``processes``, ``ray`` or ``torchrun``; by default ``torchrun`` in a
            process that torchrun started, else ``serial``.
        workers: How many tasks run at once; by default one a GPU, or as many as the processors'
            threads allow.
        threads: Of torch in each worker.

    Raises:
        WherefromError: There is none of that name, or it has no such number of workers.
        MissingExtraError: Ray is not installed.
    """
    if name is None:
        name = (
            "torchrun" if {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys() else "serial"
        )
    if name not in EXECUTORS:
        names = ", ".join(map(repr, EXECUTORS))
        raise WherefromError(f"executor={name!r} is unknown; choose one of {names}")
    if workers is not None and workers < 1:
        raise WherefromError(f"workers={workers} is not allowed; give at least 1")
    if name == "serial":
        from wherefrom.indexer.executors.serial import SerialExecutor

        if workers not in (None, 1):
            raise WherefromError(
                f"workers={workers} does not go with executor='serial'; choose 'processes' or 'ray'"
            )
        return SerialExecutor()
    if name == "processes":
        from wherefrom.indexer.executors.processes import ProcessExecutor

        return ProcessExecutor(workers or _workers(threads), threads)
    if name == "torchrun" and workers is not None:
        raise WherefromError(
            f"workers={workers} does not go with executor='torchrun', whose ranks are the workers; "
            "start torchrun with as many (--nproc-per-node)"
        )
    if name == "ray":
        from wherefrom.indexer.executors.ray import RayExecutor

        return RayExecutor(workers, threads)
    from wherefrom.indexer.executors.torchrun import TorchrunExecutor

    return TorchrunExecutor()


def _workers(threads: int) -> int:
    import torch

    return torch.cuda.device_count() or max(1, (os.cpu_count() or 1) // threads)
