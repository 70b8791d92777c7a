"""Fits under way: pass after pass over the documents, layers in groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from wherefrom.curvature.bases import (
    Basis,
    Eigenbasis,
    GradientRotation,
    StandardBasis,
    bases_from_state,
    bases_state,
)
from wherefrom.curvature.block_diagonal import BlockDiagonal, Matrix
from wherefrom.curvature.eigen import FittedEigen
from wherefrom.curvature.fitted import (
    CurvatureKind,
    Fit,
    FittedCurvature,
    Statistics,
    block,
)
from wherefrom.curvature.kronecker import Covariances, Eigen
from wherefrom.curvature.memory import Room
from wherefrom.curvature.plan import Gathered, plan
from wherefrom.curvature.squares import Squares
from wherefrom.errors import CurvatureError
from wherefrom.gradients.layers import Layer

__all__ = ["EigenFit", "NoPass", "OnePass"]

_Statistics = TypeVar("_Statistics", bound=Statistics)
_Result = TypeVar("_Result", bound=FittedCurvature)


class NoPass(Fit[Statistics]):
    """A fit that needs no documents.

    Args:
        result: What it comes to.
    """

    passes = done = 0

    def __init__(self, result: FittedCurvature) -> None:
        self._result = result

    def statistics(self) -> Statistics:
        """There are none.

        Raises:
            CurvatureError: Always.
        """
        raise _over()

    def load(self, state: Mapping[str, Tensor]) -> Statistics:
        """There are none.

        Raises:
            CurvatureError: Always.
        """
        raise _over()

    def finish_pass(self, statistics: Statistics) -> None:
        """There is no pass.

        Raises:
            CurvatureError: Always.
        """
        raise _over()

    def state(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to go on from."""

    def result(self) -> FittedCurvature:
        """The fitted curvature."""
        return self._result


class OnePass(Fit[_Statistics]):
    """A fit that goes over the documents once.

    Args:
        empty: Makes statistics.
        load: Makes them from their state.
        finish: What the statistics of all documents come to.
    """

    passes = 1

    def __init__(
        self,
        empty: Callable[[], _Statistics],
        load: Callable[[Mapping[str, Tensor]], _Statistics],
        finish: Callable[[_Statistics], FittedCurvature],
    ) -> None:
        self.done = 0
        self._empty = empty
        self._load = load
        self._finish = finish
        self._result: FittedCurvature | None = None

    def statistics(self) -> _Statistics:
        """Empty ones."""
        return self._empty()

    def load(self, state: Mapping[str, Tensor]) -> _Statistics:
        """Statistics from their ``state``."""
        return self._load(state)

    def finish_pass(self, statistics: _Statistics) -> None:
        """Fit the curvature."""
        self._result = self._finish(statistics)
        self.done = 1

    def state(self) -> dict[str, Tensor]:
        """Nothing: before its only pass a fit knows nothing."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to go on from."""

    def result(self) -> FittedCurvature:
        """The fitted curvature."""
        return _finished(self._result)


