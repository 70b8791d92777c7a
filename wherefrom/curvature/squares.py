"""Mean squared gradients, coordinate by coordinate: the eigenvalues of EK-FAC, and a diagonal."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from wherefrom.curvature.bases import GradientRotation
from wherefrom.curvature.fitted import block, require_finite, takes_no_part
from wherefrom.gradients.extractor import LayerPair
from wherefrom.gradients.layers import Layer

__all__ = ["Squares"]


class Squares:
    """Sums over documents of squared coordinates: statistics of a diagonal.

    Args:
        layers: All layers.
        coordinates: Turns pairs into coordinates.
        wanted: Layers to sum; all by default.

    Attributes:
        documents: How many documents were seen.
    """

    def __init__(
        self,
        layers: tuple[Layer, ...],
        coordinates: GradientRotation,
        wanted: Collection[int] | None = None,
    ) -> None:
        self.documents = 0
        self._layers = layers
        self._coordinates = coordinates
        self._wanted = range(len(layers)) if wanted is None else wanted
        self._sums: dict[int, Tensor] = {}

    @classmethod
    def load(
        cls,
        layers: tuple[Layer, ...],
        coordinates: GradientRotation,
        state: Mapping[str, Tensor],
        wanted: Collection[int] | None = None,
    ) -> Squares:
        """Inverse of :meth:`state`.

        Raises:
            CurvatureError: Tensors are missing or of the wrong shape for the layers.
        """
        made = cls(layers, coordinates, wanted)
        made.documents = int(block(state, "documents", layers[0], ()))
        for i in made._wanted:
            name = f"{i}.squares"
            if name in state:  # Else the layer took no part so far.
                made._sums[i] = block(state, name, layers[i], layers[i].shape)
        return made

    def state(self) -> dict[str, Tensor]:
        """The sums, and the count."""
        sums = {f"{i}.squares": total.cpu() for i, total in self._sums.items()}
        return {"documents": torch.tensor(self.documents)} | sums

    def add(self, pair: LayerPair) -> None:
        """Add one pair: squares in the precision of the coordinates, their sum in float64."""
        if pair.layer not in self._wanted:
            return
        for part in self._coordinates.parts(pair):
            self._add(pair.layer, part.square_().sum(0).double())

    def merge(self, later: Squares) -> None:
        """Take in the sums of the documents that follow."""
        self.documents += later.documents
        for i in list(later._sums):
            self._add(i, later._sums.pop(i))

    def _add(self, layer: int, squares: Tensor) -> None:
        total = self._sums.get(layer)
        self._sums[layer] = squares if total is None else total.add_(squares.to(total.device))

    def mean(self, layer: int) -> Tensor:
        """Over documents, float64 ``[d_out, d_in]``; the sum is given up for it.

        Raises:
            CurvatureError: The layer takes no part in the outputs, or the mean is not finite.
        """
        of = self._layers[layer]
        total = self._sums.pop(layer, None)
        if total is None:
            raise takes_no_part(of)
        return require_finite(of, total.div_(self.documents), "the mean squared gradient")
