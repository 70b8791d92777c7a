"""From a batch to vectors: pairs -> coordinates -> scale -> reduce, for documents and for queries.

A document's vector is ``phi_l = scale_l ⊙ coordinates_l(gradient)``, reduced over all layers;
where the curvature whitens, ``scale_l = (Lambda_l + lambda_l)^-1/2``. A query's is
``psi_l = solve_l(coordinates_l) ⊘ scale_l``, the same thing there, so that influence is
``(1/N) <psi(query), phi(document)>``. Each layer is scaled and reduced inside the backward pass, as
its pair arrives; the full gradient never exists.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wherefrom.curvature.fitted import FittedCurvature
from wherefrom.encoding.reduction import Reduction
from wherefrom.errors import ModelError
from wherefrom.gradients.batches import Batch
from wherefrom.gradients.extractor import GradientExtractor, LayerPair
from wherefrom.gradients.fisher import true_gradients

__all__ = ["Encoded", "EncodedQuery", "Encoder"]


@dataclass(frozen=True, slots=True)
class Encoded:
    """Vectors of a batch of documents.

    Attributes:
        vectors: float32 ``[doc, dimension]``.
        norms: float64 ``[doc]``: of the vectors before the reduction; where the curvature whitens,
            the square over N is the self-influence.
        nats: float64 ``[doc]`` log-likelihoods.
    """

    vectors: np.ndarray
    norms: np.ndarray
    nats: np.ndarray


@dataclass(frozen=True, slots=True)
class EncodedQuery:
    """Vectors of a batch of queries.

    Attributes:
        vectors: float64 ``[query, dimension]``, in no more than the gradients' own precision.
        nats: float64 ``[query]`` log-likelihoods.
        residual: Relative residual of the solution, the largest of all layers; ``None`` where it
            is in closed form.
    """

    vectors: np.ndarray
    nats: np.ndarray
    residual: float | None


class Encoder:
    """A fitted curvature and a reduction, applied as one map.

    Args:
        curvature: Whose damped inverse influence is taken with.
        reduction: Shortens.
    """

    def __init__(self, curvature: FittedCurvature, reduction: Reduction) -> None:
        self.curvature = curvature
        self.reduction = reduction
        self._scalings: list[Tensor | None] = [None] * len(curvature.layers)

    @property
    def dimension(self) -> int:
        """Entries of a vector."""
        return self.reduction.dimension

    def encode(self, extractor: GradientExtractor, batch: Batch) -> Encoded:
        """Vectors of documents: of the gradients of their log-likelihoods.

        Runs inside ``extractor.session()``.

        Raises:
            ModelError: A log-likelihood is not finite (the document is named).
        """
        squares = torch.zeros(len(batch), dtype=torch.float64, device=extractor.device)

        def scaled(layer: int, coordinates: Tensor) -> Tensor:
            flat = coordinates.mul_(self._scaling(layer, coordinates)).flatten(1)
            squares.add_(torch.linalg.vector_norm(flat, dim=1).double().square())
            return flat

        vectors, nats = self._reduced(extractor, batch, scaled)
        return Encoded(
            vectors.float().cpu().numpy(), squares.sqrt().cpu().numpy(), nats.cpu().numpy()
        )

    def encode_query(
        self, extractor: GradientExtractor, batch: Batch, *, damping: float | None = None
    ) -> EncodedQuery:
        """What stored vectors are multiplied with: vectors of queries.

        Runs inside ``extractor.session()``.

        Args:
            extractor: The model.
            batch: The queries.
            damping: Another damping than the one that documents were stored with.

        Raises:
            ModelError: A log-likelihood is not finite.
            CurvatureError: The damping is not allowed.
        """
        asked = self.curvature if damping is None else self.curvature.with_damping(damping)
        residuals: list[float] = []

        def scaled(layer: int, coordinates: Tensor) -> Tensor:
            if asked.whitens(layer):
                return coordinates.mul_(self._scaling(layer, coordinates)).flatten(1)
            solved = asked.solve(layer, coordinates)
            residual = asked.residual(layer, coordinates, solved)
            if residual is not None:
                residuals.append(residual)
            inverse = self.curvature.scale(layer).reciprocal()
            factor = self.reduction.scaling(layer, inverse).to(solved.device)
            return solved.mul_(factor).to(coordinates.dtype).flatten(1)

        vectors, nats = self._reduced(extractor, batch, scaled)
        return EncodedQuery(
            vectors.double().cpu().numpy(), nats.cpu().numpy(), max(residuals, default=None)
        )

    def _reduced(
        self,
        extractor: GradientExtractor,
        batch: Batch,
        scaled: Callable[[int, Tensor], Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Vectors, and float64 log-likelihoods, of a batch."""
        coordinates = self.curvature.coordinates()
        buffer: Tensor | None = None

        def add(pair: LayerPair) -> None:
            nonlocal buffer
            flat = scaled(pair.layer, coordinates(pair))
            if buffer is None:
                buffer = self.reduction.buffer(len(batch), flat)
            self.reduction.add(pair.layer, flat, buffer)

        nats = true_gradients(extractor, batch, add)
        if buffer is None:
            raise ModelError("no layer takes part in the model's output; choose others (layers=)")
        return self.reduction.finish(buffer), nats.double()

    def _scaling(self, layer: int, like: Tensor) -> Tensor:
        """The documents' factor with the reduction's signs, in the precision of the gradients."""
        kept = self._scalings[layer]
        if kept is None or kept.dtype != like.dtype or kept.device != like.device:
            scaling = self.reduction.scaling(layer, self.curvature.scale(layer))
            kept = scaling.to(like.device, like.dtype)
            self._scalings[layer] = kept
        return kept
