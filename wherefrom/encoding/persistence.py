"""The fitted encoder on disk: ``encoder.safetensors``, whose SHA-256 the manifest records."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors.torch import load, save

from wherefrom.curvature.ekfac import FittedEKFAC
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
    damping: float,
    documents: int,
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
        damping: Of the curvature.
        documents: How many the curvature was fitted on.
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
    curvature = FittedEKFAC.from_state(layers, tensors, documents=documents, damping=damping)
    sizes = tuple(layer.size for layer in layers)
    return Encoder(curvature, make_reduction(reduction, sizes, dimension, seed))
