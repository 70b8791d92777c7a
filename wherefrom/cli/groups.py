"""Influence summed by a metadata column, as bars with their intervals."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

from wherefrom.cli.highlight import LOWERS, RAISES
from wherefrom.query.interpretation.explanation import Group, Grouping
from wherefrom.query.printable import printable
from wherefrom.query.wording import signed, value_in_words

__all__ = ["bar", "group_table"]

_ENDS_SHOWN = 8
_WIDEST_VALUE = 28
_NARROWEST_BAR = 12
_WIDEST_BAR = 60
_INDENT = 2


def group_table(grouping: Grouping, console: Console) -> None:
    """Print a row a group, the largest totals first; of very many, both ends.

    Args:
        grouping: Sums by one column.
        console: Where; a narrow one gets the bars below the numbers.
    """
    scores = f"{grouping.tier} scores of all documents searched, summed"
    title = f"By {printable(grouping.column)}: {scores}"
    console.print(Text(title, style="bold"))
    groups = grouping.groups
    if not groups:
        console.print(Text("No document has a score."))
        return
    hidden = len(groups) - 2 * _ENDS_SHOWN
    shown = groups if hidden <= 1 else (*groups[:_ENDS_SHOWN], *groups[-_ENDS_SHOWN:])
    rows = [_row(group) for group in shown]
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    widths[0] = min(widths[0], _WIDEST_VALUE)
    room = console.width - sum(max(w, len(t)) + 3 for w, t in zip(widths, _TITLES, strict=True))
    low = min(0.0, *(min(group.low, group.total) for group in shown))
    high = max(0.0, *(max(group.high, group.total) for group in shown))
    if room >= _NARROWEST_BAR:
        cells = min(room, _WIDEST_BAR)
        console.print(_table(rows, [bar(group, low, high, cells) for group in shown], hidden))
    else:
        _stack(rows, [bar(group, low, high, console.width - _INDENT) for group in shown], console)
        if hidden > 1:
            console.print(Text(f"and {hidden:,} groups in between", "dim"))
    console.print(
        Text(
            f"█ total in nats; ▒ ─ its {grouping.confidence:.0%} interval, by {grouping.draws:,} "
            "draws of a group's documents with replacement.",
            "dim",
        )
    )


_TITLES = ("group", "documents", "nats", "interval")


def bar(group: Group, low: float, high: float, cells: int) -> Text:
    """A total from a zero line on, and the interval around its end.

    Args:
        group: Whose total.
        low: What the left edge stands for, at most 0.
        high: What the right edge stands for, at least 0; more than ``low``.
        cells: How wide, at least 2; one of them is the zero line.
    """
    scale = (cells - 1) / (high - low) if high > low else 0.0
    zero = round(-low * scale)

    def at(value: float) -> int:
        """Cells to the right of the zero line, or to the left if negative."""
        return max(-zero, min(cells - 1 - zero, round(value * scale)))

    line = [" "] * cells
    total, ends = at(group.total), (at(group.low), at(group.high))
    for step in range(min(ends[0], total, 0), max(ends[1], total, 0) + 1):
        if step == 0:
            continue
        in_bar = 0 < step <= total or total <= step < 0
        # An interval's end is a place between two cells: that cell counts which the bar reaches.
        inside = ends[0] < step <= ends[1] if step > 0 else ends[0] <= step < ends[1]
        line[zero + step] = ("▒" if inside else "█") if in_bar else "─" if inside else " "
    line[zero] = "│"
    return Text("".join(line).rstrip(), RAISES if group.total > 0 else LOWERS)


def _row(group: Group) -> list[str]:
    """Cells of a group; nothing is drawn anew of a single document, which has no interval."""
    return [
        printable(value_in_words(group.value)),
        f"{group.documents:,}",
        signed(group.total),
        f"{signed(group.low)} to {signed(group.high)}" if group.documents > 1 else "–",
    ]


def _table(rows: Sequence[Sequence[str]], bars: Sequence[Text], hidden: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column(_TITLES[0], max_width=_WIDEST_VALUE, no_wrap=True, overflow="ellipsis")
    for title in _TITLES[1:]:
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for i, (row, drawn) in enumerate(zip(rows, bars, strict=True)):
        if hidden > 1 and i == _ENDS_SHOWN:
            table.add_row(Text(f"… {hidden:,} more …", "dim"))
        table.add_row(*map(Text, row), drawn)
    return table


def _stack(rows: Sequence[Sequence[str]], bars: Sequence[Text], console: Console) -> None:
    for (value, documents, total, interval), drawn in zip(rows, bars, strict=True):
        if cell_len(value) > console.width:
            value = set_cell_size(value, console.width - 1) + "…"
        console.print(Text(value))
        counted = "1 document" if documents == "1" else f"{documents} documents, {interval}"
        console.print(Text(f"{' ' * _INDENT}{total} from {counted}"))
        console.print(Text.assemble(" " * _INDENT, drawn), no_wrap=True, crop=True)
