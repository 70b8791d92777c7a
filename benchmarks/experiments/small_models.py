"""Small language models: of characters, with texts cut to their context, and kept once trained."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from wherefrom.demo.model import Recipe, train_model
from wherefrom.records import Document

__all__ = ["CONTEXT", "character_tokenizer", "kept_model", "opening"]

CONTEXT = 128
"""Characters a model sees, the start token included."""

_START = "<s>"
_LONGEST = 120


def character_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A token for each character of the texts, and one before every text.

    A character that none of them has becomes a start token too, for there is nothing it could mean.
    """
    characters = sorted(set().union(*texts))
    numbers = {token: i for i, token in enumerate([_START, *characters])}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token=_START))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_START} $A", special_tokens=[(_START, 0)]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, bos_token=_START, model_max_length=CONTEXT
    )


def opening(document: Document, characters: int = _LONGEST) -> Document:
    """The document's first whole words, with single spaces between them."""
    text = " ".join(document.text.split())
    cut = text[:characters]
    return replace(document, text=cut if len(text) <= characters else cut[: cut.rindex(" ")])


def kept_model(
    folder: Path,
    documents: Sequence[Document],
    tokenizer: PreTrainedTokenizerFast,
    recipe: Recipe,
    seed: int,
    members: NDArray[np.bool_] | None = None,
) -> LlamaForCausalLM:
    """A model trained from scratch, or the one that was kept in ``folder`` by the same arguments.

    Args:
        folder: Where models are kept, under a digest of all that decides them.
        documents: To train on.
        tokenizer: Puts a start token before each text.
        recipe: Sizes and schedule.
        seed: Of first weights and order.
        members: Which of the documents to train on; all by default.
    """
    digest = hashlib.sha256(repr((recipe, seed, len(tokenizer))).encode())
    for document in documents:
        digest.update(document.text.encode() + b"\0")
    digest.update(b"all" if members is None else np.packbits(members).tobytes())
    path = folder / digest.hexdigest()[:16]
    if not path.is_dir():
        model = train_model(
            documents, tokenizer, seed=seed, progress=_quiet, recipe=recipe, members=members
        )
        partial = path.with_suffix(".partial")
        model.save_pretrained(partial)
        partial.rename(path)
    kept: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(path).eval()
    return kept


def _quiet(phase: str, done: int, total: int | None) -> None:
    """Training says nothing."""
