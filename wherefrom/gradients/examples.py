"""Documents made ready for the model: something that can be cut into batches by position."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch

from wherefrom.gradients.batches import Batch, batch_by_length, stack_examples
from wherefrom.gradients.layers import Layer
from wherefrom.gradients.objectives import TextObjective
from wherefrom.gradients.tokens import TokenisedDocument
from wherefrom.records import Document

__all__ = [
    "MOST_POSITIONS",
    "Examples",
    "TensorExamples",
    "TextExamples",
    "batches",
    "documents_at_once",
]

MOST_POSITIONS = 2048
"""Most padded positions of a batch; a longer document stands alone."""

_GRADIENT_BYTES = 1 << 28


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
        """The same documents with at most so many positions each, a part of each text."""
        ...


class TextExamples:
    """Tokenised documents of a text objective.

    Args:
        objective: Bound to its model; says what is predicted and assembles batches.
        documents: Chats rendered.
        tokens: Of each document.
    """

    def __init__(
        self,
        objective: TextObjective,
        documents: Sequence[Document],
        tokens: Sequence[TokenisedDocument],
    ) -> None:
        self._objective = objective
        self._documents = documents
        self._tokens = tokens

    @classmethod
    def of(cls, documents: Sequence[Document], objective: TextObjective) -> TextExamples:
        """Tokenise documents."""
        return cls(objective, documents, objective.tokenise(documents))

    @property
    def lengths(self) -> np.ndarray:
        """Positions of each document."""
        return np.array([self._objective.positions(t) for t in self._tokens], np.int64)

    @property
    def tokens(self) -> np.ndarray:
        """Scored predictions of each document."""
        return np.array([self._objective.predictions(t) for t in self._tokens], np.int64)

    def batch(self, chosen: np.ndarray) -> Batch:
        """The chosen documents, padded on the right."""
        return self._objective.assemble(
            [self._documents[i] for i in chosen], [self._tokens[i] for i in chosen]
        )

    def shortened(self, positions: int) -> TextExamples:
        """The same documents with at most so many positions each."""
        kept = [self._objective.shortened(t, positions) for t in self._tokens]
        return TextExamples(self._objective, self._documents, kept)


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


def documents_at_once(wanted: int, layers: Sequence[Layer], copies: int) -> int:
    """How many documents may run together, at most ``wanted``.

    Args:
        wanted: If layers are small.
        layers: Of whose gradients one is held for each document of a batch.
        copies: Runs of the model for each document.
    """
    held = 4 * max(layer.size for layer in layers)
    return max(1, min(wanted // copies, _GRADIENT_BYTES // held))


def batches(
    examples: Examples, *, max_documents: int, max_positions: int | None = None
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Every document once, in batches of similar length: ``(positions in examples, batch)``."""
    for chosen in batch_by_length(
        examples.lengths,
        max_documents=max_documents,
        max_positions=MOST_POSITIONS if max_positions is None else max_positions,
    ):
        yield chosen, examples.batch(chosen)
