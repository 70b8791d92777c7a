"""One answer of a report, made ready for the template: rankings, marked texts, maps and bars."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import numpy as np
from markupsafe import Markup

from wherefrom.query import wording
from wherefrom.query.answer import Answer
from wherefrom.query.interpretation.explanation import HitShares, HitSimilarity, TokenShare
from wherefrom.query.measurement import Measurement
from wherefrom.query.printable import printable_lines
from wherefrom.query.report.bars import Bars, bars
from wherefrom.query.report.heat_map import HeatMap, heat_map
from wherefrom.query.report.highlights import Piece, pieces, strongest
from wherefrom.records import Hit, Query, QuerySet, Span

__all__ = ["Ranking", "Section", "ShownHit"]

_QUERIES_SHOWN = 20
_TOKENS_NAMED = 3


@dataclass(frozen=True)
class ShownHit:
    """A hit with what is known of it.

    Attributes:
        hit: The hit.
        bar: Width of its bar in per cent.
        shares: What its score is made of, where that was asked for.
        similar: How alike it and the question are, likewise.
        heat: Its layers as a map.
    """

    hit: Hit
    bar: str
    shares: HitShares | None
    similar: HitSimilarity | None
    heat: HeatMap | None

    @property
    def text(self) -> Markup:
        """The document, with its tokens in colours and what it shares with the question framed."""
        tokens = () if self.shares is None else self.shares.tokens or ()
        run, similar = (0, 0), self.similar
        if similar is not None and similar.shared_words >= wording.LEAST_RUN:
            run = (similar.shared_start, similar.shared_end)
        return _marked(self.hit.text, tokens, _largest(tokens), run)

    @property
    def named(self) -> list[tuple[str, list[TokenShare]]]:
        """The strongest tokens of each sign."""
        if self.shares is None or self.shares.tokens is None:
            return []
        both = zip(("raise", "lower"), strongest(self.shares.tokens, _TOKENS_NAMED), strict=True)
        return [(verb, tokens) for verb, tokens in both if tokens]

    @property
    def parts(self) -> str | None:
        """Where its score lies, unless all of it lies on its text."""
        return None if self.shares is None else wording.parts_in_words(self.shares.parts())

    @property
    def question_parts(self) -> str | None:
        """The same of the texts asked about."""
        return None if self.shares is None else wording.parts_in_words(self.shares.question_parts())

    @property
    def questions(self) -> list[tuple[float, Markup]]:
        """The texts asked about, their weight before them, their tokens in this hit's colours."""
        if self.shares is None or self.shares.question is None:
            return []
        shown = self.shares.question[:_QUERIES_SHOWN]
        largest = _largest([token for one in shown for token in one.tokens])
        return [(one.weight, _marked(one.text, one.tokens, largest)) for one in shown]


@dataclass(frozen=True)
class Ranking:
    """One sign's hits.

    Attributes:
        name: ``Proponents`` or ``Opponents``.
        means: What they do, and what they are ranked by.
        kind: Their class on the page.
        hits: In their order.
        heat: Their layers, summed over the hits.
    """

    name: str
    means: str
    kind: str
    hits: list[ShownHit]
    heat: HeatMap | None


