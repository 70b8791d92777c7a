"""The exact block: ``G_l = E[g g^T]`` over all of a layer's weights, eigendecomposed in float64.

The oracle that the approximations are held against, for layers of a few thousand weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from wherefrom.curvature.bases import Basis, DenseBasis, gradients_of
from wherefrom.curvature.eigen import FittedEigen
from wherefrom.curvature.fitted import GradientLabels, require_damping, require_finite
from wherefrom.curvature.memory import require_memory
from wherefrom.errors import CurvatureError
from wherefrom.gradients.extractor import LayerPair
from wherefrom.gradients.fisher import PairSource

__all__ = ["Exact"]

_WORK = 4
"""Float64 matrices of a block that are alive at once: itself, its eigenvectors, LAPACK's work."""


@dataclass(frozen=True, slots=True)
class Exact:
    """How to fit the exact block.

    Attributes:
        damping: ``lambda_l`` in units of the layer's mean eigenvalue, > 0.
    """

    damping: float = 0.1

    labels: ClassVar[GradientLabels] = "model"
    passes: ClassVar[int] = 1

    def fit(self, source: PairSource, *, documents: int | None = None) -> FittedEigen:
        """One pass over pseudo-gradients; reports the residual of a damped solve.

        Raises:
            CurvatureError: A block does not fit in memory or is not finite, a layer takes no part,
                or nothing reaches it.
        """
        require_damping(self.damping)
        sums: list[Tensor | None] = [None] * len(source.layers)
        needed = 8 * sum(layer.size**2 for layer in source.layers)
        largest = max(source.layers, key=lambda layer: layer.size)
        dtypes = [torch.float32] * len(source.layers)

        def add(pair: LayerPair) -> None:
            total = sums[pair.layer]
            if total is None:
                require_memory(
                    needed + _WORK * 8 * largest.size**2,
                    f"curvature='exact' over {len(source.layers)} layers (the largest, "
                    f"{largest.name!r}, has {largest.size:,} weights)",
                    "choose fewer or smaller layers, or curvature='ekfac'",
                    pair.deltas.device,
                )
                size = source.layers[pair.layer].size
                total = torch.zeros(size, size, dtype=torch.float64, device=pair.deltas.device)
                sums[pair.layer] = total
            g = gradients_of(pair).flatten(1)
            dtypes[pair.layer] = g.dtype
            total.addmm_(g.double().T, g.double())

        seen = source.run(add)
        bases: list[Basis] = []
        eigenvalues: list[Tensor] = []
        residual = 0.0
        for i, layer in enumerate(source.layers):
            total = sums[i]
            if total is None:
                raise CurvatureError(
                    f"layer {layer.name!r} takes no part in the model's output; leave it out of "
                    "layers"
                )
            require_finite(layer, total.div_(seen), "the exact block")
            values, vectors = torch.linalg.eigh(total)
            values.clamp_(min=0.0)
            bases.append(DenseBasis(vectors.to(dtypes[i])))
            eigenvalues.append(values.reshape(layer.shape))
            residual = max(residual, _residual(total, values, bases[-1], self.damping))
            sums[i] = None
        return FittedEigen.fitted(
            "exact",
            source.layers,
            tuple(bases),
            tuple(eigenvalues),
            seen,
            self.damping,
            {"residual": residual},
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
