"""What was asked, on a terminal: one output of the model, two to choose from, or a set of them."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from wherefrom.query.measurement import Measurement
from wherefrom.query.printable import printable
from wherefrom.query.wording import set_in_words
from wherefrom.records import Query, QuerySet

__all__ = ["fact_grid", "question_facts"]

_MEMBERS_SHOWN = 3


def question_facts(query: Query | QuerySet | None, measured: Measurement) -> list[tuple[str, Text]]:
    """A question as labels and printable values, the first few members of a set.

    Args:
        query: What was asked; ``None`` for tensors.
        measured: What it measured.
    """
    if query is None:
        return [("asked with", Text("tensors"))]
    if isinstance(query, Query):
        return _one(query, measured.answered)
    facts = [("asked as one", Text(set_in_words(query)))]
    for member in query.queries[:_MEMBERS_SHOWN]:
        facts += _one(member, measured.answered)
    hidden = len(query.queries) - _MEMBERS_SHOWN
    if hidden > 0:
        facts.append(("", Text(f"and {hidden:,} more")))
    return facts


def fact_grid(facts: Iterable[tuple[str, Text]]) -> Table:
    """Labels and values, a row each; long values wrap within their column."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, value in facts:
        grid.add_row(Text(label), value)
    return grid


def _one(query: Query, answered: str) -> list[tuple[str, Text]]:
    said = Text(_edged(query.completion), style="bold")
    if answered == "label":
        facts = [("text", Text(printable(query.prompt))), ("label", said)]
    else:
        asked = Text.assemble(_edged(query.prompt), ("|", "dim"), said)
        facts = [(f"prompt|{answered}", asked)]
    if query.contrast is not None:
        facts.append(("rather than", Text(_edged(query.contrast), style="bold")))
    return facts


def _edged(text: str) -> str:
    """One printable line that still shows whether the text starts or ends with a space."""
    line = printable(text)
    before = " " if text[:1].isspace() else ""
    after = " " if line and text[-1:].isspace() else ""
    return before + line + after
