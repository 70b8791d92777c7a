"""What commands print: answers as tables as wide as the terminal, facts, JSON.

Documents are shown as :class:`rich.text.Text`, so that nothing in them is read as markup, after
:func:`~wherefrom.query.printable.printable` took out what a terminal would obey.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import TextIOWrapper
from typing import Any

import click
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from wherefrom.cli.question import fact_grid, question_facts
from wherefrom.query.answer import Answer
from wherefrom.query.printable import excerpt, printable
from wherefrom.query.wording import (
    PERCENTILE,
    background_in_words,
    certificate_in_words,
    damping_in_words,
    empty_in_words,
    filter_in_words,
    measured,
    percentile_in_words,
    ranked_by,
    ranked_value,
    refined_in_words,
    residual_in_words,
    signed,
    slope_in_words,
    value_in_words,
    worth_in_words,
)
from wherefrom.records import Hit

__all__ = ["answer_table", "emit_json", "print_facts", "terminal"]

_WIDEST_METADATA = 22
_GAP = 3
_EXCERPT = 240
_NARROWEST_DOCUMENT = 24


def terminal(width: int | None = None) -> Console:
    """A console on stdout that takes text as it is: no markup, no emoji codes, no highlighting.

    Args:
        width: Columns; those of the terminal by default.
    """
    if isinstance(sys.stdout, TextIOWrapper):
        # A terminal that cannot show a letter shows a stand-in rather than an error.
        sys.stdout.reconfigure(errors="replace")
    return Console(width=width, markup=False, emoji=False, highlight=False)


def emit_json(fields: Mapping[str, Any]) -> None:
    """Print one JSON object and a newline on stdout, in UTF-8 whatever the locale."""
    text = json.dumps(fields, ensure_ascii=False, allow_nan=False)
    click.echo(text.encode())


def print_facts(facts: Iterable[tuple[str, object]], console: Console) -> None:
    """Print labels and values, a line each; long values are left to the terminal to wrap.

    So digests and commands can be copied, and searched for, in one piece.
    """
    lines = [(printable(label), printable(value_in_words(value))) for label, value in facts]
    width = max((cell_len(label) for label, _ in lines), default=0)
    for label, value in lines:
        padding = " " * (width - cell_len(label) + 2)
        console.print(Text.assemble((label + padding, "dim"), value), soft_wrap=True)


def answer_table(answer: Answer, console: Console, most: int | None = None) -> None:
    """Print an answer: the question, proponents, opponents, and how far to trust them.

    Args:
        answer: What to print.
        console: Where.
        most: How many documents of each sign to print; all by default.
    """
    said = measured(answer)
    facts = [*question_facts(answer.query, said), ("measured", Text(said.quantity))]
    facts.append(("value", Text(worth_in_words(answer))))
    if answer.where:
        facts.append(("filter", Text(printable(filter_in_words(answer.where)))))
    for label, words in (
        ("damping", damping_in_words(answer)),
        ("refined", refined_in_words(answer)),
        ("residual", residual_in_words(answer)),
    ):
        if words is not None:
            facts.append((label, Text(words)))
    console.print(fact_grid(facts))
    ranking = ranked_by(answer)
    how = "" if ranking is None else f"; {ranking[1]}"
    rankings = [
        (f"Proponents: {said.raised}{how}", "bold cyan", answer.proponents),
        (f"Opponents: {said.lowered}{how}", "bold yellow", answer.opponents),
    ]
    for title, style, hits in rankings:
        if hits:
            console.print()
            console.print(Text(title, style="bold"))
            _print_hits(answer, hits[:most], style, console)
    if not answer.proponents and not answer.opponents:
        console.print()
        console.print(Text(empty_in_words(answer), style="bold"))
    console.print()
    console.print(Text(certificate_in_words(answer)))
    for words in (slope_in_words(answer), background_in_words(answer)):
        if words is not None:
            console.print(Text(words))
    console.print(Text(said.contract, style="dim"))
    if any(hit.percentile is not None for hit in (*answer.proponents, *answer.opponents)):
        console.print(Text(f"pct = {PERCENTILE}", style="dim"))


@dataclass(frozen=True, slots=True)
class _Numbers:
    """A column of numbers: its title and a value for each hit."""

    title: str
    values: list[str]

    @property
    def width(self) -> int:
        """Cells of the widest."""
        return max(map(cell_len, (self.title, *self.values)))


@dataclass(frozen=True, slots=True)
class _Layout:
    """Columns of a table of hits, and what has no column and stands above the text."""

    numbers: list[_Numbers]
    columns: dict[str, int]
    rest: list[str]
    percentiles: _Numbers | None
    document: int


def _print_hits(answer: Answer, hits: Sequence[Hit], style: str, console: Console) -> None:
    """Print one sign's hits."""
    layout = _layout(answer, hits, console.width)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("#", justify="right", style="dim", no_wrap=True)
    for i, numbers in enumerate(layout.numbers):
        # The first one is what documents are ranked by.
        table.add_column(numbers.title, justify="right", style="" if i else style, no_wrap=True)
    for name, width in layout.columns.items():
        table.add_column(Text(printable(name)), max_width=width, no_wrap=True, overflow="ellipsis")
    table.add_column("document", width=layout.document, overflow="fold")
    for i, hit in enumerate(hits):
        facts = [printable(hit.doc_id)]
        if layout.percentiles is not None:
            facts.append(f"{layout.percentiles.title} {layout.percentiles.values[i]}")
        facts += [f"{printable(name)}: {_value(hit, name)}" for name in layout.rest]
        document = Text(" · ".join(facts), style="dim" if hit.text else "")
        if hit.text:
            text = excerpt(hit.text, max(_EXCERPT, 2 * layout.document))
            document = Text.assemble(document, "\n", Text(text))
        values = [Text(_value(hit, name)) for name in layout.columns]
        shown = [numbers.values[i] for numbers in layout.numbers]
        table.add_row(str(hit.rank), *shown, *values, document)
    console.print(table)


def _layout(answer: Answer, hits: Sequence[Hit], width: int) -> _Layout:
    """Give the document what it needs first, then metadata columns from left to right."""
    numbers = [_Numbers("nats", [signed(hit.score) for hit in hits])]
    ranking = ranked_by(answer)
    if ranking is not None:
        values = [signed(ranked_value(hit, answer.normalise)) for hit in hits]
        numbers.insert(0, _Numbers(ranking[0], values))
    known = [hit.percentile for hit in hits if hit.percentile is not None]
    percentiles = (
        None if len(known) < len(hits) else _Numbers("pct", [percentile_in_words(p) for p in known])
    )
    room = width - cell_len(str(hits[-1].rank)) - _GAP
    room -= sum(column.width + _GAP for column in numbers)
    if percentiles is not None and room - percentiles.width - _GAP >= _NARROWEST_DOCUMENT:
        numbers.append(percentiles)
        room -= percentiles.width + _GAP
        percentiles = None
    wanted = max(20, width * 2 // 5)
    columns: dict[str, int] = {}
    rest: list[str] = []
    for name in dict.fromkeys(name for hit in hits for name in hit.metadata):
        widest = max(cell_len(printable(name)), *(cell_len(_value(hit, name)) for hit in hits))
        wide = min(widest, _WIDEST_METADATA)
        if rest or room - wide - _GAP < wanted:
            rest.append(name)
            continue
        columns[name] = wide
        room -= wide + _GAP
    return _Layout(numbers, columns, rest, percentiles, max(8, room))


def _value(hit: Hit, name: str) -> str:
    return printable(value_in_words(hit.metadata.get(name)))
