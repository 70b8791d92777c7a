"""A Ray cluster: the one that this process is connected to, or one that it starts for a while."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
from typing import Any

from wherefrom.errors import ExecutionError, MissingExtraError

__all__ = ["Cluster", "first_line"]

_PATIENCE = 10.0  # seconds


class Cluster:
    """A connection to Ray; whoever made it lets go of it with :meth:`close`.

    A cluster that this process is connected to already is taken as it is, and left alone. Else it
    connects to the one that ``RAY_ADDRESS`` names, or starts one on this machine.

    Args:
        processors: How many a cluster that is started here has at least.

    Attributes:
        ray: The library.

    Raises:
        MissingExtraError: Ray is not installed.
        ExecutionError: The cluster cannot be reached.
    """

    def __init__(self, processors: int) -> None:
        self.ray = _import_ray()
        self._stdout: _Stdout | None = None
        self._made_here = not self.ray.is_initialized()
        if self._made_here:
            self._connect(processors)
            self._stdout = _Stdout.put_in_place()

    def close(self) -> None:
        """Let go of the connection, and end the cluster if it was started here. Safe to repeat."""
        if self._made_here:
            self._made_here = False
            self.ray.shutdown()
        if self._stdout is not None:
            self._stdout.take_away()
            self._stdout = None

    def _connect(self, processors: int) -> None:
        address = os.environ.get("RAY_ADDRESS")
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if not address:
            room = max(os.cpu_count() or 1, processors)
            options |= {"address": "local", "num_cpus": room, "include_dashboard": False}
        try:
            if address:
                _require_answer(address)
            self.ray.init(**options)
        except (OSError, RuntimeError, ValueError) as error:
            where = f"the Ray cluster at {address}" if address else "Ray on this machine"
            raise ExecutionError(
                f"cannot reach {where} ({first_line(error)}); start it, or choose "
                "executor='processes'"
            ) from error


def _require_answer(address: str) -> None:
    """Make sure that somebody listens: Ray itself tries for minutes, and hears no signal.

    Args:
        address: ``host:port``, also of a Ray client; others, as ``auto``, Ray finds by itself.

    Raises:
        OSError: Nobody does.
    """
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), _PATIENCE).close()


def first_line(error: BaseException) -> str:
    """What an error of Ray says first; its messages hold whole tracebacks."""
    return (str(error).splitlines() or [type(error).__name__])[0]


class _Stdout:
    """Standard output without what Ray prints there, which goes to standard error.

    When a node dies, a thread of Ray prints a report, in the midst of a command's JSON.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    @classmethod
    def put_in_place(cls) -> _Stdout:
        """Stand in for ``sys.stdout``."""
        made = cls(sys.stdout)
        sys.stdout = made
        return made

    def take_away(self) -> None:
        """Put back what was there, unless somebody else replaced it since."""
        if sys.stdout is self:
            sys.stdout = self._stream

    def write(self, text: str) -> int:
        """Write, as files do."""
        of_ray = threading.current_thread().name.startswith("ray_")
        return int((sys.stderr if of_ray else self._stream).write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reads it when it is imported.
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("executor='ray' needs Ray; pip install 'wherefrom[ray]'") from error
    return ray
