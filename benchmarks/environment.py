"""What a figure was measured on and with: machine, versions, load, memory. Loads no torch.

Processes that start other processes must stay small: Linux counts a parent's memory into the peak
of a child that it starts.
"""

from __future__ import annotations

import os
import platform
import resource
import sys
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

__all__ = ["child_variables", "describe", "load_average", "now", "peak_memory"]

_LIBRARIES = ("wherefrom", "torch", "transformers", "numpy", "lancedb", "pyarrow")


def describe() -> dict[str, Any]:
    """The machine and the versions of what runs on it."""
    return {
        "cpu": _cpu_model(),
        "cores": psutil.cpu_count(logical=False),
        "logical_cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        **{library: version(library) for library in _LIBRARIES},
    }


def load_average() -> list[float]:
    """Runnable processes over the last 1, 5 and 15 minutes; what others do shows here."""
    return [round(value, 2) for value in psutil.getloadavg()]


def now() -> str:
    """The date and time, ISO 8601, UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def peak_memory() -> int:
    """Largest resident set of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def child_variables(threads: int) -> dict[str, str]:
    """Environment variables for a process that measures: ``threads`` threads, no network."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
