"""Is the curvature doing anything? Influence against the plain gradient dot product.

With too much damping, influence is the gradient dot product under another name, and every claim
about curvature is empty. So a build compares the two on a sample of documents.
"""

from __future__ import annotations

import numpy as np
import torch

from wherefrom.curvature.ekfac import FittedEKFAC
from wherefrom.gradients.batches import Batch
from wherefrom.gradients.extractor import GradientExtractor, LayerPair
from wherefrom.gradients.fisher import true_gradients

__all__ = ["VACUOUS", "gradient_dot_correlation"]

VACUOUS = 0.98
"""From this Pearson correlation on, scores are as good as the gradient dot product."""


def gradient_dot_correlation(
    extractor: GradientExtractor, curvature: FittedEKFAC, batch: Batch
) -> float:
    """Pearson correlation of influence with the gradient dot, over pairs of different documents.

    Returns:
        NaN when there are fewer than three pairs or one of the two is constant.
    """
    rotation = curvature.rotation()
    count = len(batch)
    whitened = torch.zeros(count, count, dtype=torch.float64, device=extractor.device)
    plain = torch.zeros_like(whitened)

    def add(pair: LayerPair) -> None:
        rotated = rotation(pair)  # orthogonal, so dot products are those of the raw gradients
        flat = rotated.flatten(1)
        plain.add_((flat @ flat.T).double())
        scaled = (rotated * curvature.whitening(pair.layer)).flatten(1)
        whitened.add_((scaled @ scaled.T).double())

    with extractor.session():
        true_gradients(extractor, batch, add)
    pairs = np.triu_indices(count, 1)
    one, other = whitened.cpu().numpy()[pairs], plain.cpu().numpy()[pairs]
    if len(one) < 3 or one.std() == 0.0 or other.std() == 0.0:
        return float("nan")
    return float(np.corrcoef(one, other)[0, 1])
