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

_SMALLEST_STRIP = 64


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


class _Covariances:
    """Sums of ``a a^T`` and ``delta delta^T`` over the tokens of a source.

    Products are taken batch by batch in the pairs' own precision (at least float32) and summed in
    float64. Layers that read the very same activations share one ``A``.
    """

    def __init__(self, layers: tuple[Layer, ...]) -> None:
        self.inputs: list[Tensor | None] = [None] * len(layers)
        self.outputs: list[Tensor | None] = [None] * len(layers)
        self.input_of: list[int | None] = [None] * len(layers)
        self.positions = [0] * len(layers)
        self.dtype = torch.float32
        self._layers = layers

    def add(self, pair: LayerPair) -> None:
        """Add one pair; activations count in the first backward pass of a batch only."""
        i = pair.layer
        if self.outputs[i] is None:
            _require_room(self._layers[i], pair.deltas.device)
        self.dtype = torch.promote_types(self.dtype, pair.activations.dtype)
        self.outputs[i] = _add_second_moment(self.outputs[i], pair.deltas, self.dtype)
        if not pair.first:
            return
        self.positions[i] += pair.positions
        if self.input_of[i] is None:
            self.input_of[i] = pair.input_of
        if self.input_of[i] != pair.input_of:
            raise CurvatureError(
                f"layer {self._layers[i].name!r} shares its input with another on some batches and "
                "not on others (data-dependent routing); leave it out of layers"
            )
        if pair.input_of == i:
            self.inputs[i] = _add_second_moment(self.inputs[i], pair.activations, self.dtype)


def _require_room(layer: Layer, device: torch.device) -> None:
    """Refuse a layer whose factors would not fit, as those of an output head."""
    d_out, d_in = layer.shape
    require_memory(
        8 * 3 * max(d_out, d_in) ** 2,  # The largest factor, its eigenvectors and LAPACK's work.
        f"the eigenvectors of layer {layer.name!r} ({d_out:,} outputs, {d_in:,} inputs)",
        "leave it out of layers or give curvature='diagonal'",
        device,
    )


def _add_second_moment(total: Tensor | None, vectors: Tensor, dtype: torch.dtype) -> Tensor:
    """Add ``sum_t v_t v_t^T`` over the leading dimensions of ``[..., d]``: the upper triangle.

    Computed in strips of rows, each from the diagonal on: at four strips, 5/8 of the work.
    """
    flat = vectors.reshape(-1, vectors.shape[-1]).to(dtype)
    width = flat.shape[1]
    if total is None:
        total = torch.zeros(width, width, dtype=torch.float64, device=flat.device)
    strip = max(_SMALLEST_STRIP, -(-width // 4))
    for start in range(0, width, strip):
        stop = min(start + strip, width)
        total[start:stop, start:] += flat[:, start:stop].T @ flat[:, start:]
    return total


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
    shared: dict[int, tuple[Tensor, Tensor]] = {}
    for i, layer in enumerate(source.layers):
        leader, outputs = sums.input_of[i], sums.outputs[i]
        inputs = None if leader is None else sums.inputs[leader]
        if leader is None or outputs is None or (inputs is None and leader not in shared):
            raise CurvatureError(
                f"layer {layer.name!r} takes no part in the model's output; leave it out of layers"
            )
        if leader not in shared and inputs is not None:
            inputs /= max(sums.positions[leader], 1)
            shared[leader] = _eigen(inputs, layer, "A", sums.dtype)
            sums.inputs[leader] = None
        outputs /= max(sums.positions[i], 1)
        values_out, q_out = _eigen(outputs, layer, "S", sums.dtype)
        sums.outputs[i] = None
        values_in, q_in = shared[leader]
        result.append(Factors(Eigenbasis(q_in, q_out), values_in, values_out, sums.positions[i]))
    return tuple(result), documents


def _eigen(matrix: Tensor, layer: Layer, name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Eigenvalues, and eigenvectors as columns, of a float64 matrix given by its upper triangle."""
    require_finite(layer, matrix, f"factor {name}")
    values, vectors = torch.linalg.eigh(matrix, UPLO="U")
    # Rounding leaves eigenvalues of a singular factor at minus nothing.
    return values.clamp_(min=0.0), vectors.to(dtype)
