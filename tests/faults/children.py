"""Work in child processes that may be killed: forked from one that has imported everything.

Importing torch and transformers takes seconds, a fork milliseconds. The nursery itself never runs
a model nor touches a table, so that its children start from a clean state.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

__all__ = ["Child", "Ended", "Nursery", "nurse"]

_TESTS = Path(__file__).parent.parent
_PATIENCE = 90.0
_LONG = 7000.0


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes:
        status: Exit status; the negative number of the signal that ended it.
        result: What the work returned; ``None`` if it did not come to its end.
        error: Name of the class of the error that ended it, if one did.
        message: Of that error.
        traceback: Of that error.
        seconds: The child lived.
    """

    status: int
    result: Any = None
    error: str | None = None
    message: str = ""
    traceback: str = ""
    seconds: float = 0.0

    @property
    def killed(self) -> bool:
        return self.status == -signal.SIGKILL

    @property
    def done(self) -> bool:
        return self.status == 0 and self.error is None


class Child:
    """A child at work."""

    def __init__(self, nursery: Nursery, pid: int, report: Path) -> None:
        self.pid = pid
        self._nursery = nursery
        self._report = report
        self._started = time.perf_counter()

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def wait(self) -> Ended:
        """Wait for its end; a child that hangs is killed, and fails the test."""
        status = self._nursery.status()
        seconds = time.perf_counter() - self._started
        told: dict[str, Any] = {}
        if self._report.exists():
            told = json.loads(self._report.read_text())
            self._report.unlink()
        return Ended(status, seconds=seconds, **told)


class Nursery:
    """A process that forks children, one at a time.

    Args:
        folder: For what children report.
    """

    def __init__(self, folder: Path) -> None:
        self._report = folder / "report.json"
        paths = [str(_TESTS), os.environ.get("TREE", str(_TESTS.parent))]
        variables = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "faults.children"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=variables,
        )
        self._line()  # It has imported everything.

    def start(self, work: str, disk: Mapping[str, Any] | None = None, **arguments: Any) -> Child:
        """Start a child.

        Args:
            work: ``module:function``, called with ``arguments`` (JSON values).
            disk: What :class:`faults.disk.Disk` is to do meanwhile.
        """
        order = {"work": work, "arguments": arguments, "disk": disk, "report": str(self._report)}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return Child(self, int(self._line()), self._report)

    def run(self, work: str, disk: Mapping[str, Any] | None = None, **arguments: Any) -> Ended:
        """Have a child do its work, to whatever end."""
        return self.start(work, disk, **arguments).wait()

    def status(self) -> int:
        return int(self._line())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the nursery has died")
        return line


def nurse() -> None:
    """Fork a child for each order that comes in; tell its process number, then how it ended."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # What children print is no answer.
    import torch

    importlib.import_module("faults.disk")
    importlib.import_module("faults.work").small_shards()
    torch.set_num_threads(1)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os.close(answers.fileno())
            _work(order)
        print(pid, file=answers, flush=True)
        patience = _PATIENCE if order["disk"] is not None else _LONG
        print(_ended(pid, patience), file=answers, flush=True)


def _ended(pid: int, patience: float) -> int:
    end = time.monotonic() + patience
    while time.monotonic() < end:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGABRT)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _work(order: Mapping[str, Any]) -> None:
    """Do the work, report, and leave without any ceremony."""
    from faults.disk import Disk

    told: dict[str, Any] = {}
    status = 0
    try:
        module, name = order["work"].split(":")
        work = getattr(importlib.import_module(module), name)
        with Disk.of(order["disk"]) as disk:
            result = work(**order["arguments"])
        told = {"result": result if result is not None else disk.steps}
    except SystemExit as left:
        status = int(left.code or 0)
    except BaseException as error:
        status = 1
        told = {
            "error": type(error).__name__,
            "message": str(error),
            "traceback": traceback.format_exc(),
        }
    report = Path(order["report"])
    _write(report.open("w"), json.dumps(told))
    os._exit(status)


def _write(stream: IO[str], text: str) -> None:
    with stream:
        stream.write(text)


if __name__ == "__main__":
    nurse()
