"""LiSSA: the inverse by a Neumann series (Agarwal et al. 2017; Koh and Liang 2017, section 3).

    v <- g + (I - (G + lambda) / s) v,      (G + lambda)^-1 g = v / s,

on each layer's Fisher block ``G = (1/n) sum_i g_i g_i^T`` of pseudo-gradients, which are kept.
``s`` is the block's largest eigenvalue plus lambda, found by power iteration, so that the series
converges; it does so by a factor ``1 - lambda / s`` a step, which is slow where the spectrum is
wide. It stops at the relative residual ``TOLERANCE`` or after ``MOST_ITERATIONS``; what was reached
is reported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from wherefrom.curvature.bases import GradientRotation, StandardBasis
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
from wherefrom.curvature.memory import Room, require_memory
from wherefrom.curvature.samples import KeptGradients, kept_fit, squared_norms
from wherefrom.gradients.layers import Layer

__all__ = ["MOST_ITERATIONS", "TOLERANCE", "FittedLiSSA", "LiSSA"]

TOLERANCE = 1e-3
"""Relative residual at which the recursion stops."""

MOST_ITERATIONS = 1000
"""Most steps of the recursion."""

_POWER_STEPS = 100
_PROBED = 4
_CHECK_EVERY = 25


@dataclass(frozen=True, slots=True)
class LiSSA(Curvature):
    """How to fit LiSSA.

    Attributes:
        damping: ``lambda_l`` in units of the layer's mean eigenvalue, > 0.
        tolerance: Relative residual at which the recursion stops.
        most_iterations: Most steps of the recursion.
    """

    damping: float = 0.1
    tolerance: float = TOLERANCE
    most_iterations: int = MOST_ITERATIONS

    labels: ClassVar[GradientLabels] = "model"

    def _begin(self, layers: tuple[Layer, ...], room: Room) -> OnePass[KeptGradients]:
        """One pass over pseudo-gradients; some are solved to report the residual."""

        def finish(kept: KeptGradients) -> FittedLiSSA:
            return self._fitted(layers, kept.gradients(), kept.documents, room.memory)

        return kept_fit(layers, "lissa", room, finish)

    def _fitted(
        self,
        layers: tuple[Layer, ...],
        gradients: tuple[Tensor, ...],
        seen: int,
        memory: int | None,
    ) -> FittedLiSSA:
        require_memory(
            sum(8 * min(g.shape) ** 2 for g in gradients),
            "the Gram matrices of the gradients that curvature='lissa' keeps",
            "fit on fewer documents (fit_documents=), or give curvature='ekfac'",
            gradients[0].device,
            memory,
        )
        made = FittedLiSSA(
            layers,
            gradients,
            tuple(_largest_eigenvalue(g, seen) for g in gradients),
            tuple(float(squared_norms(g).sum()) / seen for g in gradients),
            tuple(_gram(g) for g in gradients),
            seen,
            self.damping,
            self.damping,
            tolerance=self.tolerance,
            most_iterations=self.most_iterations,
        ).with_damping(self.damping)
        return replace(made, report=made.probe())


def _gram(gradients: Tensor) -> Tensor:
    """``P P^T`` or ``P^T P``, whichever is smaller, float64."""
    kept = gradients.double()
    return kept @ kept.T if len(kept) <= kept.shape[1] else kept.T @ kept


def _largest_eigenvalue(gradients: Tensor, documents: int) -> float:
    """Of ``(1/n) sum_i g_i g_i^T``, by power iteration from a random mixture of gradients.

    Random, because vectors made by a rule can be orthogonal to what is looked for: the output
    gradients of a softmax sum to zero.
    """
    kept = gradients.double()
    generator = torch.Generator().manual_seed(0)
    mixture = torch.randn(len(kept), dtype=torch.float64, generator=generator)
    vector = mixture.to(kept.device) @ kept
    value = 0.0
    for _ in range(_POWER_STEPS):
        norm = float(vector.norm())
        if norm == 0.0:
            return 0.0
        vector = vector / norm
        vector = (kept @ vector) @ kept / documents
        value = float(vector.norm())
    return value


@dataclass(frozen=True, slots=True, eq=False)
class FittedLiSSA(FittedCurvature):
    """Pseudo-gradients with a damping; immutable.

    Attributes:
        layers: The layers, in order.
        gradients: ``[gradient, d_out d_in]`` of each.
        largest: Largest eigenvalue of each block.
        traces: Sum of its eigenvalues.
        grams: The gradients' smaller Gram matrix, float64.
        documents: How many documents the gradients are of.
        damping: ``lambda_l`` in units of the layer's mean eigenvalue.
        stored_damping: That of the documents' side.
        report: ``iterations`` and ``residual`` of some of the gradients, the largest of all.
        tolerance: Relative residual at which the recursion stops.
        most_iterations: Most steps of the recursion.
    """

    layers: tuple[Layer, ...]
    gradients: tuple[Tensor, ...]
    largest: tuple[float, ...]
    traces: tuple[float, ...]
    grams: tuple[Tensor, ...]
    documents: int
    damping: float
    stored_damping: float
    report: Mapping[str, float] = field(default_factory=dict)
    tolerance: float = TOLERANCE
    most_iterations: int = MOST_ITERATIONS
    kind: CurvatureKind = "lissa"

    def with_damping(self, damping: float) -> FittedLiSSA:
        """The same gradients under another damping, which must be positive."""
        require_damping(damping)
        made = replace(self, damping=damping)
        for i, layer in enumerate(self.layers):
            if not made.shift(i) > 0.0:
                raise singular(layer, dead=self.traces[i] == 0.0)
        return made

    def shift(self, layer: int) -> float:
        """``lambda_l``."""
        return self._shift(layer, self.damping)

    def _shift(self, layer: int, damping: float) -> float:
        return damping * self.traces[layer] / self.layers[layer].size

    def coordinates(self, rectangles: Rectangles | None = None) -> GradientRotation:
        """Turns pairs into gradients."""
        return GradientRotation(tuple(StandardBasis() for _ in self.layers), rectangles)

    def raw(self, layer: int, coordinates: Tensor) -> Tensor:
        """The coordinates, float64."""
        return coordinates.double()

    def scale(self, layer: int) -> Tensor:
        """``1 / sqrt(lambda)``: documents' gradients as they are, all layers on one scale."""
        lam = self._shift(layer, self.stored_damping)
        ones = torch.ones((), dtype=torch.float64, device=self.gradients[layer].device)
        return (ones / math.sqrt(lam)).expand(self.layers[layer].shape)

    def solve(self, layer: int, coordinates: Tensor) -> Tensor:
        """The recursion, float64."""
        return self.recursion(layer, coordinates)[0]

    def recursion(self, layer: int, coordinates: Tensor) -> tuple[Tensor, int]:
        """The solution and the number of steps taken.

        Iterates stay in the span of ``g`` and the kept gradients ``P``, ``v = alpha g + P^T beta``:
        where these are fewer than weights, the recursion runs on ``alpha`` and ``beta``, elsewhere
        on the weights; either way a step costs a product with ``P``'s smaller Gram matrix.
        """
        kept, gram = self.gradients[layer].double(), self.grams[layer]
        lam = self.shift(layer)
        s = self.largest[layer] + lam
        g = coordinates.double().flatten(-2)
        if len(gram) < len(kept):
            v, steps = self._steps(
                lambda v: v @ gram / self.documents + lam * v,
                lambda residual: residual.norm(dim=-1),
                g,
                s,
            )
            return (v / s).reshape(coordinates.shape), steps
        # As one row: alpha, then beta. G maps g to P^T (P g) / n, and P^T beta to P^T (K beta) / n.
        products = g @ kept.T
        sizes = g.square().sum(-1, keepdim=True)
        start = torch.cat([torch.ones_like(sizes), torch.zeros_like(products)], -1)

        def applied(row: Tensor) -> Tensor:
            alpha, beta = row[..., :1], row[..., 1:]
            moved = (alpha * products + beta @ gram) / self.documents
            return lam * row + torch.cat([torch.zeros_like(alpha), moved], -1)

        def norm(row: Tensor) -> Tensor:
            alpha, beta = row[..., :1], row[..., 1:]
            squares = alpha.square() * sizes + (
                2 * alpha * (beta * products).sum(-1, keepdim=True)
                + ((beta @ gram) * beta).sum(-1, keepdim=True)
            )
            return squares.clamp_min(0.0).sqrt().squeeze(-1)

        row, steps = self._steps(applied, norm, start, s)
        v = row[..., :1] * g + row[..., 1:] @ kept
        return (v / s).reshape(coordinates.shape), steps

    def _steps(
        self,
        applied: Callable[[Tensor], Tensor],
        norm: Callable[[Tensor], Tensor],
        g: Tensor,
        s: float,
    ) -> tuple[Tensor, int]:
        """``v <- g + (I - (G + lambda) / s) v`` until the residual is small: ``v``, and steps.

        Each row stops by itself, so that none depends on what it is solved with.
        """
        limit = self.tolerance * norm(g)
        v = g.clone()
        unsolved = torch.ones_like(limit, dtype=torch.bool)
        for step in range(self.most_iterations):
            left = g - applied(v) / s
            if step % _CHECK_EVERY == 0:
                unsolved &= norm(left) > limit
                if not bool(unsolved.any()):
                    return v, step
            v += left * unsolved.unsqueeze(-1)
        return v, self.most_iterations

    def _damped_product(self, v: Tensor, kept: Tensor, lam: float) -> Tensor:
        return (v @ kept.T) @ kept / self.documents + lam * v

    def residual(self, layer: int, coordinates: Tensor, solved: Tensor) -> float:
        """``|(G + lambda) solved - g| / |g|``, the largest."""
        kept = self.gradients[layer].double()
        flat = coordinates.double().flatten(-2)
        applied = self._damped_product(solved.flatten(-2), kept, self.shift(layer))
        sizes = flat.norm(dim=-1)
        errors = (applied - flat).norm(dim=-1)
        return float((errors / sizes.clamp_min(torch.finfo(torch.float64).tiny)).max())

    def probe(self) -> dict[str, float]:
        """``iterations`` and ``residual`` for some of the gradients, the largest of all layers."""
        iterations, residual = 0, 0.0
        for i, layer in enumerate(self.layers):
            some = self.gradients[i][:: -(-len(self.gradients[i]) // _PROBED)]
            g = some.double().reshape(-1, *layer.shape)
            solved, steps = self.recursion(i, g)
            iterations = max(iterations, steps)
            residual = max(residual, self.residual(i, g, solved))
        return {"iterations": float(iterations), "residual": residual}

    def whitens(self, layer: int) -> bool:
        """Never: a series has no square root to store."""
        return False

    def mean_inverse(self, layer: int) -> float:
        """``1 / lambda``, which bounds it."""
        return 1.0 / self.shift(layer)

    def state(self) -> dict[str, Tensor]:
        """Gradients, eigenvalues, and when the recursion stops."""
        tensors = {f"{i}.gradients": g.contiguous() for i, g in enumerate(self.gradients)}
        return tensors | {
            "largest": torch.tensor(self.largest, dtype=torch.float64),
            "traces": torch.tensor(self.traces, dtype=torch.float64),
            "tolerance": torch.tensor(self.tolerance, dtype=torch.float64),
            "most_iterations": torch.tensor(self.most_iterations),
        }

    @classmethod
    def from_state(
        cls,
        layers: tuple[Layer, ...],
        tensors: Mapping[str, Tensor],
        *,
        documents: int,
        damping: float,
        report: Mapping[str, float],
    ) -> FittedLiSSA:
        """Inverse of :meth:`state`.

        Raises:
            CurvatureError: Tensors are missing or of the wrong shape for the layers.
        """
        gradients = tuple(
            block(tensors, f"{i}.gradients", layer, (-1, layer.size))
            for i, layer in enumerate(layers)
        )
        largest, traces = (
            tuple(block(tensors, name, layers[0], (len(layers),)).tolist())
            for name in ("largest", "traces")
        )
        made = cls(
            layers,
            gradients,
            largest,
            traces,
            tuple(_gram(g) for g in gradients),
            documents,
            damping,
            damping,
            report,
            tolerance=float(block(tensors, "tolerance", layers[0], ())),
            most_iterations=int(block(tensors, "most_iterations", layers[0], ())),
        )
        return made.with_damping(damping)
