"""Which layers carry scores: a map of modules by blocks, on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from wherefrom.cli.highlight import LOWERS, RAISES
from wherefrom.cli.shares import part_in_words
from wherefrom.query.explanation import Explanation, HitShares
from wherefrom.query.printable import printable

__all__ = ["heat_map"]

_SHADES = "·░▒▓█"
_STEPS = (0.05, 0.25, 0.5, 0.75)
"""Of the largest share in a map: where each shade but the first begins."""

_WIDEST_MODULE = 24


@dataclass(frozen=True, slots=True)
class _Map:
    """Nats of modules (rows) in blocks of layers (columns), summed over hits."""

    modules: list[str]
    blocks: list[str]
    cells: dict[tuple[str, str], float]
    outside: dict[str, float]
    score: float

    @property
    def largest(self) -> float:
        """The size of the largest."""
        return max(map(abs, (*self.cells.values(), *self.outside.values())), default=0.0)

    def of_module(self, module: str) -> float:
        """A row's sum."""
        shares = (share for (name, _), share in self.cells.items() if name == module)
        return sum(shares) + self.outside.get(module, 0.0)

    def of_block(self, block: str) -> float:
        """A column's sum."""
        return sum(share for (_, name), share in self.cells.items() if name == block)


def heat_map(explanation: Explanation, hits: Sequence[HitShares], console: Console) -> Table:
    """Shares of layers, module by block, in per cent of the summed scores of hits.

    Where a console has no room for figures, blocks are shades side by side, and where it has none
    for these either, neighbours are summed.

    Args:
        explanation: Names the layers.
        hits: Their shares are summed; at least one.
        console: What it is to fit.
    """
    depths = sorted({layer.depth for layer in explanation.layers if layer.depth is not None})
    shown = _summed(explanation, hits, [[depth] for depth in depths])
    table = _figures(shown)
    together = 1
    while _width(table, console) > console.width and together <= len(depths):
        blocks = [depths[i : i + together] for i in range(0, len(depths), together)]
        table = _shades(_summed(explanation, hits, blocks))
        together += 1
    return table


def _summed(
    explanation: Explanation, hits: Sequence[HitShares], blocks: Sequence[Sequence[int]]
) -> _Map:
    titles = {
        depth: f"{block[0]}" if len(block) == 1 else f"{block[0]}-{block[-1]}"
        for block in blocks
        for depth in block
    }
    cells: dict[tuple[str, str], float] = {}
    outside: dict[str, float] = {}
    modules = []
    for i, layer in enumerate(explanation.layers):
        module, share = printable(layer.module), sum(hit.layers[i] for hit in hits)
        modules.append(module)
        if layer.depth is None:
            outside[module] = outside.get(module, 0.0) + share
        else:
            place = (module, titles[layer.depth])
            cells[place] = cells.get(place, 0.0) + share
    return _Map(
        list(dict.fromkeys(modules)),
        list(dict.fromkeys(titles.values())),
        cells,
        outside,
        sum(hit.score for hit in hits),
    )


def _figures(shown: _Map) -> Table:
    """A column a block, each share a shade and a figure."""
    table = _table(shown, [(block, "right") for block in shown.blocks])
    for module in shown.modules:
        cells = (shown.cells.get((module, block)) for block in shown.blocks)
        _row(table, shown, module, [_figure(share, shown) for share in cells])
    totals = (part_in_words(shown.of_block(block), shown.score) for block in shown.blocks)
    _totals(table, shown, list(totals))
    return table


def _shades(shown: _Map) -> Table:
    """One column of shades, two cells a block: a sign if it is negative, and the shade."""
    first, last = shown.blocks[0], shown.blocks[-1]
    title = first + last.rjust(2 * len(shown.blocks) - len(first))
    if len(first) + 1 + len(last) > 2 * len(shown.blocks):
        title = first if first == last else f"{first.partition('-')[0]}-{last.split('-')[-1]}"
    table = _table(shown, [(title, "left")])
    for module in shown.modules:
        cells = (shown.cells.get((module, block)) for block in shown.blocks)
        strip = Text.assemble(*(_shade(share, shown.largest) for share in cells))
        _row(table, shown, module, [strip])
    _totals(table, shown, [""])
    return table


def _table(shown: _Map, blocks: Sequence[tuple[str, str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("module", max_width=_WIDEST_MODULE, no_wrap=True, overflow="ellipsis")
    for title, side in blocks:
        table.add_column(title, justify="left" if side == "left" else "right", no_wrap=True)
    if shown.outside:
        table.add_column("outside", justify="right", no_wrap=True)
    table.add_column("all", justify="right", style="dim", no_wrap=True)
    return table


def _row(table: Table, shown: _Map, module: str, cells: list[Text]) -> None:
    outside = [_figure(shown.outside.get(module), shown)] if shown.outside else []
    total = part_in_words(shown.of_module(module), shown.score)
    table.add_row(Text(module), *cells, *outside, total)


def _totals(table: Table, shown: _Map, blocks: list[str]) -> None:
    outside = sum(shown.outside.values())
    total = outside + sum(shown.cells.values())
    parts = [part_in_words(outside, shown.score)] if shown.outside else []
    table.add_row("all", *blocks, *parts, part_in_words(total, shown.score), style="dim")


def _figure(share: float | None, shown: _Map) -> Text:
    if share is None:
        return Text("")
    shade = _shade(share, shown.largest)
    return Text.assemble(shade[1:], shade[1:], " ", part_in_words(share, shown.score))


def _shade(share: float | None, largest: float) -> Text:
    if share is None:
        return Text("  ")
    level = sum(abs(share) >= step * largest > 0 for step in _STEPS)
    sign, colour = ("-", LOWERS) if share < 0 else (" ", RAISES)
    return Text(sign + _SHADES[level], colour)


def _width(table: Table, console: Console) -> int:
    return Measurement.get(console, console.options.update(width=10_000), table).maximum
