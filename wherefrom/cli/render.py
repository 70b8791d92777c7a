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

from wherefrom.query.answer import Answer
from wherefrom.query.printable import excerpt, printable
from wherefrom.query.wording import (
    certificate_in_words,
    empty_in_words,
    filter_in_words,
    likelihood_in_words,
    signed,
    value_in_words,
)
from wherefrom.records import SCORE_CONTRACT, Hit

__all__ = ["answer_table", "emit_json", "print_facts", "terminal"]

_WIDEST_METADATA = 20
_WIDEST_ID = 24
_GAP = 3
_EXCERPT = 240


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


def answer_table(answer: Answer, console: Console) -> None:
    """Print an answer: the question, proponents, opponents, and how far to trust them."""
    console.print(_question(answer))
    rankings = [
        ("Proponents: they make the completion more likely", "bold cyan", answer.proponents),
        ("Opponents: they make the completion less likely", "bold yellow", answer.opponents),
    ]
    for title, style, hits in rankings:
        if hits:
            console.print()
            console.print(Text(title, style="bold"))
            hidden = _print_hits(hits, style, console)
            if hidden:
                names = ", ".join(map(printable, hidden))
                console.print(Text(f"No room to show: {names}", style="dim"))
    if not answer.proponents and not answer.opponents:
        console.print()
        console.print(Text(empty_in_words(answer), style="bold"))
    console.print()
    console.print(Text(certificate_in_words(answer.certificate)))
    console.print(Text(SCORE_CONTRACT, style="dim"))


def _question(answer: Answer) -> Table:
    """The prompt and its completion, how likely it is, and the filter."""
    facts: list[tuple[str, Text]] = []
    if answer.query is None:
        facts.append(("asked", Text("a tensor example")))
    else:
        asked = Text(_edged(answer.query.prompt))
        asked.append("|", style="dim")
        asked.append(_edged(answer.query.completion), style="bold")
        facts.append(("prompt|completion", asked))
    facts.append(("log-likelihood", Text(likelihood_in_words(answer))))
    if answer.where:
        facts.append(("filter", Text(printable(filter_in_words(answer.where)))))
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, value in facts:
        grid.add_row(Text(label), value)
    return grid


def _edged(text: str) -> str:
    """One printable line that still shows whether the text starts or ends with a space."""
    line = printable(text)
    before = " " if text[:1].isspace() else ""
    after = " " if line and text[-1:].isspace() else ""
    return before + line + after


@dataclass(frozen=True, slots=True)
class _Layout:
    """Which columns a table of hits has, and how wide they are."""

    metadata: dict[str, int]
    hidden: list[str]
    doc_id: int
    text: int


def _print_hits(hits: Sequence[Hit], style: str, console: Console) -> list[str]:
    """Print one sign's hits; returns the metadata columns there was no room for."""
    layout = _layout(hits, console.width)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("#", justify="right", style="dim", no_wrap=True)
    table.add_column("nats", justify="right", style=style, no_wrap=True)
    for name, width in layout.metadata.items():
        table.add_column(Text(printable(name)), max_width=width, no_wrap=True, overflow="ellipsis")
    table.add_column("document", width=layout.doc_id, overflow="fold")
    if layout.text:
        table.add_column("text", width=layout.text, overflow="fold")
    for hit in hits:
        values = [_value(hit, name) for name in layout.metadata]
        cells = [str(hit.rank), signed(hit.score), *values, printable(hit.doc_id)]
        if layout.text:
            cells.append(excerpt(hit.text, max(_EXCERPT, 2 * layout.text)))
        table.add_row(*map(Text, cells))
    console.print(table)
    return layout.hidden


def _layout(hits: Sequence[Hit], width: int) -> _Layout:
    """Give the text what it needs first, then metadata columns from left to right."""
    ranks = cell_len(str(hits[-1].rank))
    scores = max(cell_len(signed(hit.score)) for hit in hits)
    doc_id = max(cell_len("document"), *(cell_len(printable(hit.doc_id)) for hit in hits))
    doc_id = min(doc_id, _WIDEST_ID, max(8, width // 5))
    room = width - ranks - max(scores, 4) - doc_id - 2 * _GAP
    has_text = any(hit.text for hit in hits)
    wanted_text = max(16, width // 3) + _GAP if has_text else 0
    shown: dict[str, int] = {}
    hidden: list[str] = []
    for name in dict.fromkeys(name for hit in hits for name in hit.metadata):
        widest = max(cell_len(printable(name)), *(cell_len(_value(hit, name)) for hit in hits))
        wide = min(widest, _WIDEST_METADATA)
        if hidden or room - wide - _GAP < wanted_text:
            hidden.append(name)
            continue
        shown[name] = wide
        room -= wide + _GAP
    return _Layout(shown, hidden, doc_id, max(8, room - _GAP) if has_text else 0)


def _value(hit: Hit, name: str) -> str:
    return printable(value_in_words(hit.metadata.get(name)))
