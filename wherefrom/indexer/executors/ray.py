"""Tasks on a Ray cluster: one actor a worker, each with a model of its own, on any node.

Tasks are given out one at a time, so a fast node does more of them. A node or a worker that dies
costs the tasks it was at: each goes to another worker, for a task done twice leaves the same file.
Workers that find no room wait for some while the others go on, so a cluster may shrink and grow.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from wherefrom.cluster import Cluster, first_line
from wherefrom.errors import ExecutionError
from wherefrom.indexer.executors.base import Done, Outcome, Task
from wherefrom.indexer.executors.nodes import (
    Nonce,
    from_anywhere,
    require_same_software,
    software,
)
from wherefrom.indexer.job import Job
from wherefrom.indexer.ledger import WORK_DIRECTORY

if TYPE_CHECKING:
    from wherefrom.indexer.workshop import Workshop

__all__ = ["RayExecutor"]

_DEATHS_ALLOWED = 3
_SECONDS_TO_START = 120.0
_SECONDS_TO_DIE = 30.0


class RayExecutor:
    """Workers on the nodes of a Ray cluster.

    The cluster is the one that the variable ``RAY_ADDRESS`` names, and is left running; without it,
    one is started on this machine and stopped by :meth:`close`.

    Args:
        workers: How many; by default one a GPU of the cluster, or as many as its processors'
            threads allow.
        threads: Of torch in each worker.

    Raises:
        MissingExtraError: Ray is not installed.
        ExecutionError: The cluster cannot be reached.
    """

    name = "ray"
    remote = True
    staging: Literal["files", "fragments"] = "fragments"

    def __init__(self, workers: int | None, threads: int) -> None:
        self._wanted = workers
        self._threads = threads
        self._cluster: Cluster | None = None
        self._job: Job | None = None
        self._crew: _Crew | None = None
        self.workers = workers or self._room(gpus=True)

    def run(self, job: Job, tasks: Sequence[Task], done: Done) -> None:
        """Carry out all tasks.

        Raises:
            WherefromError: A task failed.
            StorageError: A node does not see the files of the build.
            ExecutionError: A node has other software, or workers died again and again while at the
                same task.
        """
        if job is not self._job or self._crew is None:
            self._dismiss()
            self._job, self._crew = job, self._hire(job)
        try:
            self._crew.carry_out(tasks, done)
        except BaseException:
            self._crew.stop()  # Nobody writes any more when the error arrives.
            raise

    def close(self, *, failed: bool = False) -> None:
        """End the workers, and the cluster if it was started here."""
        self._dismiss()
        if self._cluster is not None:
            self._cluster.close()
            self._cluster = None

    def _connect(self) -> Any:
        if self._cluster is None or not self._cluster.ray.is_initialized():
            self._cluster = Cluster((self._wanted or 1) * self._threads)
        return self._cluster.ray

    def _room(self, *, gpus: bool) -> int:
        resources = self._connect().cluster_resources()
        processors = max(1, int(resources.get("CPU", 1)) // self._threads)
        return (int(resources.get("GPU", 0)) if gpus else 0) or processors

    def _hire(self, job: Job) -> _Crew:
        ray = self._connect()
        there_are_gpus = ray.cluster_resources().get("GPU", 0) >= 1
        on_gpus = there_are_gpus and job.choice.device != "cpu"
        self.workers = self._wanted or self._room(gpus=on_gpus)
        return _Crew(ray, job, self.workers, self._threads, gpus=1 if on_gpus else 0)

    def _dismiss(self) -> None:
        crew, self._crew, self._job = self._crew, None, None
        if crew is not None:
            crew.dismiss()


_Step = Literal["start", "open", "wake"] | Task
"""What an actor is asked for: to look around, to load the model, whether it lives, or a task."""


@dataclass(frozen=True, slots=True)
class _Asked:
    actor: Any
    step: _Step


class _Crew:
    """The actors of one job, and what each is at."""

    def __init__(self, ray: Any, job: Job, size: int, threads: int, gpus: int) -> None:
        self._ray = ray
        self._size = size
        self._needs = f"{threads} free CPU{'s' * (threads > 1)}{' and a free GPU' * gpus}"
        self._kind = ray.remote(_Actor).options(
            num_cpus=threads, num_gpus=gpus, scheduling_strategy="SPREAD"
        )
        self._nonce = Nonce.leave(job.folder.absolute() / WORK_DIRECTORY)
        self._job = ray.put(from_anywhere(job))
        self._asked: dict[Any, _Asked] = {}
        self._idle: list[Any] = []
        self._deaths: dict[_Step, int] = {}

    def carry_out(self, tasks: Sequence[Task], done: Done) -> None:
        """Give out tasks until all are done."""
        waiting, left = deque(tasks), len(tasks)
        self._deaths = {}
        while tasks and self._idle:
            actor = self._idle.pop()  # Of a node that may be gone since.
            self._ask(actor, "wake", actor.wake.remote())
        while left:
            while self._idle and waiting:
                actor, task = self._idle.pop(), waiting.popleft()
                self._ask(actor, task, actor.perform.remote(task))
            self._hire(len(waiting))
            for reference in self._ready():
                asked = self._asked.pop(reference)
                answer = self._answer(reference, asked, waiting)
                if isinstance(answer, Outcome):
                    left -= 1
                    done(answer)

    def _ask(self, actor: Any, step: _Step, reference: Any) -> None:
        self._asked[reference] = _Asked(actor, step)

    def _hire(self, waiting: int) -> None:
        """Start actors, as far as there are tasks for them."""
        starting = sum(not isinstance(asked.step, Task) for asked in self._asked.values())
        room = self._size - len(self._asked) - len(self._idle)
        for _ in range(min(room, waiting - starting)):
            actor = self._kind.remote()
            self._ask(actor, "start", actor.start.remote(self._nonce))

    def _ready(self) -> Sequence[Any]:
        """Wait for answers.

        Raises:
            ExecutionError: There is room for no worker at all.
        """
        ray = self._ray
        hopeful = any(asked.step != "start" for asked in self._asked.values())
        timeout = None if hopeful else _SECONDS_TO_START
        ready, _ = ray.wait(list(self._asked), num_returns=1, timeout=timeout)
        if not ready:
            raise ExecutionError(
                f"no node of the Ray cluster has {self._needs} for a worker; free some or add a "
                "node, then run the same command again"
            )
        return list(ready)

    def _answer(self, reference: Any, asked: _Asked, waiting: deque[Task]) -> Outcome | None:
        """Take in an answer: of a task its outcome, and what the actor is to do next."""
        ray = self._ray
        try:
            answer = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            if isinstance(asked.step, Task):
                self._idle.append(asked.actor)
            if isinstance(error.cause, ray.exceptions.RayError):
                cause = first_line(error.cause)
                raise ExecutionError(
                    f"a node of the Ray cluster cannot read the job ({cause}); install "
                    "the modules of the model and the objective on all nodes"
                ) from error
            raise error.cause from error  # Of its own class, as if it had happened here.
        except ray.exceptions.RayError as error:
            ray.kill(asked.actor)  # A node that is only cut off must not come back with it.
            if asked.step != "wake":
                self._count_death(asked.step, error)
            if isinstance(asked.step, Task):
                waiting.appendleft(asked.step)
            return None
        if asked.step == "start":
            require_same_software(answer)
            self._ask(asked.actor, "open", asked.actor.open.remote(self._job))
            return None
        self._deaths.pop(asked.step, None)
        self._idle.append(asked.actor)
        return answer if isinstance(answer, Outcome) else None

    def _count_death(self, step: _Step, error: Exception) -> None:
        self._deaths[step] = self._deaths.get(step, 0) + 1
        if self._deaths[step] >= _DEATHS_ALLOWED:
            doing = step if isinstance(step, Task) else "starting and loading the model"
            raise ExecutionError(
                f"Ray workers died {_DEATHS_ALLOWED} times while {doing} "
                f"({type(error).__name__}: {first_line(error)}); run the same command "
                "again with a smaller --batch-size or on nodes with more memory"
            ) from error

    def stop(self) -> None:
        """End the actors that are at work, and wait until they write no more."""
        ray = self._ray
        if self._asked and ray.is_initialized():
            for asked in self._asked.values():
                ray.kill(asked.actor)
            ray.wait(list(self._asked), num_returns=len(self._asked), timeout=_SECONDS_TO_DIE)
        self._asked = {}

    def dismiss(self) -> None:
        """End all actors."""
        ray = self._ray
        self.stop()
        if ray.is_initialized():
            for actor in self._idle:
                ray.kill(actor)
        self._idle = []
        self._nonce.remove()


class _Actor:
    """A worker; lives in a process of its own on some node."""

    def __init__(self) -> None:
        self._workshop: Workshop | None = None

    def start(self, nonce: Nonce) -> Mapping[str, str]:
        """Make sure that this node sees the build's files; what software it has."""
        nonce.see()
        return software()

    def wake(self) -> None:
        """Answer, and nothing else."""

    def open(self, job: Job) -> None:
        """Load the model."""
        self._workshop = job.open()

    def perform(self, task: Task) -> Outcome:
        """Carry out a task."""
        if self._workshop is None:
            raise RuntimeError("the actor was asked for a task before it loaded the model")
        return self._workshop.perform(task)
