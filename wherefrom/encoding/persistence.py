"""The fitted encoder on disk: ``encoder.safetensors``, whose SHA-256 the manifest records."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from wherefrom.curvature.kinds import curvature_from_state
from wherefrom.encoding.encoder import Encoder
from wherefrom.encoding.factory import make_encoder
from wherefrom.encoding.stages import Stages
from wherefrom.errors import IntegrityError
from wherefrom.gradients.layers import Layer

__all__ = ["ENCODER_FILE", "load_encoder", "save_encoder"]

ENCODER_FILE = "encoder.safetensors"
_CURVATURE = "curvature."
_PCA = "pca.basis"
_NUMBERS = (torch.float32, torch.float64)


def save_encoder(encoder: Encoder, path: Path) -> None:
    """Write the fitted curvature and the PCA's basis as safetensors.

    The other stages follow from these and from what the manifest holds.
    """
    state = {_CURVATURE + name: tensor for name, tensor in encoder.curvature.state().items()}
    if encoder.pca is not None:
        state[_PCA] = encoder.pca.contiguous()
    save_file({name: tensor.cpu() for name, tensor in state.items()}, path)


def load_encoder(
    path: Path,
    layers: tuple[Layer, ...],
    *,
    kind: str,
    damping: float,
    documents: int,
    report: Mapping[str, float],
    stages: Stages,
    device: torch.device,
) -> Encoder:
    """Read a fitted encoder, mapping its file into memory where that is possible.

    Args:
        path: Its file.
        layers: The layers it was fitted for.
        kind: Of the curvature.
        damping: Its damping.
        documents: How many it was fitted on.
        report: What its fit measured about itself.
        stages: What is done with whitened gradients.
        device: Where to put it.

    Raises:
        IntegrityError: The file is missing, is no safetensors file, or holds other numbers than an
            encoder's.
        CurvatureError: It does not fit the layers.
        WherefromError: It does not fit the stages.
    """
    try:
        stored = load_file(path, device=str(device))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise IntegrityError(f"{path} cannot be read ({error}); build the index again") from error
    for name, tensor in stored.items():
        if tensor.dtype not in (_NUMBERS if tensor.ndim > 1 else (*_NUMBERS, torch.int64)):
            raise IntegrityError(
                f"{path} holds {tensor.dtype} numbers in {name[:80]!r}, which no encoder does; "
                "build the index again"
            )
    basis = stored.pop(_PCA, None)
    tensors = {name.removeprefix(_CURVATURE): tensor for name, tensor in stored.items()}
    curvature = curvature_from_state(
        kind, layers, tensors, documents=documents, damping=damping, report=report
    )
    return make_encoder(curvature, stages, basis)
