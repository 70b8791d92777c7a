"""What commands print: answers as tables as wide as the terminal, facts, JSON.

Documents are shown as :class:`rich.text.Text`, so that nothing in them is read as markup, after
:func:`~wherefrom.query.printable.printable` took out what a terminal would obey.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from io import TextIOWrapper
from typing import IO, Any, cast

import click
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from wherefrom.cli.groups import group_table
from wherefrom.cli.heat_map import heat_table
from wherefrom.cli.highlight import LOWERS, RAISES, legend, plain
from wherefrom.cli.hits import print_hits, print_similar
from wherefrom.cli.question import fact_grid, question_facts
from wherefrom.cli.shares import question_lines, question_parts
from wherefrom.cli.stand_ins import STAND_INS
from wherefrom.cli.trimmed import Trimmed
from wherefrom.query.answer import Answer
from wherefrom.query.interpretation.explanation import HitShares, TokensAre
from wherefrom.query.printable import printable
from wherefrom.query.wording import (
    LEAST_RUN,
    NO_PROOF,
    PERCENTILE,
    ListName,
    background_in_words,
    certificate_in_words,
    damping_in_words,
    doubt_in_words,
    empty_in_words,
    filter_in_words,
    measured,
    ranked_by,
    refined_in_words,
    residual_in_words,
    slope_in_words,
    value_in_words,
    worth_in_words,
)
from wherefrom.records import Hit

__all__ = ["answer_table", "emit_json", "print_facts", "readable_size", "terminal"]

_LINES = 2
"""Of a question, marked, at most."""

_MARKED_AT: dict[TokensAre, str] = {
    "predictions": ", on the words whose prediction it comes from",
    "positions": ", on the words at whose positions layers did it",
}


def terminal(width: int | None = None) -> Console:
    """A console on stdout that takes text as it is: no markup, no emoji codes, no highlighting.

    Args:
        width: Columns; those of the terminal by default.
    """
    if isinstance(sys.stdout, TextIOWrapper):
        # A terminal that cannot show a letter shows a stand-in rather than an error.
        sys.stdout.reconfigure(errors=STAND_INS)
    # What is piped is read by programs and kept in files, where the padding of tables is noise.
    out = sys.stdout if sys.stdout.isatty() else cast("IO[str]", Trimmed(sys.stdout))
    return Console(file=out, width=width, markup=False, emoji=False, highlight=False)


def emit_json(fields: Mapping[str, Any]) -> None:
    """Print one JSON object and a newline on stdout, in UTF-8 whatever the locale."""
    text = json.dumps(fields, ensure_ascii=False, allow_nan=False)
    click.echo(text.encode())


def print_facts(facts: Iterable[tuple[str, object]], console: Console) -> None:
    """Print labels and values, a line each; long values are left to the terminal to wrap.

    So digests and commands can be copied, and searched for, in one piece.
    """
    lines = [(printable(label), printable(_fact(value))) for label, value in facts]
    width = max((cell_len(label) for label, _ in lines), default=0)
    for label, value in lines:
        padding = " " * (width - cell_len(label) + 2)
        console.print(Text.assemble((label + padding, "dim"), value), soft_wrap=True)


def readable_size(size: int) -> str:
    """Decimal units, as disks are sold and as `du --si` counts."""
    amount, unit = float(size), "bytes"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if amount < 1000:
            break
        amount, unit = amount / 1000, larger
    return f"{size:,} bytes" if unit == "bytes" else f"{amount:.1f} {unit}"


def _fact(value: object) -> str:
    """A value; one that was measured in six digits."""
    return f"{value:g}" if isinstance(value, float) else value_in_words(value)


def answer_table(answer: Answer, console: Console, most: int | None = None) -> None:
    """Print an answer: the question, proponents, opponents, and how far to trust them.

    Shares, similarity and group sums are shown where the answer holds them.

    Args:
        answer: What to print.
        console: Where.
        most: How many documents of each sign to print; all by default.
    """
    said = measured(answer)
    console.print(fact_grid(_facts(answer)))
    ranking = ranked_by(answer)
    how = "" if ranking is None else f"; {ranking[1]}"
    rankings: list[tuple[ListName, str, str, Sequence[Hit]]] = [
        ("Proponents", said.raised + how, f"bold {RAISES}", answer.proponents[:most]),
        ("Opponents", said.lowered + how, f"bold {LOWERS}", answer.opponents[:most]),
    ]
    for name, does, style, hits in rankings:
        if hits:
            _title(f"{name}: {does}", console)
            doubt = doubt_in_words(answer, name)
            if doubt is not None:
                console.print(Text(doubt, style="bold"))
            _print_question(answer, hits, console)
            print_hits(answer, hits, style, console)
    if not answer.hits:
        _title(empty_in_words(answer), console)
    for name, _, _, hits in rankings:
        _print_layers(answer, name, hits, console)
    if answer.similarity is not None and answer.similarity.most_similar:
        _title("Most like the question in words (by BM25), and their influence", console)
        print_similar(answer.similarity.most_similar[:most], console)
    for grouping in answer.groups:
        console.print()
        group_table(grouping, console)
    console.print()
    console.print(Text(certificate_in_words(answer)))
    slope, verdict = slope_in_words(answer), background_in_words(answer)
    if slope is not None:
        console.print(Text(slope))
    if verdict is not None:
        console.print(Text(verdict, style="bold" if _within_chance(answer) else ""))
    for line in _legend(answer, console):
        console.print(line)


def _title(words: str, console: Console) -> None:
    console.print()
    console.print(Text(words, style="bold"))


def _facts(answer: Answer) -> list[tuple[str, Text]]:
    """The question, what it measured, and what is unusual about how it was answered."""
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
    return facts


def _within_chance(answer: Answer) -> bool:
    """Whether a list does not stand out from what random documents bring about."""
    found = answer.certificate.background
    return found is not None and False in (found.proponents, found.opponents)


def _shares_of(answer: Answer, hits: Sequence[Hit]) -> list[HitShares]:
    if answer.explanation is None:
        return []
    found = (answer.explanation.of(hit.doc_id) for hit in hits)
    return [shares for shares in found if shares is not None]


def _print_question(answer: Answer, hits: Sequence[Hit], console: Console) -> None:
    """What of the question some documents act on."""
    shares = _shares_of(answer, hits)
    lines = question_lines(shares, _LINES * console.width, plain=plain(console))
    parts = question_parts(shares) if lines else None
    lines += [Text(parts, "dim")] if parts else []
    label = "acting on"
    console.print(fact_grid([("" if i else label, line) for i, line in enumerate(lines)]))


def _print_layers(answer: Answer, name: str, hits: Sequence[Hit], console: Console) -> None:
    """The heat map of some hits' layers."""
    shares = _shares_of(answer, hits)
    if answer.explanation is None or not shares:
        return
    summed = "the score" if len(shares) == 1 else f"the {len(shares)} scores, summed"
    _title(f"{name} by layer: module and block, in per cent of {summed}", console)
    console.print(heat_table(answer.explanation, shares, console))


def _legend(answer: Answer, console: Console) -> list[Text]:
    """What the columns and marks say."""
    said = [measured(answer).contract]
    if any(hit.percentile is not None for hit in answer.hits):
        said.append(f"pct = {PERCENTILE}")
    if answer.similarity is not None:
        among = f"{answer.similarity.documents:,} documents"
        said.append(f"BM25 = rank among {among} by the words of the question")
        said.append(
            f"run = how many words in a row both hold, from {LEAST_RUN} up; "
            "alike = near-duplicates have a number"
        )
    marks: list[Text] = []
    explanation = answer.explanation
    if explanation is not None and explanation.tokens_are is not None:
        samples = legend(plain=plain(console), run=answer.similarity is not None)
        marks = [
            Text.assemble(("marks = ", "dim"), samples, (_MARKED_AT[explanation.tokens_are], "dim"))
        ]
    if explanation is not None or answer.similarity is not None:
        said.append(NO_PROOF)
    return [*(Text(words, "dim") for words in said), *marks]
