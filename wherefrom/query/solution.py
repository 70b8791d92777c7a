"""A question solved for, uncompressed, and documents scored against it one at a time.

Each document runs alone, so its score is a function of the index, the question and the document
only, and not of the batch it happens to be in or of what else is scored.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from wherefrom.gradients.batches import Batch
from wherefrom.query.asker import Asker
from wherefrom.query.documents import examples_of
from wherefrom.query.exact import energies, exact_products, gradient_of
from wherefrom.query.questions import EncodedQuestion, Question
from wherefrom.store import Manifest, StoredRows

__all__ = ["Solution", "alone", "exactly", "solve"]


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """``(G + lambda)^-1 grad f`` of a question.

    Attributes:
        raw: Of each layer float64 ``[1, d_out x d_in]``, in the order of the weight.
        norm: Of what documents' whitened gradients are multiplied with, to make cosines.
    """

    raw: list[Tensor]
    norm: float


def solve(
    asker: Asker, question: Question, damping: float | None, encoded: EncodedQuestion | None = None
) -> Solution:
    """Solve for a question.

    Args:
        asker: Model and encoder.
        question: What was asked.
        damping: Another damping than the index's.
        encoded: Its vector; where it was refined, that is the solution.

    Raises:
        CurvatureError: The damping is not allowed.
    """
    curvature = asker.encoder.curvature
    if encoded is not None and encoded.solved is not None:
        solved: Sequence[Tensor] = encoded.solved
    else:
        gradient, _ = gradient_of(asker.extractor, curvature, question)
        damped = curvature if damping is None else curvature.with_damping(damping)
        solved = [damped.solve(layer, part) for layer, part in enumerate(gradient)]
    squares = (
        float((part / curvature.scale(layer).to(part.device)).square().sum())
        for layer, part in enumerate(solved)
    )
    raw = [curvature.raw(layer, part).reshape(1, -1) for layer, part in enumerate(solved)]
    return Solution(raw, math.sqrt(sum(squares)))


def alone(asker: Asker, rows: StoredRows) -> Batch:
    """The one document of ``rows``, as a batch."""
    return examples_of(asker.extractor, rows).batch(np.array([0]))


def exactly(
    asker: Asker, manifest: Manifest, solution: Solution, documents: Sequence[StoredRows]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Exact products of documents, and exact norms where stored ones are of a part.

    Args:
        asker: Model and encoder.
        manifest: Of the index.
        solution: Of the question.
        documents: One row each.

    Returns:
        ``grad f^T (G + lambda)^-1 grad log p`` and norms of whitened gradients, float64
        ``[document]`` each.
    """

    def batches() -> Iterator[tuple[NDArray[np.int64], Batch]]:
        for i, rows in enumerate(documents):
            yield np.array([i]), alone(asker, rows)

    count = len(documents)
    products = exact_products(asker.extractor, solution.raw, batches(), count)[0]
    if manifest.encoder.reduce == "energy":
        curvature = asker.encoder.curvature
        return products, np.sqrt(energies(asker.extractor, curvature, batches(), count))
    return products, np.array([float(rows.norms[0]) for rows in documents])
