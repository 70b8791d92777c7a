"""What objectives over text share: a tokenizer, a context, and the way from documents to a batch.

A text objective is made with or without a tokenizer and a context, and :meth:`~TextObjective.bind`
gives it those of a model. Only then can it tokenise.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from wherefrom.errors import ModelError, QueryError
from wherefrom.gradients.alignment import align
from wherefrom.gradients.batches import Batch
from wherefrom.gradients.objectives.base import JSON, Objective
from wherefrom.gradients.passages import split_passages
from wherefrom.gradients.tokens import (
    TokenisedDocument,
    query_document,
    tokenise_batch,
    tokenise_query,
)
from wherefrom.records import Document, Query, Span

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from typing_extensions import Self

__all__ = ["LONGEST_CONTEXT", "TextObjective", "logits_of"]

LONGEST_CONTEXT = 1024
"""Longest text in tokens, unless the objective says otherwise."""


class TextObjective(Objective):
    """An objective whose documents and questions are texts.

    Args:
        tokenizer: A fast Hugging Face tokenizer; ``None`` takes the one saved with the model.
        context: Longest text in tokens; ``None`` takes the model's own limit, at most 1024.

    Attributes:
        columns: Metadata columns that the objective reads.
        predicts: Which token an output position predicts, counted from the one that it reads: 1 for
            the next one.
    """

    columns: tuple[str, ...] = ()
    predicts: int = 0

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase | None = None, *, context: int | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.context = context

    def options(self) -> Mapping[str, JSON]:
        """The context."""
        return {"context": self.context}

    def bind(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase | None,
        *,
        context: int | None = None,
    ) -> Self:
        """A copy with a tokenizer and a context.

        Raises:
            ModelError: There is no tokenizer, or the context is under 2 tokens or more than the
                model has positions for.
        """
        bound = copy.copy(self)
        bound.tokenizer = tokenizer if self.tokenizer is None else self.tokenizer
        if bound.tokenizer is None:
            raise ModelError(
                "text needs a tokenizer, and a model in memory brings none; give "
                f"objective=wf.{type(self).__name__}(tokenizer) or the model's folder"
            )
        bound.context = _checked_context(model, self.context or context)
        return bound

    def tokenise(self, documents: Sequence[Document]) -> list[TokenisedDocument]:
        """Tokens of documents; ``scored`` marks those whose prediction counts."""
        return tokenise_batch(documents, self.bound_tokenizer)

    def passages(self, document: Document, tokens: TokenisedDocument) -> list[Document]:
        """What to index of a document: itself, its parts if it is too long, or nothing.

        Args:
            document: The document, a chat rendered.
            tokens: Its tokens, from :meth:`tokenise`.

        Raises:
            CorpusError: The document does not hold what the objective needs.
        """
        if len(tokens.ids) > self.bound_context:
            return list(split_passages(document, self.bound_tokenizer, self.bound_context))
        return [document] if self.predictions(tokens) else []

    def positions(self, tokens: TokenisedDocument) -> int:
        """Positions that a document has in a batch."""
        return len(tokens.ids)

    def predictions(self, tokens: TokenisedDocument) -> int:
        """Predictions of a document whose log-likelihoods are summed."""
        return int(tokens.scored.sum())

    def shortened(self, tokens: TokenisedDocument, positions: int) -> TokenisedDocument:
        """The document's end, of at most so many positions."""
        return TokenisedDocument(tokens.ids[-positions:], tokens.scored[-positions:])

    @abstractmethod
    def assemble(self, documents: Sequence[Document], tokens: Sequence[TokenisedDocument]) -> Batch:
        """Documents as a batch, padded on the right.

        Args:
            documents: For ids and metadata.
            tokens: Of each, from :meth:`tokenise`, perhaps shortened.
        """

    def question(self, query: Query) -> Document:
        """The text that a query asks about, as a document.

        Raises:
            QueryError: The completion is empty, or a part is no valid Unicode text.
        """
        return query_document(query)

    def token_spans(self, document: Document) -> list[Span | None]:
        """Characters of each token that the model reads; ``None``: the tokenizer added it.

        Args:
            document: As it is stored, a chat rendered.
        """
        (tokens,) = align([document], self.bound_tokenizer)
        spans = zip(tokens.starts.tolist(), tokens.ends.tolist(), tokens.special, strict=True)
        return [None if special else (start, end) for start, end, special in spans]

    def query_batch(self, query: Query) -> Batch:
        """The question as a batch of one document: its gradient is that of the measurement.

        Raises:
            QueryError: The completion is empty or holds nothing to predict, or the two are longer
                than the context.
        """
        tokens = tokenise_query(query, self.bound_tokenizer)
        if len(tokens.ids) > self.bound_context:
            longer = "prompt" if query.prompt else "completion"
            raise QueryError(
                f"prompt and completion have {len(tokens.ids)} tokens, the index's context is "
                f"{self.bound_context}; shorten the {longer}"
            )
        return self.assemble([self.question(query)], [tokens])

    @property
    def bound_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer.

        Raises:
            ModelError: The objective has none and is not bound to a model.
        """
        if self.tokenizer is None:
            raise self._unbound()
        return self.tokenizer

    @property
    def bound_context(self) -> int:
        """The context.

        Raises:
            ModelError: The objective has none and is not bound to a model.
        """
        if self.context is None:
            raise self._unbound()
        return self.context

    def _unbound(self) -> ModelError:
        return ModelError(
            f"{type(self).__name__} lacks a tokenizer or a context; call "
            "objective.bind(model, tokenizer) first"
        )


def logits_of(model: nn.Module, batch: Batch, role: str, dimensions: int, **named: bool) -> Tensor:
    """Run a Hugging Face model on token ids.

    Args:
        model: Its result has ``logits``.
        batch: Token ids, padded.
        role: What the model should be, for the message.
        dimensions: How many the logits should have.
        **named: More arguments of the model.

    Raises:
        ModelError: It cannot be called so, or returns something else.
    """
    mask = None if batch.attended is None else batch.attended.long()
    try:
        result = model(input_ids=batch.inputs, attention_mask=mask, **named)
    except TypeError as error:
        raise ModelError(
            f"{type(model).__name__} cannot be called as a Hugging Face {role} "
            f"({error}); give objective=wf.Classification() or your own wf.Objective"
        ) from error
    logits = getattr(result, "logits", None)
    if not isinstance(logits, Tensor) or logits.ndim != dimensions:
        given = f"logits {list(logits.shape)}" if isinstance(logits, Tensor) else "no logits"
        wanted = "[doc, class]" if dimensions == 2 else "[doc, token, class]"
        raise ModelError(
            f"{type(model).__name__} returned {given}, but a {role} has logits {wanted}; give the "
            "objective that fits the model"
        )
    return logits


def _checked_context(model: nn.Module, wanted: int | None) -> int:
    limit = _position_limit(model)
    context = min(limit or LONGEST_CONTEXT, LONGEST_CONTEXT) if wanted is None else wanted
    # What an index recorded may be anything.
    if not isinstance(context, int) or context < 2:
        raise ModelError(f"context={context!r:.40} is too short; give at least 2 tokens")
    if limit is not None and context > limit:
        raise ModelError(
            f"context={context} is more than the model's {limit} positions; give at most {limit}"
        )
    return context


def _position_limit(model: nn.Module) -> int | None:
    """Longest input in tokens; ``None``: no limit is known."""
    limit = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if limit is None:
        return None
    # RoBERTa and its kin number positions from after the padding's own.
    tables = (m for name, m in model.named_modules() if name.endswith(".position_embeddings"))
    padding = getattr(next(tables, None), "padding_idx", None)
    return int(limit) if padding is None else int(limit) - padding - 1
