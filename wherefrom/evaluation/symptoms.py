"""What one run over all documents shows of each: how it moves the model, how unlikely it is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wherefrom.curvature.fitted import FittedCurvature
from wherefrom.evaluation.subject import Subject
from wherefrom.gradients.extractor import Forward, LayerPair
from wherefrom.gradients.objectives import Categorical, require_finite

__all__ = ["LOSS", "SELF_INFLUENCE", "Labels", "Symptoms", "symptoms"]

SELF_INFLUENCE = "self-influence"
"""The method that is judged; the others are its baselines."""

LOSS = "loss"
"""The simplest of them."""

_COLUMNS = 7


@dataclass(frozen=True, slots=True)
class Labels:
    """What a classifier says of each document's label.

    Attributes:
        given: The labels, int64 ``[document]``.
        preferred: The model's own.
        nats: log p of the preferred, float64 ``[document]``.
        margin: log p of the label minus that of the likeliest other class.
        classes: How many there are.
    """

    given: NDArray[np.int64]
    preferred: NDArray[np.int64]
    nats: NDArray[np.float64]
    margin: NDArray[np.float64]
    classes: int


@dataclass(frozen=True, slots=True)
class Symptoms:
    """What was seen of each document, float64 ``[document]`` each.

    Attributes:
        self_influence: In nats.
        nats: Log-likelihoods.
        squares: Squared norms of raw gradients.
        labels: Where documents have one class each.
    """

    self_influence: NDArray[np.float64]
    nats: NDArray[np.float64]
    squares: NDArray[np.float64]
    labels: Labels | None

    def suspicion(self) -> dict[str, NDArray[np.float64]]:
        """By method, higher = more suspicious."""
        scores = {
            SELF_INFLUENCE: self.self_influence,
            LOSS: -self.nats,
            "gradient norm": self.squares,
        }
        # Of two classes the margin is a function of the loss.
        if self.labels is not None and self.labels.classes > 2:
            scores["margin"] = -self.labels.margin
        return scores


def symptoms(subject: Subject, fitted: FittedCurvature) -> Symptoms:
    """Run every document once.

    Args:
        subject: Model and documents.
        fitted: Whose damped inverse self-influence is taken with.

    Raises:
        ModelError: A log-likelihood is not finite.
    """
    extractor, coordinates = subject.extractor, fitted.coordinates()
    values = np.zeros((_COLUMNS, len(subject)))
    classes = 0
    with extractor.session():
        for positions, batch in subject.document_batches():
            forward = extractor.forward(batch)
            nats, gradient = extractor.objective.differentiate(
                forward.outputs, forward.batch.targets, forward.batch
            )
            require_finite(nats, forward.batch)
            sums = torch.zeros(2, len(batch), dtype=torch.float64, device=extractor.device)

            def add(pair: LayerPair, sums: Tensor = sums) -> None:
                written = coordinates(pair)
                sums[0] += fitted.energies(pair.layer, written)
                # The basis is orthogonal: the norm is that of the gradient itself.
                sums[1] += written.flatten(1).double().square().sum(1)

            forward.backward(gradient, add)
            classes, labels = _labels(subject, forward)
            seen = torch.cat([sums, nats.double()[None], labels]).cpu().numpy()
            values[: len(seen), positions] = seen
    energies, squares, nats_of, given, preferred, likeliest, margin = values
    found = Labels(given.astype(np.int64), preferred.astype(np.int64), likeliest, margin, classes)
    return Symptoms(energies / len(subject), nats_of, squares, found if classes else None)


def _labels(subject: Subject, forward: Forward) -> tuple[int, Tensor]:
    """Number of classes and ``[label, the model's, its log p, margin]``; or 0 and nothing."""
    outputs, targets = forward.outputs.detach(), forward.batch.targets
    if not isinstance(subject.extractor.objective, Categorical) or outputs.ndim != 2:
        return 0, outputs.new_zeros(0, len(outputs), dtype=torch.float64)
    logp = torch.log_softmax(outputs.double(), 1)
    likeliest, preferred = logp.max(1)
    own = logp.gather(1, targets[:, None])
    others = logp.scatter(1, targets[:, None], -math.inf).max(1).values
    margin = own[:, 0] - others
    return outputs.shape[1], torch.stack([targets.double(), preferred.double(), likeliest, margin])
