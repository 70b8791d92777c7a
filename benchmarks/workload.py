"""What the benchmarks run on: the demo's corpus and model, and a smaller synthetic pair."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import LlamaForCausalLM

import wherefrom as wf
from wherefrom.demo.corpus import load_addresses, training_passages
from wherefrom.demo.model import RECIPE, Recipe, new_model, train_tokenizer
from wherefrom.records import Document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = [
    "SMALL",
    "demo_index",
    "demo_passages",
    "random_llama",
    "small_texts",
    "small_tokenizer",
]

SMALL = Recipe(vocabulary=600, context=96, width=64, feed_forward=160, layers=2, heads=2)
"""Dimensions of a model whose gradients cost next to nothing."""

_SYLLABLES = ("ba", "ke", "li", "mo", "nu", "ra", "se", "ti", "vo", "zu", "and", "or", "el", "is")


def demo_passages(count: int) -> list[Document]:
    """``count`` passages of the demo's corpus, evenly over its addresses."""
    return training_passages(load_addresses(), count)[:count]


def demo_index(folder: Path, count: int) -> wf.Index:
    """An index over the demo's passages, its curvature fitted on 400, under an untrained model."""
    documents = demo_passages(count)
    tokenizer = train_tokenizer(documents)
    model = random_llama(len(tokenizer))
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return wf.build(
        folder / "model", documents, folder / "demo.index", fit_documents=min(count, 400)
    )


def random_llama(vocabulary: int, recipe: Recipe = RECIPE) -> LlamaForCausalLM:
    """An untrained model of the recipe's dimensions, always the same, in evaluation mode."""
    model = new_model(vocabulary, recipe)
    model.eval()  # type: ignore[no-untyped-call]
    return model


def small_texts(count: int) -> Iterator[Document]:
    """``count`` made-up texts of 10 to 30 words, one at a time, always the same."""
    draw = random.Random(0)
    for number in range(count):
        words = (
            "".join(draw.choices(_SYLLABLES, k=draw.randint(1, 3)))
            for _ in range(draw.randint(10, 30))
        )
        yield Document(f"text-{number:07d}", " ".join(words))


def small_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer for :func:`small_texts`."""
    return train_tokenizer(list(small_texts(200)), SMALL)
