"""A better query: conjugate gradients on the true Gauss-Newton matrix of all layers.

What documents are stored as does not depend on how a query was solved for, so its side of a score
may be any estimate of ``(G + lambda)^-1 grad f``. A fitted curvature knows one block of G for each
layer, and that by factors. Here G is the whole matrix, over a sample of documents, and

    (G + lambda) h = grad f,      lambda = damping x mean(Lambda),

is solved by conjugate gradients with the fitted curvature as the preconditioner (Hestenes and
Stiefel 1952; Martens 2010, section 4). Everything is written in the curvature's coordinates and
kept in float64; the products are as good as the model's own precision.

The damping is its own: one lambda for all layers, in units of the mean eigenvalue over all of them,
and far more of it than the factored matrix wants (``benchmarks/refinement.py`` shows by how much).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from wherefrom.curvature.eigen import FittedEigen
from wherefrom.curvature.fitted import FittedCurvature, require_damping
from wherefrom.curvature.memory import require_memory
from wherefrom.errors import CurvatureError, QueryError
from wherefrom.gradients.batches import Batch
from wherefrom.gradients.extractor import GradientExtractor
from wherefrom.gradients.gauss_newton import GaussNewton

__all__ = [
    "REFINE_DAMPING",
    "REFINE_TOLERANCE",
    "Refined",
    "refine",
    "refinements",
    "require_refinable",
]

REFINE_DAMPING = 20.0
"""Damping of the whole matrix, in units of its mean eigenvalue."""

REFINE_TOLERANCE = 0.05
"""Relative residual at which a refinement stops before its last step."""

_VECTORS = 8
"""Vectors over all layers that are held at once: those of the recursion and of one product."""


@dataclass(frozen=True, slots=True, eq=False)
class Refined:
    """What ``steps`` of conjugate gradients made of a query.

    Attributes:
        solved: Of each layer float64 ``[d_out, d_in]``: the estimate of ``(G + lambda)^-1 grad f``
            in the curvature's coordinates.
        residuals: ``|(G + lambda) h - grad f| / |grad f|`` at the start and after each step. They
            need not fall at every step; what does is the error in the norm of ``G + lambda``.
        damping: In units of the mean eigenvalue.
    """

    solved: tuple[Tensor, ...]
    residuals: tuple[float, ...]
    damping: float

    @property
    def steps(self) -> int:
        """How many were taken."""
        return len(self.residuals) - 1

    @property
    def residual(self) -> float:
        """What was reached."""
        return self.residuals[-1]


def require_refinable(curvature: FittedCurvature) -> FittedEigen:
    """The curvature, if it can precondition and knows its layers' mean eigenvalues.

    Raises:
        QueryError: It cannot or does not.
    """
    if isinstance(curvature, FittedEigen) and curvature.kind != "identity":
        return curvature
    raise QueryError(
        f"refine= needs eigenvalues of the curvature, and {curvature.kind!r} has none; build with "
        "curvature='ekfac' (or 'kfac', 'diagonal', 'exact'), or ask with refine=0"
    )


def refine(
    extractor: GradientExtractor,
    curvature: FittedCurvature,
    gradient: Sequence[Tensor],
    batches: Callable[[], Iterable[Batch]],
    *,
    steps: int,
    damping: float = REFINE_DAMPING,
    tolerance: float = REFINE_TOLERANCE,
    start: Sequence[Tensor] | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> Refined:
    """Solve one query with the Gauss-Newton matrix of a sample of documents.

    Runs outside of ``extractor.session()``. A step takes one pass over the documents, forward
    (twice) and backward.

    Args:
        extractor: Model, objective and layers.
        curvature: Preconditions, and says what basis ``gradient`` is written in.
        gradient: Of the measurement, of each layer ``[d_out, d_in]`` in the curvature's
            coordinates.
        batches: Called once a step; gives the documents, each time the same. Where a document is
            one prediction, a sample of them does harm: give all.
        steps: At most how many. With none the start is returned, and its residual is that of the
            start.
        damping: ``lambda`` in units of the mean eigenvalue over all layers, > 0.
        tolerance: Relative residual at which to stop.
        start: First estimate, likewise; by default zero, from which the first step reaches the best
            multiple of the curvature's own solution with this lambda.
        progress: Called with the number of steps done, from 0 on, and the relative residual.

    Raises:
        QueryError: The curvature cannot precondition, or steps or tolerance are out of range.
        CurvatureError: The damping is not allowed, the objective knows no distribution, vectors do
            not fit in memory, or products are not finite.
        ModelError: The model cannot be run in forward mode.
    """
    if steps < 0:
        raise QueryError(f"refine={steps} is not allowed; give a number of steps, as 5, or 0")
    if not 0.0 <= tolerance < 1.0:
        raise QueryError(
            f"tolerance={tolerance} is not allowed; give a number from 0 to 1, as 0.05"
        )
    estimates = refinements(extractor, curvature, gradient, batches, damping=damping, start=start)
    for estimate in estimates:
        if progress is not None:
            progress(estimate.steps, estimate.residual)
        if estimate.steps >= steps or estimate.residual <= tolerance:
            return estimate
    return estimate


def refinements(
    extractor: GradientExtractor,
    curvature: FittedCurvature,
    gradient: Sequence[Tensor],
    batches: Callable[[], Iterable[Batch]],
    *,
    damping: float = REFINE_DAMPING,
    start: Sequence[Tensor] | None = None,
) -> Iterator[Refined]:
    """The estimates of :func:`refine`, one by one: the start, then one after each step.

    They go on until the caller has enough of them, or the residual is zero. Arguments and errors
    are those of :func:`refine`.
    """
    require_damping(damping)
    if damping == 0.0:
        raise CurvatureError("refine= needs a damping > 0: the whole matrix is singular")
    system = _System(extractor, require_refinable(curvature), batches, damping)
    wanted = system.flat(gradient)
    size = float(wanted.norm())
    solved = torch.zeros_like(wanted) if start is None or size == 0.0 else system.flat(start)
    residual = wanted.clone() if not bool(solved.any()) else wanted - system.apply(solved)
    residuals: tuple[float, ...] = (float(residual.norm()) / size if size > 0.0 else 0.0,)
    yield Refined(system.layered(solved.clone()), residuals, damping)
    direction = torch.zeros_like(wanted)
    before = math.inf
    while residuals[-1] != 0.0:
        preconditioned = system.precondition(residual)
        now = float(residual @ preconditioned)
        direction.mul_(now / before).add_(preconditioned)
        before = now
        applied = system.apply(direction)
        length = now / float(direction @ applied)
        solved.add_(direction, alpha=length)
        residual.sub_(applied, alpha=length)
        residuals = (*residuals, float(residual.norm()) / size)
        yield Refined(system.layered(solved.clone()), residuals, damping)


class _System:
    """``G + lambda`` and its preconditioner, over all layers laid end to end in coordinates."""

    def __init__(
        self,
        extractor: GradientExtractor,
        curvature: FittedEigen,
        batches: Callable[[], Iterable[Batch]],
        damping: float,
    ) -> None:
        layers = curvature.layers
        require_memory(
            _VECTORS * 8 * sum(layer.size for layer in layers),
            "the vectors of refine=",
            "choose fewer layers (layers=), or ask with refine=0",
            extractor.device,
        )
        self._matrix = GaussNewton(extractor, batches)
        self._curvature = curvature
        self._shapes = [layer.shape for layer in layers]
        self._ends = [0]
        for layer in layers:
            self._ends.append(self._ends[-1] + layer.size)
        trace = sum(float(values.sum()) for values in curvature.eigenvalues)
        self._shift = damping * trace / self._ends[-1]

    def flat(self, layered: Sequence[Tensor]) -> Tensor:
        """Layers end to end, float64; a copy."""
        return torch.cat([part.double().reshape(-1) for part in layered])

    def layered(self, flat: Tensor) -> tuple[Tensor, ...]:
        """Inverse of :meth:`flat`; views."""
        return tuple(
            flat[start:end].reshape(shape)
            for (start, end), shape in zip(pairwise(self._ends), self._shapes, strict=True)
        )

    def apply(self, flat: Tensor) -> Tensor:
        """``(G + lambda) v``."""
        parts = self.layered(flat)
        raw = [self._curvature.raw(layer, part) for layer, part in enumerate(parts)]
        products = self._matrix.product(raw)
        applied = self.flat(
            [self._coordinates(layer, product) for layer, product in enumerate(products)]
        )
        applied.add_(flat, alpha=self._shift)
        if not bool(torch.isfinite(applied).all()):
            raise CurvatureError(
                "a Gauss-Newton product is not finite: gradients overflow in the model's "
                "precision; load it in float32, or ask with refine=0"
            )
        return applied

    def precondition(self, flat: Tensor) -> Tensor:
        """The curvature's own ``(G + lambda)^-1 v``."""
        pairs = zip(self.layered(flat), self._curvature.eigenvalues, strict=True)
        return self.flat([part / (values + self._shift) for part, values in pairs])

    def _coordinates(self, layer: int, raw: Tensor) -> Tensor:
        """Into the basis: ``raw`` is orthogonal, so its transpose is its inverse."""
        point = torch.zeros_like(raw, requires_grad=True)
        with torch.enable_grad():
            rotated = self._curvature.raw(layer, point)
        (coordinates,) = torch.autograd.grad(rotated, point, raw)
        return coordinates
