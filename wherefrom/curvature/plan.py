"""Which layers a pass over the documents gathers, so that their factors fit in memory.

Without a bound all layers are gathered at once, and factors are decomposed whole. With one, passes
gather as many layers as fit, and a factor that is too wide by itself is cut into equal blocks of
coordinates; what the blocks leave out, correlations between them, is left out of the basis only:
the eigenvalues of EK-FAC are measured in whatever basis there is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from wherefrom.curvature.memory import Room, amount
from wherefrom.curvature.moments import BlockMoments
from wherefrom.errors import CurvatureError
from wherefrom.gradients.layers import Layer

__all__ = ["Step", "block_width", "plan"]

Gathered = Literal["factors", "squares"]

_FLOAT = 8
"""Bytes of a float64."""

_DECOMPOSED = 3
"""Squares that are alive while one is decomposed: itself, and LAPACK's work of twice its size."""


@dataclass(frozen=True, slots=True)
class Step:
    """A pass over the documents.

    Attributes:
        gathers: Kronecker factors, or mean squares in the bases that are known by then.
        layers: Of which layers; steps of one kind take them in order.
    """

    gathers: Gathered
    layers: range


def plan(layers: Sequence[Layer], gathers: Sequence[Gathered], room: Room) -> tuple[Step, ...]:
    """The passes of a fit.

    Args:
        layers: All layers.
        gathers: What is gathered, of all layers one after the other.
        room: What it may take.

    Raises:
        CurvatureError: One layer alone would take more, or there is no folder for what is finished.
    """
    if room.memory is None:
        return tuple(Step(kind, range(len(layers))) for kind in gathers)
    if room.folder is None:
        raise CurvatureError("a bound on memory needs a folder to put what is finished; give both")
    steps: list[Step] = []
    for kind in gathers:
        costs = _factor_costs(room.memory) if kind == "factors" else _square_costs
        steps.extend(Step(kind, group) for group in _groups(layers, costs, room.memory))
    return tuple(steps)


def block_width(layer: Layer, memory: int | None) -> int:
    """Most coordinates of a factor that are decomposed together, so that the layer fits alone."""
    widest = max(layer.shape)
    if memory is None:
        return widest
    least = sum(_factor_bytes(layer, 1))
    if least > memory:
        raise _too_little(layer, least, memory)
    widths = (-(-widest // blocks) for blocks in range(1, widest + 1))
    return next(width for width in widths if sum(_factor_bytes(layer, width)) <= memory)


_Costs = Callable[[Layer], tuple[int, int]]
"""Bytes that a layer takes during a pass, and for a while at its end."""


def _factor_costs(memory: int) -> _Costs:
    return lambda layer: _factor_bytes(layer, block_width(layer, memory))


def _factor_bytes(layer: Layer, width: int) -> tuple[int, int]:
    """As if no input were shared: which are, only the documents show."""
    gathered = sum(BlockMoments.entries(d, width) for d in layer.shape)
    vectors = sum(d * min(d, width) for d in layer.shape)
    work = _DECOMPOSED * min(max(layer.shape), width) ** 2
    return _FLOAT * gathered, _FLOAT * (vectors + work + layer.size)


def _square_costs(layer: Layer) -> tuple[int, int]:
    """The sum, and one of a batch."""
    return _FLOAT * layer.size, _FLOAT * layer.size


def _groups(layers: Sequence[Layer], costs: _Costs, memory: int) -> list[range]:
    """Neighbours that fit together: all that is gathered, and the most that an end takes."""
    groups: list[range] = []
    gathered, ending = 0, 0
    for i, layer in enumerate(layers):
        during, after = costs(layer)
        if during + after > memory:
            raise _too_little(layer, during + after, memory)
        if groups and gathered + during + max(ending, after) <= memory:
            groups[-1] = range(groups[-1].start, i + 1)
            gathered, ending = gathered + during, max(ending, after)
        else:
            groups.append(range(i, i + 1))
            gathered, ending = during, after
    return groups


def _too_little(layer: Layer, needed: int, memory: int) -> CurvatureError:
    d_out, d_in = layer.shape
    return CurvatureError(
        f"the curvature of layer {layer.name!r} ({d_out:,} outputs, {d_in:,} inputs) needs at "
        f"least {amount(needed)} of memory, more than the {amount(memory)} allowed; allow more, or "
        "leave the layer out"
    )
