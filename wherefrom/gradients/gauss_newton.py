"""Products with the Gauss-Newton matrix of all layers at once, without ever forming it.

For documents z with outputs ``f(z)`` and ``J_z = d f(z) / d weights``,

    G v = mean over z of J_z^T H_z J_z v,

with ``H_z`` the Fisher matrix of the outputs (Martens 2020, section 8): the matrix whose blocks the
curvatures estimate, here with what lies off the blocks and no estimate. ``J v`` comes from one pass
in forward mode, ``J^T`` from the pairs of one backward pass (Schraudolph 2002, section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from wherefrom.errors import CurvatureError
from wherefrom.gradients.batches import Batch
from wherefrom.gradients.extractor import GradientExtractor, LayerPair
from wherefrom.gradients.forward_mode import output_tangent, untapped
from wherefrom.gradients.layers import Layer
from wherefrom.gradients.objectives import Probabilistic

__all__ = ["GaussNewton"]


class GaussNewton:
    """The Gauss-Newton matrix of a model's selected layers over a set of documents.

    Args:
        extractor: Model, objective and layers.
        batches: Called once a product; gives the documents in batches, each time the same.

    Raises:
        CurvatureError: The objective knows no distribution of its outputs.
    """

    def __init__(
        self, extractor: GradientExtractor, batches: Callable[[], Iterable[Batch]]
    ) -> None:
        objective = extractor.objective
        if not isinstance(objective, Probabilistic):
            raise CurvatureError(
                f"the Gauss-Newton matrix needs an objective with a known distribution; "
                f"{type(objective).__name__} has none: derive it from Categorical or Gaussian, or "
                "ask with refine=0"
            )
        self._extractor = extractor
        self._objective = objective
        self._batches = batches
        self._untapped = untapped(extractor)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers, in the order of :meth:`product`'s vectors."""
        return self._extractor.layers

    def product(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """``G v``. Runs outside of ``extractor.session()``.

        Args:
            vectors: Of each layer ``[d_out, d_in]``, in the order of the weight, the bias last.

        Returns:
            Of each layer float64 ``[d_out, d_in]``; passes run in the model's own precision, and
            batches are added in float64.

        Raises:
            ModelError: The model cannot be run in forward mode, its outputs are not finite, or no
                selected layer takes part in them.
            CurvatureError: There are no documents.
        """
        totals = [torch.zeros_like(vector, dtype=torch.float64) for vector in vectors]
        documents = 0

        def add(pair: LayerPair) -> None:
            totals[pair.layer] += _summed_gradient(pair)

        with self._untapped.session():
            for batch in self._batches():
                _, moved = output_tangent(self._untapped, self.layers, batch, vectors)
                with self._extractor.session():
                    forward = self._extractor.forward(batch)
                    gradient = self._objective.fisher_product(forward.outputs, moved, forward.batch)
                    forward.backward(gradient, add)
                documents += len(batch)
        if documents == 0:
            raise CurvatureError("the Gauss-Newton matrix needs at least one document; give some")
        return [total / documents for total in totals]


def _summed_gradient(pair: LayerPair) -> Tensor:
    """``sum delta a^T`` over documents and positions, float64 ``[d_out, d_in]``."""
    dtype = torch.promote_types(pair.activations.dtype, torch.float32)
    deltas = pair.deltas.to(dtype).flatten(0, 1)
    return (deltas.T @ pair.activations.to(dtype).flatten(0, 1)).double()
