"""The records that rooms hand to each other: frozen, plain, free of torch.

Scores are in **nats of the query's log-likelihood per added copy of the document**, to first
order: positive = proponent (one more copy of the document makes the completion more likely),
negative = opponent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

__all__ = [
    "SCORE_CONTRACT",
    "Certificate",
    "Document",
    "Hit",
    "Message",
    "MetadataValue",
    "Progress",
    "Query",
    "QuerySet",
    "Reduce",
    "Sign",
    "Span",
]

SCORE_CONTRACT = (
    "score = nats of the completion's log-likelihood per added copy of the document, to first "
    "order; positive = proponent (makes the completion more likely), negative = opponent"
)

MetadataValue = str | int | float | bool | None
Span = tuple[int, int]
Sign = Literal["both", "proponents", "opponents"]
Reduce = Literal["mean", "sum"]

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
        norm: Norm of the document's uncompressed vector; where documents and queries are whitened
            alike, its square is N times the self-influence.
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


@dataclass(frozen=True, slots=True)
class Certificate:
    """How far an answer can be trusted.

    Attributes:
        tier: ``stored``: scores are inner products of stored vectors; ``exact``: of uncompressed
            whitened gradients computed anew.
        certified: Whether the lists are proved to be the true top k of that tier.
        documents: Documents searched, after the filter.
        candidates: Documents whose score was computed in full.
        next_bound: Upper bound of the absolute score of every document that was not a candidate
            (``None`` when all were).
    """

    tier: Literal["stored", "exact"]
    certified: bool
    documents: int
    candidates: int
    next_bound: float | None
