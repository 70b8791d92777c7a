"""Which layers carry scores: a map of modules by blocks, on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from wherefrom.cli.highlight import LOWERS, RAISES
from wherefrom.cli.shares import part_in_words
from wherefrom.query.interpretation.explanation import Explanation, HitShares
from wherefrom.query.printable import printable
from wherefrom.query.report.heat_map import HeatMap, heat_map

__all__ = ["heat_table"]

_SHADES = "·░▒▓█"
_STEPS = (0.05, 0.25, 0.5, 0.75)
"""Of the largest share in a map: where each shade but the first begins."""

_WIDEST_MODULE = 24
_FIGURE = 4
"""Cells of a figure, so that shades stand below each other unless there are large ones."""


class _Block(NamedTuple):
    """Blocks of layers that are shown as one: what to call them, and the share of each module."""

    first: str
    last: str
    shares: tuple[float | None, ...]


def heat_table(explanation: Explanation, hits: Sequence[HitShares], console: Console) -> Table:
    """Shares of layers, module by block, in per cent of the summed scores of hits.

    Where a console has no room for figures, blocks are shades side by side, and where it has none
    for these either, neighbours are summed.

    Args:
        explanation: Names the layers.
        hits: Their shares are summed; at least one.
        console: What it is to fit.
    """
    summed = [sum(shares) for shares in zip(*(hit.layers for hit in hits), strict=True)]
    shown = heat_map(explanation.layers, summed)
    by_depth = zip(*([cell.share for cell in row] for row in shown.cells), strict=True)
    blocks = [
        _Block(name, name, shares) for name, shares in zip(shown.depths, by_depth, strict=True)
    ]
    inside = [block for block in blocks if block.first]
    outside = [block for block in blocks if not block.first]
    table = _figures(shown, inside, outside)
    together = 1
    while _width(table, console) > console.width and together <= len(inside):
        joined = [
            _joined(inside[first : first + together]) for first in range(0, len(inside), together)
        ]
        table = _shades(shown, joined, outside)
        together += 1
    return table


def _joined(blocks: Sequence[_Block]) -> _Block:
    return _Block(
        blocks[0].first,
        blocks[-1].last,
        tuple(map(_sum, zip(*(block.shares for block in blocks), strict=True))),
    )


def _sum(shares: Sequence[float | None]) -> float | None:
    known = [share for share in shares if share is not None]
    return sum(known) if known else None


def _figures(shown: HeatMap, blocks: Sequence[_Block], outside: Sequence[_Block]) -> Table:
    """A column a block, each share a shade and a figure."""
    largest = _largest(blocks, outside)
    table = _table()
    for block in blocks:
        table.add_column(block.first, justify="right", no_wrap=True)
    columns = [[_figure(share, shown.total, largest) for share in block.shares] for block in blocks]
    totals = [part_in_words(_sum(block.shares) or 0.0, shown.total) for block in blocks]
    return _finished(table, shown, columns, totals, outside, largest)


def _shades(shown: HeatMap, blocks: Sequence[_Block], outside: Sequence[_Block]) -> Table:
    """One column of shades, two cells a block: a sign if it is negative, and the shade."""
    first, last, cells = blocks[0].first, blocks[-1].last, 2 * len(blocks)
    fits = len(first) + len(last) < cells
    table = _table()
    table.add_column(
        first + last.rjust(cells - len(first)) if fits else f"{first}-{last}", no_wrap=True
    )
    largest = _largest(blocks, outside)
    strips = [
        Text.assemble(*(_shade(block.shares[row], largest) for block in blocks))
        for row in range(len(shown.modules))
    ]
    return _finished(table, shown, [strips], [""], outside, largest)


def _table() -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("module", max_width=_WIDEST_MODULE, no_wrap=True, overflow="ellipsis")
    return table


def _finished(
    table: Table,
    shown: HeatMap,
    columns: Sequence[Sequence[Text]],
    totals: Sequence[str],
    outside: Sequence[_Block],
    largest: float,
) -> Table:
    """Fill in the rows, with what is outside of blocks and the sums at their ends."""
    for _ in outside:
        table.add_column("outside", justify="right", no_wrap=True)
    table.add_column("all", justify="right", style="dim", no_wrap=True)
    for row, (module, cells) in enumerate(zip(shown.modules, shown.cells, strict=True)):
        table.add_row(
            Text(printable(module)),
            *(column[row] for column in columns),
            *(_figure(block.shares[row], shown.total, largest) for block in outside),
            part_in_words(_sum([cell.share for cell in cells]) or 0.0, shown.total),
        )
    ends = (part_in_words(_sum(block.shares) or 0.0, shown.total) for block in outside)
    table.add_row("all", *totals, *ends, part_in_words(shown.total, shown.total), style="dim")
    return table


def _largest(blocks: Sequence[_Block], outside: Sequence[_Block]) -> float:
    return max(abs(share or 0.0) for block in (*blocks, *outside) for share in block.shares)


def _figure(share: float | None, score: float, largest: float) -> Text:
    if share is None:
        return Text("")
    shade = _shade(share, largest)[1:]
    return Text.assemble(shade, shade, " ", part_in_words(share, score).rjust(_FIGURE))


def _shade(share: float | None, largest: float) -> Text:
    if share is None:
        return Text("  ")
    level = sum(abs(share) >= step * largest > 0 for step in _STEPS)
    sign, colour = ("-", LOWERS) if share < 0 else (" ", RAISES)
    return Text(sign + _SHADES[level], colour)


def _width(table: Table, console: Console) -> int:
    return Measurement.get(console, console.options.update(width=10_000), table).maximum
