"""Targets with Gaussian noise around the model's outputs: squared error and its Fisher."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from wherefrom.errors import ModelError
from wherefrom.gradients.batches import Batch
from wherefrom.gradients.counter import normals
from wherefrom.gradients.objectives.base import JSON, Probabilistic, require_finite

__all__ = ["Gaussian", "Regression"]


class Gaussian(Probabilistic):
    """Targets are drawn around the outputs with one variance; the Fisher of outputs is 1/variance.

    Attributes:
        variance: Of the noise.
    """

    variance: float = 1.0

    def sampled_gradient(self, outputs: Tensor, batch: Batch, key: np.ndarray) -> Tensor:
        """``(y - outputs) / variance`` for y drawn around the outputs."""
        require_finite(outputs, batch)
        noise = torch.from_numpy(normals(key, batch.keys, outputs[0].numel()))
        return noise.to(outputs).reshape(outputs.shape) / math.sqrt(self.variance)

    def expected_terms(self, outputs: Tensor) -> int | None:
        """One an entry of a document's outputs."""
        return outputs[0].numel()

    def expected_gradients(self, outputs: Tensor, batch: Batch) -> Iterator[Tensor]:
        """``e_j / sqrt(variance)`` for each entry j; their outer products are the Gauss-Newton."""
        require_finite(outputs, batch)
        for entry in range(outputs[0].numel()):
            gradient = torch.zeros_like(outputs).reshape(len(batch), -1)
            gradient[:, entry] = 1.0 / math.sqrt(self.variance)
            yield gradient.reshape(outputs.shape)

    def fisher_product(self, outputs: Tensor, vectors: Tensor, batch: Batch) -> Tensor:
        """``vectors / variance``."""
        require_finite(outputs, batch)
        return vectors / self.variance


class Regression(Gaussian):
    """``model(inputs)`` gives predictions; squared error as a Gaussian log-likelihood.

    ``log p(y) = -(y - f)^2 / (2 variance) - log(2 pi variance) / 2``, summed over the entries of
    a document's target. A mean squared error loss corresponds to ``variance=1`` up to the constant
    (and to a factor of two where the loss leaves out the half).

    Args:
        variance: Of the noise around the model's predictions, in squared units of the targets.

    Raises:
        ModelError: The variance is not a positive number.
    """

    kind = "regression"

    def __init__(self, *, variance: float = 1.0) -> None:
        if not 0.0 < variance < math.inf:
            raise ModelError(f"variance={variance} is not allowed; give a number > 0")
        self.variance = float(variance)

    def options(self) -> Mapping[str, JSON]:
        """The variance."""
        return {"variance": self.variance}

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Predictions ``[doc, ...]``."""
        predictions = model(batch.inputs)
        if (
            not isinstance(predictions, Tensor)
            or predictions.ndim == 0
            or len(predictions) != len(batch)
        ):
            given = (
                tuple(predictions.shape)
                if isinstance(predictions, Tensor)
                else type(predictions).__name__
            )
            raise ModelError(
                f"{type(model).__name__} returned {given} for {len(batch)} documents; regression "
                "wants predictions [doc, ...]: give your own wf.Objective"
            )
        return predictions

    def log_likelihood(self, outputs: Tensor, targets: Tensor, batch: Batch) -> Tensor:
        """Gaussian log-likelihood, constant included, ``[doc]``.

        Raises:
            ModelError: Targets are not floats, or not of the predictions' shape.
        """
        predictions = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        residuals = (_matching(targets, predictions) - predictions).reshape(len(batch), -1)
        constant = 0.5 * math.log(2.0 * math.pi * self.variance) * residuals.shape[1]
        return residuals.square().sum(1) * (-0.5 / self.variance) - constant


def _matching(targets: Tensor, predictions: Tensor) -> Tensor:
    """Targets of the shape of the predictions; ``[doc]`` stands for ``[doc, 1]``."""
    if not targets.dtype.is_floating_point:
        raise ModelError(
            f"targets are of type {targets.dtype}; regression wants floating-point numbers "
            "(targets.float())"
        )
    if targets.shape == predictions.shape:
        return targets
    if (*targets.shape, 1) == tuple(predictions.shape):
        return targets.unsqueeze(-1)
    raise ModelError(
        f"targets have shape {tuple(targets.shape)}, the model's predictions "
        f"{tuple(predictions.shape)}; give one target for each prediction"
    )
