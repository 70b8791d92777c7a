"""What every fitted curvature offers: coordinates, the damped inverse, both sides of a score.

A curvature is fitted once and never changes; another damping is another view of the same fit.
For layer l it stands for a matrix ``(G_l + lambda_l)^-1`` over the layer's weights and a basis in
which gradients are written (``coordinates``). Influence is an inner product of two vectors:

    document   phi = scale ⊙ coordinates(grad log p(z))
    query      psi = solve(coordinates(grad f)) ⊘ scale
    <psi, phi> = grad f^T (G + lambda)^-1 grad log p(z)

with one ``scale`` a layer, which the query's damping does not touch. Where the basis is an
eigenbasis and the scale is ``(Lambda + lambda)^-1/2``, both sides are whitened alike; ``psi`` may
use another damping than the one that documents were stored with.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from wherefrom.errors import CurvatureError
from wherefrom.gradients.extractor import LayerPair
from wherefrom.gradients.fisher import PairSource
from wherefrom.gradients.layers import Layer

__all__ = [
    "Coordinates",
    "Curvature",
    "CurvatureKind",
    "FittedCurvature",
    "GradientLabels",
    "Rectangles",
    "block",
    "require_damping",
    "require_finite",
    "singular",
]

CurvatureKind = Literal["ekfac", "kfac", "diagonal", "identity", "datainf", "lissa", "exact"]

GradientLabels = Literal["model", "own", "none"]
"""What a curvature is fitted on: pseudo-gradients, documents' own gradients, or nothing."""

Coordinates = Callable[[LayerPair], Tensor]
"""Pairs -> ``[doc, d_out, d_in]`` gradients in the curvature's basis; good for one pass."""

Rectangles = Sequence[tuple[Tensor, Tensor]]
"""For each layer int64 positions of rows and of columns of its coordinates."""

LARGEST_DAMPING = 1e15
"""Where scores are long since gradient dot products."""

_Self = TypeVar("_Self", bound="FittedCurvature")


class FittedCurvature(ABC):
    """``(G + lambda)^-1``, layer by layer; immutable.

    Attributes:
        kind: Its name.
        layers: The layers, in order.
        documents: How many documents it was fitted on.
        damping: ``lambda_l`` in units of the layer's mean eigenvalue.
        report: What the fit measured about itself (``residual``, ``iterations``), if anything.
    """

    kind: CurvatureKind
    layers: tuple[Layer, ...]
    documents: int
    damping: float
    report: Mapping[str, float]

    @abstractmethod
    def with_damping(self: _Self, damping: float) -> _Self:
        """The same fit under another damping.

        Raises:
            CurvatureError: The damping is negative, not finite, or leaves a block singular.
        """

    @abstractmethod
    def coordinates(self, rectangles: Rectangles | None = None) -> Coordinates:
        """What writes gradients in the basis: an orthogonal map, so that inner products stay.

        Args:
            rectangles: Of each layer, the rows and columns that are wanted; all by default. Pairs
                then become ``[doc, rows, columns]``, without the rest being computed where the
                basis allows it.
        """

    @abstractmethod
    def raw(self, layer: int, coordinates: Tensor) -> Tensor:
        """Back from the basis: ``[..., d_out, d_in]`` in the order of the weight, float64."""

    @abstractmethod
    def scale(self, layer: int) -> Tensor:
        """The documents' side: float64 ``[d_out, d_in]``, positive; the same for every damping."""

    @abstractmethod
    def solve(self, layer: int, coordinates: Tensor) -> Tensor:
        """``(G_l + lambda_l)^-1`` of gradients ``[..., d_out, d_in]`` in the basis, float64."""

    @abstractmethod
    def whitens(self, layer: int) -> bool:
        """Whether ``scale`` is the square root of ``solve``, so that both sides are alike."""

    @abstractmethod
    def mean_inverse(self, layer: int) -> float:
        """Mean eigenvalue of ``(G_l + lambda_l)^-1``: what large damping leaves of it.

        Where it is not known, ``1 / lambda_l``, which bounds it.
        """

    def residual(self, layer: int, coordinates: Tensor, solved: Tensor) -> float | None:
        """``|(G + lambda) solved - g| / |g|``, the largest, of a solution by iteration.

        ``None`` for curvatures that are solved in closed form.
        """
        return None

    def energies(self, layer: int, coordinates: Tensor) -> Tensor:
        """``g^T (G_l + lambda_l)^-1 g`` of each gradient, float64 ``[doc]``; never negative."""
        products = coordinates.double() * self.solve(layer, coordinates)
        return products.flatten(1).sum(1).clamp_(min=0.0)

    def expected_energy(self, layer: int) -> Tensor | None:
        """``E phi^2 = Lambda / (Lambda + lambda)`` of each coordinate, float64 ``[d_out, d_in]``.

        With the damping documents were stored with. ``None`` where it is not known.
        """
        return None

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Tensors to store."""


class Curvature(Protocol):
    """How to fit a curvature.

    Attributes:
        damping: ``lambda_l`` in units of the layer's mean eigenvalue.
        labels: What it is fitted on.
        passes: How often the fit goes over the documents.
    """

    labels: ClassVar[GradientLabels]
    passes: ClassVar[int]

    @property
    def damping(self) -> float:
        """``lambda_l`` in units of the layer's mean eigenvalue."""
        ...

    def fit(self, source: PairSource, *, documents: int | None = None) -> FittedCurvature:
        """Fit on the pairs of a source.

        Args:
            source: Pseudo-gradients or own gradients, as ``labels`` says.
            documents: How many the source will give, to refuse in time what would not fit in
                memory.

        Raises:
            CurvatureError: The fit fails; the layer is named.
        """
        ...


