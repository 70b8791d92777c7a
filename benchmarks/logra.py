"""The baseline of the field: projected gradients whitened by their own Fisher matrix (LoGra).

Choe et al. 2024 ("What is your data worth to GPT?", sections 3 and 4): a layer's gradient is
projected on both sides, ``P_out^T G P_in``, to a few hundred entries; the Fisher matrix of these is
formed from the documents' own projected gradients, dense within a layer, and damped. Projections
are Gaussian, or the largest eigenvectors of the layer's Kronecker factors (their PCA variant).

A document's vector is whitened here, ``(F + lambda)^-1/2 g``, and stored in fp16 like any other, so
that its size is that of a code. Damping is in units of the mean eigenvalue.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wherefrom.store.quantise import quantise

__all__ = ["DAMPINGS", "ProjectedGradients", "Projections"]

DAMPINGS = (0.01, 0.1, 1.0, 10.0)
"""Those tried; the best is what is reported."""

_ROUNDING = 1e-12
"""Eigenvalues below this share of the largest are what rounding left of zero."""

Projections = Literal["random", "largest"]


def _sides(shape: tuple[int, int], entries: int) -> tuple[int, int]:
    """``k_out`` and ``k_in``, as equal as can be, with a product of at most ``entries``."""
    k_out = min(shape[0], math.isqrt(entries))
    k_in = min(shape[1], entries // k_out)
    return min(shape[0], entries // k_in), k_in


class ProjectedGradients:
    """Gradients of documents and queries, projected layer by layer to fit a budget.

    Args:
        shapes: ``(d_out, d_in)`` of each layer.
        budget: Bytes of a document, two for each entry.
        projections: ``random``, or on the ``largest`` eigenvectors, the last in their basis.
        documents: How many there are.
        queries: How many there are.
        seed: Of random ones.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, int]],
        budget: int,
        projections: Projections,
        documents: int,
        queries: int,
        seed: int,
    ) -> None:
        self._shapes = shapes
        share = budget // (2 * len(shapes))
        widths = [_sides(shape, share) for shape in shapes]
        if projections == "random":
            generator = torch.Generator().manual_seed(seed)
            self._sides = [
                tuple(
                    torch.randn(wide, narrow, generator=generator) / math.sqrt(narrow)
                    for wide, narrow in zip(shape, width, strict=True)
                )
                for shape, width in zip(shapes, widths, strict=True)
            ]
        else:
            self._sides = [
                tuple(
                    torch.eye(wide)[:, wide - narrow :]
                    for wide, narrow in zip(shape, width, strict=True)
                )
                for shape, width in zip(shapes, widths, strict=True)
            ]
        self._documents = [torch.zeros(documents, k_out * k_in) for k_out, k_in in widths]
        self._queries = [torch.zeros(queries, k_out * k_in) for k_out, k_in in widths]

    @property
    def bytes(self) -> int:
        """Of a document."""
        return 2 * sum(part.shape[1] for part in self._documents)

    def add(self, layer: int, positions: NDArray[np.int64], gradients: Tensor) -> None:
        """Documents' gradients ``[doc, d_out, d_in]`` in the eigenbasis, not whitened."""
        self._documents[layer][positions] = self._projected(layer, gradients)

    def ask(self, layer: int, positions: NDArray[np.int64], gradients: Tensor) -> None:
        """The same of queries."""
        self._queries[layer][positions] = self._projected(layer, gradients)

    def scores(self) -> dict[float, NDArray[np.float64]]:
        """``g_q^T (F + lambda)^-1 g`` from stored vectors, ``[query, document]``, by damping."""
        whitenings = [_Whitening(documents.double()) for documents in self._documents]
        return {damping: self._scores(whitenings, damping) for damping in DAMPINGS}

    def _scores(self, whitenings: Sequence[_Whitening], damping: float) -> NDArray[np.float64]:
        documents, queries = (
            torch.cat(
                [
                    whiten(part.double(), damping)
                    for whiten, part in zip(whitenings, parts, strict=True)
                ],
                1,
            )
            for parts in (self._documents, self._queries)
        )
        stored = quantise(documents.float().numpy(), 16)
        asked: NDArray[np.float64] = queries.numpy()
        return asked @ stored.vectors.T

    def _projected(self, layer: int, gradients: Tensor) -> Tensor:
        p_out, p_in = self._sides[layer]
        return (p_out.T @ (gradients @ p_in)).flatten(1)


class _Whitening:
    """``(F + lambda)^-1/2``, F being the mean outer product of vectors ``[document, entry]``.

    Through the smaller of the entries' and the documents' matrices of products.
    """

    def __init__(self, documents: Tensor) -> None:
        count, entries = documents.shape
        self._mean = float(documents.square().sum()) / count / entries
        if entries <= count:
            values, self._vectors = torch.linalg.eigh(documents.T @ documents / count)
            self._values = values.clamp(min=0.0)
        else:
            values, left = torch.linalg.eigh(documents @ documents.T / count)
            known = values > values[-1] * _ROUNDING
            self._values = values[known]
            self._vectors = documents.T @ left[:, known] / (self._values * count).sqrt()

    def __call__(self, vectors: Tensor, damping: float) -> Tensor:
        damped = damping * self._mean
        outside = damped**-0.5
        inside = (self._values + damped).rsqrt() - outside
        return vectors * outside + (vectors @ self._vectors * inside) @ self._vectors.T
