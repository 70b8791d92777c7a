"""From a batch to vectors: pairs -> coordinates -> scale -> reduce -> pca -> rotate.

A document's vector is ``phi_l = scale_l ⊙ coordinates_l(gradient)``, reduced over all layers;
where the curvature whitens, ``scale_l = (Lambda_l + lambda_l)^-1/2``. A query's is
``psi_l = solve_l(coordinates_l) ⊘ scale_l``, the same thing there, so that influence is
``(1/N) <psi(query), phi(document)>``. Both then go through the same linear stages. Each layer is
scaled and reduced inside the backward pass, as its pair arrives; the full gradient never exists.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wherefrom.curvature.fitted import FittedCurvature, Rectangles
from wherefrom.encoding.reduction import Reduction
from wherefrom.encoding.rotation import Rotation
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
        norms: float64 ``[doc]``: of the vectors before they were shortened; where the curvature
            whitens, the square over N is the self-influence. Of a reduction to some coordinates,
            that of these.
        nats: float64 ``[doc]`` log-likelihoods.
    """

    vectors: np.ndarray
    norms: np.ndarray
    nats: np.ndarray


@dataclass(frozen=True, slots=True)
class EncodedQuery:
    """Vectors of a batch of queries.

    Attributes:
        vectors: float64 ``[query, dimension]``; they know no more than the gradients' precision.
        nats: float64 ``[query]`` log-likelihoods.
        residual: Relative residual of the solution, the largest of all layers; ``None`` where it
            is in closed form.
    """

    vectors: np.ndarray
    nats: np.ndarray
    residual: float | None


class Encoder:
    """A fitted curvature and the stages after it, applied as one map.

    Args:
        curvature: Whose damped inverse influence is taken with.
        reduction: Shortens.
        pca: ``[reduced, dimension]`` orthonormal columns to project on, if any.
        rotation: Of what is left, if any.
    """

    def __init__(
        self,
        curvature: FittedCurvature,
        reduction: Reduction,
        pca: Tensor | None = None,
        rotation: Rotation | None = None,
    ) -> None:
        self.curvature = curvature
        self.reduction = reduction
        self.pca = pca
        self.rotation = rotation
        self._scalings: list[Tensor | None] = [None] * len(curvature.layers)

    @property
    def dimension(self) -> int:
        """Entries of a vector."""
        return self.reduction.dimension if self.pca is None else self.pca.shape[1]

    @property
    def basis_bytes(self) -> int:
        """Bytes that are stored for this map beside the curvature."""
        return 0 if self.pca is None else self.pca.numel() * self.pca.element_size()

    def encode(self, extractor: GradientExtractor, batch: Batch) -> Encoded:
        """Vectors of documents: of the gradients of their log-likelihoods.

        Runs inside ``extractor.session()``.

        Raises:
            ModelError: A log-likelihood is not finite (the document is named).
        """
        squares = torch.zeros(len(batch), dtype=torch.float64, device=extractor.device)

        def scaled(layer: int, coordinates: Tensor) -> Tensor:
            flat = coordinates.mul_(self.scaling(layer, coordinates)).flatten(1)
            norms = torch.linalg.vector_norm(flat, dim=1)
            squares.add_(norms.double().square().to(squares.device))
            return flat

        reduced, nats = self._reduced(extractor, batch, scaled, self.reduction.rectangles)
        return Encoded(
            self.finish(reduced).float().cpu().numpy(), squares.sqrt().cpu().numpy(), nats
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
        whitened = all(asked.whitens(layer) for layer in range(len(asked.layers)))
        residuals: list[float] = []

        def scaled(layer: int, coordinates: Tensor) -> Tensor:
            if asked.whitens(layer):
                wanted = coordinates if whitened else self.reduction.restricted(layer, coordinates)
                return wanted.mul_(self.scaling(layer, wanted)).flatten(1)
            solved = asked.solve(layer, coordinates)
            residual = asked.residual(layer, coordinates, solved)
            if residual is not None:
                residuals.append(residual)
            return self._whitened(layer, solved).to(coordinates.dtype).flatten(1)

        # To solve takes all coordinates; to whiten, only those that are read.
        rectangles = self.reduction.rectangles if whitened else None
        reduced, nats = self._reduced(extractor, batch, scaled, rectangles)
        vectors = self.finish(reduced.double()).cpu().numpy()
        return EncodedQuery(vectors, nats, max(residuals, default=None))

    def encode_solved(self, solved: Sequence[Tensor]) -> np.ndarray:
        """Vectors of queries from solutions ``(G + lambda)^-1 grad f`` found elsewhere.

        Args:
            solved: For each layer ``[query, d_out, d_in]`` in the curvature's coordinates.

        Returns:
            float64 ``[query, dimension]``.
        """
        buffer: Tensor | None = None
        for layer, part in enumerate(solved):
            flat = self._whitened(layer, part.double()).flatten(1)
            if buffer is None:
                buffer = self.reduction.buffer(len(flat), flat)
            self.reduction.add(layer, flat, buffer)
        if buffer is None:
            raise ValueError("encode_solved needs the solution of every layer")
        vectors: np.ndarray = self.finish(self.reduction.finish(buffer)).cpu().numpy()
        return vectors

    def scaling(self, layer: int, like: Tensor) -> Tensor:
        """What the rectangle of a layer's coordinates is multiplied with before it is reduced.

        The documents' scale and the reduction's signs, in the precision of ``like``; kept.
        """
        kept = self._scalings[layer]
        if kept is None or kept.dtype != like.dtype or kept.device != like.device:
            scaling = self.reduction.scaling(layer, self.curvature.scale(layer))
            kept = scaling.to(like.device, like.dtype)
            self._scalings[layer] = kept
        return kept

    def finish(self, reduced: Tensor) -> Tensor:
        """The stages after the reduction, ``[..., reduced]`` -> ``[..., dimension]``."""
        if self.pca is not None:
            reduced = reduced @ self.pca.to(reduced.device, reduced.dtype)
        return reduced if self.rotation is None else self.rotation(reduced)

    def _whitened(self, layer: int, solved: Tensor) -> Tensor:
        """``psi`` of a solution, ready to be reduced: its rectangle, over ``scale``, with signs."""
        inverse = self.curvature.scale(layer).reciprocal()
        factor = self.reduction.scaling(layer, inverse).to(solved.device)
        return self.reduction.restricted(layer, solved) * factor

    def _reduced(
        self,
        extractor: GradientExtractor,
        batch: Batch,
        scaled: Callable[[int, Tensor], Tensor],
        rectangles: Rectangles | None,
    ) -> tuple[Tensor, np.ndarray]:
        """Reduced vectors, and float64 log-likelihoods, of a batch."""
        coordinates = self.curvature.coordinates(rectangles)
        buffer: Tensor | None = None

        def add(pair: LayerPair) -> None:
            nonlocal buffer
            flat = scaled(pair.layer, coordinates(pair)).to(extractor.device)
            if buffer is None:
                buffer = self.reduction.buffer(len(batch), flat)
            self.reduction.add(pair.layer, flat, buffer)

        nats = true_gradients(extractor, batch, add)
        if buffer is None:
            raise ModelError("no layer takes part in the model's output; choose others (layers=)")
        return self.reduction.finish(buffer), nats.double().cpu().numpy()