def block(tensors: Mapping[str, Tensor], name: str, layer: Layer, shape: tuple[int, ...]) -> Tensor:
    """A tensor of a stored curvature.

    Raises:
        CurvatureError: It is missing or of another shape.
    """
    if name not in tensors:
        raise CurvatureError(
            f"the stored curvature of layer {layer.name!r} lacks {name!r}; rebuild the index"
        )
    found = tensors[name]
    if len(found.shape) != len(shape) or any(
        w not in (-1, f) for w, f in zip(shape, found.shape, strict=True)
    ):
        raise CurvatureError(
            f"the stored curvature of layer {layer.name!r} has another shape than the layer; "
            "rebuild the index"
        )
    return found


def require_damping(damping: float) -> None:
    """Refuse what is no damping.

    Raises:
        CurvatureError: It is no number, negative, or so large that scores would vanish.
    """
    if not isinstance(damping, (int, float)) or not 0.0 <= damping <= LARGEST_DAMPING:
        raise CurvatureError(
            f"damping={damping!r} is not allowed; give a number from 0 to {LARGEST_DAMPING:.0e}, "
            "as 0.1"
        )


def singular(layer: Layer, *, dead: bool) -> CurvatureError:
    """What to raise for a block that cannot be inverted."""
    if dead:
        return CurvatureError(
            f"the curvature of layer {layer.name!r} is singular: no gradient reaches it (that of a "
            "LoRA A is zero while its B is, before training); leave the layer out"
        )
    return CurvatureError(
        f"the curvature of layer {layer.name!r} is singular and damping is 0; give a damping > 0"
    )


def require_finite(layer: Layer, values: Tensor, what: str) -> Tensor:
    """``values``, if all are finite.

    Raises:
        CurvatureError: They are not; the layer is named.
    """
    if not bool(torch.isfinite(values).all()):
        raise CurvatureError(
            f"{what} of layer {layer.name!r} is not finite: weights hold NaN, or gradients "
            "overflow; check the weights, and load a half-precision model in float32"
        )
    return values
