"""What would not fit in memory is refused before it is tried, with the size it would need."""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from wherefrom.errors import CurvatureError

__all__ = ["Room", "amount", "require_memory"]

_SHARE = 0.5
_CONTAINER = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True, slots=True)
class Room:
    """What a fit may take.

    Attributes:
        documents: How many documents there will be, if that is known.
        memory: Bytes that factors may take; half of the machine's memory by default.
        folder: Where to put what is finished and would fill that memory.
    """

    documents: int | None = None
    memory: int | None = None
    folder: Path | None = None

    def put(self, name: str, tensor: Tensor) -> Tensor:
        """What is finished: where memory is bounded, mapped from a file of the folder.

        Args:
            name: Of the file, which is replaced if it is there.
            tensor: What it is to hold.
        """
        if self.memory is None or self.folder is None:
            return tensor
        path = self.folder / f"{name}.safetensors"
        # Not durable, for no other process goes on from it; never in place, for who maps the old
        # file keeps it; and each under a name of its own, for two may put the same at once.
        partial = self.folder / f".{name}.{uuid.uuid4().hex}.tmp"
        try:
            save_file({name: tensor.contiguous()}, partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        return load_file(path)[name]


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


def require_memory(
    needed: int, what: str, remedy: str, device: torch.device, bound: int | None = None
) -> None:
    """Refuse what needs more than is allowed.

    Args:
        needed: Bytes.
        what: What would need them, to begin the message with.
        remedy: What to do instead, to end it with.
        device: Where they would be.
        bound: How many are allowed; half of the device's memory by default.

    Raises:
        CurvatureError: They are too many.
    """
    limit = _limit(device) if bound is None else bound
    if needed > limit:
        raise CurvatureError(
            f"{what} would need {amount(needed)} of memory, more than the {amount(limit)} allowed "
            f"here; {remedy}"
        )


def amount(number: int) -> str:
    """So many bytes, in the largest unit that leaves a digit before the point."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if number >= unit:
            return f"{number / unit:,.1f} {name}"
    return f"{number} bytes"
