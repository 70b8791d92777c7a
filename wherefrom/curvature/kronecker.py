"""Kronecker factors of the layers' Fisher blocks, and their eigenbases.

For a layer ``y = W a`` the Fisher block over documents is approximated in the eigenbasis of
``S (x) A``, with ``A = E[a a^T]`` and ``S = E[delta delta^T]`` over tokens (Martens and Grosse
2015). Both are symmetric positive semi-definite; ``Q_A`` and ``Q_S`` hold their eigenvectors as
columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wherefrom.curvature.bases import Eigenbasis
from wherefrom.curvature.fitted import require_finite
from wherefrom.curvature.memory import require_memory
from wherefrom.errors import CurvatureError
from wherefrom.gradients.extractor import LayerPair
from wherefrom.gradients.fisher import PairSource
from wherefrom.gradients.layers import Layer

__all__ = ["Factors", "fit_factors"]

_LOWEST_STRIP, _HIGHEST_STRIP = 64, 256


@dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """One layer's two factors, eigendecomposed.

    Attributes:
        basis: Their eigenvectors, in the precision of the gradients (at least float32).
        values_in: Eigenvalues of ``A``, a mean over positions, float64 ``[d_in]``.
        values_out: Eigenvalues of ``S``, likewise, float64 ``[d_out]``.
        positions: Number of positions that the means were taken over.
    """

    basis: Eigenbasis
    values_in: Tensor
    values_out: Tensor
    positions: int


class _SecondMoment:
    """A sum of ``v v^T``, float64: its upper triangle, in strips of rows from the diagonal on.

    Four strips are 5/8 of the work and of the memory, more are less; but a strip is a product, and
    narrow products are slow.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        height = min(max(-(-width // 4), _LOWEST_STRIP), _HIGHEST_STRIP)
        self._width = width
        starts = range(0, width, height)
        shapes = [(min(height, width - start), width - start) for start in starts]
        sizes = [rows * columns for rows, columns in shapes]
        buffer = torch.zeros(sum(sizes), dtype=torch.float64, device=device)
        parts = zip(torch.split(buffer, sizes), shapes, strict=True)
        self._strips = [part.view(shape) for part, shape in parts]

    def add(self, vectors: Tensor, dtype: torch.dtype) -> None:
        """Add ``sum_t v_t v_t^T`` over the leading dimensions of ``[..., d]``."""
        flat = vectors.reshape(-1, self._width).to(dtype)
        start = 0
        for strip in self._strips:
            strip += flat[:, start : start + len(strip)].T @ flat[:, start:]
            start += len(strip)

    def eigen(self, count: int, layer: Layer, name: str, dtype: torch.dtype) -> _Eigen:
        """Eigendecompose the mean over ``count`` vectors; the sum is given up for it."""
        matrix = torch.zeros(
            self._width, self._width, dtype=torch.float64, device=self._strips[0].device
        )
        start = 0
        for strip in self._strips:
            require_finite(layer, strip, f"factor {name}")
            torch.div(strip, max(count, 1), out=matrix[start : start + len(strip), start:])
            start += len(strip)
        del strip
        self._strips.clear()
        # In its own place, which LAPACK wants column by column: large factors decide on the peak of
        # memory. The upper triangle of the matrix is the lower one of its transpose.
        values, vectors = matrix.new_empty(self._width), matrix.mT
        torch.linalg.eigh(vectors, UPLO="L", out=(values, vectors))
        # Rounding leaves eigenvalues of a singular factor at minus nothing.
        return values.clamp_(min=0.0), vectors.to(dtype)


_Eigen = tuple[Tensor, Tensor]
"""Eigenvalues, and eigenvectors as columns."""


class _Covariances:
    """Sums of ``a a^T`` and ``delta delta^T`` over the tokens of a source.

    Products are taken batch by batch in the pairs' own precision (at least float32) and summed in
    float64. Layers that read the very same activations share one ``A``.
    """

    def __init__(self, layers: tuple[Layer, ...]) -> None:
        self.inputs: dict[int, _SecondMoment] = {}
        self.outputs: dict[int, _SecondMoment] = {}
        self.input_of: dict[int, int] = {}
        self.positions = [0] * len(layers)
        self.dtype = torch.float32
        self._layers = layers

    def add(self, pair: LayerPair) -> None:
        """Add one pair; activations count in the first backward pass of a batch only."""
        i = pair.layer
        self.dtype = torch.promote_types(self.dtype, pair.activations.dtype)
        self._add(self.outputs, i, pair.deltas)
        if not pair.first:
            return
        self.positions[i] += pair.positions
        if self.input_of.setdefault(i, pair.input_of) != pair.input_of:
            raise CurvatureError(
                f"layer {self._layers[i].name!r} shares its input with another on some batches and "
                "not on others (data-dependent routing); leave it out of layers"
            )
        if pair.input_of == i:
            self._add(self.inputs, i, pair.activations)

    def _add(self, sums: dict[int, _SecondMoment], layer: int, vectors: Tensor) -> None:
        if layer not in sums:
            _require_room(self._layers[layer], vectors.device)
            sums[layer] = _SecondMoment(vectors.shape[-1], vectors.device)
        sums[layer].add(vectors, self.dtype)


def _require_room(layer: Layer, device: torch.device) -> None:
    """Refuse a layer whose factors would not fit, as those of an output head."""
    d_out, d_in = layer.shape
    require_memory(
        8 * 3 * max(d_out, d_in) ** 2,  # The largest factor, and LAPACK's work of twice its size.
        f"the eigenvectors of layer {layer.name!r} ({d_out:,} outputs, {d_in:,} inputs)",
        "leave it out of layers or give curvature='diagonal'",
        device,
    )


def fit_factors(source: PairSource) -> tuple[tuple[Factors, ...], int]:
    """One pass over pseudo-gradients: ``A`` and ``S``, eigendecomposed in float64.

    Returns:
        The factors of each layer, and the number of documents seen.

    Raises:
        CurvatureError: A factor is not finite or too large, or a layer never took part.
    """
    sums = _Covariances(source.layers)
    documents = source.run(sums.add)
    result: list[Factors] = []
    shared: dict[int, _Eigen] = {}
    for i, layer in enumerate(source.layers):
        leader = sums.input_of.get(i)
        if leader is None or (leader not in shared and leader not in sums.inputs):
            raise CurvatureError(
                f"layer {layer.name!r} takes no part in the model's output; leave it out of layers"
            )
        if leader not in shared:
            moment = sums.inputs.pop(leader)
            shared[leader] = moment.eigen(sums.positions[leader], layer, "A", sums.dtype)
        values_in, q_in = shared[leader]
        moment = sums.outputs.pop(i)
        values_out, q_out = moment.eigen(sums.positions[i], layer, "S", sums.dtype)
        result.append(Factors(Eigenbasis(q_in, q_out), values_in, values_out, sums.positions[i]))
    return tuple(result), documents
