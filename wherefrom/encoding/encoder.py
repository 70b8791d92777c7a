"""From a batch to stored vectors: pairs -> rotate -> whiten -> reduce, the same for both sides.

The whitened gradient of layer l is ``phi_l = vec(Q_S^T G Q_A) / sqrt(Lambda_l + lambda_l)``, and
influence is ``(1/N) sum_l <phi_l(query), phi_l(document)>``. Each layer is whitened and reduced
inside the backward pass, as its pair arrives; the full gradient never exists.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wherefrom.curvature.ekfac import FittedEKFAC
from wherefrom.encoding.reduction import Reduction
from wherefrom.gradients.batches import Batch
from wherefrom.gradients.extractor import GradientExtractor, LayerPair
from wherefrom.gradients.fisher import true_gradients

__all__ = ["Encoded", "Encoder"]


@dataclass(frozen=True, slots=True)
class Encoded:
    """Vectors of a batch.

    Attributes:
        vectors: float32 ``[doc, dimension]``.
        norms: float64 ``[doc]``: ``|phi|`` before the reduction; its square over N is the
            self-influence.
        nats: float64 ``[doc]`` log-likelihoods.
    """

    vectors: np.ndarray
    norms: np.ndarray
    nats: np.ndarray


class Encoder:
    """A fitted curvature and a reduction, applied as one map.

    Args:
        curvature: Whitens.
        reduction: Shortens.
    """

    def __init__(self, curvature: FittedEKFAC, reduction: Reduction) -> None:
        self.curvature = curvature
        self.reduction = reduction
        self._scalings: list[Tensor] | None = None

    @property
    def dimension(self) -> int:
        """Entries of a vector."""
        return self.reduction.dimension

    def encode(self, extractor: GradientExtractor, batch: Batch) -> Encoded:
        """Vectors of the gradients of a batch's log-likelihoods, inside ``extractor.session()``.

        Raises:
            ModelError: A log-likelihood is not finite (the document is named).
        """
        rotation = self.curvature.rotation()
        scalings = self._prepared()
        buffer: Tensor | None = None
        squares = torch.zeros(len(batch), dtype=torch.float64, device=extractor.device)

        def add(pair: LayerPair) -> None:
            nonlocal buffer
            scaled = rotation(pair).mul_(scalings[pair.layer]).flatten(1)
            squares.add_(torch.linalg.vector_norm(scaled, dim=1).double().square())
            if buffer is None:
                buffer = self.reduction.buffer(len(batch), scaled)
            self.reduction.add(pair.layer, scaled, buffer)

        nats = true_gradients(extractor, batch, add)
        if buffer is None:
            buffer = self.reduction.buffer(len(batch), scalings[0])
        vectors = self.reduction.finish(buffer)
        return Encoded(
            vectors.float().cpu().numpy(),
            squares.sqrt().cpu().numpy(),
            nats.double().cpu().numpy(),
        )

    def _prepared(self) -> list[Tensor]:
        if self._scalings is None:
            self._scalings = [
                self.reduction.scaling(i, self.curvature.whitening(i))
                for i in range(len(self.curvature.layers))
            ]
        return self._scalings
