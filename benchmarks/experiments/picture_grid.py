"""Grids of small pictures: a query in each row, and the documents that methods rank first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["Cell", "Column", "draw_grid"]

_INCHES = 0.46
_DPI = 110


@dataclass(frozen=True, slots=True)
class Cell:
    """One picture.

    Attributes:
        pixels: ``[row, column]`` or ``[row, column, colour]`` from 0 to 1.
        caption: Below it.
        matches: Whether its caption is as hoped, shown by colour; ``None``: neither.
    """

    pixels: NDArray[np.float64]
    caption: str = ""
    matches: bool | None = None


@dataclass(frozen=True, slots=True)
class Column:
    """Pictures of one kind, some for each row.

    Attributes:
        title: Above them.
        cells: ``[row][place]``, equally many in each row.
    """

    title: str
    cells: Sequence[Sequence[Cell]]


def draw_grid(path: Path, columns: Sequence[Column], captions: Sequence[str]) -> None:
    """Draw columns beside each other, with some room between them.

    Args:
        path: A ``.png`` file to write.
        columns: All with equally many rows.
        captions: At the left of each row.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    widths = [len(column.cells[0]) for column in columns]
    gap, margin = 0.5, max(map(len, captions)) * 0.17
    total = sum(widths) + gap * (len(widths) - 1) + margin
    rows = len(captions)
    figure = Figure(figsize=(total * _INCHES, (1.4 * rows + 0.6) * _INCHES))
    FigureCanvasAgg(figure)
    step = 1.4 / (1.4 * rows + 0.6)
    left = margin
    for column, width in zip(columns, widths, strict=True):
        middle = (left + width / 2) / total
        figure.text(middle, 1 - 0.1 * step, column.title, ha="center", va="top", fontsize=7)
        for row, cells in enumerate(column.cells):
            bottom = 1 - 0.6 / 1.4 * step - (row + 0.75) * step
            for place, cell in enumerate(cells):
                box = ((left + place + 0.03) / total, bottom, 0.94 / total, 0.94 * step / 1.4)
                axes = figure.add_axes(box)
                axes.imshow(cell.pixels, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
                axes.set_xticks([])
                axes.set_yticks([])
                for spine in axes.spines.values():
                    spine.set_linewidth(0.3)
                colour = {True: "#1a7f37", False: "#c0392b", None: "black"}[cell.matches]
                axes.set_xlabel(cell.caption, fontsize=6, color=colour, labelpad=1)
        left += width + gap
    for row, caption in enumerate(captions):
        height = 1 - 0.6 / 1.4 * step - (row + 0.4) * step
        figure.text(0.1 / total, height, caption, ha="left", va="center", fontsize=6.5)
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})
