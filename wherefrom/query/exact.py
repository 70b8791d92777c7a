"""The exact tier: influence by running every document's gradient anew, uncompressed.

The query is preconditioned once, ``P = (G + lambda)^-1 grad f`` in the order of the weights, and
each document's raw gradient is dotted with it; documents need no rotation. Layers are summed in
float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wherefrom.curvature.bases import gradients_of
from wherefrom.curvature.fitted import FittedCurvature
from wherefrom.gradients.batches import Batch
from wherefrom.gradients.extractor import GradientExtractor, LayerPair
from wherefrom.gradients.fisher import true_gradients
from wherefrom.query.questions import Question

__all__ = ["energies", "every_product", "exact_products", "gradient_of", "preconditioned"]

_QUERY_BYTES = 1 << 30


def gradient_of(
    extractor: GradientExtractor, curvature: FittedCurvature, question: Question
) -> tuple[list[Tensor], float]:
    """The gradient of a question's measurement, and its value in nats.

    Returns:
        For each layer float64 ``[d_out, d_in]`` in the curvature's coordinates.
    """
    coordinates = curvature.coordinates()
    found = [
        torch.zeros(layer.shape, dtype=torch.float64, device=extractor.device)
        for layer in extractor.layers
    ]
    nats = 0.0
    with extractor.session():
        for weight, batch in question.terms:

            def add(pair: LayerPair, weight: float = weight) -> None:
                summed = coordinates(pair).double().sum(0)
                found[pair.layer] += weight * summed.to(extractor.device)

            nats += weight * float(true_gradients(extractor, batch, add).double().sum())
    return found, nats


def preconditioned(
    extractor: GradientExtractor, curvature: FittedCurvature, questions: Sequence[Question]
) -> list[Tensor]:
    """``(G + lambda)^-1 grad f`` of each question.

    Returns:
        For each layer float64 ``[question, d_out x d_in]``.
    """
    coordinates = curvature.coordinates()
    solved = [
        torch.zeros(len(questions), layer.size, dtype=torch.float64, device=extractor.device)
        for layer in extractor.layers
    ]
    with extractor.session():
        for i, question in enumerate(questions):
            for weight, batch in question.terms:

                def keep(pair: LayerPair, row: int = i, weight: float = weight) -> None:
                    inverse = curvature.solve(pair.layer, coordinates(pair))
                    raw = curvature.raw(pair.layer, inverse)
                    summed = raw.flatten(1).sum(0)
                    solved[pair.layer][row] += weight * summed.to(extractor.device)

                true_gradients(extractor, batch, keep)
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
                gradients = gradients_of(pair).double().flatten(1)
                query = queries[pair.layer].to(gradients.device)
                products.add_((query @ gradients.T).to(products.device))

            true_gradients(extractor, batch, add)
            result[:, positions] = products.cpu().numpy()
    return result


def every_product(
    extractor: GradientExtractor,
    curvature: FittedCurvature,
    questions: Sequence[Question],
    documents: Callable[[], Iterable[tuple[NDArray[np.int64], Batch]]],
    count: int,
) -> NDArray[np.float64]:
    """:func:`exact_products` of any number of questions, in memory that is bounded.

    Args:
        extractor: Model, objective and layers.
        curvature: Solves.
        questions: What is asked; none give no rows.
        documents: Called once a part of the questions; gives ``(positions, batch)``.
        count: Number of documents.

    Returns:
        float64 ``[question, document]``.
    """
    # Preconditioned queries are as large as the layers: as many at once as memory should hold.
    size = sum(layer.size for layer in extractor.layers)
    at_once = max(1, _QUERY_BYTES // (8 * size))
    found = [np.empty((0, count))]
    for start in range(0, len(questions), at_once):
        solved = preconditioned(extractor, curvature, questions[start : start + at_once])
        found.append(exact_products(extractor, solved, documents(), count))
    return np.concatenate(found)


def energies(
    extractor: GradientExtractor,
    curvature: FittedCurvature,
    documents: Iterable[tuple[NDArray[np.int64], Batch]],
    count: int,
) -> NDArray[np.float64]:
    """``g^T (G + lambda)^-1 g`` of every document's gradient, float64 ``[document]``.

    Args:
        extractor: Model, objective and layers.
        curvature: Solves.
        documents: ``(positions, batch)``.
        count: Number of documents.
    """
    result = np.zeros(count)
    coordinates = curvature.coordinates()
    with extractor.session():
        for positions, batch in documents:
            sums = torch.zeros(len(batch), dtype=torch.float64, device=extractor.device)

            def add(pair: LayerPair, sums: Tensor = sums) -> None:
                sums.add_(curvature.energies(pair.layer, coordinates(pair)).to(sums.device))

            true_gradients(extractor, batch, add)
            result[positions] = sums.cpu().numpy()
    return result
