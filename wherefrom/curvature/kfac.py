"""K-FAC: Kronecker-factored curvature (Martens and Grosse 2015).

``G = T (S ⊗ A)`` with ``A = E[a a^T]`` and ``S = E[delta delta^T]`` as means over positions and
``T`` the mean number of these positions a document has, so that the trace is right where
activations and output gradients are independent. Its eigenvalues are ``T s_i a_j``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from wherefrom.curvature.fits import EigenFit
from wherefrom.curvature.fitted import Curvature, GradientLabels
from wherefrom.curvature.memory import Room
from wherefrom.gradients.layers import Layer

__all__ = ["KFAC"]


@dataclass(frozen=True, slots=True)
class KFAC(Curvature):
    """How to fit K-FAC.

    Attributes:
        damping: ``lambda_l`` in units of the layer's mean eigenvalue, > 0.
    """

    damping: float = 0.1

    labels: ClassVar[GradientLabels] = "model"

    def _begin(self, layers: tuple[Layer, ...], room: Room) -> EigenFit:
        """One pass over pseudo-gradients."""
        return EigenFit("kfac", layers, self.damping, ["factors"], room)
