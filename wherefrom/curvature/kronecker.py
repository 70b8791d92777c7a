"""Kronecker factors of the layers' Fisher blocks, their eigenbases, and gradients in them.

For a layer ``y = W a`` the Fisher block over documents is approximated in the eigenbasis of
``S (x) A``, with ``A = E[a a^T]`` and ``S = E[delta delta^T]`` over tokens (Martens and Grosse
2015). Both are symmetric positive semi-definite; ``Q_A`` and ``Q_S`` hold their eigenvectors as
columns. A gradient ``G [d_out, d_in]`` reads ``Q_S^T G Q_A`` in that basis.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wherefrom.errors import CurvatureError
from wherefrom.gradients.extractor import LayerPair
from wherefrom.gradients.fisher import PairSource

__all__ = ["Eigenbasis", "GradientRotation", "fit_eigenbases"]

_SMALLEST_STRIP = 64


@dataclass(frozen=True, slots=True)
class Eigenbasis:
    """Eigenvectors of one layer's factors, as columns.

    Attributes:
        q_in: ``Q_A [d_in, d_in]``, the bias input included; the same object for layers that read
            the same input.
        q_out: ``Q_S [d_out, d_out]``.
    """

    q_in: Tensor
    q_out: Tensor


class _Covariances:
    """Sums of ``a a^T`` and ``delta delta^T`` over the tokens of a source.

    Products are taken batch by batch in the pairs' own precision (at least float32) and summed in
    float64. Layers that read the very same activations share one ``A``.
    """

    def __init__(self, layers: int) -> None:
        self.inputs: list[Tensor | None] = [None] * layers
        self.outputs: list[Tensor | None] = [None] * layers
        self.input_of: list[int | None] = [None] * layers
        self.positions = [0] * layers
        self.dtype = torch.float32

    def add(self, pair: LayerPair) -> None:
        """Add one pair; activations count in the first backward pass of a batch only."""
        i = pair.layer
        self.dtype = torch.promote_types(self.dtype, pair.activations.dtype)
        self.outputs[i] = _add_second_moment(self.outputs[i], pair.deltas, self.dtype)
        if not pair.first:
            return
        self.positions[i] += pair.positions
        if self.input_of[i] is None:
            self.input_of[i] = pair.input_of
        if self.input_of[i] != pair.input_of:
            raise CurvatureError(
                f"layer number {i} shares its input with another on some batches and not on "
                "others (data-dependent routing); leave it out of layers"
            )
        if pair.input_of == i:
            self.inputs[i] = _add_second_moment(self.inputs[i], pair.activations, self.dtype)


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


def fit_eigenbases(source: PairSource) -> tuple[tuple[Eigenbasis, ...], int]:
    """One pass over pseudo-gradients: ``A`` and ``S``, eigendecomposed in float64.

    Returns:
        One basis a layer, in the precision of the gradients (at least float32), and the number of
        documents seen.

    Raises:
        CurvatureError: A factor is not finite, or a layer never took part.
    """
    sums = _Covariances(len(source.layers))
    documents = source.run(sums.add)
    bases: list[Eigenbasis] = []
    shared: dict[int, Tensor] = {}
    for i, layer in enumerate(source.layers):
        leader, outputs = sums.input_of[i], sums.outputs[i]
        inputs = None if leader is None else sums.inputs[leader]
        if leader is None or outputs is None or (inputs is None and leader not in shared):
            raise CurvatureError(
                f"layer {layer.name!r} takes no part in the model's output; leave it out of layers"
            )
        if leader not in shared and inputs is not None:
            scaled = inputs / max(sums.positions[leader], 1)
            shared[leader] = _eigenvectors(scaled, layer.name, "A").to(sums.dtype)
            sums.inputs[leader] = None
        q_out = _eigenvectors(outputs / max(sums.positions[i], 1), layer.name, "S")
        sums.outputs[i] = None
        bases.append(Eigenbasis(shared[leader], q_out.to(sums.dtype)))
    return tuple(bases), documents


def _eigenvectors(matrix: Tensor, layer: str, factor: str) -> Tensor:
    """Eigenvectors, as columns, of a symmetric float64 matrix given by its upper triangle."""
    if not bool(torch.isfinite(matrix).all()):
        raise CurvatureError(
            f"factor {factor} of layer {layer!r} is not finite: activations or gradients overflow; "
            "load the model in float32"
        )
    vectors: Tensor = torch.linalg.eigh(matrix, UPLO="U").eigenvectors
    return vectors


class GradientRotation:
    """Documents' gradients in the eigenbasis: pairs -> ``Q_S^T (sum_t delta_t a_t^T) Q_A``.

    Each side may be rotated token by token, which costs ``tokens d^2`` a document, or after the
    sum over tokens, which costs ``d^2 d_other``: the cheaper is taken. Activations rotated token by
    token are kept for the next layer that reads the same input.
    """

    def __init__(self, bases: tuple[Eigenbasis, ...]) -> None:
        self._bases = bases
        self._activations: Tensor | None = None
        self._rotated: Tensor | None = None

    def __call__(self, pair: LayerPair) -> Tensor:
        """``[doc, d_out, d_in]`` rotated gradients of one layer."""
        basis = self._bases[pair.layer]
        dtype = basis.q_in.dtype
        activations, deltas = pair.activations.to(dtype), pair.deltas.to(dtype)
        tokens, d_out, d_in = deltas.shape[1], deltas.shape[2], activations.shape[2]
        early_in, early_out = tokens <= d_out, tokens <= d_in
        right = self._rotate_input(pair, activations, basis) if early_in else activations
        left = deltas @ basis.q_out if early_out else deltas
        gradient = torch.bmm(left.transpose(1, 2), right)
        if not early_in:
            gradient = gradient @ basis.q_in
        if not early_out:
            gradient = torch.matmul(basis.q_out.T, gradient)
        return gradient

    def _rotate_input(self, pair: LayerPair, activations: Tensor, basis: Eigenbasis) -> Tensor:
        if self._activations is not pair.activations or self._rotated is None:
            self._activations, self._rotated = pair.activations, activations @ basis.q_in
        return self._rotated
