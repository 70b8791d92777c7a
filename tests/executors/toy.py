"""A job without a model, with hooks to slow its tasks, to fail them and to kill their worker."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wherefrom.errors import CurvatureError
from wherefrom.indexer.executors.base import Outcome, Task
from wherefrom.indexer.job import ModelChoice
from wherefrom.store import write_bytes_atomically


@dataclass(frozen=True)
class ToyJob:
    """Its tasks leave a file ``done-N`` each and a line in ``log``.

    In the folder, a file ``slow`` holds the seconds that a task takes; ``die-N`` makes task N kill
    its worker, as often as the file holds letters; ``fail-N`` makes it raise an error of ours,
    ``break-N`` another one; with ``no-model`` nobody can open the job.
    """

    folder: Path
    choice: ModelChoice = field(default_factory=lambda: ModelChoice("none", device="cpu"))

    def open(self, worker: int = 0) -> ToyWorkshop:
        with (self.folder / "opened").open("a") as log:
            log.write(f"{os.getpid()}\n")
        if (self.folder / "no-model").exists():
            raise CurvatureError("the toy cannot be loaded; give another")
        return ToyWorkshop(self.folder)


class ToyWorkshop:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def perform(self, task: Task) -> Outcome:
        hooks = {kind: self.folder / f"{kind}-{task.index}" for kind in ("die", "fail", "break")}
        with (self.folder / "log").open("a") as log:
            log.write(f"{task.index} {os.getpid()}\n")
        if (self.folder / "slow").exists():
            time.sleep(float((self.folder / "slow").read_text()))
        if hooks["die"].exists() and (lives := hooks["die"].read_text()):
            hooks["die"].write_text(lives[1:])
            os._exit(1)
        if hooks["fail"].exists():
            raise CurvatureError(f"task {task.index} cannot be done; leave it out")
        if hooks["break"].exists():
            raise ZeroDivisionError("a fault of the program")
        write_bytes_atomically(self.folder / f"done-{task.index}", b"")
        return Outcome(task, documents=task.index, notes=(f"note {task.index}",))


def toy_job(folder: Path) -> Any:
    """A job as executors take it."""
    (folder / "work").mkdir()
    return ToyJob(folder)


def tasks(count: int) -> list[Task]:
    return [Task("encode", i) for i in range(count)]


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
