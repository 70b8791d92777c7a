"""What a build is divided into, and what carries it out: tasks, their outcomes, executors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from wherefrom.indexer.job import Job

__all__ = ["Done", "Executor", "Outcome", "Phase", "Task"]

Phase = Literal["fit", "merge", "encode"]


@dataclass(frozen=True, slots=True, order=True)
class Task:
    """One piece of a build; carried out, it is one durable file, by which it is known as done.

    Attributes:
        phase: ``fit`` gathers statistics of a shard, ``merge`` adds up two of them, ``encode``
            makes a shard's rows.
        index: Number of the shard; of a merge, the node's number on its level.
        step: Pass of the fit.
        level: Of a merge: how many levels above the shards it stands.
    """

    phase: Phase
    index: int
    step: int = 0
    level: int = 0

    def __str__(self) -> str:
        """The task in words, for messages."""
        if self.phase == "encode":
            return f"encoding shard {self.index}"
        if self.phase == "merge":
            return f"merging statistics {self.index} on level {self.level}"
        return f"fitting on shard {self.index}, pass {self.step + 1}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What carrying out a task tells.

    Attributes:
        task: Which.
        documents: It went over.
        notes: What to warn of.
    """

    task: Task
    documents: int = 0
    notes: tuple[str, ...] = ()


Done = Callable[[Outcome], None]
"""Told of each outcome, in the thread of who runs the tasks."""


class Executor(Protocol):
    """Carries out tasks, each at least once: a task done twice leaves the same file.

    Attributes:
        name: Of its kind.
        workers: How many tasks run at once.
        remote: Whether workers are other processes, which load the model themselves.
        staging: How encoded shards wait for their commit: as ``files`` that the driver copies into
            the table, or as ``fragments`` of the table itself.
    """

    name: str
    workers: int
    remote: bool
    staging: Literal["files", "fragments"]

    def run(self, job: Job, tasks: Sequence[Task], done: Done) -> None:
        """Carry out all tasks, in any order.

        Raises:
            WherefromError: A task failed, with its own error; or workers died again and again.
        """
        ...

    def close(self, *, failed: bool = False) -> None:
        """Let workers go. Safe to call twice.

        Args:
            failed: Whether the build did: workers that wait for more are told.
        """
        ...
