"""Shares of layers as a map: kinds of modules one way, depth in the model the other."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wherefrom.query.interpretation.explanation import LayerName
from wherefrom.query.report.highlights import step

__all__ = ["Cell", "HeatMap", "heat_map"]

_MOST_MODULES = 24
_MOST_COLUMNS = 12


@dataclass(frozen=True, slots=True)
class Cell:
    """The layers of one kind at one depth.

    Attributes:
        share: Nats; ``None`` where there is no such layer.
        percent: Of the size of the total, of the sign of ``share``.
        step: Intensity, relative to the map's largest cell.
        depth: Place of the depth among all depths, from 0.
        module: Place of the module among all modules, from 0.
    """

    share: float | None
    percent: float | None
    step: int
    depth: int
    module: int


@dataclass(frozen=True, slots=True)
class HeatMap:
    """Shares by module and depth; they add up to ``total``.

    Attributes:
        modules: Kinds of modules, in the model's order.
        depths: Numbers of blocks, ascending; an empty name is what is outside of blocks.
        cells: For each module, one for each depth.
        total: Nats of all layers.
    """

    modules: tuple[str, ...]
    depths: tuple[str, ...]
    cells: tuple[tuple[Cell, ...], ...]
    total: float

    @property
    def across(self) -> bool:
        """Whether depths are few enough to be columns."""
        return len(self.depths) <= _MOST_COLUMNS

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of a table's columns: the depths if they are few, else the modules."""
        return self.depths if self.across else self.modules

    @property
    def rows(self) -> list[tuple[str, tuple[Cell, ...]]]:
        """Names and cells of a table's rows."""
        if self.across:
            return list(zip(self.modules, self.cells, strict=True))
        return list(zip(self.depths, zip(*self.cells, strict=True), strict=True))

    @property
    def largest(self) -> Cell:
        """The cell of the largest share, of either sign."""
        every = [cell for row in self.cells for cell in row]
        return max(every, key=lambda cell: abs(cell.share or 0.0))


def heat_map(layers: Sequence[LayerName], shares: Sequence[float]) -> HeatMap:
    """A map of shares; layers of one kind and depth are summed.

    Where there are very many kinds (the experts of a mixture, say), those that differ by numbers
    only are one.

    Args:
        layers: At least one.
        shares: Nats of each.
    """
    modules = [layer.module for layer in layers]
    if len(set(modules)) > _MOST_MODULES:
        modules = [re.sub(r"\d+", "*", module) for module in modules]
    rows = {module: place for place, module in enumerate(dict.fromkeys(modules))}
    known = sorted({layer.depth for layer in layers if layer.depth is not None})
    outside = [None] if any(layer.depth is None for layer in layers) else []
    depths: list[int | None] = [*known, *outside]
    sums: dict[tuple[int, int], float] = {}
    for layer, module, share in zip(layers, modules, shares, strict=True):
        place = rows[module], depths.index(layer.depth)
        sums[place] = sums.get(place, 0.0) + share
    total = float(np.sum(shares))
    largest = max(map(abs, sums.values()))
    return HeatMap(
        modules=tuple(rows),
        depths=tuple("" if depth is None else str(depth) for depth in depths),
        cells=tuple(
            tuple(
                _cell(sums.get((row, column)), total, largest, column, row)
                for column in range(len(depths))
            )
            for row in range(len(rows))
        ),
        total=total,
    )


def _cell(share: float | None, total: float, largest: float, depth: int, module: int) -> Cell:
    percent = None if share is None or not total else 100.0 * share / abs(total)
    return Cell(share, percent, step(share, largest), depth, module)
