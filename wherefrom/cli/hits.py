"""Documents that were found, on a terminal: a table, or one below the other where it is narrow.

What is known of a document beyond its score gets a column where there is room, and stands above the
document's text where there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from wherefrom.cli.highlight import marked, plain
from wherefrom.cli.shares import score_parts, strongest_layers, strongest_words
from wherefrom.query.answer import Answer
from wherefrom.query.interpretation.explanation import (
    HitSimilarity,
    SimilarDocument,
    SimilarityFlag,
)
from wherefrom.query.printable import excerpt, printable
from wherefrom.query.wording import (
    LEAST_RUN,
    percentile_in_words,
    ranked_by,
    ranked_value,
    run_in_words,
    signed,
    value_in_words,
)
from wherefrom.records import Hit

__all__ = ["print_hits", "print_similar"]

_WIDEST_METADATA = 22
_GAP = 3
_LINES = 3
_LEAST_CELLS = 240
_NARROWEST_DOCUMENT = 24
_STACKED = 64
"""Terminals of fewer columns have documents one below the other."""

_QUOTED = 80
_FLAG = "bold magenta"


@dataclass(frozen=True, slots=True)
class _Column:
    """What is known of each document, and how a value is said where it has no column.

    Attributes:
        title: Of the column.
        values: One for each document; empty where there is nothing to say.
        before: Stands before a value that has no column.
        after: Stands after it.
    """

    title: str
    values: list[str]
    before: str = ""
    after: str = ""

    @property
    def width(self) -> int:
        """Cells of the widest."""
        return max(map(cell_len, (self.title, *self.values)))

    def say(self, row: int) -> list[str]:
        """A value in a line of facts, if there is one."""
        value = self.values[row]
        return [self.before + value + self.after] if value else []


@dataclass(frozen=True, slots=True)
class _Shown:
    """A document: what to call it, and what to show of it in so many columns."""

    rank: str
    name: str
    flag: SimilarityFlag | None
    body: Callable[[int], list[Text]]


def print_hits(answer: Answer, hits: Sequence[Hit], style: str, console: Console) -> None:
    """Print documents of one sign, the strongest first.

    Args:
        answer: What they are hits of.
        hits: At least one of them.
        style: Of what they are ranked by.
        console: Where.
    """
    scores = [_Column("nats", [signed(hit.score) for hit in hits], after=" nats")]
    ranking = ranked_by(answer)
    if ranking is not None:
        values = [signed(ranked_value(hit, answer.normalise)) for hit in hits]
        scores.insert(0, _Column(ranking[0], values, f"{ranking[0]} "))
    known = [hit.percentile for hit in hits if hit.percentile is not None]
    measures = []
    if len(known) == len(hits):
        measures.append(_Column("pct", [percentile_in_words(one) for one in known], "pct "))
    alike = [None if answer.similarity is None else answer.similarity.of(h.doc_id) for h in hits]
    measures += _in_words(alike)
    metadata = [
        _Column(
            printable(name),
            [printable(value_in_words(hit.metadata.get(name))) for hit in hits],
            f"{printable(name)}: ",
        )
        for name in dict.fromkeys(name for hit in hits for name in hit.metadata)
    ]
    shown = [
        _Shown(
            str(hit.rank),
            printable(hit.doc_id),
            None if similar is None else similar.flag,
            lambda width, hit=hit, similar=similar: _body(  # type: ignore[misc]
                answer, hit, similar, width, console
            ),
        )
        for hit, similar in zip(hits, alike, strict=True)
    ]
    _print(shown, scores, measures, metadata, style, console)


def print_similar(documents: Sequence[SimilarDocument], console: Console) -> None:
    """Print the documents that are most like the question in words, with their influence.

    Args:
        documents: At least one.
        console: Where.
    """
    first = [_Column("BM25", [f"{one.bm25:.2f}" for one in documents], "BM25 ")]
    measures = [
        _Column("nats", [signed(one.score) for one in documents], after=" nats"),
        _Column("run", [run_in_words(one.shared_words) for one in documents], "run "),
    ]
    known = [one.percentile for one in documents if one.percentile is not None]
    if len(known) == len(documents):
        measures.append(_Column("pct", [percentile_in_words(one) for one in known], "pct "))
    shown = [
        _Shown(
            str(one.bm25_rank),
            printable(one.doc_id),
            one.flag,
            lambda width, one=one: [Text(excerpt(one.text, width))],  # type: ignore[misc]
        )
        for one in documents
    ]
    _print(shown, first, measures, [], "bold", console)


def _in_words(alike: Sequence[HitSimilarity | None]) -> list[_Column]:
    """Similarity to the question and to other hits."""
    known = [one for one in alike if one is not None]
    if len(known) < len(alike):
        return []
    ranks = [f"#{one.bm25_rank:,}" if one.bm25 > 0 else "–" for one in known]
    runs = [run_in_words(one.shared_words) for one in known]
    clusters = ["" if one.cluster is None else str(one.cluster) for one in known]
    columns = [_Column("BM25", ranks, "BM25 "), _Column("run", runs, "run ")]
    return [*columns, _Column("alike", clusters, "alike ")] if any(clusters) else columns


def _body(
    answer: Answer, hit: Hit, similar: HitSimilarity | None, width: int, console: Console
) -> list[Text]:
    """A document's text around what matters in it, and what it is made of."""
    shares = None if answer.explanation is None else answer.explanation.of(hit.doc_id)
    run = None
    if similar is not None and similar.shared_words >= LEAST_RUN:
        run = (similar.shared_start, similar.shared_end)
    lines: list[Text] = []
    facts: list[str] = []
    parts: list[str] = []
    if hit.text:
        tokens = None if shares is None else shares.tokens
        cells = max(_LEAST_CELLS, _LINES * width)
        passage = marked(hit.text, tokens, cells, plain=plain(console), run=run)
        lines.append(passage.line)
        if shares is not None and tokens is not None:
            words = strongest_words(hit.text, shares)
            facts += [f"words {words}"] if words else []
            if not passage.whole:
                facts.append(f"shown {signed(passage.share)} of {signed(shares.score)}")
        if run is not None and not passage.holds_run:
            facts.append(f"run «{excerpt(hit.text[slice(*run)], _QUOTED)}»")
    if shares is not None and answer.explanation is not None:
        places = score_parts(shares)
        parts += [f"parts {places}"] if places else []
        parts.append(f"layers {strongest_layers(answer.explanation, shares)}")
    told = ["; ".join(facts), *parts]
    return [*lines, *(Text(line, "dim") for line in told if line)]


