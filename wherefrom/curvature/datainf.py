"""DataInf: the mean of inverses in place of the inverse of the mean (Kwon et al. 2024).

    (G + lambda)^-1  ~  (1/n) sum_i (g_i g_i^T + lambda)^-1  =  (I - M) / lambda,
    M = (1/n) sum_i g_i g_i^T / (lambda + |g_i|^2)            (their equation 5, Sherman-Morrison)

with the documents' own gradients, ``lambda_l = damping x mean |g_i|^2 / d_l``, the layer's mean
eigenvalue as everywhere. Nothing but the gradients ``g_i`` is needed, and they are kept: any
damping can be asked for later.

Where a layer is small, documents are stored as ``(I - M)^1/2 g / sqrt(lambda)`` in M's eigenbasis,
so that both sides are whitened. Where it is large, as ``g / sqrt(lambda)``, and a query is solved
by a scan of the kept gradients, ``q - (1/n) sum_i c_i g_i`` with
``c_i = g_i . q / (lambda + |g_i|^2)``, before the scan of the stored ones. Both are exact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from wherefrom.curvature.bases import (
    Basis,
    DenseBasis,
    GradientRotation,
    StandardBasis,
    bases_from_state,
    bases_state,
)
from wherefrom.curvature.fits import OnePass
from wherefrom.curvature.fitted import (
    Curvature,
    CurvatureKind,
    FittedCurvature,
    GradientLabels,
    Rectangles,
    block,
    require_damping,
    singular,
)
from wherefrom.curvature.memory import Room
from wherefrom.curvature.samples import KeptGradients, kept_fit, row_blocks, squared_norms
from wherefrom.gradients.layers import Layer

__all__ = ["LARGEST_WHITENED_BLOCK", "DataInf", "FittedDataInf"]

LARGEST_WHITENED_BLOCK = 2048
"""Layers of up to this many weights are stored whitened: an eigenbasis of M is a square of it."""


@dataclass(frozen=True, slots=True)
class DataInf(Curvature):
    """How to fit DataInf.

    Attributes:
        damping: ``lambda_l`` in units of ``mean |g_i|^2 / d_l``, > 0.
    """

    damping: float = 0.1

    labels: ClassVar[GradientLabels] = "own"

    def _begin(self, layers: tuple[Layer, ...], room: Room) -> OnePass[KeptGradients]:
        """One pass over the documents' own gradients."""

        def finish(kept: KeptGradients) -> FittedDataInf:
            return self._fitted(layers, kept.gradients(), kept.documents)

        return kept_fit(layers, "datainf", room, finish)

    def _fitted(
        self, layers: tuple[Layer, ...], gradients: tuple[Tensor, ...], seen: int
    ) -> FittedDataInf:
        squared = tuple(squared_norms(g) for g in gradients)
        bases: list[Basis] = []
        shrunk: list[Tensor | None] = []
        for layer, g, squares in zip(layers, gradients, squared, strict=True):
            lam = _lambda(layer, squares, seen, self.damping)
            if layer.size > LARGEST_WHITENED_BLOCK:
                bases.append(StandardBasis())
                shrunk.append(None)
                continue
            m = torch.zeros(layer.size, layer.size, dtype=torch.float64, device=g.device)
            for start, rows in row_blocks(g):
                weights = seen * (lam + squares[start : start + len(rows)])
                m.addmm_((rows / weights[:, None]).T, rows)
            values, vectors = torch.linalg.eigh(m)
            bases.append(DenseBasis(vectors.to(g.dtype)))
            # No eigenvalue of I - M is smaller; rounding must not take it below zero.
            least = lam / (lam + float(squares.max()))
            shrunk.append((1.0 - values).clamp_(min=least).reshape(layer.shape))
        return FittedDataInf(
            layers,
            gradients,
            squared,
            tuple(bases),
            tuple(shrunk),
            seen,
            self.damping,
            self.damping,
        )


def _lambda(layer: Layer, squares: Tensor, documents: int, damping: float) -> float:
    lam = damping * float(squares.sum()) / documents / layer.size
    if not lam > 0.0:
        raise singular(layer, dead=not bool(squares.any()))
    return lam


