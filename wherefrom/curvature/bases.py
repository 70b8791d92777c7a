"""Orthogonal bases that gradients are written in, and the gradients in them.

A gradient ``G [d_out, d_in]`` reads ``Q_S^T G Q_A`` in a Kronecker eigenbasis, ``vec(G) Q`` (by
rows) in a dense one, and ``G`` in the standard one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wherefrom.curvature.block_diagonal import BlockDiagonal, Matrix, rotated, rotated_back
from wherefrom.curvature.fitted import Rectangles, block
from wherefrom.gradients.extractor import LayerPair
from wherefrom.gradients.layers import Layer

__all__ = [
    "Basis",
    "DenseBasis",
    "Eigenbasis",
    "GradientRotation",
    "StandardBasis",
    "bases_from_state",
    "bases_state",
    "gradients_of",
]


_PART_BYTES = 1 << 26


@dataclass(frozen=True, slots=True, eq=False)
class Eigenbasis:
    """Eigenvectors of one layer's Kronecker factors, as columns.

    Attributes:
        q_in: ``Q_A [d_in, d_in]``, the bias input included; the same object for layers that read
            the same input. Block-diagonal where memory allows no more, as ``q_out`` may be.
        q_out: ``Q_S [d_out, d_out]``.
    """

    q_in: Matrix
    q_out: Matrix

    def raw(self, coordinates: Tensor) -> Tensor:
        """``Q_S C Q_A^T``, float64."""
        inner, outer = self.q_in.to(coordinates.device), self.q_out.to(coordinates.device)
        return rotated_back(rotated_back(coordinates.double().mT, outer).mT, inner)

    def columns(self, rows: Tensor, columns: Tensor) -> Eigenbasis:
        """Only the vectors that belong to some rows and columns of coordinates."""
        return Eigenbasis(_columns(self.q_in, columns), _columns(self.q_out, rows))


@dataclass(frozen=True, slots=True, eq=False)
class DenseBasis:
    """An orthogonal matrix over all weights of a layer, by rows.

    Attributes:
        q: ``[d_out d_in, d_out d_in]``, basis vectors as columns.
    """

    q: Tensor

    def coordinates(self, gradients: Tensor) -> Tensor:
        """``vec(G) Q``, of the shape of the gradients and in the precision of ``q``."""
        q = self.q.to(gradients.device)
        return (gradients.flatten(-2).to(q.dtype) @ q).reshape(gradients.shape)

    def raw(self, coordinates: Tensor) -> Tensor:
        """``Q vec(C)``, float64."""
        flat = coordinates.double().flatten(-2)
        return (flat @ self.q.to(flat.device).double().T).reshape(coordinates.shape)


@dataclass(frozen=True, slots=True, eq=False)
class StandardBasis:
    """The weights themselves."""

    def raw(self, coordinates: Tensor) -> Tensor:
        """The coordinates, float64."""
        return coordinates.double()


Basis = Eigenbasis | DenseBasis | StandardBasis

_Late = Callable[[Tensor], Tensor]
"""What is done to gradients after the sum over tokens."""


def gradients_of(pair: LayerPair) -> Tensor:
    """``sum_t delta_t a_t^T`` of each document, ``[doc, d_out, d_in]``, at least float32."""
    dtype = torch.promote_types(pair.activations.dtype, torch.float32)
    return torch.bmm(pair.deltas.to(dtype).transpose(1, 2), pair.activations.to(dtype))


class GradientRotation:
    """Documents' gradients in their layers' bases: pairs -> ``[doc, d_out, d_in]``.

    In a Kronecker eigenbasis each side may be rotated token by token, which costs ``tokens d^2`` a
    document, or after the sum over tokens, which costs ``d^2 d_other``: the cheaper is taken.
    Activations rotated token by token are kept for the next layer that reads the same input.

    Of a Kronecker or the standard basis only the vectors that a rectangle wants are used, and at
    least one side is shortened before the sum: the whole gradient is never formed.

    Args:
        bases: Of each layer.
        rectangles: Rows and columns of each layer's coordinates; all by default.
    """

    def __init__(self, bases: tuple[Basis, ...], rectangles: Rectangles | None = None) -> None:
        self._bases = bases
        self._rectangles = rectangles
        self._rotated: tuple[Tensor, Matrix, Tensor] | None = None

    def __call__(self, pair: LayerPair) -> Tensor:
        """``[doc, d_out, d_in]`` coordinates of one layer's gradients."""
        (whole,) = self._parts(pair, len(pair.deltas))
        return whole

    def parts(self, pair: LayerPair) -> Iterator[Tensor]:
        """The same, a few documents at a time where a layer is large."""
        entries = pair.deltas.shape[2] * pair.activations.shape[2]
        return self._parts(pair, max(1, _PART_BYTES // (4 * entries)))

    def _parts(self, pair: LayerPair, rows: int) -> Iterator[Tensor]:
        left, right, late = self._sides(pair)
        for start in range(0, len(left), rows):
            chosen = slice(start, start + rows)
            yield late(torch.bmm(left[chosen].transpose(1, 2), right[chosen]))

    def _sides(self, pair: LayerPair) -> tuple[Tensor, Tensor, _Late]:
        """Output gradients and activations to sum over tokens, and what is left to do then."""
        basis = self._bases[pair.layer]
        chosen = None
        if self._rectangles is not None:
            rows, columns = (side.to(pair.deltas.device) for side in self._rectangles[pair.layer])
            chosen = rows, columns
        if isinstance(basis, Eigenbasis):
            if chosen is not None:
                basis = basis.columns(*chosen)
            return self._rotated_sides(pair, basis)
        dtype = torch.promote_types(pair.activations.dtype, torch.float32)
        left, right = pair.deltas.to(dtype), pair.activations.to(dtype)
        if isinstance(basis, StandardBasis):
            if chosen is not None:
                left, right = left[..., chosen[0]], right[..., chosen[1]]
            return left, right, lambda gradients: gradients
        if chosen is None:
            return left, right, basis.coordinates
        rows, columns = chosen
        return left, right, lambda g: basis.coordinates(g)[:, rows[:, None], columns]

    def _rotated_sides(self, pair: LayerPair, basis: Eigenbasis) -> tuple[Tensor, Tensor, _Late]:
        """Both sides, rotated token by token where that is cheaper, and what is left to do."""
        dtype, device = basis.q_in.dtype, pair.deltas.device
        q_in, q_out = basis.q_in.to(device), basis.q_out.to(device)
        activations, deltas = pair.activations.to(dtype), pair.deltas.to(dtype)
        early_in, early_out = _early(deltas.shape[1], basis)

        def late(gradient: Tensor) -> Tensor:
            if not early_in:
                gradient = rotated(gradient, q_in)
            if early_out:
                return gradient
            if isinstance(q_out, Tensor):
                return torch.matmul(q_out.T, gradient)
            return rotated(gradient.mT, q_out).mT

        right = activations
        if early_in:
            kept = self._rotated
            if kept is None or kept[0] is not pair.activations or kept[1] is not basis.q_in:
                kept = self._rotated = pair.activations, basis.q_in, rotated(activations, q_in)
            right = kept[2]
        return rotated(deltas, q_out) if early_out else deltas, right, late


def _early(tokens: int, basis: Eigenbasis) -> tuple[bool, bool]:
    """Whether to rotate inputs, and outputs, before the sum over tokens: what costs least.

    Where only some basis vectors are used, one side at least.
    """
    (d_in, k_in), (d_out, k_out) = basis.q_in.shape, basis.q_out.shape
    entries_in, entries_out = _entries(basis.q_in), _entries(basis.q_out)

    def cost(early: tuple[bool, bool]) -> int:
        into, out = early
        summed_in, summed_out = (k_in if into else d_in), (k_out if out else d_out)
        before = (entries_in if into else 0) + (entries_out if out else 0)
        after = (0 if into else entries_in * summed_out) + (0 if out else entries_out * k_in)
        return tokens * (before + summed_in * summed_out) + after

    ways = [(True, True), (True, False), (False, True)]
    whole = k_in == d_in and k_out == d_out
    return min([*ways, (False, False)] if whole else ways, key=cost)


def _columns(q: Matrix, chosen: Tensor) -> Matrix:
    if isinstance(q, Tensor):
        return q[:, chosen.to(q.device)]
    return BlockDiagonal(q.blocks, q.size, chosen)


def _entries(q: Matrix) -> int:
    """What a product with a vector costs."""
    return q.numel() if isinstance(q, Tensor) else q.size * q.blocks.shape[2]


def _stored(q: Matrix) -> Tensor:
    return (q if isinstance(q, Tensor) else q.blocks).contiguous()


def _read(tensors: Mapping[str, Tensor], name: str, layer: Layer, size: int) -> Matrix:
    """A square of that size, or its blocks.

    Raises:
        CurvatureError: It is missing or of another size.
    """
    if name in tensors and tensors[name].ndim == 3:
        width = tensors[name].shape[2]
        count = -(-size // max(width, 1))
        return BlockDiagonal(block(tensors, name, layer, (count, width, width)), size)
    return block(tensors, name, layer, (size, size))


def bases_state(bases: Sequence[Basis]) -> dict[str, Tensor]:
    """Tensors to store; inputs shared by layers are stored once."""
    tensors: dict[str, Tensor] = {}
    leaders: dict[int, int] = {}
    for i, basis in enumerate(bases):
        if isinstance(basis, Eigenbasis):
            leader = leaders.setdefault(id(basis.q_in), i)
            if leader == i:
                tensors[f"{i}.q_in"] = _stored(basis.q_in)
            tensors[f"{i}.input_of"] = torch.tensor(leader)
            tensors[f"{i}.q_out"] = _stored(basis.q_out)
        elif isinstance(basis, DenseBasis):
            tensors[f"{i}.q"] = basis.q.contiguous()
    return tensors


def bases_from_state(
    layers: tuple[Layer, ...], tensors: Mapping[str, Tensor], kinds: Sequence[type[Basis]]
) -> tuple[Basis, ...]:
    """Inverse of :func:`bases_state`.

    Args:
        layers: The layers, in order.
        tensors: What was stored.
        kinds: Which basis each layer has; tensors that are missing must not make it another one.

    Raises:
        CurvatureError: Tensors are missing or of the wrong shape for the layers.
    """
    bases: list[Basis] = []
    shared: dict[int, Matrix] = {}
    for i, (layer, kind) in enumerate(zip(layers, kinds, strict=True)):
        d_out, d_in = layer.shape
        if kind is DenseBasis:
            bases.append(DenseBasis(block(tensors, f"{i}.q", layer, (layer.size, layer.size))))
        elif kind is Eigenbasis:
            leader = int(block(tensors, f"{i}.input_of", layer, ()))
            q_in = shared.setdefault(leader, _read(tensors, f"{leader}.q_in", layer, d_in))
            bases.append(Eigenbasis(q_in, _read(tensors, f"{i}.q_out", layer, d_out)))
        else:
            bases.append(StandardBasis())
    return tuple(bases)
