"""The exact tier: influence by running every document's gradient anew, uncompressed.

The query is preconditioned once, ``P = Q_S (rotated query / (Lambda + lambda)) Q_A^T``, and each
document's raw gradient is dotted with it; documents need no rotation. Layers are summed in float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wherefrom.curvature.ekfac import FittedEKFAC
from wherefrom.gradients.batches import Batch
from wherefrom.gradients.extractor import GradientExtractor, LayerPair
from wherefrom.gradients.fisher import true_gradients

__all__ = ["exact_products", "preconditioned"]


def preconditioned(
    extractor: GradientExtractor, curvature: FittedEKFAC, queries: Sequence[Batch]
) -> list[Tensor]:
    """``(G + lambda)^-1 grad f`` of each query, one query a batch.

    Returns:
        For each layer float64 ``[query, d_out x d_in]``.
    """
    rotation = curvature.rotation()
    solved = [
        torch.zeros(len(queries), layer.size, dtype=torch.float64, device=extractor.device)
        for layer in extractor.layers
    ]
    with extractor.session():
        for i, query in enumerate(queries):

            def keep(pair: LayerPair, row: int = i) -> None:
                raw = curvature.precondition(pair.layer, rotation(pair)[0])
                solved[pair.layer][row] = raw.reshape(-1)

            true_gradients(extractor, query, keep)
    return solved


def exact_products(
    extractor: GradientExtractor,
    queries: list[Tensor],
    documents: Iterable[tuple[NDArray[np.int64], Batch]],
    count: int,
) -> NDArray[np.float64]:
    """``grad f^T (G + lambda)^-1 grad log p`` of every pair, not divided by N.

    Args:
        extractor: Model, objective and layers.
        queries: From :func:`preconditioned`.
        documents: ``(positions, batch)``.
        count: Number of documents.

    Returns:
        float64 ``[query, document]``.
    """
    result = np.zeros((len(queries[0]), count))
    with extractor.session():
        for positions, batch in documents:
            products = torch.zeros(
                result.shape[0], len(batch), dtype=torch.float64, device=extractor.device
            )

            def add(pair: LayerPair, products: Tensor = products) -> None:
                gradient = torch.bmm(pair.deltas.transpose(1, 2), pair.activations)
                products.add_(queries[pair.layer] @ gradient.double().flatten(1).T)

            true_gradients(extractor, batch, add)
            result[:, positions] = products.cpu().numpy()
    return result
