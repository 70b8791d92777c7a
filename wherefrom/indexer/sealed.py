"""Files of the work folder that say themselves whether they are as they were written.

A build goes on from them hours or weeks later, and what it makes of a bit that flipped meanwhile
would look like any other index. So each holds a SHA-256 of what it means.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from wherefrom.errors import IntegrityError
from wherefrom.store import write_atomically, write_bytes_atomically
from wherefrom.store.directory import json_bytes, read_json

__all__ = ["load_fields", "load_tensors", "save_fields", "save_tensors"]

_SEAL = "sha256"


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors, durably.

    Raises:
        StorageError: The disk refuses.
    """
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    seal = {_SEAL: _digest(kept)}
    write_atomically(path, lambda temporary: save_file(kept, temporary, metadata=seal))


def load_tensors(path: Path, device: torch.device, remedy: str) -> dict[str, Tensor]:
    """Read what :func:`save_tensors` wrote, mapped into memory where that is possible.

    Args:
        path: The file.
        device: Where to put them.
        remedy: What to do if they are damaged, to end the message with.

    Raises:
        IntegrityError: The file is missing, or is not as it was written.
    """
    try:
        with safe_open(path, framework="pt") as file:
            seal = (file.metadata() or {}).get(_SEAL)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, RuntimeError) as error:
        raise IntegrityError(f"{path} cannot be read ({error}); {remedy}") from error
    if seal != _digest(tensors):
        raise IntegrityError(f"{path} differs from its SHA-256; {remedy}")
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def save_fields(path: Path, fields: Mapping[str, Any]) -> None:
    """Write JSON values, durably.

    Raises:
        StorageError: The disk refuses.
    """
    digest = hashlib.sha256(json_bytes(fields)).hexdigest()
    write_bytes_atomically(path, json_bytes({**fields, _SEAL: digest}))


def load_fields(path: Path) -> dict[str, Any] | None:
    """Read what :func:`save_fields` wrote; ``None`` if it is not as it was written.

    Raises:
        IntegrityError: It is no plain file.
        StorageError: It cannot be read.
    """
    fields = read_json(path) or {}
    seal = fields.pop(_SEAL, None)
    return fields if seal == hashlib.sha256(json_bytes(fields)).hexdigest() else None


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        head = json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode()
        digest.update(len(head).to_bytes(8, "little") + head)
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
