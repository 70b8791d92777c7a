"""What an answer is made of: shares of layers and tokens, other measures beside it, group sums.

Plain records, as :class:`~wherefrom.query.answer.Answer` holds them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from wherefrom.records import MetadataValue, Tier

__all__ = [
    "By",
    "Explanation",
    "Group",
    "Grouping",
    "HitShares",
    "HitSimilarity",
    "LayerName",
    "QuestionShares",
    "ScoreParts",
    "SimilarDocument",
    "Similarity",
    "SimilarityFlag",
    "TokenShare",
    "TokensAre",
]

By = Literal["layer", "token"]

TokensAre = Literal["predictions", "positions"]
"""What a token's share is of: of the *prediction* of that token, or of what layers did at its
*position* (where a text has one prediction only, its label)."""

SimilarityFlag = Literal["influential but not similar", "similar but not influential"]


@dataclass(frozen=True, slots=True)
class LayerName:
    """A layer's place in the model.

    Attributes:
        name: The whole name, as ``model.layers.3.mlp.down_proj``.
        depth: The number of its block, the first number in its name; ``None`` outside of blocks.
        module: The name without that block, as ``mlp.down_proj``: what layers of all depths share.
    """

    name: str
    depth: int | None
    module: str


@dataclass(frozen=True, slots=True)
class TokenShare:
    """A token and its part of a score.

    Attributes:
        text: The characters it stands for.
        start: Where they start in the text.
        end: One past where they end.
        share: Nats, of the sign of what it adds to the score; ``None`` for tokens that are context
            only and can have none.
    """

    text: str
    start: int
    end: int
    share: float | None

    @property
    def stands_for_text(self) -> bool:
        """Whether it stands for any characters, as special tokens do not."""
        return self.start < self.end


@dataclass(frozen=True, slots=True)
class ScoreParts:
    """Where a score lies; the parts sum to it.

    Attributes:
        text: Nats on the characters of the text.
        special: Nats on tokens that stand for none of them: ``[CLS]``, the end of a text.
        elsewhere: Nats of layers that see no tokens.
    """

    text: float
    special: float
    elsewhere: float

    def __add__(self, other: ScoreParts) -> ScoreParts:
        return ScoreParts(
            self.text + other.text,
            self.special + other.special,
            self.elsewhere + other.elsewhere,
        )


@dataclass(frozen=True, slots=True)
class QuestionShares:
    """Shares of a score over the tokens of one text that was asked about.

    Attributes:
        weight: Of this text in what was measured: -1 for a contrast.
        text: Prompt and completion (the text alone, for classifiers).
        tokens: Its tokens; their shares hold the weight already.
    """

    weight: float
    text: str
    tokens: tuple[TokenShare, ...]


@dataclass(frozen=True, slots=True)
class HitShares:
    """What one document's score is made of. Each kind of share sums to ``score``.

    Attributes:
        doc_id: The document.
        score: Nats, of uncompressed gradients computed anew.
        layers: Nats of each layer, in the order of :attr:`Explanation.layers`.
        tokens: Of the document's text; ``None`` for tensors, or where they were not asked for.
        elsewhere: Nats that no token of the document carries: of layers that see no tokens.
        question: Of the texts asked about, one after the other; ``None`` likewise, and for refined
            questions, whose solution is no product of a document's gradient and a matrix.
        question_elsewhere: As ``elsewhere``, for the texts asked about.
    """

    doc_id: str
    score: float
    layers: tuple[float, ...]
    tokens: tuple[TokenShare, ...] | None
    elsewhere: float
    question: tuple[QuestionShares, ...] | None
    question_elsewhere: float

    def parts(self) -> ScoreParts | None:
        """Where in the document the score lies; ``None`` where no tokens have shares."""
        return None if self.tokens is None else _parts(self.tokens, self.elsewhere)

    def question_parts(self) -> ScoreParts | None:
        """Where in all texts asked about the score lies; ``None`` likewise."""
        if self.question is None:
            return None
        tokens = [token for text in self.question for token in text.tokens]
        return _parts(tokens, self.question_elsewhere)


@dataclass(frozen=True, slots=True)
class Explanation:
    """What the scores of documents are made of.

    Attributes:
        layers: All layers that influence is computed for.
        tokens_are: What a token's share is of; ``None`` where there are none.
        hits: One for each document, in the order asked for.
    """

    layers: tuple[LayerName, ...]
    tokens_are: TokensAre | None
    hits: tuple[HitShares, ...]

    def of(self, doc_id: str) -> HitShares | None:
        """The shares of one document."""
        return next((hit for hit in self.hits if hit.doc_id == doc_id), None)


@dataclass(frozen=True, slots=True)
class HitSimilarity:
    """How alike a hit and the question are, in words.

    Attributes:
        doc_id: The document.
        bm25: Its BM25 score for the words of the question, at least 0.
        bm25_rank: Its rank by that among all documents that were searched, from 1; documents of
            equal score share the best rank.
        shared_words: Length in words of the longest run of words that both hold.
        shared_start: Where that run starts in the document's text.
        shared_end: One past where it ends.
        cluster: Number of the group of near-duplicates among the hits that it belongs to, from 1;
            ``None`` if no other hit is like it.
        flag: ``influential but not similar``, if so.
    """

    doc_id: str
    bm25: float
    bm25_rank: int
    shared_words: int
    shared_start: int
    shared_end: int
    cluster: int | None
    flag: SimilarityFlag | None


@dataclass(frozen=True, slots=True)
class SimilarDocument:
    """One of the documents that are most like the question in words.

    Attributes:
        doc_id: The document.
        text: Its text.
        bm25: As for a hit.
        bm25_rank: As for a hit.
        shared_words: As for a hit.
        score: Its influence in nats, of uncompressed gradients computed anew.
        cosine: In the whitened space.
        percentile: As for a hit.
        flag: ``similar but not influential``, if so.
    """

    doc_id: str
    text: str
    bm25: float
    bm25_rank: int
    shared_words: int
    score: float
    cosine: float
    percentile: float | None
    flag: SimilarityFlag | None


@dataclass(frozen=True, slots=True)
class Similarity:
    """Similarity beside influence: neither proves the other.

    Attributes:
        documents: How many BM25 ranks are among.
        hits: In the order of the answer, proponents first.
        most_similar: The documents most like the question in words, best first.
    """

    documents: int
    hits: tuple[HitSimilarity, ...]
    most_similar: tuple[SimilarDocument, ...]

    def of(self, doc_id: str) -> HitSimilarity | None:
        """What is known of one hit."""
        return next((hit for hit in self.hits if hit.doc_id == doc_id), None)


@dataclass(frozen=True, slots=True)
class Group:
    """The influence of all documents that share a value of a metadata column.

    Attributes:
        value: Shared; for bins of numbers, the words ``LOW to HIGH``; ``None`` where it is missing.
        documents: How many.
        total: Sum of their scores in nats.
        low: Lower end of the interval of the total, by a bootstrap over the group's documents.
        high: Its upper end.
        mean: ``total / documents``.
    """

    value: MetadataValue
    documents: int
    total: float
    low: float
    high: float
    mean: float


@dataclass(frozen=True, slots=True)
class Grouping:
    """Influence summed by a metadata column.

    Attributes:
        column: Which.
        tier: Of the scores that were summed.
        confidence: Of the intervals.
        draws: Of the bootstrap.
        groups: All of them, the largest total first.
        bins: Into how many bins the column's numbers were cut, if they were.
    """

    column: str
    tier: Tier
    confidence: float
    draws: int
    groups: tuple[Group, ...]
    bins: int | None = None


def _parts(tokens: Iterable[TokenShare], elsewhere: float) -> ScoreParts:
    text: list[float] = []
    special: list[float] = []
    for token in tokens:
        (text if token.stands_for_text else special).append(token.share or 0.0)
    return ScoreParts(math.fsum(text), math.fsum(special), elsewhere)
