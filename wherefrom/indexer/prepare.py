"""From what a user gives to documents the model can take: rendered, cut, and worth indexing."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from wherefrom.errors import CorpusError, ModelError
from wherefrom.gradients.models import LoadedModel, load_tokenizer
from wherefrom.gradients.objectives import Objective
from wherefrom.gradients.passages import split_passages
from wherefrom.gradients.tokens import render_chat, tokenise_batch
from wherefrom.indexer.corpus import read_corpus
from wherefrom.records import Document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Skipped", "context_of", "passages", "tokenizer_of"]

_AT_ONCE = 256
_LISTED = 1000


def tokenizer_of(
    objective: Objective, loaded: LoadedModel, tensors: bool
) -> PreTrainedTokenizerBase | None:
    """The tokenizer to index text with; ``None`` for tensors.

    Raises:
        ModelError: Text has none.
    """
    if tensors:
        return None
    tokenizer = getattr(objective, "tokenizer", None) or loaded.tokenizer
    if tokenizer is None and loaded.source is not None:
        tokenizer = load_tokenizer(loaded.source)
    if tokenizer is None:
        raise ModelError(
            "text needs a tokenizer, and a model in memory brings none; give "
            "objective=wf.CausalLM(tokenizer) or the model's folder"
        )
    return tokenizer


def context_of(objective: Objective, loaded: LoadedModel) -> int:
    """Longest passage in tokens.

    Raises:
        ModelError: It is under 2 or more than the model has positions for.
    """
    context = getattr(objective, "context", None) or loaded.context
    if context < 2:
        raise ModelError(f"context={context} is too short; give at least 2 tokens")
    limit = getattr(getattr(loaded.module, "config", None), "max_position_embeddings", None)
    if limit is not None and context > limit:
        raise ModelError(
            f"context={context} is more than the model's {limit} positions; give at most {limit}"
        )
    return int(context)


@dataclass(slots=True)
class Skipped:
    """Documents left out because the model predicts none of their tokens.

    Attributes:
        doc_ids: Their ids, the first 1000.
        count: How many.
        parents: How many documents were read in all.
        tokens: Scored tokens of those kept.
    """

    doc_ids: list[str] = field(default_factory=list)
    count: int = 0
    parents: int = 0
    tokens: int = 0

    def add(self, doc_id: str) -> None:
        """Note one more."""
        self.count += 1
        if len(self.doc_ids) < _LISTED:
            self.doc_ids.append(doc_id)


def passages(
    source: str | os.PathLike[str] | Iterable[Document],
    tokenizer: PreTrainedTokenizerBase,
    context: int,
    skipped: Skipped,
    *,
    metadata_columns: Collection[str] | None = None,
) -> Iterator[Document]:
    """Stream the passages of a corpus: chats rendered, long texts cut, empty ones left out.

    Args:
        source: A path or documents; see :func:`wherefrom.indexer.corpus.read_corpus`.
        tokenizer: The model's.
        context: Most tokens of a passage.
        skipped: Filled with what is left out.
        metadata_columns: For a path, the columns to keep.

    Raises:
        CorpusError: The corpus cannot be read, repeats an id, or no document has a scored token.
    """
    documents = read_corpus(source, metadata_columns=metadata_columns)
    seen: set[bytes] = set()
    kept = False
    while chunk := list(islice(documents, _AT_ONCE)):
        for document in chunk:
            key = hashlib.blake2b(document.doc_id.encode(), digest_size=16).digest()
            if key in seen:
                raise CorpusError(
                    f"document id {document.doc_id!r} occurs twice; ids must be unique: rename or "
                    "remove one"
                )
            seen.add(key)
        rendered = [render_chat(d, tokenizer) if d.messages is not None else d for d in chunk]
        skipped.parents += len(chunk)
        for document, tokens in zip(rendered, tokenise_batch(rendered, tokenizer), strict=True):
            if len(tokens.ids) <= context:
                found = [document] if tokens.scored.any() else []
            else:
                found = list(split_passages(document, tokenizer, context))
            if not found:
                skipped.add(document.doc_id)
            kept = kept or bool(found)
            yield from found
    if not kept:
        raise CorpusError(
            f"none of the {skipped.count} documents has a token that the model predicts (texts of "
            "one token have none); give longer documents"
        )
