"""From what a user gives to documents the model can take: rendered, cut, and worth indexing."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from wherefrom.errors import CorpusError, ModelError
from wherefrom.gradients.models import LoadedModel
from wherefrom.gradients.objectives import Objective, TextObjective
from wherefrom.gradients.pretrained import load_tokenizer
from wherefrom.gradients.tokens import render_chat
from wherefrom.indexer.corpus import read_corpus
from wherefrom.records import Document

__all__ = ["Skipped", "bind_to_text", "columns_to_read", "cut_documents", "passages"]

_AT_ONCE = 256
_TASKS = ("causal_lm", "masked_lm", "sequence_classification")
_LISTED = 1000


def bind_to_text(
    objective: Objective, loaded: LoadedModel, context: int | None = None
) -> TextObjective:
    """The objective with the tokenizer and the context to index text with.

    Args:
        objective: Any.
        loaded: The model.
        context: Longest text in tokens, where the objective names none.

    Raises:
        ModelError: It is none over text, or does not go together with the model.
    """
    if not isinstance(objective, TextObjective):
        raise ModelError(
            f"{type(objective).__name__} reads tensors, the documents are text; give "
            "objective=wf.CausalLM(tokenizer) or another over text, or documents=(inputs, targets)"
        )
    if loaded.task is not None and objective.kind in _TASKS and objective.kind != loaded.task:
        raise ModelError(
            f"objective {objective.kind} does not fit {type(loaded.module).__name__}, which was "
            f"made for {loaded.task}; leave the objective out, or give another model"
        )
    tokenizer = loaded.tokenizer
    if objective.tokenizer is None and tokenizer is None and loaded.source is not None:
        tokenizer = load_tokenizer(loaded.source)
    return objective.bind(loaded.module, tokenizer, context=context)


def columns_to_read(
    metadata_columns: Collection[str] | None, objective: TextObjective
) -> list[str] | None:
    """The metadata columns asked for, and those that the objective reads; ``None`` for all."""
    if metadata_columns is None:
        return None
    return list(dict.fromkeys([*metadata_columns, *objective.columns]))


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
    objective: TextObjective,
    skipped: Skipped,
    *,
    metadata_columns: Collection[str] | None = None,
    read: Callable[[Document], object] | None = None,
) -> Iterator[Document]:
    """Stream the passages of a corpus: chats rendered, long texts cut, empty ones left out.

    Args:
        source: A path or documents; see :func:`wherefrom.indexer.corpus.read_corpus`.
        objective: Bound to the model.
        skipped: Filled with what is left out.
        metadata_columns: For a path, the columns to keep, beside those the objective reads.
        read: Told of every document as it is read, before anything is done to it.

    Raises:
        CorpusError: The corpus cannot be read, repeats an id, lacks what the objective needs, or
            no document has a scored token.
    """
    kept = False
    cut = cut_documents(source, objective, skipped, metadata_columns=metadata_columns, read=read)
    for _, found in cut:
        kept = kept or bool(found)
        yield from found
    if not kept:
        raise CorpusError(
            f"none of the {skipped.count} documents has a token that the model predicts (texts of "
            "one token have none); give longer documents"
        )


def cut_documents(
    source: str | os.PathLike[str] | Iterable[Document],
    objective: TextObjective,
    skipped: Skipped,
    *,
    metadata_columns: Collection[str] | None = None,
    text_columns: Collection[str] = (),
    read: Callable[[Document], object] | None = None,
) -> Iterator[tuple[Document, list[Document]]]:
    """Stream the documents of a corpus, chats rendered, each with its passages, which may be none.

    Args and errors are those of :func:`passages`, and ``text_columns`` of a CSV file are text
    whatever their values look like.
    """
    documents = read_corpus(
        source,
        metadata_columns=columns_to_read(metadata_columns, objective),
        text_columns=text_columns,
    )
    tokenizer = objective.bound_tokenizer
    seen: set[bytes] = set()
    while chunk := list(islice(documents, _AT_ONCE)):
        for document in chunk:
            key = hashlib.blake2b(document.doc_id.encode(), digest_size=16).digest()
            if key in seen:
                raise CorpusError(
                    f"document id {document.doc_id!r} occurs twice; ids must be unique: rename or "
                    "remove one"
                )
            seen.add(key)
            if read is not None:
                read(document)
        rendered = [render_chat(d, tokenizer) if d.messages is not None else d for d in chunk]
        skipped.parents += len(chunk)
        for document, tokens in zip(rendered, objective.tokenise(rendered), strict=True):
            found = objective.passages(document, tokens)
            if not found:
                skipped.add(document.doc_id)
            yield document, list(found)
