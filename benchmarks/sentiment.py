"""A sentiment classifier to trace: MiniLM with a LoRA adapter, trained on rated film reviews."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from wherefrom.records import Document, Query

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Snippet", "accuracy", "documents", "flip", "losses", "queries", "split", "train"]

LEAST_RATING = 1.0
"""Sentences rated closer to 0 than this are neither praise nor blame, and left out."""

RANK = 4
RATE = 2e-3
BATCH = 32


@dataclass(frozen=True, slots=True)
class Snippet:
    """A sentence and what it is taken for.

    Attributes:
        doc_id: Its place in the file, such as ``snippet-00017``.
        text: The sentence.
        rating: Mean of twenty people's ratings, -4 to 4.
        label: 1 for praise, 0 for blame.
        flipped: Whether the label was turned round on purpose.
    """

    doc_id: str
    text: str
    rating: float
    label: int
    flipped: bool = False


def split(
    rated: Sequence[tuple[str, float]],
    training: int,
    test: int,
    seed: int,
    *,
    longest: int | None = None,
) -> tuple[list[Snippet], list[Snippet]]:
    """Draw training and test sentences among those that are clearly praise or blame.

    Args:
        rated: Sentences with their ratings.
        training: How many to train on.
        test: How many to keep back.
        seed: Of the draw.
        longest: Most characters of a sentence; any by default.
    """
    clear = [
        Snippet(f"snippet-{number:05d}", text, rating, int(rating > 0))
        for number, (text, rating) in enumerate(rated)
        if abs(rating) >= LEAST_RATING and (longest is None or len(text) <= longest)
    ]
    drawn = random.Random(seed).sample(clear, training + test)
    return drawn[:training], drawn[training:]


def flip(snippets: Sequence[Snippet], share: float, seed: int) -> list[Snippet]:
    """Turn round the labels of a share of the sentences."""
    chosen = set(random.Random(seed).sample(range(len(snippets)), round(share * len(snippets))))
    return [
        Snippet(s.doc_id, s.text, s.rating, 1 - s.label, flipped=True) if i in chosen else s
        for i, s in enumerate(snippets)
    ]


def documents(snippets: Sequence[Snippet]) -> list[Document]:
    """The sentences as wherefrom reads them."""
    return [Document(s.doc_id, s.text, {"label": s.label, "rating": s.rating}) for s in snippets]


def queries(snippets: Sequence[Snippet]) -> list[Query]:
    """Why is each sentence taken for what it is?"""
    return [Query(s.text, str(s.label)) for s in snippets]


def train(
    base: Path,
    snippets: Sequence[Snippet],
    folder: Path,
    *,
    epochs: int,
    seed: int,
    rank: int = RANK,
    batch: int = BATCH,
) -> None:
    """Train a LoRA adapter on MiniLM, and a head, and save both with PEFT.

    Args:
        base: The encoder, without a head.
        snippets: What to train on.
        folder: Where to save the adapter.
        epochs: How often to go over them.
        seed: Of the head, of A and of the order.
        rank: Of the adapter.
        batch: Sentences a step.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(seed)
    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    wanted = LoraConfig(
        task_type="SEQ_CLS", r=rank, lora_alpha=4 * rank, target_modules=["query", "value"]
    )
    model: nn.Module = get_peft_model(plain, wanted)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=RATE)
    # Of like lengths, as they pad little; which batch comes when is drawn.
    rows = list(_batches(sorted(snippets, key=lambda s: len(s.text)), _tokenizer(base), batch))
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, epochs * len(rows))
    order = random.Random(seed)
    model.train()
    for _ in range(epochs):
        for tokens, labels in order.sample(rows, len(rows)):
            optimiser.zero_grad()
            F.cross_entropy(model(**tokens).logits, labels).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    model.save_pretrained(str(folder))  # type: ignore[operator]


def losses(model: nn.Module, base: Path, snippets: Sequence[Snippet]) -> torch.Tensor:
    """Cross-entropy of each sentence's label in nats, ``[snippet]``."""
    found = []
    with torch.no_grad():
        for tokens, labels in _batches(snippets, _tokenizer(base)):
            found.append(F.cross_entropy(model(**tokens).logits, labels, reduction="none"))
    return torch.cat(found)


def accuracy(model: nn.Module, base: Path, snippets: Sequence[Snippet]) -> float:
    """Share of sentences taken for what their label says: of two classes, the likelier one."""
    return float((losses(model, base, snippets) < torch.log(torch.tensor(2.0))).double().mean())


def _tokenizer(base: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(base))
    return tokenizer


def _batches(
    snippets: Sequence[Snippet], tokenizer: PreTrainedTokenizerBase, size: int = BATCH
) -> Iterator[tuple[Any, torch.Tensor]]:
    for start in range(0, len(snippets), size):
        part = snippets[start : start + size]
        tokens = tokenizer([s.text for s in part], padding=True, return_tensors="pt")
        yield tokens, torch.tensor([s.label for s in part])
