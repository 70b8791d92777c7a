"""What would not fit in memory is refused before it is tried, with the size it would need."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from wherefrom.errors import CurvatureError

__all__ = ["require_memory"]

_SHARE = 0.5
_CONTAINER = Path("/sys/fs/cgroup/memory.max")


def _limit(device: torch.device) -> int:
    """Bytes that a curvature may take: half of the device's memory."""
    if device.type == "cuda":
        return int(_SHARE * torch.cuda.get_device_properties(device).total_memory)
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        allowed = _CONTAINER.read_text()
    except OSError:  # Not Linux, or no limit on the container.
        allowed = "max"
    return int(_SHARE * (min(physical, int(allowed)) if allowed.strip().isdigit() else physical))


def require_memory(needed: int, what: str, remedy: str, device: torch.device) -> None:
    """Refuse what needs more than half of the device's memory.

    Args:
        needed: Bytes.
        what: What would need them, to begin the message with.
        remedy: What to do instead, to end it with.
        device: Where they would be.

    Raises:
        CurvatureError: They are too many.
    """
    limit = _limit(device)
    if needed > limit:
        raise CurvatureError(
            f"{what} would need {needed / 2**30:.1f} GiB of memory, more than the "
            f"{limit / 2**30:.1f} GiB allowed here; {remedy}"
        )
