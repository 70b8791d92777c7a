"""K-FAC: Kronecker-factored curvature (Martens and Grosse 2015).

``G = T (S ⊗ A)`` with ``A = E[a a^T]`` and ``S = E[delta delta^T]`` as means over positions and
``T`` the mean number of these positions a document has, so that the trace is right where
activations and output gradients are independent. Its eigenvalues are ``T s_i a_j``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from wherefrom.curvature.eigen import FittedEigen
from wherefrom.curvature.fitted import GradientLabels, require_damping
from wherefrom.curvature.kronecker import fit_factors
from wherefrom.gradients.fisher import PairSource

__all__ = ["KFAC"]


@dataclass(frozen=True, slots=True)
class KFAC:
    """How to fit K-FAC.

    Attributes:
        damping: ``lambda_l`` in units of the layer's mean eigenvalue, > 0.
    """

    damping: float = 0.1

    labels: ClassVar[GradientLabels] = "model"
    passes: ClassVar[int] = 1

    def fit(self, source: PairSource, *, documents: int | None = None) -> FittedEigen:
        """One pass over pseudo-gradients.

        Raises:
            CurvatureError: A factor is not finite, a layer takes no part, or nothing reaches it.
        """
        require_damping(self.damping)
        factors, seen = fit_factors(source)
        eigenvalues = tuple(
            factor.positions / seen * torch.outer(factor.values_out, factor.values_in)
            for factor in factors
        )
        bases = tuple(factor.basis for factor in factors)
        return FittedEigen.fitted("kfac", source.layers, bases, eigenvalues, seen, self.damping)
