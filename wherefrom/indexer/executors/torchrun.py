"""Tasks on the ranks of a job that torchrun, or anything that sets its variables, has started.

Every rank runs the same command. Rank 0 builds the index; the others, its followers, read no corpus
and write nothing but the files of tasks: they are sent the job, and all ranks take the next task
from one counter until there is none. Gloo carries orders and never a gradient, so the ranks need no
GPU, and each computes on its own where there are some.
"""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache, partial
from typing import Any, Literal

import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from wherefrom.errors import ExecutionError, WherefromError
from wherefrom.indexer.executors.base import Done, Outcome, Task
from wherefrom.indexer.executors.nodes import from_anywhere
from wherefrom.indexer.job import Job
from wherefrom.indexer.workshop import Workshop

__all__ = ["TorchrunExecutor", "is_follower", "is_launched", "serve"]

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_FOREVER = timedelta(days=365)  # Followers wait while rank 0 reads a corpus or fits an encoder.


def is_launched() -> bool:
    """Whether this process is a rank of a distributed job."""
    return all(name in os.environ for name in _VARIABLES)


def is_follower() -> bool:
    """Whether it is a rank other than 0, which is to :func:`serve` and not to build."""
    return is_launched() and os.environ["RANK"] != "0"


class TorchrunExecutor:
    """The ranks of this job; made by rank 0, while the others :func:`serve`.

    When a build fails, the others wait until rank 0 has ended: torchrun ends all ranks as soon as
    one fails, and this one has still to put in order what it leaves.

    Raises:
        ExecutionError: This process is no rank, or the ranks cannot reach each other.
    """

    name = "torchrun"
    remote = True
    staging: Literal["files", "fragments"] = "fragments"

    def __init__(self) -> None:
        self._ranks = _Ranks.join()
        self._state: Literal["open", "closed", "failed"] = "open"
        self.workers = self._ranks.size
        self._opened: tuple[Job, Callable[[], Workshop]] | None = None

    def run(self, job: Job, tasks: Sequence[Task], done: Done) -> None:
        """Carry out all tasks, this rank's share among them.

        Raises:
            WherefromError: A task failed on some rank.
            ExecutionError: A rank died.
        """
        if self._state != "open":
            raise ExecutionError("the ranks of this job are no longer there; start the job again")
        ranks = self._ranks
        known = self._opened is not None and self._opened[0] is job
        if self._opened is None or not known:
            self._opened = job, cache(partial(job.open, ranks.local))
        workshop = self._opened[1]

        def tell_done() -> None:
            for outcome in ranks.finished(tasks):
                done(outcome)

        try:
            ranks.tell(_Order(None if known else from_anywhere(job), tuple(tasks)))
            ranks.share(workshop, tasks, tell_done)
        except BaseException:
            self._state = "failed"
            raise

    def close(self, *, failed: bool = False) -> None:
        """Let the other ranks end, at once or, if the build failed, with this process."""
        if self._state != "open":
            return
        self._state = "failed" if failed else "closed"
        if not failed:
            self._ranks.tell(None)
            self._ranks.leave()


def serve() -> None:
    """Carry out tasks for rank 0 until it says that it is done; for all other ranks.

    Raises:
        ExecutionError: The build failed, here or elsewhere; rank 0 says why.
    """
    ranks = _Ranks.join()
    try:
        while (order := ranks.hear()) is not None:
            if order.job is not None:
                opened = cache(partial(order.job.open, ranks.local))
            ranks.share(opened, order.tasks)
    except ExecutionError as error:
        raise ExecutionError(
            f"rank {ranks.rank} stops, for the build failed; rank 0 says why, unless it was killed"
        ) from error
    ranks.leave()


@dataclass(frozen=True, slots=True)
class _Order:
    """Tasks to share; of the same job as before, unless another is given."""

    job: Job | None
    tasks: tuple[Task, ...]


