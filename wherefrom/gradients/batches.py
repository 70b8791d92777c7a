"""Batches of documents, padded, with what must count and what must not.

Random draws (sampled Fisher labels) are keyed by the document and the position in it, never by the
batch, so that a result does not depend on how documents were batched or ordered.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from wherefrom.gradients.tokens import TokenisedDocument

__all__ = [
    "Batch",
    "batch_by_length",
    "document_key",
    "pad_rows",
    "pad_tokens",
    "stack_examples",
    "text_batch",
]


@dataclass(frozen=True, slots=True)
class Batch:
    """Documents that run through the model together.

    Attributes:
        inputs: What the model reads: token ids ``[doc, token]`` or any ``[doc, ...]`` tensor.
        targets: What it should predict at each position, ``[doc, token]`` or ``[doc, ...]``.
        doc_ids: For error messages.
        keys: uint64 ``[doc]``: seeds of each document's random draws.
        attended: bool ``[doc, token]``: positions that are not padding; ``None`` = all.
        scored: bool ``[doc, token]``: positions whose prediction counts; ``None`` = all.
    """

    inputs: Tensor
    targets: Tensor
    doc_ids: tuple[str, ...]
    keys: np.ndarray
    attended: Tensor | None = None
    scored: Tensor | None = None

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.doc_ids)

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return replace(
            self,
            inputs=self.inputs.to(device),
            targets=self.targets.to(device),
            attended=None if self.attended is None else self.attended.to(device),
            scored=None if self.scored is None else self.scored.to(device),
        )


def document_key(doc_id: str) -> int:
    """A stable 64-bit key of a document, for its random draws."""
    return int.from_bytes(hashlib.blake2b(doc_id.encode(), digest_size=8).digest(), "little")


def pad_tokens(documents: Sequence[TokenisedDocument], doc_ids: Sequence[str]) -> Batch:
    """Token documents for next-token prediction, padded on the right.

    Position t reads token t and predicts token t+1, so a document of n tokens has n-1 positions.
    Padding repeats token 0 of the vocabulary; being masked, its identity does not matter.
    """
    return text_batch(
        [d.ids[:-1] for d in documents],
        doc_ids,
        targets=pad_rows([d.ids[1:] for d in documents]),
        scored=pad_rows([d.scored[1:] for d in documents]),
    )


def pad_rows(rows: Sequence[np.ndarray], fill: int = 0) -> np.ndarray:
    """``[row, longest]``: rows side by side, ``fill`` to the right of the shorter ones."""
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    padded = np.full((len(rows), lengths.max()), fill, rows[0].dtype)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = np.concatenate(rows)
    return padded


def text_batch(
    ids: Sequence[np.ndarray],
    doc_ids: Sequence[str],
    *,
    targets: np.ndarray,
    scored: np.ndarray | None = None,
    padding: int = 0,
) -> Batch:
    """Token ids as a batch, padded on the right, with ``attended`` where there is padding.

    Args:
        ids: int64 ``[token]`` of each document.
        doc_ids: Of each document.
        targets: ``[doc, ...]``.
        scored: bool ``[doc, token]``: predictions that count; ``None`` = all.
        padding: The token to pad with.
    """
    inputs = pad_rows(ids, padding)
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    attended = np.arange(inputs.shape[1]) < lengths[:, None]
    return Batch(
        torch.from_numpy(inputs),
        torch.from_numpy(targets),
        tuple(doc_ids),
        np.array([document_key(d) for d in doc_ids], np.uint64),
        None if attended.all() else torch.from_numpy(attended),
        None if scored is None or scored.all() else torch.from_numpy(scored),
    )


def stack_examples(inputs: Tensor, targets: Tensor, doc_ids: Sequence[str]) -> Batch:
    """A batch of fixed-shape examples, ``inputs [doc, ...]`` and ``targets [doc, ...]``."""
    keys = np.array([document_key(d) for d in doc_ids], np.uint64)
    return Batch(inputs, targets, tuple(doc_ids), keys)


def batch_by_length(
    lengths: np.ndarray, *, max_documents: int, max_positions: int
) -> list[np.ndarray]:
    """Group documents of similar length, to pad little.

    Args:
        lengths: ``[doc]`` numbers of positions.
        max_documents: Most documents in a batch.
        max_positions: Most padded positions (documents x longest) in a batch; a longer document
            stands alone.

    Returns:
        Index arrays that partition ``range(len(lengths))``, longest documents first.
    """
    order = np.argsort(-lengths, kind="stable")
    batches = []
    start = 0
    while start < len(order):
        longest = max(int(lengths[order[start]]), 1)
        count = max(1, min(max_documents, max_positions // longest))
        batches.append(order[start : start + count])
        start += count
    return batches
