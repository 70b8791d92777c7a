"""Documents made ready for the model: something that can be cut into batches by position."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from wherefrom.gradients.batches import Batch, batch_by_length, pad_tokens, stack_examples
from wherefrom.gradients.tokens import TokenisedDocument, tokenise_batch
from wherefrom.records import Document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Examples", "TensorExamples", "TextExamples", "batches"]


class Examples(Protocol):
    """Documents, tokenised or as tensors."""

    @property
    def lengths(self) -> np.ndarray:
        """Positions of each document, int64 ``[doc]``."""
        ...

    @property
    def tokens(self) -> np.ndarray:
        """Scored predictions of each document, int64 ``[doc]``."""
        ...

    def batch(self, chosen: np.ndarray) -> Batch:
        """The chosen documents, in that order."""
        ...

    def shortened(self, positions: int) -> Examples:
        """The same documents with at most so many positions each, the last ones."""
        ...


class TextExamples:
    """Token documents of a language model."""

    def __init__(self, tokenised: Sequence[TokenisedDocument], doc_ids: Sequence[str]) -> None:
        self._tokenised = tokenised
        self._doc_ids = doc_ids

    @classmethod
    def of(cls, documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase) -> TextExamples:
        """Tokenise documents."""
        return cls(tokenise_batch(documents, tokenizer), [d.doc_id for d in documents])

    @property
    def lengths(self) -> np.ndarray:
        """Positions of each document: one less than its tokens."""
        return np.array([max(len(t.ids) - 1, 0) for t in self._tokenised], np.int64)

    @property
    def tokens(self) -> np.ndarray:
        """Scored tokens of each document."""
        return np.array([int(t.scored[1:].sum()) for t in self._tokenised], np.int64)

    def batch(self, chosen: np.ndarray) -> Batch:
        """The chosen documents, padded on the right."""
        return pad_tokens([self._tokenised[i] for i in chosen], [self._doc_ids[i] for i in chosen])

    def shortened(self, positions: int) -> TextExamples:
        """The last ``positions + 1`` tokens of each document; the first of them is context only."""
        kept = [
            TokenisedDocument(t.ids[-positions - 1 :], t.scored[-positions - 1 :])
            for t in self._tokenised
        ]
        return TextExamples(kept, self._doc_ids)


class TensorExamples:
    """Fixed-shape inputs with targets, ``[doc, ...]`` each."""

    def __init__(self, inputs: np.ndarray, targets: np.ndarray, doc_ids: Sequence[str]) -> None:
        self._inputs = inputs
        self._targets = targets
        self._doc_ids = doc_ids

    @property
    def lengths(self) -> np.ndarray:
        """One position each."""
        return np.ones(len(self._doc_ids), np.int64)

    @property
    def tokens(self) -> np.ndarray:
        """One prediction each."""
        return np.ones(len(self._doc_ids), np.int64)

    def batch(self, chosen: np.ndarray) -> Batch:
        """The chosen examples, stacked."""
        inputs = torch.from_numpy(np.ascontiguousarray(self._inputs[chosen]))
        targets = torch.from_numpy(np.ascontiguousarray(self._targets[chosen]))
        return stack_examples(inputs, targets, [self._doc_ids[i] for i in chosen])

    def shortened(self, positions: int) -> TensorExamples:
        """The same examples: each has one position."""
        return self


def batches(
    examples: Examples, *, max_documents: int, max_positions: int
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Every document once, in batches of similar length: ``(positions in examples, batch)``."""
    for chosen in batch_by_length(
        examples.lengths, max_documents=max_documents, max_positions=max_positions
    ):
        yield chosen, examples.batch(chosen)
