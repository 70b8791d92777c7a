"""Texts on a terminal with the words marked that carry a score, cut to where those are.

Where there is no colour, words stand between signs as in a plain word diff: ``{+raises+}`` and
``[-lowers-]``. A run of words that the question holds too stands between ``«`` and ``»``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from wherefrom.query.interpretation.explanation import TokenShare
from wherefrom.query.printable import printable
from wherefrom.records import Span

__all__ = ["LOWERS", "RAISES", "RUN", "Passage", "legend", "marked", "plain", "words_of"]

# Blue and orange: told apart by all common kinds of colour vision, and readable on light and dark.
RAISES = "color(32)"
LOWERS = "color(166)"
RUN = "magenta"

_STRONG = 0.5
_MARKED = 0.1
"""Of the largest share in a text: from there on words are marked, and marked as strong."""

_CORE = 0.75
"""Of a passage is filled with what carries the score; the rest is context on both sides."""

_UNSPACED = "\u2e80"
"""From here on scripts run their words together, and tokens are marked one by one."""

_STYLES = {
    (True, True): f"bold underline {RAISES}",
    (True, False): f"underline {RAISES}",
    (False, True): f"bold italic {LOWERS}",
    (False, False): f"italic {LOWERS}",
}
_SIGNS = {True: ("{+", "+}"), False: ("[-", "-]")}
_RUN_SIGNS = ("«", "»")


@dataclass(frozen=True, slots=True)
class Passage:
    """What of a text is shown.

    Attributes:
        line: It, marked.
        share: Nats of its tokens.
        whole: Whether nothing was cut away.
        holds_run: Whether all of the shared run is in it.
    """

    line: Text
    share: float
    whole: bool
    holds_run: bool


def plain(console: Console) -> bool:
    """Whether a console shows no colours, so that words are to stand between signs."""
    return console.no_color or console.color_system is None


def legend(*, plain: bool, run: bool) -> Text:
    """Samples of the marks, each with what it says.

    Args:
        plain: Without colours.
        run: Whether shared runs are marked, too.
    """
    parts: list[Text] = []
    for raises, what in ((True, "raises the score"), (False, "lowers it")):
        sample = Text(what, style="" if plain else _STYLES[raises, True])
        parts.append(_signed(sample, [(0, len(what), raises)]) if plain else sample)
    if run:
        opening, closing = _RUN_SIGNS
        parts.append(Text.assemble((opening, RUN), "in the question, too", (closing, RUN)))
    return Text(" · ").join(parts)


def words_of(text: str, tokens: Iterable[TokenShare]) -> list[TokenShare]:
    """Tokens joined into words, whose shares are the sums of theirs.

    So are tokens that share a character (bytes of one letter). Those that are context only join
    none, and those that stand for no text are left out. White space at the edges belongs to no
    word.
    """
    words: list[TokenShare] = []
    for token in tokens:
        if token.share is None or not token.stands_for_text:
            continue
        start, end = _stripped(text, token.start, token.end)
        if start == end:
            # A space carries influence, too: it is kept, so that shares still sum to the score.
            start, end = token.start, token.end
        last = words[-1] if words else None
        if last is not None and (
            start < last.end or (start == last.end and _one_word(text, start))
        ):
            share, end = (last.share or 0.0) + token.share, max(end, last.end)
            words[-1] = TokenShare(text[last.start : end], last.start, end, share)
        else:
            words.append(TokenShare(text[start:end], start, end, token.share))
    return words


def marked(
    text: str,
    tokens: Sequence[TokenShare] | None,
    cells: int,
    *,
    plain: bool,
    run: Span | None = None,
) -> Passage:
    """The part of a text that says most of a score, on one printable line.

    Args:
        text: All of it, as it came.
        tokens: Shares of the score; without them the passage is about ``run``, or the start.
        cells: How wide it may be, marks not counted.
        plain: Mark by signs rather than colours.
        run: A span of ``text`` to mark as shared with the question.
    """
    words = words_of(text, tokens or ())
    largest = _largest(words)
    interests = [(w.start, w.end, abs(w.share or 0.0)) for w in words if _worth(w, largest)]
    if not interests and run is not None:
        interests = [(*run, 1.0)]
    start, end = _window(text, interests, cells)
    raw = text[start:end]
    line = Text(printable(raw))
    marks = [
        (*_place(raw, max(first, start) - start, min(last, end) - start), raises, strong)
        for first, last, raises, strong in _marks(text, words, graded=not plain)
        if first < end and start < last
    ]
    if not plain:
        for first, last, raises, strong in marks:
            line.stylize(_STYLES[raises, strong], first, last)
    signs = [(first, last, raises) for first, last, raises, _ in marks] if plain else []
    shared = None
    if run is not None and max(run[0], start) < min(run[1], end):
        shared = _place(raw, max(run[0], start) - start, min(run[1], end) - start)
    return Passage(
        Text.assemble(
            "…" if start else "", _signed(line, signs, shared), "…" if end < len(text) else ""
        ),
        sum(word.share or 0.0 for word in words if start <= word.start and word.end <= end),
        start == 0 and end == len(text),
        run is not None and start <= run[0] and run[1] <= end,
    )


def _stripped(text: str, start: int, end: int) -> Span:
    """A span without the white space at its edges."""
    piece = text[start:end]
    return start + len(piece) - len(piece.lstrip()), max(start, start + len(piece.rstrip()))


def _one_word(text: str, at: int) -> bool:
    """Whether the letters on both sides of a place belong to one word."""
    return all(letter.isalnum() and letter < _UNSPACED for letter in text[at - 1 : at + 1])


def _marks(
    text: str, words: Sequence[TokenShare], *, graded: bool
) -> list[tuple[int, int, bool, bool]]:
    """Spans to mark, whether they raise the score, and whether strongly; neighbours are joined."""
    largest = _largest(words)
    marks: list[tuple[int, int, bool, bool]] = []
    for word in words:
        if not _worth(word, largest):
            continue
        share = word.share or 0.0
        kind = (share > 0, graded and abs(share) >= _STRONG * largest)
        if marks and marks[-1][2:] == kind and not text[marks[-1][1] : word.start].strip():
            marks[-1] = (marks[-1][0], word.end, *kind)
        else:
            marks.append((word.start, word.end, *kind))
    return marks


def _largest(words: Sequence[TokenShare]) -> float:
    return max((abs(word.share or 0.0) for word in words), default=0.0)


def _worth(word: TokenShare, largest: float) -> bool:
    """Whether a word is worth a mark."""
    return abs(word.share or 0.0) >= _MARKED * largest > 0 and bool(word.text.strip())


def _place(raw: str, start: int, end: int) -> Span:
    """Where a span of text is once the text is made printable."""
    last = len(printable(raw[:end]))
    return max(0, last - len(printable(raw[start:end]))), last


def _signed(
    line: Text, marks: Iterable[tuple[int, int, bool]], run: tuple[int, int] | None = None
) -> Text:
    """A line with the signs of its marks; at one place, what ends stands before what starts."""
    signs: list[tuple[int, int, Text]] = []
    for first, last, raises in marks:
        opening, closing = _SIGNS[raises]
        signs += [(first, 3, Text(opening)), (last, 0, Text(closing))]
    if run is not None:
        signs += [(run[0], 2, Text(_RUN_SIGNS[0], RUN)), (run[1], 1, Text(_RUN_SIGNS[1], RUN))]
    pieces: list[Text] = []
    before = 0
    for at, _, sign in sorted(signs, key=lambda one: one[:2]):
        pieces += [line[before:at], sign]
        before = at
    return Text.assemble(*pieces, line[before:])


def _window(text: str, interests: Sequence[tuple[int, int, float]], cells: int) -> Span:
    """The span of at most so many cells that holds most of what is of interest, and context."""
    reach = [0, *accumulate(map(cell_len, text))]
    if reach[-1] <= cells:
        return 0, len(text)
    start, end = _core(reach, interests, int(_CORE * cells)) if interests else (0, 0)
    end = min(end, _reached(reach, start, cells))
    left, right = start, end
    room = cells - (reach[end] - reach[start])
    while left > 0 and reach[start] - reach[left - 1] <= room // 2:
        left -= 1
    right = _reached(reach, left, cells)
    while right == len(text) and left > 0 and reach[right] - reach[left - 1] <= cells:
        left -= 1
    return _between_words(text, left, start, end, right)


def _core(reach: Sequence[int], interests: Sequence[tuple[int, int, float]], cells: int) -> Span:
    """The span of at most so many cells with the greatest weight; the first one among equals."""
    best, weight, first = (-1.0, 0, 0), 0.0, 0
    for last, (_, end, more) in enumerate(interests):
        weight += more
        while first < last and reach[end] - reach[interests[first][0]] > cells:
            weight -= interests[first][2]
            first += 1
        if weight > best[0]:
            best = (weight, interests[first][0], end)
    return best[1], best[2]


def _reached(reach: Sequence[int], start: int, cells: int) -> int:
    """The last place that is at most so many cells after ``start``."""
    end = start
    while end + 1 < len(reach) and reach[end + 1] - reach[start] <= cells:
        end += 1
    return end


def _between_words(text: str, left: int, start: int, end: int, right: int) -> Span:
    """Leave broken words at the outer edges of the context around ``text[start:end]`` out."""
    if _splits_word(text, left):
        left = next((at + 1 for at in range(left, start) if text[at].isspace()), left)
    if _splits_word(text, right):
        right = next((at for at in range(right - 1, end - 1, -1) if text[at].isspace()), right)
    return left, right


def _splits_word(text: str, at: int) -> bool:
    around = text[max(0, at - 1) : at + 1]
    return 0 < at < len(text) and not any(letter.isspace() for letter in around)
