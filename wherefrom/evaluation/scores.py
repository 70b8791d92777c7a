"""Influence scores of any curvature, without an index: uncompressed, float64, in nats."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wherefrom.curvature.fitted import Curvature, FittedCurvature
from wherefrom.curvature.kinds import make_curvature
from wherefrom.evaluation.statistics import Scores
from wherefrom.evaluation.subject import Subject
from wherefrom.gradients.fisher import Fisher, PseudoGradients, default_fisher
from wherefrom.query.exact import energies, every_product

__all__ = ["fit", "influence", "self_influence"]


def fit(
    subject: Subject,
    curvature: str | Curvature = "ekfac",
    *,
    damping: float | None = None,
    fisher: Fisher | None = None,
    seed: int = 0,
) -> FittedCurvature:
    """Fit a curvature on all documents of a subject.

    Args:
        subject: Model and documents.
        curvature: Its name, or how to fit it.
        damping: As for ``wherefrom.build``; goes with a name.
        fisher: Where labels of pseudo-gradients come from; by default as for ``wherefrom.build``.
        seed: Of drawn labels.

    Raises:
        CurvatureError: It does not fit in memory, or the model gives no such Fisher.
    """
    recipe = make_curvature(curvature, damping) if isinstance(curvature, str) else curvature
    labels: Fisher = "empirical"
    if recipe.labels == "model":
        one = subject.documents.batch(np.array([0]))
        labels = fisher or default_fisher(subject.extractor, one)
    source = PseudoGradients(
        subject.extractor,
        lambda: (batch for _, batch in subject.document_batches()),
        labels,
        seed=seed,
    )
    return recipe.fit(source, documents=len(subject))


def influence(subject: Subject, fitted: FittedCurvature) -> Scores:
    """``(1/N) sum_l grad f^T (G_l + lambda_l)^-1 grad log p`` of every pair.

    Returns:
        float64 ``[question, document]``, nats per added copy; positive = proponent.
    """
    count = len(subject)
    products = every_product(
        subject.extractor, fitted, subject.questions, subject.document_batches, count
    )
    return products / count


def self_influence(subject: Subject, fitted: FittedCurvature) -> NDArray[np.float64]:
    """Influence of every document on itself, float64 ``[document]``, never negative."""
    documents = subject.document_batches()
    return energies(subject.extractor, fitted, documents, len(subject)) / len(subject)