@dataclass(frozen=True)
class Section:
    """One answer under its title."""

    title: str
    answer: Answer

    @cached_property
    def measured(self) -> Measurement:
        """What its scores are nats of."""
        return wording.measured(self.answer)

    @property
    def queries(self) -> tuple[Query, ...]:
        """The questions shown."""
        return self._asked[:_QUERIES_SHOWN]

    @property
    def hidden(self) -> int:
        """How many others there are."""
        return len(self._asked) - len(self.queries)

    @property
    def reduced(self) -> str | None:
        """How several questions became one, if they did."""
        asked = self.answer.query
        return wording.set_in_words(asked) if isinstance(asked, QuerySet) else None

    @property
    def name(self) -> str:
        """Its title, or the question in few words."""
        if self.title or not self._asked:
            return self.title or "Asked with tensors"
        first = self._asked[0]
        return (
            f"{first.prompt} {first.completion}"
            if self._is_label
            else (first.prompt + first.completion)
        )

    @property
    def verdicts(self) -> list[tuple[bool, str]]:
        """Whether its lists are proved and each stands out: good or not, and in words."""
        certificate = self.answer.certificate
        told = [(certificate.certified, "certified" if certificate.certified else "not certified")]
        background = certificate.background
        if background is not None:
            for name, out in (
                ("proponents", background.proponents),
                ("opponents", background.opponents),
            ):
                if out is not None:
                    told.append((out, f"{name} {'stand' if out else 'do not stand'} out"))
        return told

    @property
    def doubts(self) -> bool:
        """Whether its first list, at least, is to be taken with care."""
        return not all(good for good, _ in self.verdicts[:2])

    @cached_property
    def rankings(self) -> list[Ranking]:
        """Proponents and opponents, where there are any."""
        answer, measured = self.answer, self.measured
        by = answer.normalise
        top = max((abs(wording.ranked_value(hit, by)) for hit in answer.hits), default=0.0)
        ranking = wording.ranked_by(answer)
        how = "" if ranking is None else f"; {ranking[1]}"
        both = (
            ("Proponents", measured.raised, "pro", answer.proponents),
            ("Opponents", measured.lowered, "con", answer.opponents),
        )
        return [
            Ranking(name, does + how, kind, [self._hit(hit, top) for hit in hits], self._heat(hits))
            for name, does, kind, hits in both
            if hits
        ]

    @property
    def groups(self) -> list[Bars]:
        """Influence summed by metadata columns."""
        return [bars(grouping) for grouping in self.answer.groups]

    @property
    def _asked(self) -> tuple[Query, ...]:
        asked = self.answer.query
        return asked.queries if isinstance(asked, QuerySet) else (asked,) if asked else ()

    @property
    def _is_label(self) -> bool:
        return self.measured.answered == "label"

    def _hit(self, hit: Hit, top: float) -> ShownHit:
        explanation, similarity = self.answer.explanation, self.answer.similarity
        value = abs(wording.ranked_value(hit, self.answer.normalise))
        return ShownHit(
            hit,
            f"{100 * value / top:.1f}" if top else "0",
            None if explanation is None else explanation.of(hit.doc_id),
            None if similarity is None else similarity.of(hit.doc_id),
            self._heat([hit]),
        )

    def _heat(self, hits: Sequence[Hit]) -> HeatMap | None:
        """The layers of hits together."""
        explanation = self.answer.explanation
        if explanation is None or not explanation.layers:
            return None
        shares = [one.layers for hit in hits if (one := explanation.of(hit.doc_id)) is not None]
        if not shares:
            return None
        return heat_map(explanation.layers, np.sum(shares, axis=0).tolist())


def _largest(tokens: Sequence[TokenShare]) -> float:
    return max((abs(token.share) for token in tokens if token.share is not None), default=0.0)


def _marked(text: str, tokens: Sequence[TokenShare], largest: float, run: Span = (0, 0)) -> Markup:
    """A text as HTML: tokens in colours, their nats as titles, the shared run in a frame."""
    parts: list[Markup] = []
    for framed, group in groupby(pieces(text, tokens, largest, run), key=lambda piece: piece.run):
        inside = Markup("").join(map(_coloured, group))
        parts.append(Markup('<span class="run">{}</span>').format(inside) if framed else inside)
    return Markup("").join(parts)


def _coloured(piece: Piece) -> Markup:
    text = "".join(_characters(piece.text))
    if not piece.step or piece.share is None:
        return Markup("{}").format(text)
    kind = f"{'r' if piece.step > 0 else 'l'}{abs(piece.step)}"
    told = f"{wording.signed(piece.share)} nats"
    # The space before a word belongs to its token, but would colour the ends of lines.
    word = text.lstrip(" ") or text
    before = text.removesuffix(word)
    return Markup('{}<span class="{}" title="{}">{}</span>').format(before, kind, told, word)


def _characters(text: str) -> Iterator[str]:
    """Each by itself, for a token may be a line break, or half of an escape sequence."""
    for character in text:
        yield character if character == "\n" else printable_lines(character)
