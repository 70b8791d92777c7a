"""EK-FAC: eigenvalue-corrected Kronecker-factored curvature (George et al. 2018).

In the Kronecker eigenbasis of a layer, the eigenvalues are replaced by the measured second moments
of documents' pseudo-gradients,

    Lambda_ij = E over documents of (Q_S^T DW Q_A)_ij^2,    DW summed over the document's tokens,

which is the best diagonal in that basis in Frobenius norm (their equation 11).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from wherefrom.curvature.bases import GradientRotation
from wherefrom.curvature.eigen import FittedEigen
from wherefrom.curvature.fitted import GradientLabels, require_damping, require_finite
from wherefrom.curvature.kronecker import fit_factors
from wherefrom.errors import CurvatureError
from wherefrom.gradients.extractor import LayerPair
from wherefrom.gradients.fisher import PairSource

__all__ = ["EKFAC", "mean_squares"]


@dataclass(frozen=True, slots=True)
class EKFAC:
    """How to fit EK-FAC.

    Attributes:
        damping: ``lambda_l`` in units of the layer's mean eigenvalue, > 0.
    """

    damping: float = 0.1

    labels: ClassVar[GradientLabels] = "model"
    passes: ClassVar[int] = 2

    def fit(self, source: PairSource, *, documents: int | None = None) -> FittedEigen:
        """Two passes over pseudo-gradients: eigenbases, then eigenvalues in them.

        Raises:
            CurvatureError: A factor is not finite, a layer takes no part, or nothing reaches it.
        """
        require_damping(self.damping)
        factors, seen = fit_factors(source)
        bases = tuple(factor.basis for factor in factors)
        eigenvalues, _ = mean_squares(source, GradientRotation(bases))
        return FittedEigen.fitted("ekfac", source.layers, bases, eigenvalues, seen, self.damping)


def mean_squares(
    source: PairSource, coordinates: GradientRotation
) -> tuple[tuple[Tensor, ...], int]:
    """``E over documents of coordinates^2``: one pass.

    Returns:
        For each layer float64 ``[d_out, d_in]``, and the number of documents seen.

    Raises:
        CurvatureError: A layer takes no part in the outputs, or its gradients are not finite.
    """
    sums: list[Tensor | None] = [None] * len(source.layers)

    def add(pair: LayerPair) -> None:
        for part in coordinates.parts(pair):
            squares = part.square_().sum(0)
            total = sums[pair.layer]
            sums[pair.layer] = squares.double() if total is None else total.add_(squares)

    documents = source.run(add)
    result = []
    for layer, total in zip(source.layers, sums, strict=True):
        if total is None:
            raise CurvatureError(
                f"layer {layer.name!r} takes no part in the model's output; leave it out of layers"
            )
        result.append(require_finite(layer, total.div_(documents), "the mean squared gradient"))
    return tuple(result), documents
