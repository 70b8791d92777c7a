"""EK-FAC: eigenvalue-corrected Kronecker-factored curvature (George et al. 2018).

In the Kronecker eigenbasis of a layer, the eigenvalues are replaced by the measured second moments
of documents' pseudo-gradients,

    Lambda_ij = E over documents of (Q_S^T DW Q_A)_ij^2,    DW summed over the document's tokens,

which is the best diagonal in that basis in Frobenius norm (their equation 11).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from wherefrom.curvature.fits import EigenFit
from wherefrom.curvature.fitted import Curvature, GradientLabels
from wherefrom.curvature.memory import Room
from wherefrom.gradients.layers import Layer

__all__ = ["EKFAC"]


@dataclass(frozen=True, slots=True)
class EKFAC(Curvature):
    """How to fit EK-FAC.

    Attributes:
        damping: ``lambda_l`` in units of the layer's mean eigenvalue, > 0.
    """

    damping: float = 0.1

    labels: ClassVar[GradientLabels] = "model"

    def _begin(self, layers: tuple[Layer, ...], room: Room) -> EigenFit:
        """Two passes over pseudo-gradients: eigenbases, then eigenvalues in them."""
        return EigenFit("ekfac", layers, self.damping, ["factors", "squares"], room)
