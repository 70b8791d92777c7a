"""The fitted encoder on disk: ``encoder.safetensors``, whose SHA-256 the manifest records."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load, save

from wherefrom.curvature.kinds import curvature_from_state
from wherefrom.encoding.encoder import Encoder
from wherefrom.encoding.reduction import make_reduction
from wherefrom.errors import IntegrityError
from wherefrom.gradients.layers import Layer

__all__ = ["ENCODER_FILE", "encoder_bytes", "load_encoder"]

ENCODER_FILE = "encoder.safetensors"
_PREFIX = "curvature."


def encoder_bytes(encoder: Encoder) -> bytes:
    """The fitted curvature as safetensors; the reduction is a function of its seed."""
    state = encoder.curvature.state()
    return save({f"{_PREFIX}{name}": tensor.cpu() for name, tensor in state.items()})


def load_encoder(
    path: Path,
    sha256: str,
    layers: tuple[Layer, ...],
    *,
    kind: str,
    damping: float,
    documents: int,
    report: Mapping[str, float],
    reduction: str,
    dimension: int,
    seed: int,
    device: torch.device,
) -> Encoder:
    """Read a fitted encoder.

    Args:
        path: Its file.
        sha256: What its digest must be.
        layers: The layers it was fitted for.
        kind: Of the curvature.
        damping: Its damping.
        documents: How many it was fitted on.
        report: What its fit measured about itself.
        reduction: Kind of reduction.
        dimension: Entries of a vector.
        seed: Of the reduction.
        device: Where to put it.

    Raises:
        IntegrityError: The file is missing or its digest is another one.
        CurvatureError: It does not fit the layers.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise IntegrityError(
            f"{path} cannot be read ({error.strerror}); build the index again"
        ) from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise IntegrityError(f"{path} differs from the manifest's SHA-256; build the index again")
    tensors = {name.removeprefix(_PREFIX): tensor.to(device) for name, tensor in load(data).items()}
    curvature = curvature_from_state(
        kind, layers, tensors, documents=documents, damping=damping, report=report
    )
    sizes = tuple(layer.size for layer in layers)
    return Encoder(curvature, make_reduction(reduction, sizes, dimension, seed))