class EigenFit(Fit[Covariances | Squares]):
    """A fit that ends in a basis and eigenvalues of each layer: EK-FAC, K-FAC, diagonal.

    Args:
        kind: Which.
        layers: The layers, in order.
        damping: ``lambda_l`` in units of the layer's mean eigenvalue.
        gathers: What is gathered, of all layers one after the other.
        room: What the fit may take.

    Raises:
        CurvatureError: The room is too little.
    """

    def __init__(
        self,
        kind: CurvatureKind,
        layers: tuple[Layer, ...],
        damping: float,
        gathers: Sequence[Gathered],
        room: Room,
    ) -> None:
        self._steps = plan(layers, gathers, room)
        self.passes = len(self._steps)
        self.done = 0
        self._kind = kind
        self._layers = layers
        self._damping = damping
        self._room = room
        self._documents = 0
        self._bases: list[Basis] = []
        if "factors" not in gathers:
            self._bases.extend(StandardBasis() for _ in layers)
        self._eigenvalues: list[Tensor] = []
        self._shared: dict[int, Eigen] = {}
        self._result: FittedEigen | None = None

    def statistics(self) -> Covariances | Squares:
        """Empty ones, of the layers whose turn it is."""
        step = self._steps[self.done]
        if step.gathers == "factors":
            return Covariances(self._layers, step.layers, self._room.memory)
        return Squares(self._layers, GradientRotation(tuple(self._bases)), step.layers)

    def load(self, state: Mapping[str, Tensor]) -> Covariances | Squares:
        """Statistics of these layers, from their ``state``."""
        step = self._steps[self.done]
        if step.gathers == "factors":
            return Covariances.load(self._layers, state, step.layers, self._room.memory)
        coordinates = GradientRotation(tuple(self._bases))
        return Squares.load(self._layers, coordinates, state, step.layers)

    def finish_pass(self, statistics: Covariances | Squares) -> None:
        """Eigenbases of these layers, or their eigenvalues."""
        self._documents = statistics.documents
        for i in self._steps[self.done].layers:
            if isinstance(statistics, Squares):
                self._measured(i, statistics.mean(i))
            else:
                self._factored(i, statistics)
        self.done += 1
        if self.done == self.passes:
            self._result = FittedEigen.fitted(
                self._kind,
                self._layers,
                tuple(self._bases),
                tuple(self._eigenvalues),
                self._documents,
                self._damping,
                self._report(),
            )

    def _factored(self, layer: int, statistics: Covariances) -> None:
        factors = statistics.factors(layer, self._shared)
        if self._kind == "kfac":
            self._measured(layer, factors.products(self._documents))
        basis, leader = factors.basis, statistics.input_of[layer]
        q_out = self._put(f"{layer}.q_out", basis.q_out)
        q_in = self._put(f"{layer}.q_in", basis.q_in) if leader == layer else basis.q_in
        self._shared[leader] = factors.values_in, q_in
        self._bases.append(Eigenbasis(q_in, q_out))

    def _measured(self, layer: int, values: Tensor) -> None:
        self._eigenvalues.append(self._room.put(f"{layer}.eigenvalues", values))

    def _put(self, name: str, q: Matrix) -> Matrix:
        if isinstance(q, Tensor):
            return self._room.put(name, q)
        return replace(q, blocks=self._room.put(name, q.blocks))

    def _report(self) -> dict[str, float]:
        """``blocks``, the most that a factor was cut into, if any was."""
        bases = [basis for basis in self._bases if isinstance(basis, Eigenbasis)]
        sides = [q for basis in bases for q in (basis.q_in, basis.q_out)]
        blocks = max((len(q.blocks) for q in sides if isinstance(q, BlockDiagonal)), default=1)
        return {"blocks": float(blocks)} if blocks > 1 else {}

    def state(self) -> dict[str, Tensor]:
        """Bases and eigenvalues as far as they are known."""
        tensors = bases_state(self._bases)
        for i, values in enumerate(self._eigenvalues):
            tensors[f"{i}.eigenvalues"] = values.contiguous()
        for i, (values, _) in self._shared.items():
            tensors[f"{i}.values_in"] = values
        counts = {"done": self.done, "documents": self._documents}
        return {name: tensor.cpu() for name, tensor in tensors.items()} | {
            name: torch.tensor(count) for name, count in counts.items()
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from there."""
        first = self._layers[0]
        self.done = int(block(state, "done", first, ()))
        self._documents = int(block(state, "documents", first, ()))
        past = self._steps[: self.done]
        factored = sum(len(step.layers) for step in past if step.gathers == "factors")
        if factored:
            kinds = [Eigenbasis] * factored
            self._bases = list(bases_from_state(self._layers[:factored], state, kinds))
        measured = factored
        if self._kind != "kfac":
            measured = sum(len(step.layers) for step in past if step.gathers == "squares")
        for i, layer in enumerate(self._layers[:measured]):
            self._eigenvalues.append(block(state, f"{i}.eigenvalues", layer, layer.shape))
        for i, (layer, basis) in enumerate(zip(self._layers, self._bases, strict=False)):
            if isinstance(basis, Eigenbasis) and f"{i}.values_in" in state:
                values = block(state, f"{i}.values_in", layer, (layer.shape[1],))
                self._shared[i] = values, basis.q_in

    def result(self) -> FittedEigen:
        """The fitted curvature."""
        return _finished(self._result)


def _over() -> CurvatureError:
    """What to raise for a pass that is not there."""
    return CurvatureError("the curvature is fitted: it needs no more passes over the documents")


def _finished(result: _Result | None) -> _Result:
    """A fit's result.

    Raises:
        CurvatureError: There is none yet.
    """
    if result is None:
        raise CurvatureError("the curvature is not fitted yet: passes over the documents are left")
    return result
