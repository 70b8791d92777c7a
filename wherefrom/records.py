"""The records that rooms hand to each other: frozen, plain, free of torch.

Scores are in **nats of the query's log-likelihood per added copy of the document**, to first
order: positive = proponent (one more copy of the document makes the completion more likely),
negative = opponent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

__all__ = [
    "CODE_BITS",
    "SCORE_CONTRACT",
    "Background",
    "Bits",
    "Certificate",
    "Document",
    "Hit",
    "Message",
    "MetadataValue",
    "Normalise",
    "Progress",
    "Query",
    "QuerySet",
    "Recall",
    "Reduce",
    "Rerank",
    "Sign",
    "Span",
    "Tier",
]

SCORE_CONTRACT = (
    "score = nats of the completion's log-likelihood per added copy of the document, to first "
    "order; positive = proponent (makes the completion more likely), negative = opponent"
)

MetadataValue = str | int | float | bool | None
Span = tuple[int, int]
Sign = Literal["both", "proponents", "opponents"]
Reduce = Literal["mean", "sum"]
Bits = Literal[1, 2, 4, 8, 16, 32]
CODE_BITS: tuple[Bits, ...] = get_args(Bits)
"""Bits an entry can have: up to 8 an integer with one scale a row, 16 and 32 an IEEE float."""

Tier = Literal["stored", "exact"]
Rerank = Literal["auto", "stored", "recompute"]
Normalise = Literal["none", "cosine", "relatif"]

Progress = Callable[[str, int, int], None]
"""``progress(phase, done, total)``: called as work advances; ``total`` is fixed within a phase."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Document:
    """One training document, or one passage of a longer one.

    Attributes:
        doc_id: Unique within an index.
        text: The whole text the model sees (prompt and completion joined).
        metadata: Flat typed columns; ``None`` is a missing value.
        scored: Character spans ``[start, end)`` of ``text`` on which the loss lies; ``None`` means
            all of it. A token counts when it overlaps a span.
        messages: A chat still to be rendered by the tokenizer's chat template; ``text`` is empty
            until then. The loss lies on the assistant's turns.
        special_tokens: Whether the tokenizer may add its start/end tokens; off for rendered chats,
            whose template writes them out.
        parent_id: The document that this passage was cut from.
        char_start: Where the passage starts in its parent's text.
    """

    doc_id: str
    text: str = ""
    metadata: Mapping[str, MetadataValue] = field(default_factory=dict)
    scored: tuple[Span, ...] | None = None
    messages: tuple[Message, ...] | None = None
    special_tokens: bool = True
    parent_id: str | None = None
    char_start: int = 0

    @classmethod
    def completion(
        cls,
        doc_id: str,
        prompt: str,
        completion: str,
        metadata: Mapping[str, MetadataValue] | None = None,
    ) -> Document:
        """A document whose loss lies on ``completion`` only, ``prompt`` being its context."""
        span = (len(prompt), len(prompt) + len(completion))
        return cls(doc_id, prompt + completion, metadata or {}, scored=(span,))

    @classmethod
    def chat(
        cls,
        doc_id: str,
        messages: Sequence[Message],
        metadata: Mapping[str, MetadataValue] | None = None,
    ) -> Document:
        """A document whose loss lies on the assistant's turns of a conversation."""
        return cls(doc_id, metadata=metadata or {}, messages=tuple(messages))


@dataclass(frozen=True, slots=True)
class Query:
    """A model output to trace: the log-likelihood of ``completion`` given ``prompt``.

    With an empty prompt the completion's first token is context only, unless the tokenizer puts a
    start token before it. For classifiers of text ``prompt`` is the text and ``completion`` the
    label.

    Attributes:
        prompt: What the model was given.
        completion: What it said.
        contrast: What it might have said instead: the measurement is then the log-likelihood of
            ``completion`` minus that of ``contrast``.
    """

    prompt: str
    completion: str
    contrast: str | None = None


@dataclass(frozen=True, slots=True)
class QuerySet:
    """Several outputs traced as one: the mean or the sum of their measurements.

    Attributes:
        queries: At least one.
        reduce: ``mean`` or ``sum``.
    """

    queries: tuple[Query, ...]
    reduce: Reduce = "mean"