@dataclass(frozen=True, slots=True, eq=False)
class FittedDataInf(FittedCurvature):
    """The documents' gradients with a damping; immutable.

    Attributes:
        layers: The layers, in order.
        gradients: ``[document, d_out d_in]`` of each.
        squared: Their squared norms, float64 ``[document]``.
        bases: M's eigenvectors where the layer is small.
        shrunk: Eigenvalues of ``I - M``, float64 ``[d_out, d_in]``, there.
        documents: How many there are.
        damping: ``lambda_l`` in units of ``mean |g_i|^2 / d_l``.
        stored_damping: That of the documents' side, and of ``bases`` and ``shrunk``.
        report: Nothing: the solution is exact.
    """

    layers: tuple[Layer, ...]
    gradients: tuple[Tensor, ...]
    squared: tuple[Tensor, ...]
    bases: tuple[Basis, ...]
    shrunk: tuple[Tensor | None, ...]
    documents: int
    damping: float
    stored_damping: float
    report: Mapping[str, float] = field(default_factory=dict)
    kind: CurvatureKind = "datainf"

    def with_damping(self, damping: float) -> FittedDataInf:
        """The same gradients under another damping, which must be positive."""
        require_damping(damping)
        for layer, squares in zip(self.layers, self.squared, strict=True):
            _lambda(layer, squares, self.documents, damping)
        return replace(self, damping=damping)

    def coordinates(self, rectangles: Rectangles | None = None) -> GradientRotation:
        """Turns pairs into gradients in M's eigenbasis, or leaves them."""
        return GradientRotation(self.bases, rectangles)

    def raw(self, layer: int, coordinates: Tensor) -> Tensor:
        """Back from the eigenbasis, float64."""
        return self.bases[layer].raw(coordinates)

    def scale(self, layer: int) -> Tensor:
        """``sqrt((1 - mu) / lambda)`` where the layer is small, ``1 / sqrt(lambda)`` elsewhere."""
        shrunk = self.shrunk[layer]
        lam = self._lambda_of(layer, self.stored_damping)
        if shrunk is None:
            ones = torch.ones((), dtype=torch.float64, device=self.gradients[layer].device)
            return (ones / math.sqrt(lam)).expand(self.layers[layer].shape)
        return (shrunk / lam).sqrt()

    def solve(self, layer: int, coordinates: Tensor) -> Tensor:
        """``(I - M) / lambda`` of gradients in the basis, float64."""
        shrunk = self.shrunk[layer]
        lam = self._lambda_of(layer, self.damping)
        if self.whitens(layer) and shrunk is not None:
            return coordinates.double() * (shrunk / lam)
        basis, squares = self.bases[layer], self.squared[layer]
        flat = basis.raw(coordinates).flatten(-2)
        solved = flat.clone()
        for start, rows in row_blocks(self.gradients[layer]):
            weights = self.documents * (lam + squares[start : start + len(rows)])
            solved -= (flat @ rows.T / weights) @ rows
        solved = (solved / lam).reshape(coordinates.shape)
        if isinstance(basis, DenseBasis):
            return (solved.flatten(-2) @ basis.q.double()).reshape(coordinates.shape)
        return solved

    def whitens(self, layer: int) -> bool:
        """Where the layer is small, unless the damping is another than that of the documents."""
        return self.shrunk[layer] is not None and self.damping == self.stored_damping

    def mean_inverse(self, layer: int) -> float:
        """``(1 - tr M / d) / lambda``."""
        lam = self._lambda_of(layer, self.damping)
        squares = self.squared[layer]
        trace = float((squares / (lam + squares)).sum()) / self.documents
        return (1.0 - trace / self.layers[layer].size) / lam

    def _lambda_of(self, layer: int, damping: float) -> float:
        return _lambda(self.layers[layer], self.squared[layer], self.documents, damping)

    def state(self) -> dict[str, Tensor]:
        """Gradients, and the eigenpairs of small layers."""
        tensors = bases_state(self.bases)
        for i, (g, shrunk) in enumerate(zip(self.gradients, self.shrunk, strict=True)):
            tensors[f"{i}.gradients"] = g.contiguous()
            if shrunk is not None:
                tensors[f"{i}.shrunk"] = shrunk.contiguous()
        return tensors

    @classmethod
    def from_state(
        cls,
        layers: tuple[Layer, ...],
        tensors: Mapping[str, Tensor],
        *,
        documents: int,
        damping: float,
    ) -> FittedDataInf:
        """Inverse of :meth:`state`.

        Raises:
            CurvatureError: Tensors are missing or of the wrong shape for the layers.
        """
        whitened = [f"{i}.q" in tensors or f"{i}.shrunk" in tensors for i in range(len(layers))]
        kinds = [DenseBasis if small else StandardBasis for small in whitened]
        bases = bases_from_state(layers, tensors, kinds)
        gradients, shrunk = [], []
        for i, (layer, small) in enumerate(zip(layers, whitened, strict=True)):
            gradients.append(block(tensors, f"{i}.gradients", layer, (-1, layer.size)))
            shrunk.append(block(tensors, f"{i}.shrunk", layer, layer.shape) if small else None)
        squared = tuple(squared_norms(g) for g in gradients)
        made = cls(
            layers, tuple(gradients), squared, bases, tuple(shrunk), documents, damping, damping
        )
        return made.with_damping(damping)
