"""One task after the other, in this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from wherefrom.indexer.executors.base import Done, Task
from wherefrom.indexer.job import Job

__all__ = ["SerialExecutor"]


class SerialExecutor:
    """The executor that needs nothing."""

    name = "serial"
    workers = 1
    remote = False
    staging: Literal["files", "fragments"] = "files"

    def run(self, job: Job, tasks: Sequence[Task], done: Done) -> None:
        """Carry out all tasks, in order."""
        workshop = job.open()
        for task in tasks:
            done(workshop.perform(task))

    def close(self, *, failed: bool = False) -> None:
        """Nothing to let go."""
