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
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from wherefrom.curvature.memory import Room
from wherefrom.errors import CurvatureError
from wherefrom.gradients.extractor import LayerPair
from wherefrom.gradients.fisher import PairSource
from wherefrom.gradients.layers import Layer

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "Coordinates",
    "Curvature",
    "CurvatureKind",
    "Fit",
    "FittedCurvature",
    "GradientLabels",
    "Rectangles",
    "Statistics",
    "block",
    "require_damping",
    "require_finite",
    "singular",
    "takes_no_part",
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


class Statistics(Protocol):
    """What one pass over some documents leaves: sums, or gradients one by one.

    Those of documents that follow one another may be gathered apart and merged; merged in one fixed
    order they are the same to the last bit, wherever each was gathered.

    Attributes:
        documents: How many documents were seen; who runs the pass counts them.
    """

    documents: int

    def add(self, pair: LayerPair) -> None:
        """Take in one layer's pairs of a batch.

        Raises:
            CurvatureError: They do not fit in memory, or not to those before them.
        """
        ...

    def state(self) -> dict[str, Tensor]:
        """Everything, counts too, as CPU tensors."""
        ...

    def merge(self, later: Self) -> None:
        """Take in the statistics of the documents that follow; ``later`` is given up for it.

        Raises:
            CurvatureError: Both together do not fit in memory, or do not go together.
        """
        ...


_Statistics = TypeVar("_Statistics", bound=Statistics)


class Fit(ABC, Generic[_Statistics]):
    """A fit under way: some passes over the documents are done, others to come.

    Attributes:
        passes: How many passes there are.
        done: How many of them are done.
    """

    passes: int
    done: int

    @abstractmethod
    def statistics(self) -> _Statistics:
        """Empty ones, for the pass that comes next."""

    @abstractmethod
    def load(self, state: Mapping[str, Tensor]) -> _Statistics:
        """Statistics of the pass that comes next, from their ``state``.

        They stay where they are, on whichever device; memory that is mapped from a file is not
        copied before it is written to.

        Raises:
            CurvatureError: Tensors are missing or of the wrong shape for the layers.
        """

    @abstractmethod
    def finish_pass(self, statistics: _Statistics) -> None:
        """End a pass with the statistics of all documents, which are given up for it.

        Raises:
            CurvatureError: A layer takes no part or nothing reaches it, statistics are not finite,
                or what follows from them does not fit in memory.
        """

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """What those who run the next pass need, and no more, to be given to ``resume``."""

    @abstractmethod
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on, as a fit that has just begun, from another's ``state``.

        Raises:
            CurvatureError: Tensors are missing or of the wrong shape for the layers.
        """

    @abstractmethod
    def result(self) -> FittedCurvature:
        """The fitted curvature, once ``done == passes``."""


class Curvature(ABC):
    """How to fit a curvature: a number of passes over documents.

    Attributes:
        damping: ``lambda_l`` in units of the layer's mean eigenvalue.
        labels: What it is fitted on.
    """

    damping: float
    labels: ClassVar[GradientLabels]

    def begin(
        self,
        layers: tuple[Layer, ...],
        *,
        documents: int | None = None,
        memory: int | None = None,
        folder: Path | None = None,
    ) -> Fit[Any]:
        """A fit of which no pass is done.

        Args:
            layers: The layers, in the order of ``LayerPair.layer``.
            documents: How many there will be, to refuse in time what would not fit in memory.
            memory: Bytes that factors may take; half of the machine's by default.
            folder: Where to put what is finished and would fill that memory.

        Raises:
            CurvatureError: The damping is not allowed, or the memory too little.
        """
        require_damping(self.damping)
        return self._begin(layers, Room(documents, memory, folder))

    def resume(
        self,
        layers: tuple[Layer, ...],
        state: Mapping[str, Tensor],
        *,
        documents: int | None = None,
        memory: int | None = None,
        folder: Path | None = None,
    ) -> Fit[Any]:
        """A fit of which some passes are done, from its ``state``; all else as it began.

        Raises:
            CurvatureError: Tensors are missing or of the wrong shape for the layers.
        """
        fit = self.begin(layers, documents=documents, memory=memory, folder=folder)
        fit.restore(state)
        return fit

    @abstractmethod
    def _begin(self, layers: tuple[Layer, ...], room: Room) -> Fit[Any]:
        """A fit of which no pass is done."""

    def fit(
        self,
        source: PairSource,
        *,
        documents: int | None = None,
        memory: int | None = None,
        folder: Path | None = None,
    ) -> FittedCurvature:
        """All passes over one source.

        Args:
            source: Pseudo-gradients or own gradients, as ``labels`` says.
            documents: As for :meth:`begin`, as are the others.
            memory: Bytes that factors may take.
            folder: Where to put what is finished.

        Raises:
            CurvatureError: The fit fails; the layer is named.
        """
        fit = self.begin(source.layers, documents=documents, memory=memory, folder=folder)
        while fit.done < fit.passes:
            statistics = fit.statistics()
            statistics.documents += source.run(statistics.add)
            fit.finish_pass(statistics)
        return fit.result()


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


def takes_no_part(layer: Layer) -> CurvatureError:
    """What to raise for a layer that no gradient came from."""
    return CurvatureError(
        f"layer {layer.name!r} takes no part in the model's output; leave it out of layers"
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
