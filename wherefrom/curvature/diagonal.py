"""Curvatures in the standard basis: the diagonal of the Fisher matrix, and none at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from wherefrom.curvature.bases import GradientRotation, StandardBasis
from wherefrom.curvature.eigen import FittedEigen
from wherefrom.curvature.ekfac import mean_squares
from wherefrom.curvature.fitted import GradientLabels, require_damping
from wherefrom.gradients.fisher import PairSource

__all__ = ["Diagonal", "Identity"]


@dataclass(frozen=True, slots=True)
class Diagonal:
    """The mean squared gradient, entry by entry.

    Attributes:
        damping: ``lambda_l`` in units of the layer's mean entry, > 0.
    """

    damping: float = 0.1

    labels: ClassVar[GradientLabels] = "model"
    passes: ClassVar[int] = 1

    def fit(self, source: PairSource, *, documents: int | None = None) -> FittedEigen:
        """One pass over pseudo-gradients.

        Raises:
            CurvatureError: Gradients are not finite, a layer takes no part, or nothing reaches it.
        """
        require_damping(self.damping)
        bases = tuple(StandardBasis() for _ in source.layers)
        eigenvalues, seen = mean_squares(source, GradientRotation(bases))
        return FittedEigen.fitted("diagonal", source.layers, bases, eigenvalues, seen, self.damping)


@dataclass(frozen=True, slots=True)
class Identity:
    """No curvature: scores are gradient dot products ("Hessian-free").

    Attributes:
        damping: Scores are divided by ``1 + damping``.
    """

    damping: float = 0.0

    labels: ClassVar[GradientLabels] = "none"
    passes: ClassVar[int] = 0

    def fit(self, source: PairSource, *, documents: int | None = None) -> FittedEigen:
        """Nothing to fit: the source is not run."""
        bases = tuple(StandardBasis() for _ in source.layers)
        ones = tuple(
            torch.ones((), dtype=torch.float64).expand(layer.shape) for layer in source.layers
        )
        return FittedEigen.fitted("identity", source.layers, bases, ones, 0, self.damping)
