"""The exact block: ``G_l = E[g g^T]`` over all of a layer's weights, eigendecomposed in float64.

The oracle that the approximations are held against, for layers of a few thousand weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from wherefrom.curvature.bases import Basis, DenseBasis, gradients_of
from wherefrom.curvature.eigen import FittedEigen
from wherefrom.curvature.fits import OnePass
from wherefrom.curvature.fitted import Curvature, GradientLabels, block, takes_no_part
from wherefrom.curvature.memory import Room, require_memory
from wherefrom.curvature.moments import SecondMoment
from wherefrom.gradients.extractor import LayerPair
from wherefrom.gradients.layers import Layer

__all__ = ["DenseSums", "Exact"]

_WORK = 4
"""Float64 matrices of a block that are alive at once: itself, its eigenvectors, LAPACK's work."""


@dataclass(frozen=True, slots=True)
class Exact(Curvature):
    """How to fit the exact block.

    Attributes:
        damping: ``lambda_l`` in units of the layer's mean eigenvalue, > 0.
    """

    damping: float = 0.1

    labels: ClassVar[GradientLabels] = "model"

    def _begin(self, layers: tuple[Layer, ...], room: Room) -> OnePass[DenseSums]:
        """One pass over pseudo-gradients; the residual of a damped solve is reported."""
        return OnePass(
            lambda: DenseSums(layers, room.memory),
            lambda state: DenseSums.load(layers, state, room.memory),
            lambda sums: self._fitted(layers, sums),
        )

    def _fitted(self, layers: tuple[Layer, ...], sums: DenseSums) -> FittedEigen:
        bases: list[Basis] = []
        eigenvalues: list[Tensor] = []
        residual = 0.0
        for i, layer in enumerate(layers):
            dtype, matrix = sums.mean(i)
            values, vectors = torch.linalg.eigh(matrix)
            values.clamp_(min=0.0)
            bases.append(DenseBasis(vectors.to(dtype)))
            eigenvalues.append(values.reshape(layer.shape))
            residual = max(residual, _residual(matrix, values, bases[-1], self.damping))
        return FittedEigen.fitted(
            "exact",
            layers,
            tuple(bases),
            tuple(eigenvalues),
            sums.documents,
            self.damping,
            {"residual": residual},
        )


class DenseSums:
    """Sums of ``g g^T`` over documents, float64: statistics of exact blocks.

    Args:
        layers: The layers, in order.
        memory: Bytes they and their eigenvectors may take; half of the machine's by default.

    Attributes:
        documents: How many documents were seen.
    """

    def __init__(self, layers: tuple[Layer, ...], memory: int | None = None) -> None:
        self.documents = 0
        self._layers = layers
        self._memory = memory
        self._sums: dict[int, SecondMoment] = {}
        self._dtypes: dict[int, torch.dtype] = {}

    @classmethod
    def load(
        cls, layers: tuple[Layer, ...], state: Mapping[str, Tensor], memory: int | None = None
    ) -> DenseSums:
        """Inverse of :meth:`state`.

        Raises:
            CurvatureError: Tensors are missing or of the wrong shape for the layers.
        """
        made = cls(layers, memory)
        made.documents = int(block(state, "documents", layers[0], ()))
        for i, layer in enumerate(layers):
            if f"{i}.sum" in state:  # Else the layer took no part so far.
                made._sums[i] = SecondMoment.load(state, f"{i}.sum", layer, layer.size)
                made._dtypes[i] = block(state, f"{i}.precision", layer, ()).dtype
        return made

    def state(self) -> dict[str, Tensor]:
        """Sums as the triangles they are, and the count."""
        tensors = {"documents": torch.tensor(self.documents)}
        for i, moment in self._sums.items():
            tensors[f"{i}.sum"] = moment.state()
            tensors[f"{i}.precision"] = torch.zeros((), dtype=self._dtypes[i])
        return tensors

    def add(self, pair: LayerPair) -> None:
        """Add one pair.

        Raises:
            CurvatureError: The blocks would not fit in memory.
        """
        i = pair.layer
        if i not in self._sums:
            self._require_room(pair.deltas.device)
            self._sums[i] = SecondMoment.zero(self._layers[i].size, pair.deltas.device)
        gradients = gradients_of(pair).flatten(1)
        self._dtypes[i] = gradients.dtype
        self._sums[i].add(gradients, torch.float64)

    def merge(self, later: DenseSums) -> None:
        """Take in the sums of the documents that follow."""
        self.documents += later.documents
        for i in list(later._sums):
            moment = later._sums.pop(i)
            self._dtypes[i] = later._dtypes[i]
            if i in self._sums:
                self._sums[i].merge(moment)
            else:
                self._sums[i] = moment

    def mean(self, layer: int) -> tuple[torch.dtype, Tensor]:
        """The precision of a layer's gradients, and ``E[g g^T]``; its sum is given up for it.

        Raises:
            CurvatureError: The layer takes no part, or its block is not finite.
        """
        of = self._layers[layer]
        if layer not in self._sums:
            raise takes_no_part(of)
        upper = self._sums.pop(layer).mean(self.documents, of, "the exact block").triu_()
        return self._dtypes[layer], upper.add_(upper.triu(1).mT)

    def _require_room(self, device: torch.device) -> None:
        largest = max(self._layers, key=lambda layer: layer.size)
        require_memory(
            8 * sum(layer.size**2 for layer in self._layers) + _WORK * 8 * largest.size**2,
            f"curvature='exact' over {len(self._layers)} layers (the largest, "
            f"{largest.name!r}, has {largest.size:,} weights)",
            "choose fewer or smaller layers, or curvature='ekfac'",
            device,
            self._memory,
        )


def _residual(matrix: Tensor, values: Tensor, basis: Basis, damping: float) -> float:
    """``|(G + lambda) x - g| / |g|`` for ``g`` = G applied to ones, plus ones."""
    lam = damping * values.mean()
    g = matrix.sum(1) + values.mean()
    if not isinstance(basis, DenseBasis) or not bool(g.any()):
        return 0.0
    q = basis.q.double()
    x = q @ ((q.T @ g) / (values + lam))
    return float((matrix @ x + lam * x - g).norm() / g.norm())
