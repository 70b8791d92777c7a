"""Shares of scores in a line: strongest layers and words, and what of a question they act on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from operator import add

from rich.text import Text

from wherefrom.cli.highlight import marked, words_of
from wherefrom.query.interpretation.explanation import (
    Explanation,
    HitShares,
    LayerName,
    QuestionShares,
    TokenShare,
)
from wherefrom.query.printable import printable
from wherefrom.query.wording import parts_in_words, signed

__all__ = [
    "part_in_words",
    "question_lines",
    "question_parts",
    "score_parts",
    "strongest_layers",
    "strongest_words",
]

_STRONGEST = 3
_TEXTS_SHOWN = 3
_WORTH_TELLING = 0.1
"""Of the score: words that hold less are not listed."""


def part_in_words(share: float, score: float) -> str:
    """A share in per cent of the score; in nats where the score is none."""
    if score == 0.0:
        return signed(share)
    percent = 100 * share / abs(score)
    return f"{percent:+.0f}%" if abs(percent) < 1000 else f"{percent:+.0e}%"


def strongest_layers(explanation: Explanation, shares: HitShares) -> str:
    """The layers with the largest shares of a score, each by block and module."""
    named = [(_placed(explanation.layers[i]), share) for i, share in enumerate(shares.layers)]
    return _strongest(named, shares.score)


def strongest_words(text: str, shares: HitShares) -> str:
    """The words with the largest shares of a document's score; empty if none holds much.

    A word that stands there several times holds the sum.
    """
    named: dict[str, float] = {}
    for word in words_of(text, shares.tokens or ()):
        name = printable(word.text)
        named[name] = named.get(name, 0.0) + (word.share or 0.0)
    least = _WORTH_TELLING * abs(shares.score)
    worth = [(name, share) for name, share in named.items() if name and abs(share) >= least > 0]
    return _strongest(worth, shares.score)


def question_lines(hits: Sequence[HitShares], cells: int, *, plain: bool) -> list[Text]:
    """The texts asked about, marked by what in them carries the scores of several hits.

    Args:
        hits: Their shares are summed.
        cells: As wide as the passage of a text may be.
        plain: Mark by signs rather than colours.

    Returns:
        A line for each of the first few texts; none where a hit has no such shares.
    """
    asked = [hit.question for hit in hits if hit.question is not None]
    if not asked or len(asked) < len(hits):
        return []
    return [
        marked(text.text, _summed(same), cells, plain=plain).line
        for text, same in zip(asked[0][:_TEXTS_SHOWN], zip(*asked, strict=True), strict=False)
    ]


def score_parts(shares: HitShares) -> str | None:
    """Where in a document its score lies; ``None`` where all of it lies on the text."""
    found = shares.parts()
    if found is None or not (found.special or found.elsewhere):
        return None
    told = {
        "on the text": found.text,
        "on special tokens": found.special,
        "in layers that see no tokens": found.elsewhere,
    }
    return ", ".join(
        f"{part_in_words(part, shares.score)} {place}" for place, part in told.items() if part
    )


def question_parts(hits: Sequence[HitShares]) -> str | None:
    """Where in the texts asked about the summed scores of several hits lie.

    Args:
        hits: At least one.

    Returns:
        In words; ``None`` where all of it lies on the texts, or that is not known.
    """
    parts = [found for hit in hits if (found := hit.question_parts()) is not None]
    return parts_in_words(reduce(add, parts)) if len(parts) == len(hits) else None


def _strongest(named: Sequence[tuple[str, float]], score: float) -> str:
    strongest = sorted(named, key=lambda one: -abs(one[1]))[:_STRONGEST]
    return ", ".join(f"{name} {part_in_words(share, score)}" for name, share in strongest)


def _placed(layer: LayerName) -> str:
    """A layer without what the names of all begin with."""
    block = "" if layer.depth is None else f"{layer.depth}:"
    return printable(block + layer.module)


def _summed(texts: Sequence[QuestionShares]) -> tuple[TokenShare, ...]:
    """The tokens of one text, each with the sum of its shares over hits."""
    return tuple(
        replace(same[0], share=sum(token.share or 0.0 for token in same))
        for same in zip(*(text.tokens for text in texts), strict=True)
        if same[0].share is not None
    )
