"""Text cut into pieces by what its tokens add to a score, to be shown in steps of two colours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from wherefrom.query.interpretation.explanation import TokenShare
from wherefrom.records import Span

__all__ = ["STEPS", "Piece", "pieces", "step", "strongest"]

STEPS = 8
"""Steps of intensity of each sign."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a text that is shown in one way.

    Attributes:
        text: Its characters.
        share: Nats of its token; ``None`` between tokens, and for those that are context only.
        step: Intensity from ``-STEPS`` (lowers most) over 0 (little or nothing) to ``STEPS``.
        run: Whether it is part of the run of words that the question shares.
    """

    text: str
    share: float | None
    step: int
    run: bool


def step(share: float | None, largest: float) -> int:
    """Intensity of a share, relative to the largest there is: rounded, 0 below a sixteenth."""
    return round(STEPS * share / largest) if share and largest else 0


def pieces(
    text: str, tokens: Sequence[TokenShare], largest: float, run: Span = (0, 0)
) -> Iterator[Piece]:
    """All of a text, piece by piece.

    Tokens that share a character (bytes of one letter, say) become one piece with the sum of their
    shares.

    Args:
        text: The whole.
        tokens: Of it, in its order.
        largest: The largest share, of either sign, that intensities are relative to.
        run: A span to cut out as well.
    """
    position = 0
    for start, end, share in _apart(tokens, len(text)):
        yield from _cut(text, position, start, None, 0, run)
        yield from _cut(text, start, end, share, step(share, largest), run)
        position = end
    yield from _cut(text, position, len(text), None, 0, run)


def strongest(tokens: Sequence[TokenShare], most: int) -> tuple[list[TokenShare], list[TokenShare]]:
    """The tokens that raise most and that lower most, strongest first; blank ones are left out."""
    told = [(token.share, token) for token in tokens if token.share and token.text.strip()]
    told.sort(key=lambda one: -one[0])
    raising = [token for share, token in told[:most] if share > 0.0]
    lowering = [token for share, token in reversed(told[-most:]) if share < 0.0]
    return raising, lowering


def _apart(tokens: Sequence[TokenShare], length: int) -> list[tuple[int, int, float | None]]:
    """Spans that do not overlap, with the shares of the tokens in them."""
    spans: list[tuple[int, int, float | None]] = []
    for token in sorted(tokens, key=lambda token: (token.start, token.end)):
        start, end, share = token.start, min(token.end, length), token.share
        if start >= end:
            continue
        if spans and start < spans[-1][1]:
            first, last, other = spans.pop()
            known = [one for one in (other, share) if one is not None]
            start, end, share = first, max(end, last), sum(known) if known else None
        spans.append((start, end, share))
    return spans


def _cut(
    text: str, start: int, end: int, share: float | None, intensity: int, run: Span
) -> Iterator[Piece]:
    """A span of a text, cut where a run begins and ends."""
    edges = sorted({start, end, *(edge for edge in run if start < edge < end)})
    for left, right in pairwise(edges):
        inside = run[0] <= left and right <= run[1]
        yield Piece(text[left:right], share, intensity, inside)
