"""Curvatures in the standard basis: the diagonal of the Fisher matrix, and none at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from wherefrom.curvature.bases import StandardBasis
from wherefrom.curvature.eigen import FittedEigen
from wherefrom.curvature.fits import EigenFit, NoPass
from wherefrom.curvature.fitted import Curvature, GradientLabels
from wherefrom.curvature.memory import Room
from wherefrom.gradients.layers import Layer

__all__ = ["Diagonal", "Identity"]


@dataclass(frozen=True, slots=True)
class Diagonal(Curvature):
    """The mean squared gradient, entry by entry.

    Attributes:
        damping: ``lambda_l`` in units of the layer's mean entry, > 0.
    """

    damping: float = 0.1

    labels: ClassVar[GradientLabels] = "model"

    def _begin(self, layers: tuple[Layer, ...], room: Room) -> EigenFit:
        """One pass over pseudo-gradients."""
        return EigenFit("diagonal", layers, self.damping, ["squares"], room)


@dataclass(frozen=True, slots=True)
class Identity(Curvature):
    """No curvature: scores are gradient dot products ("Hessian-free").

    Attributes:
        damping: Scores are divided by ``1 + damping``.
    """

    damping: float = 0.0

    labels: ClassVar[GradientLabels] = "none"

    def _begin(self, layers: tuple[Layer, ...], room: Room) -> NoPass:
        """Nothing to fit: no document is looked at."""
        bases = tuple(StandardBasis() for _ in layers)
        ones = tuple(torch.ones((), dtype=torch.float64).expand(layer.shape) for layer in layers)
        return NoPass(FittedEigen.fitted("identity", layers, bases, ones, 0, self.damping))
