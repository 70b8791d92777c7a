"""EK-FAC: eigenvalue-corrected Kronecker-factored curvature (George et al. 2018).

In the Kronecker eigenbasis of a layer, the eigenvalues are replaced by the measured second moments
of documents' pseudo-gradients,

    Lambda_ij = E over documents of (Q_S^T DW Q_A)_ij^2,    DW summed over the document's tokens,

which is the best diagonal in that basis in Frobenius norm (their equation 11). Influence then uses
``(G + lambda)^-1`` with ``lambda_l = damping x mean(Lambda_l)`` for each layer by itself
(Grosse et al. 2023, section 2.2). Factors are fitted once and never change; another damping is
another view of the same factors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from wherefrom.curvature.kronecker import Eigenbasis, GradientRotation, fit_eigenbases
from wherefrom.errors import CurvatureError
from wherefrom.gradients.extractor import LayerPair
from wherefrom.gradients.fisher import PairSource
from wherefrom.gradients.layers import Layer

__all__ = ["EKFAC", "FittedEKFAC"]


@dataclass(frozen=True, slots=True)
class EKFAC:
    """How to fit EK-FAC.

    Attributes:
        damping: ``lambda_l`` in units of the layer's mean eigenvalue, > 0.
    """

    damping: float = 0.1

    def fit(self, source: PairSource) -> FittedEKFAC:
        """Two passes over pseudo-gradients: eigenbases, then eigenvalues in them.

        Raises:
            CurvatureError: A factor is not finite, a layer takes no part, or nothing reaches it.
        """
        bases, documents = fit_eigenbases(source)
        eigenvalues = _fit_eigenvalues(source, bases)
        return FittedEKFAC(source.layers, bases, eigenvalues, documents).with_damping(self.damping)


def _fit_eigenvalues(source: PairSource, bases: tuple[Eigenbasis, ...]) -> tuple[Tensor, ...]:
    """``Lambda`` of each layer, float64 ``[d_out, d_in]``: one more pass."""
    rotation = GradientRotation(bases)
    sums: list[Tensor | None] = [None] * len(bases)

    def add(pair: LayerPair) -> None:
        squares = rotation(pair).square_().sum(0)
        total = sums[pair.layer]
        sums[pair.layer] = squares.double() if total is None else total.add_(squares)

    documents = source.run(add)
    result = []
    for layer, total in zip(source.layers, sums, strict=True):
        if total is None or not bool(torch.isfinite(total).all()):
            raise CurvatureError(
                f"the eigenvalues of layer {layer.name!r} are not finite: gradients overflow; load "
                "the model in float32"
            )
        result.append(total / documents)
    return tuple(result)


@dataclass(frozen=True, slots=True)
class FittedEKFAC:
    """Fitted factors with a damping; immutable.

    Attributes:
        layers: The layers, in order.
        bases: Eigenvectors of each.
        eigenvalues: ``Lambda`` of each, float64 ``[d_out, d_in]``.
        documents: How many documents they were fitted on.
        damping: ``lambda_l`` in units of ``mean(Lambda_l)``.
    """

    layers: tuple[Layer, ...]
    bases: tuple[Eigenbasis, ...]
    eigenvalues: tuple[Tensor, ...]
    documents: int
    damping: float = 0.1

    kind = "ekfac"

    def with_damping(self, damping: float) -> FittedEKFAC:
        """The same factors under another damping.

        Raises:
            CurvatureError: The damping is negative, not finite, or leaves a block singular.
        """
        if not 0.0 <= damping < float("inf"):
            raise CurvatureError(f"damping={damping} is not allowed; give a number >= 0, as 0.1")
        for layer, values in zip(self.layers, self.eigenvalues, strict=True):
            if not float(values.min() + damping * values.mean()) > 0.0:
                cause = "no gradient reaches it" if not bool(values.any()) else "damping is 0"
                raise CurvatureError(
                    f"the curvature of layer {layer.name!r} is singular ({cause}); leave the layer "
                    "out or give a damping > 0"
                )
        return replace(self, damping=damping)

    def damped(self, layer: int) -> Tensor:
        """``Lambda_l + lambda_l``, float64 ``[d_out, d_in]``."""
        values = self.eigenvalues[layer]
        return values + self.damping * values.mean()

    def whitening(self, layer: int) -> Tensor:
        """``1 / sqrt(Lambda_l + lambda_l)`` in the precision of the gradients."""
        return self.damped(layer).rsqrt().to(self.bases[layer].q_in.dtype)

    def rotation(self) -> GradientRotation:
        """Turns pairs into gradients in the eigenbasis."""
        return GradientRotation(self.bases)

    def precondition(self, layer: int, rotated: Tensor) -> Tensor:
        """``(G + lambda)^-1`` applied to a gradient given in the eigenbasis, in raw coordinates.

        Args:
            layer: Which layer.
            rotated: ``[..., d_out, d_in]``, from :meth:`rotation`.

        Returns:
            ``Q_S (rotated / (Lambda + lambda)) Q_A^T``, float64.
        """
        basis = self.bases[layer]
        solved = rotated.double() / self.damped(layer)
        return basis.q_out.double() @ solved @ basis.q_in.double().T

    def state(self) -> dict[str, Tensor]:
        """Tensors to store; inputs shared by layers are stored once."""
        tensors: dict[str, Tensor] = {}
        for i, (basis, values) in enumerate(zip(self.bases, self.eigenvalues, strict=True)):
            leader = next(j for j in range(i + 1) if self.bases[j].q_in is basis.q_in)
            if leader == i:
                tensors[f"{i}.q_in"] = basis.q_in.contiguous()
            tensors[f"{i}.input_of"] = torch.tensor(leader)
            tensors[f"{i}.q_out"] = basis.q_out.contiguous()
            tensors[f"{i}.eigenvalues"] = values.contiguous()
        return tensors

    @classmethod
    def from_state(
        cls,
        layers: tuple[Layer, ...],
        tensors: Mapping[str, Tensor],
        *,
        documents: int,
        damping: float,
    ) -> FittedEKFAC:
        """Inverse of :meth:`state`.

        Raises:
            CurvatureError: Tensors are missing or of the wrong shape for the layers.
        """
        bases: list[Eigenbasis] = []
        eigenvalues: list[Tensor] = []
        for i, layer in enumerate(layers):
            try:
                leader = int(tensors[f"{i}.input_of"])
                q_in = bases[leader].q_in if leader < i else tensors[f"{i}.q_in"]
                q_out, values = tensors[f"{i}.q_out"], tensors[f"{i}.eigenvalues"]
            except (KeyError, IndexError) as error:
                raise CurvatureError(
                    f"the stored curvature of layer {layer.name!r} lacks {error}; rebuild the index"
                ) from error
            d_out, d_in = layer.shape
            if (tuple(q_in.shape), tuple(q_out.shape), tuple(values.shape)) != (
                (d_in, d_in),
                (d_out, d_out),
                (d_out, d_in),
            ):
                raise CurvatureError(
                    f"the stored curvature of layer {layer.name!r} has another shape than the "
                    "layer; rebuild the index"
                )
            bases.append(Eigenbasis(q_in, q_out))
            eigenvalues.append(values)
        return cls(layers, tuple(bases), tuple(eigenvalues), documents, damping)