def _print(
    shown: Sequence[_Shown],
    scores: Sequence[_Column],
    measures: Sequence[_Column],
    metadata: Sequence[_Column],
    style: str,
    console: Console,
) -> None:
    """Print documents as a table, which has columns of measures and metadata as there is room."""
    if console.width < _STACKED:
        _stack(shown, scores, [*measures, *metadata], style, console)
        return
    ranks = max(cell_len(one.rank) for one in shown)
    room = console.width - ranks - _GAP - sum(column.width + _GAP for column in scores)
    columns: list[_Column] = []
    rest: list[_Column] = []
    wanted = max(_NARROWEST_DOCUMENT, console.width // 2)
    for column in measures:
        # The first is the percentile, which is worth a column rather than a wide text.
        least = wanted if columns or rest else _NARROWEST_DOCUMENT
        if room - column.width - _GAP >= least:
            columns.append(column)
            room -= column.width + _GAP
        else:
            rest.append(column)
    named: list[_Column] = []
    for column in metadata:
        wide = min(column.width, _WIDEST_METADATA) + _GAP
        if len(rest) > len(measures) - len(columns) or room - wide < wanted:
            rest.append(column)
        else:
            named.append(column)
            room -= wide
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("#", justify="right", style="dim", no_wrap=True)
    for i, column in enumerate((*scores, *columns)):
        # The first one is what documents are ranked by.
        table.add_column(column.title, justify="right", style="" if i else style, no_wrap=True)
    for column in named:
        table.add_column(
            Text(column.title), max_width=_WIDEST_METADATA, no_wrap=True, overflow="ellipsis"
        )
    table.add_column("document", width=room, overflow="fold")
    for row, one in enumerate(shown):
        body = one.body(room)
        values = [Text(column.values[row]) for column in (*scores, *columns, *named)]
        head = _head(
            one, [fact for column in rest for fact in column.say(row)], has_body=bool(body)
        )
        table.add_row(one.rank, *values, Text("\n").join([head, *body]))
    console.print(table)


def _stack(
    shown: Sequence[_Shown],
    scores: Sequence[_Column],
    others: Sequence[_Column],
    style: str,
    console: Console,
) -> None:
    """Print documents one below the other."""
    indent = max(cell_len(one.rank) for one in shown) + 2
    for row, one in enumerate(shown):
        said = " · ".join(fact for column in scores for fact in column.say(row))
        body = one.body(console.width - indent)
        facts = [fact for column in others for fact in column.say(row)]
        first = Text.assemble((one.rank.rjust(indent - 2), "dim"), "  ", (said, style))
        console.print()
        console.print(first)
        lines = Text("\n").join([_head(one, facts, has_body=bool(body)), *body])
        lines.overflow = "fold"
        console.print(Padding(lines, (0, 0, 0, indent)))


def _head(shown: _Shown, facts: Sequence[str], *, has_body: bool) -> Text:
    """What a document is called, what has no column of its own, and its flag."""
    line = Text(shown.name, "bold" if has_body else "")
    line.append("".join(f" · {fact}" for fact in facts), "not bold dim" if has_body else "")
    if shown.flag is not None:
        line.append(" · ", "not bold dim").append(shown.flag, _FLAG)
    return line