class _Ranks:
    """This rank among the others: orders by broadcast, a counter and outcomes in a store."""

    def __init__(self, group: Any, store: Any, *, joined: bool) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.local = int(os.environ.get("LOCAL_RANK", "0"))
        self._group = group
        self._stores = store
        self._store = store
        self._joined = joined
        self._rounds = 0
        self._taken_in = 0

    @classmethod
    def join(cls) -> _Ranks:
        """Meet the other ranks.

        Raises:
            ExecutionError: This process is no rank, or the others cannot be reached.
        """
        if not is_launched():
            raise ExecutionError(
                "executor='torchrun' needs the variables that torchrun sets; run 'torchrun "
                "--nproc-per-node 2 -m wherefrom build ...', or choose executor='processes'"
            )
        joins = not dist.is_initialized()
        with _lost_ranks():
            if joins:
                dist.init_process_group("gloo", timeout=_FOREVER)
            group = dist.new_group(backend="gloo", timeout=_FOREVER)
            address, leads = os.environ["MASTER_ADDR"], dist.get_rank() == 0
            own = TCPStore(address, 0, None, True, wait_for_workers=False) if leads else None
            ports = [None if own is None else own.port]
            dist.broadcast_object_list(ports, src=0, group=group)
            store = own or TCPStore(address, int(ports[0] or 0), None, False)
        return cls(group, store, joined=joins)

    def leave(self) -> None:
        """Close the connections, which ends those who still wait for this rank."""
        dist.destroy_process_group(None if self._joined else self._group)

    def tell(self, order: _Order | None) -> None:
        """Rank 0 gives an order to all; ``None`` is the last."""
        with _lost_ranks():
            dist.broadcast_object_list([order], src=0, group=self._group)

    def hear(self) -> _Order | None:
        """The others get it."""
        orders: list[_Order | None] = [None]
        with _lost_ranks():
            dist.broadcast_object_list(orders, src=0, group=self._group)
        return orders[0]

    def share(
        self,
        workshop: Callable[[], Workshop],
        tasks: Sequence[Task],
        after_each: Callable[[], None] = lambda: None,
    ) -> None:
        """Carry out this rank's share of ``tasks``, and wait for the others.

        Raises:
            Exception: On rank 0: its own, or another's.
            ExecutionError: A rank died.
        """
        self._rounds += 1
        self._taken_in = 0
        self._store = PrefixStore(f"round {self._rounds}", self._stores)
        failure: Exception | None = None
        try:
            while (task := self._next(tasks)) is not None:
                self._enter(task, workshop().perform(tasks[task]))
                after_each()
        except Exception as error:
            failure = error
        failures: list[Exception | None] = [None] * self.size
        with _lost_ranks():
            if failure is not None:
                self._store.set("failed", "")
            dist.gather_object(
                _portable(failure, self.rank),
                failures if self.rank == 0 else None,
                group=self._group,
            )
        if self.rank == 0:
            for known in (failure, *failures):
                if known is not None:
                    raise known
            after_each()

    def finished(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """Outcomes on all ranks that were not taken in yet."""
        while self._taken_in < self._store.add("finished", 0):
            key = f"outcome {self._taken_in}"
            position, documents, notes = json.loads(self._store.get(key))
            self._store.delete_key(key)
            self._taken_in += 1
            yield Outcome(tasks[position], documents, tuple(notes))

    def _next(self, tasks: Sequence[Task]) -> int | None:
        """Position of a task that no rank has taken; ``None`` if there is none left to do."""
        position = int(self._store.add("given out", 1)) - 1
        return None if position >= len(tasks) or self._store.check(["failed"]) else position

    def _enter(self, position: int, outcome: Outcome) -> None:
        number = self._store.add("finished", 1) - 1
        entry = json.dumps([position, outcome.documents, outcome.notes])
        self._store.set(f"outcome {number}", entry)


@contextmanager
def _lost_ranks() -> Iterator[None]:
    """What Gloo raises when a connection is cut, in one line."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        cause = str(error).splitlines()[0]
        raise ExecutionError(
            f"another rank of this job ended or cannot be reached ({cause}); see what it printed, "
            "and run the same command again to go on"
        ) from error


def _portable(error: Exception | None, rank: int) -> Exception | None:
    """An error that another rank can raise: ours as they are, others with their traceback."""
    if error is None or isinstance(error, WherefromError):
        return error
    return RuntimeError(f"on rank {rank}:\n{''.join(traceback.format_exception(error))}")
