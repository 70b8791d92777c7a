"""Several encoders over one curvature from one backward pass, to compare what they keep."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np
from torch import Tensor

from wherefrom.encoding.encoder import Encoder
from wherefrom.errors import ModelError
from wherefrom.gradients.batches import Batch
from wherefrom.gradients.extractor import GradientExtractor, LayerPair
from wherefrom.gradients.fisher import true_gradients

__all__ = ["encode_together"]


def encode_together(
    encoders: Sequence[Encoder],
    extractor: GradientExtractor,
    batch: Batch,
    whitened: Callable[[int, Tensor], None],
) -> list[np.ndarray]:
    """Vectors of documents under each encoder, as its ``encode`` gives them.

    Coordinates are computed once a layer, and scaled once for all encoders that scale alike. Runs
    inside ``extractor.session()``.

    Args:
        encoders: At least one, all over the same fitted curvature.
        extractor: The model.
        batch: Documents.
        whitened: Called once a layer with its number and ``phi [doc, size]``, uncompressed; not to
            be changed, but may be kept.

    Returns:
        For each encoder float32 ``[doc, dimension]``.

    Raises:
        ValueError: The encoders are of different curvatures, or there is none.
        ModelError: A log-likelihood is not finite (the document is named).
    """
    curvature = encoders[0].curvature if encoders else None
    if curvature is None or any(encoder.curvature is not curvature for encoder in encoders):
        raise ValueError("encode_together needs encoders of one fitted curvature")
    coordinates = curvature.coordinates()
    buffers: list[Tensor | None] = [None] * len(encoders)

    def add(pair: LayerPair) -> None:
        layer = pair.layer
        full = coordinates(pair)
        whitened(layer, full.mul(curvature.scale(layer).to(full.device, full.dtype)).flatten(1))
        scaled: dict[Hashable, Tensor] = {}
        for i, encoder in enumerate(encoders):
            reduction = encoder.reduction
            key = reduction.scaling_key
            if key not in scaled:
                part = reduction.restricted(layer, full)
                scaled[key] = (part * encoder.scaling(layer, part)).flatten(1)
            buffer = buffers[i]
            if buffer is None:
                buffer = buffers[i] = reduction.buffer(len(batch), full)
            reduction.add(layer, scaled[key], buffer)

    true_gradients(extractor, batch, add)
    vectors = []
    for encoder, buffer in zip(encoders, buffers, strict=True):
        if buffer is None:
            raise ModelError("no layer takes part in the model's output; choose others (layers=)")
        reduced = encoder.finish(encoder.reduction.finish(buffer))
        vectors.append(reduced.float().cpu().numpy())
    return vectors
