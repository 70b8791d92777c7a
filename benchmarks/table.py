"""Figures as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from benchmarks.figures import Figure

__all__ = ["figure_table"]


def figure_table(title: str, figures: Sequence[Figure]) -> Table:
    """Figure, target, median, smallest and largest value, and whether the target is met."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column(Text(title, style="bold"))
    for heading in ("unit", "target", "median", "min", "max"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for figure in figures:
        values = (figure.median, min(figure.values), max(figure.values))
        table.add_row(
            figure.name,
            figure.unit,
            _target(figure),
            *(_number(value) for value in values),
            _verdict(figure),
        )
    return table


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _target(figure: Figure) -> str:
    if figure.at_most is not None:
        return f"≤ {_number(figure.at_most)}"
    if figure.at_least is not None:
        return f"≥ {_number(figure.at_least)}"
    return ""


def _verdict(figure: Figure) -> Text:
    if figure.met is None:
        return Text("")
    return Text("met", style="green") if figure.met else Text("missed", style="red")
