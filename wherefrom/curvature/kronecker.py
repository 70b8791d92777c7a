"""Kronecker factors of the layers' Fisher blocks, and their eigenbases.

For a layer ``y = W a`` the Fisher block over documents is approximated in the eigenbasis of
``S (x) A``, with ``A = E[a a^T]`` and ``S = E[delta delta^T]`` over tokens (Martens and Grosse
2015). Both are symmetric positive semi-definite; ``Q_A`` and ``Q_S`` hold their eigenvectors as
columns.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from wherefrom.curvature.bases import Eigenbasis
from wherefrom.curvature.block_diagonal import Matrix
from wherefrom.curvature.fitted import block, takes_no_part
from wherefrom.curvature.memory import require_memory
from wherefrom.curvature.moments import BlockMoments
from wherefrom.curvature.plan import block_width
from wherefrom.errors import CurvatureError
from wherefrom.gradients.extractor import LayerPair
from wherefrom.gradients.layers import Layer

__all__ = ["Covariances", "Eigen", "Factors"]

Eigen = tuple[Tensor, Matrix]
"""Eigenvalues, and eigenvectors as columns."""


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

    def products(self, documents: int) -> Tensor:
        """Eigenvalues of ``T (S (x) A)``, float64 ``[d_out, d_in]``: those of K-FAC.

        ``T`` is the mean number of positions that a document has.
        """
        values_in = self.values_in.to(self.values_out.device)
        return self.positions / documents * torch.outer(self.values_out, values_in)


class Covariances:
    """Sums of ``a a^T`` and ``delta delta^T`` over tokens: statistics of Kronecker factors.

    Products are taken batch by batch in the pairs' own precision (at least float32) and summed in
    float64. Layers that read the very same activations share one ``A``, which is that of the first.

    Args:
        layers: All layers.
        wanted: Those to sum; all by default. Of the others is noted whose input they read.
        memory: Bytes that the factors of one layer may take; half of the machine's by default.
            With less than they need, they are summed in blocks.

    Attributes:
        documents: How many documents were seen.
        positions: Number of positions of each layer.
        input_of: The layer whose input each reads; -1 while none was seen.
    """

    def __init__(
        self,
        layers: tuple[Layer, ...],
        wanted: Collection[int] | None = None,
        memory: int | None = None,
    ) -> None:
        self.documents = 0
        self.positions = [0] * len(layers)
        self.input_of = [-1] * len(layers)
        self._layers = layers
        self._memory = memory
        self._blocks = [block_width(layer, memory) for layer in layers]
        self._wanted = range(len(layers)) if wanted is None else wanted
        self._inputs: dict[int, BlockMoments] = {}
        self._outputs: dict[int, BlockMoments] = {}
        self._dtype = torch.float32

    @classmethod
    def load(
        cls,
        layers: tuple[Layer, ...],
        state: Mapping[str, Tensor],
        wanted: Collection[int] | None = None,
        memory: int | None = None,
    ) -> Covariances:
        """Inverse of :meth:`state`.

        Raises:
            CurvatureError: Tensors are missing or of the wrong shape for the layers.
        """
        made = cls(layers, wanted, memory)
        counts = (len(layers),)
        made.documents = int(block(state, "documents", layers[0], ()))
        made.positions = block(state, "positions", layers[0], counts).tolist()
        made.input_of = block(state, "input_of", layers[0], counts).tolist()
        made._dtype = block(state, "precision", layers[0], ()).dtype
        for i in made._wanted:
            d_out, d_in = layers[i].shape
            if made.input_of[i] == i:
                made._inputs[i] = made._read(state, f"{i}.inputs", i, d_in)
            if made.input_of[i] >= 0:
                made._outputs[i] = made._read(state, f"{i}.outputs", i, d_out)
        return made

    def _read(self, state: Mapping[str, Tensor], name: str, layer: int, width: int) -> BlockMoments:
        blocks = self._blocks[layer]
        entries = BlockMoments.entries(width, blocks)
        return BlockMoments(width, blocks, block(state, name, self._layers[layer], (entries,)))

    def state(self) -> dict[str, Tensor]:
        """Sums as the triangles they are, and counts."""
        tensors = {
            "documents": torch.tensor(self.documents),
            "positions": torch.tensor(self.positions),
            "input_of": torch.tensor(self.input_of),
            "precision": torch.zeros((), dtype=self._dtype),
        }
        for i, moment in self._inputs.items():
            tensors[f"{i}.inputs"] = moment.state()
        for i, moment in self._outputs.items():
            tensors[f"{i}.outputs"] = moment.state()
        return tensors

    def add(self, pair: LayerPair) -> None:
        """Add one pair; activations count in the first backward pass of a batch only.

        Raises:
            CurvatureError: The layer shares its input on some batches only, or its factors would
                not fit in memory.
        """
        i = pair.layer
        self._dtype = torch.promote_types(self._dtype, pair.activations.dtype)
        if i in self._wanted:
            self._add(self._outputs, i, pair.deltas)
        if not pair.first:
            return
        self.positions[i] += pair.positions
        self._share(i, pair.input_of)
        if pair.input_of == i and i in self._wanted:
            self._add(self._inputs, i, pair.activations)

    def merge(self, later: Covariances) -> None:
        """Take in the sums of the documents that follow.

        Raises:
            CurvatureError: A layer shares its input in one of both only.
        """
        self.documents += later.documents
        self._dtype = torch.promote_types(self._dtype, later._dtype)
        for i, leader in enumerate(later.input_of):
            self.positions[i] += later.positions[i]
            if leader >= 0:
                self._share(i, leader)
        for mine, others in ((self._inputs, later._inputs), (self._outputs, later._outputs)):
            for i in list(others):
                moment = others.pop(i)
                if i in mine:
                    mine[i].merge(moment)
                else:
                    mine[i] = moment

    def factors(self, layer: int, shared: dict[int, Eigen]) -> Factors:
        """Both factors of a layer, eigendecomposed; their sums are given up for it.

        Args:
            layer: Its position.
            shared: Of inputs that others read too; this one's is put there.

        Raises:
            CurvatureError: A factor is not finite, or the layer never took part.
        """
        leader = self.input_of[layer]
        if leader not in shared and leader not in self._inputs:
            raise takes_no_part(self._layers[layer])
        of, count = self._layers[layer], self.positions
        if leader not in shared:
            moment = self._inputs.pop(leader)
            shared[leader] = moment.eigen(count[leader], of, "A", self._dtype)
        values_in, q_in = shared[leader]
        values_out, q_out = self._outputs.pop(layer).eigen(count[layer], of, "S", self._dtype)
        return Factors(Eigenbasis(q_in, q_out), values_in, values_out, count[layer])

    def _share(self, layer: int, leader: int) -> None:
        if self.input_of[layer] not in (-1, leader):
            raise CurvatureError(
                f"layer {self._layers[layer].name!r} shares its input with another on some batches "
                "and not on others (data-dependent routing); leave it out of layers"
            )
        self.input_of[layer] = leader

    def _add(self, sums: dict[int, BlockMoments], layer: int, vectors: Tensor) -> None:
        if layer not in sums:
            if self._memory is None:
                _require_room(self._layers[layer], vectors.device)
            width, blocks = vectors.shape[-1], self._blocks[layer]
            sums[layer] = BlockMoments.zero(width, blocks, vectors.device)
        sums[layer].add(vectors, self._dtype)


def _require_room(layer: Layer, device: torch.device) -> None:
    """Refuse a layer whose factors would not fit, as those of an output head."""
    d_out, d_in = layer.shape
    require_memory(
        8 * 3 * max(d_out, d_in) ** 2,  # The largest factor, and LAPACK's work of twice its size.
        f"the eigenvectors of layer {layer.name!r} ({d_out:,} outputs, {d_in:,} inputs)",
        "bound it (factor_memory=), leave the layer out or give curvature='diagonal'",
        device,
    )
