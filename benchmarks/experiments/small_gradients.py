"""Scores of several curvatures at once, for models whose traced gradients all fit in memory.

Queries and documents run through the model once, and not once for each curvature.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wherefrom.curvature.bases import gradients_of
from wherefrom.curvature.fitted import FittedCurvature
from wherefrom.evaluation.statistics import Scores
from wherefrom.evaluation.subject import Subject
from wherefrom.gradients.extractor import LayerPair
from wherefrom.gradients.fisher import true_gradients

__all__ = ["influences"]

_DOT, _COSINE = "dot", "cosine"


def influences(subject: Subject, fitted: Mapping[str, FittedCurvature]) -> dict[str, Scores]:
    """Influence under each curvature, as of ``evaluation.scores``, and ``dot`` and ``cosine``.

    Returns:
        float64 ``[question, document]`` by name; dot products and cosines of raw gradients have no
        units.
    """
    solved, asked = _questions(subject, fitted)
    documents = _documents(subject)
    found = {name: _products(layers, documents) / len(subject) for name, layers in solved.items()}
    dot = _products(asked, documents)
    reach = np.sqrt(np.outer(_squares(asked), _squares(documents)))
    return {**found, _DOT: dot, _COSINE: dot / reach}


def _questions(
    subject: Subject, fitted: Mapping[str, FittedCurvature]
) -> tuple[dict[str, list[Tensor]], list[Tensor]]:
    """Preconditioned gradients by curvature, and raw ones: ``[question, weight]`` a layer."""
    extractor, count = subject.extractor, len(subject.questions)
    coordinates = {name: curvature.coordinates() for name, curvature in fitted.items()}

    def empty() -> list[Tensor]:
        return [torch.zeros(count, layer.size, dtype=torch.float64) for layer in extractor.layers]

    solved, raw = {name: empty() for name in fitted}, empty()
    with extractor.session():
        for row, question in enumerate(subject.questions):
            for weight, batch in question.terms:

                def keep(pair: LayerPair, row: int = row, weight: float = weight) -> None:
                    raw[pair.layer][row] += weight * gradients_of(pair).double().flatten(1).sum(0)
                    for name, curvature in fitted.items():
                        inverse = curvature.solve(pair.layer, coordinates[name](pair))
                        one = curvature.raw(pair.layer, inverse).flatten(1).sum(0)
                        solved[name][pair.layer][row] += weight * one

                true_gradients(extractor, batch, keep)
    return solved, raw


def _documents(subject: Subject) -> list[Tensor]:
    """Gradients of all documents, float64 ``[document, weight]`` a layer."""
    extractor = subject.extractor
    found = [
        torch.zeros(len(subject), layer.size, dtype=torch.float64) for layer in extractor.layers
    ]
    with extractor.session():
        for positions, batch in subject.document_batches():

            def keep(pair: LayerPair, rows: NDArray[np.int64] = positions) -> None:
                found[pair.layer][rows] += gradients_of(pair).double().flatten(1)

            true_gradients(extractor, batch, keep)
    return found


def _products(left: list[Tensor], right: list[Tensor]) -> Scores:
    products: Scores = sum(a @ b.T for a, b in zip(left, right, strict=True)).numpy()  # type: ignore[union-attr]
    return products


def _squares(rows: list[Tensor]) -> NDArray[np.float64]:
    squares: NDArray[np.float64] = (
        torch.stack([part.square().sum(1) for part in rows]).sum(0).numpy()
    )
    return squares
