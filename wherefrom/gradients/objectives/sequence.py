"""Sequence classification: one class for each text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn

from wherefrom.errors import CorpusError, ModelError, QueryError
from wherefrom.gradients.batches import Batch, text_batch
from wherefrom.gradients.objectives.base import JSON
from wherefrom.gradients.objectives.categorical import Categorical
from wherefrom.gradients.objectives.text import TextObjective, logits_of
from wherefrom.gradients.tokens import TokenisedDocument, query_document
from wherefrom.records import Document, MetadataValue, Query, Span

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from typing_extensions import Self

__all__ = ["SequenceClassification"]


class SequenceClassification(TextObjective, Categorical):
    """The class of a text, by a Hugging Face model for sequence classification.

    A document's class is its metadata column ``label``: the number of the class, or its name in
    the model's ``config.label2id``. A question is ``wf.Query(prompt=text, completion=label)`` and
    asks for log p(label | text). Texts longer than the context, questions too, are truncated by
    the tokenizer (its end token is kept), as they are in training, and never cut into passages.

    Args:
        tokenizer: A fast Hugging Face tokenizer; ``None`` takes the one saved with the model.
        label: The metadata column.
        context: Longest text in tokens; ``None`` takes the model's own limit, at most 1024.
    """

    kind = "sequence_classification"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        label: str = "label",
        context: int | None = None,
    ) -> None:
        super().__init__(tokenizer, context=context)
        self.label = label
        self.columns = (label,)
        self._names: Mapping[str, int] = {}
        self._classes = 0
        self._padding = 0

    def options(self) -> Mapping[str, JSON]:
        """Context and label column."""
        return {**super().options(), "label": self.label}

    def bind(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase | None,
        *,
        context: int | None = None,
    ) -> Self:
        """A copy with a tokenizer, a context and the model's classes.

        Raises:
            ModelError: As for every text objective, or the model does not choose one class of
                several.
        """
        bound = super().bind(model, tokenizer, context=context)
        config = getattr(model, "config", None)
        classes = getattr(config, "num_labels", None)
        problem = getattr(config, "problem_type", None)
        if classes is None or classes < 2 or problem not in (None, "single_label_classification"):
            raise ModelError(
                f"{type(model).__name__} does not choose one of several classes (num_labels="
                f"{classes}, problem_type={problem}); give a model for sequence classification, or "
                "your own wf.Objective"
            )
        bound._classes = int(classes)
        bound._names = dict(getattr(config, "label2id", None) or {})
        # Classifiers made from decoders find a text's last token by what is not this padding.
        bound._padding = getattr(config, "pad_token_id", None) or 0
        return bound

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits ``[doc, class]``."""
        return logits_of(model, batch, "sequence classifier", 2)

    def tokenise(self, documents: Sequence[Document]) -> list[TokenisedDocument]:
        """Tokens of documents, truncated; none of them is scored by itself."""
        rows = [
            self.bound_tokenizer(
                document.text,
                add_special_tokens=document.special_tokens,
                truncation=True,
                max_length=self.bound_context,
                padding=False,
                return_attention_mask=False,
                verbose=False,
            )["input_ids"]
            for document in documents
        ]
        return [
            TokenisedDocument(np.array(row, np.int64), np.zeros(len(row), np.bool_)) for row in rows
        ]

    def passages(self, document: Document, tokens: TokenisedDocument) -> list[Document]:
        """The document itself, unless the tokenizer makes no token of it.

        Raises:
            CorpusError: Its label is missing or no class of the model.
        """
        self._class_of(document)
        return [document] if self.predictions(tokens) else []

    def predictions(self, tokens: TokenisedDocument) -> int:
        """One, where there is anything to read."""
        return min(len(tokens.ids), 1)

    def shortened(self, tokens: TokenisedDocument, positions: int) -> TokenisedDocument:
        """The text's start, where encoders keep what they classify by."""
        return TokenisedDocument(tokens.ids[:positions], tokens.scored[:positions])

    def assemble(self, documents: Sequence[Document], tokens: Sequence[TokenisedDocument]) -> Batch:
        """Token ids, and the classes as targets ``[doc]``."""
        return text_batch(
            [document.ids for document in tokens],
            [document.doc_id for document in documents],
            targets=np.array([self._class_of(document) for document in documents], np.int64),
            padding=self._padding,
        )

    def token_spans(self, document: Document) -> list[Span | None]:
        """As for every text; of one that is truncated, those of its start and its end tokens."""
        spans = super().token_spans(document)
        (tokens,) = self.tokenise([document])
        missing = len(spans) - len(tokens.ids)
        if missing <= 0:
            return spans
        marks = next((i for i, span in enumerate(reversed(spans)) if span is not None), 0)
        if self.bound_tokenizer.truncation_side == "left":
            starts = next((i for i, span in enumerate(spans) if span is not None), 0)
            return spans[:starts] + spans[starts + missing :]
        return spans[: len(tokens.ids) - marks] + spans[len(spans) - marks :]

    def question(self, query: Query) -> Document:
        """The text ``query.prompt`` with the class ``query.completion``.

        Raises:
            QueryError: The text is empty, or the label is no class of the model.
        """
        checked = query_document(query)
        if not query.prompt:
            raise QueryError("the prompt is empty; give the text that was classified")
        number = self._class(query.completion)
        if number is None:
            raise QueryError(f"the completion {query.completion!r} is {self._unknown()}")
        return Document(checked.doc_id, query.prompt, {self.label: number})

    def query_batch(self, query: Query) -> Batch:
        """The text ``query.prompt`` with the class ``query.completion``.

        Raises:
            QueryError: The text is empty, or the label is no class of the model.
        """
        document = self.question(query)
        return self.assemble([document], self.tokenise([document]))

    def _class_of(self, document: Document) -> int:
        given = document.metadata.get(self.label)
        number = self._class(given)
        if number is None and given is None:
            raise CorpusError(
                f"document {document.doc_id!r} has no label: its metadata column {self.label!r} is "
                "missing or empty; give it, or name another column (--label, or "
                "wf.SequenceClassification(label=...))"
            )
        if number is None:
            raise CorpusError(
                f"the label {given!r} of document {document.doc_id!r} is {self._unknown()}"
            )
        return number

    def _class(self, label: MetadataValue) -> int | None:
        """The class that a label means: a name of the model's, or else a number."""
        if isinstance(label, str):
            if label in self._names:
                return self._names[label]
            label = int(label) if label.isascii() and label.isdigit() else None
        # A bool is an int to Python, but which class it means is anybody's guess.
        if isinstance(label, bool) or not isinstance(label, int):
            return None
        return label if 0 <= label < self._classes else None

    def _unknown(self) -> str:
        names = ", ".join(repr(name) for name in list(self._names)[:8])
        more = ", ..." if len(self._names) > 8 else ""
        return (
            f"no class of the model; give a number from 0 to {self._classes - 1} or a name "
            f"({names}{more})"
        )
