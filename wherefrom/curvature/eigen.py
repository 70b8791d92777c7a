"""A fitted curvature that is diagonal in an orthogonal basis: EK-FAC, K-FAC, diagonal, exact, ...

With ``G = Q diag(Lambda) Q^T``, influence is ``<phi(q), phi(z)>`` with both sides whitened by the
square root, ``phi(g) = Q^T g / sqrt(Lambda + lambda)``, ``lambda_l = damping x mean(Lambda_l)`` for
each layer by itself (Grosse et al. 2023, section 2.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from wherefrom.curvature.bases import (
    Basis,
    DenseBasis,
    Eigenbasis,
    GradientRotation,
    StandardBasis,
    bases_from_state,
    bases_state,
)
from wherefrom.curvature.fitted import (
    CurvatureKind,
    FittedCurvature,
    Rectangles,
    block,
    require_damping,
    singular,
)
from wherefrom.gradients.layers import Layer

__all__ = ["FittedEigen"]


_BASES: dict[CurvatureKind, type[Basis]] = {
    "ekfac": Eigenbasis,
    "kfac": Eigenbasis,
    "diagonal": StandardBasis,
    "identity": StandardBasis,
    "exact": DenseBasis,
}

_ROUNDING = 1e-12
"""Eigenvalues below this share of the largest are what rounding left of zero."""


@dataclass(frozen=True, slots=True, eq=False)
class FittedEigen(FittedCurvature):
    """Bases and eigenvalues with a damping; immutable.

    Attributes:
        kind: Which curvature.
        layers: The layers, in order.
        bases: The basis of each.
        eigenvalues: ``Lambda`` of each, float64 ``[d_out, d_in]``.
        documents: How many documents they were fitted on.
        damping: ``lambda_l`` in units of ``mean(Lambda_l)``.
        stored_damping: The damping of the documents' side.
        report: What the fit measured about itself.
    """

    kind: CurvatureKind
    layers: tuple[Layer, ...]
    bases: tuple[Basis, ...]
    eigenvalues: tuple[Tensor, ...]
    documents: int
    damping: float
    stored_damping: float
    report: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def fitted(
        cls,
        kind: CurvatureKind,
        layers: tuple[Layer, ...],
        bases: tuple[Basis, ...],
        eigenvalues: tuple[Tensor, ...],
        documents: int,
        damping: float,
        report: Mapping[str, float] | None = None,
    ) -> FittedEigen:
        """A new fit, whose damping is that of the documents' side.

        Raises:
            CurvatureError: The damping is not allowed or leaves a block singular.
        """
        made = cls(kind, layers, bases, eigenvalues, documents, damping, damping, report or {})
        return made.with_damping(damping)

    def with_damping(self, damping: float) -> FittedEigen:
        """The same factors under another damping."""
        require_damping(damping)
        for layer, values in zip(self.layers, self.eigenvalues, strict=True):
            smallest, largest = float(values.min()), float(values.max())
            if not (damping * float(values.mean()) > 0.0 or smallest > _ROUNDING * largest):
                raise singular(layer, dead=not bool(values.any()))
        return replace(self, damping=damping)

    def damped(self, layer: int) -> Tensor:
        """``Lambda_l + lambda_l``, float64 ``[d_out, d_in]``."""
        values = self.eigenvalues[layer]
        return values + self.damping * values.mean()

    def coordinates(self, rectangles: Rectangles | None = None) -> GradientRotation:
        """Turns pairs into gradients in the eigenbasis, or into rectangles of them."""
        return GradientRotation(self.bases, rectangles)

    def raw(self, layer: int, coordinates: Tensor) -> Tensor:
        """Back from the eigenbasis, float64."""
        return self.bases[layer].raw(coordinates)

    def scale(self, layer: int) -> Tensor:
        """``1 / sqrt(Lambda_l + lambda_l)`` with the damping documents were stored with."""
        values = self.eigenvalues[layer]
        return (values + self.stored_damping * values.mean()).rsqrt()

    def solve(self, layer: int, coordinates: Tensor) -> Tensor:
        """``coordinates / (Lambda_l + lambda_l)``, float64."""
        return coordinates.double() / self.damped(layer).to(coordinates.device)

    def whitens(self, layer: int) -> bool:
        """True unless the damping is another than that of the documents' side."""
        return self.damping == self.stored_damping

    def mean_inverse(self, layer: int) -> float:
        """Mean of ``1 / (Lambda_l + lambda_l)``."""
        return float(self.damped(layer).reciprocal().mean())

    def expected_energy(self, layer: int) -> Tensor | None:
        """``Lambda / (Lambda + lambda)``; the identity knows no ``Lambda``.

        By numpy, whose sums do not depend on threads or devices: what is chosen by these must be
        the same wherever the index is opened.
        """
        if self.kind == "identity":
            return None
        values = np.ascontiguousarray(self.eigenvalues[layer].cpu().numpy())
        return torch.from_numpy(values / (values + self.stored_damping * np.mean(values)))

    def state(self) -> dict[str, Tensor]:
        """Bases and eigenvalues; the identity needs neither."""
        tensors = bases_state(self.bases)
        if self.kind != "identity":
            for i, values in enumerate(self.eigenvalues):
                tensors[f"{i}.eigenvalues"] = values.contiguous()
        return tensors

    @classmethod
    def from_state(
        cls,
        kind: CurvatureKind,
        layers: tuple[Layer, ...],
        tensors: Mapping[str, Tensor],
        *,
        documents: int,
        damping: float,
        report: Mapping[str, float],
    ) -> FittedEigen:
        """Inverse of :meth:`state`.

        Raises:
            CurvatureError: Tensors are missing or of the wrong shape for the layers.
        """
        eigenvalues = tuple(
            torch.ones((), dtype=torch.float64).expand(layer.shape)
            if kind == "identity"
            else block(tensors, f"{i}.eigenvalues", layer, layer.shape)
            for i, layer in enumerate(layers)
        )
        bases = bases_from_state(layers, tensors, [_BASES[kind]] * len(layers))
        return cls.fitted(kind, layers, bases, eigenvalues, documents, damping, report)