@dataclass(frozen=True, slots=True)
class Hit:
    """One document of an answer.

    Attributes:
        rank: From 1, within its sign.
        doc_id: The document's id.
        score: Nats per added copy, float64; positive = proponent.
        text: The document's text (empty for tensor examples).
        metadata: The document's metadata.
        parent_id: The document this passage was cut from, if any.
        char_start: Where the passage starts in its parent.
        tokens: Number of scored tokens.
        norm: Norm of the document's uncompressed vector (of the coordinates that ``energy`` keeps);
            where documents and queries are whitened alike, its square is N times the
            self-influence.
        cosine: Of the query's vector and the document's in the whitened space: the score without
            the lengths of either.
        relatif: The score divided by ``norm``: influence for each unit of the document's own
            (l-RelatIF, Barshan et al. 2020).
        percentile: Share of random document/query pairs with a smaller cosine, in per cent;
            ``None`` where the index holds no background, and under another damping than the one
            that was measured with.
    """

    rank: int
    doc_id: str
    score: float
    text: str
    metadata: Mapping[str, MetadataValue]
    parent_id: str | None
    char_start: int
    tokens: int
    norm: float
    cosine: float
    relatif: float
    percentile: float | None


@dataclass(frozen=True, slots=True)
class Recall:
    """How much of the true top k an answer holds that is not proved to hold all of it.

    Attributes:
        estimate: Expected share of the true lists, both together, from 0 to 1.
        low: Lower end of the confidence interval.
        high: Its upper end.
        confidence: Of the interval.
        sample: Random documents that were scored exactly to learn how far stored scores lie off.
    """

    estimate: float
    low: float
    high: float
    confidence: float
    sample: int


@dataclass(frozen=True, slots=True)
class Background:
    """Whether the strongest hits stand out from chance.

    A list stands out if its strongest hit is nearer to the query, by cosine, than the strongest
    hits of 95 % of random documents in the place of the query; for stored scores, it must also be
    beyond what the encoder's noise alone brings to the top of so many documents.

    Attributes:
        pairs: Random document/query pairs that percentiles of hits refer to.
        queries: Random documents in the place of the query that lists are compared with.
        noise: Cosine that the encoder's noise alone would reach; ``None`` for exact scores and
            for encoders without noise.
        proponents: Whether they stand out; ``None`` if there are none.
        opponents: Likewise.
        proponents_beyond: Share of the random queries, in per cent, whose strongest proponent is
            less near; ``None`` if there are no proponents.
        opponents_beyond: Likewise.
    """

    pairs: int
    queries: int
    noise: float | None
    proponents: bool | None
    opponents: bool | None
    proponents_beyond: float | None
    opponents_beyond: float | None


@dataclass(frozen=True, slots=True)
class Certificate:
    """How far an answer can be trusted.

    Attributes:
        tier: ``stored``: scores are inner products of stored vectors; ``exact``: of uncompressed
            whitened gradients computed anew.
        certified: Whether the lists are proved to be the true top k of that tier (of exact scores,
            up to the rounding of the model's own arithmetic).
        documents: Documents searched, after the filter.
        candidates: Documents whose score was computed in full.
        backend: What found the candidates; it never decides a score.
        next_proponent: Upper bound of what proponents are ranked by, for every document that was
            no candidate; ``None`` when all were, or nothing is proved.
        next_opponent: Likewise for opponents, in absolute value.
        slope: What stored scores are of exact ones, on average, as the build measured it: below 1
            where the encoder leaves coordinates out. ``None`` for exact scores and where nothing
            is lost.
        recall: Estimated, where the lists are not certified.
        background: Whether the strongest hits stand out from chance; ``None`` as for percentiles,
            and for lists that are not ranked by score.
    """

    tier: Tier
    certified: bool
    documents: int
    candidates: int
    backend: str
    next_proponent: float | None
    next_opponent: float | None
    slope: float | None = None
    recall: Recall | None = None
    background: Background | None = None
