"""Tokens: a document in, the ids that the model reads and the positions that carry loss out.

A text is tokenised whole, prompt and completion together, so that the tokens are those that the
model would see. Chats are rendered by the tokenizer's own template first, and texts longer than
the model's context are cut into passages (:mod:`wherefrom.gradients.passages`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wherefrom.errors import CorpusError, QueryError
from wherefrom.gradients.alignment import align
from wherefrom.gradients.passages import split_passages
from wherefrom.records import Document, Message, Query

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "TokenisedDocument",
    "query_document",
    "render_chat",
    "split_passages",
    "tokenise",
    "tokenise_batch",
    "tokenise_query",
]

_QUERY_ID = "query"


@dataclass(frozen=True, slots=True, eq=False)
class TokenisedDocument:
    """The tokens of one document.

    Attributes:
        ids: int64 ``[token]``.
        scored: bool ``[token]``: the token is a prediction target. Never the first token, which
            nothing predicts, nor a special token that the tokenizer adds.
    """

    ids: NDArray[np.int64]
    scored: NDArray[np.bool_]


def tokenise(document: Document, tokenizer: PreTrainedTokenizerBase) -> TokenisedDocument:
    """Tokenise one document.

    Raises:
        ModelError: The tokenizer reports no character offsets.
        CorpusError: The document is a chat that is not rendered yet.
    """
    (tokens,) = tokenise_batch([document], tokenizer)
    return tokens


def tokenise_batch(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase
) -> list[TokenisedDocument]:
    """Tokenise many documents at once; the same as :func:`tokenise` one by one, but faster.

    Raises:
        ModelError: The tokenizer reports no character offsets.
        CorpusError: A document is a chat that is not rendered yet.
    """
    return [TokenisedDocument(tokens.ids, tokens.scored) for tokens in align(documents, tokenizer)]


def query_document(query: Query) -> Document:
    """The document whose log-likelihood the query asks about, with the id ``query``.

    Raises:
        QueryError: The completion is empty, or a part is no valid Unicode text.
    """
    for name, text in (("prompt", query.prompt), ("completion", query.completion)):
        if not isinstance(text, str):
            raise QueryError(f"the {name} is of type {type(text).__name__}; give text")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise QueryError(
                f"the {name} is not valid Unicode at character {error.start}; give UTF-8 text"
            ) from None
    if not query.completion:
        raise QueryError("the completion is empty; give the text whose origin is asked for")
    return Document.completion(_QUERY_ID, query.prompt, query.completion)


def tokenise_query(query: Query, tokenizer: PreTrainedTokenizerBase) -> TokenisedDocument:
    """Tokenise a query, of which at least one token must be scored.

    Raises:
        QueryError: As :func:`query_document`, or no token of the completion can be predicted.
        ModelError: The tokenizer reports no character offsets.
    """
    tokens = tokenise(query_document(query), tokenizer)
    if not tokens.scored.any():
        raise QueryError(
            f"the completion {query.completion!r} has no token to score: the first token of all is "
            "context only; give a prompt before it, or a longer completion"
        )
    return tokens


def render_chat(document: Document, tokenizer: PreTrainedTokenizerBase) -> Document:
    """Write a chat out by the tokenizer's chat template; other documents come back unchanged.

    The scored spans are what the template adds for each assistant turn to the turns before it and
    the cue for an answer: the answer and its end mark.

    Raises:
        CorpusError: There is no template, it refuses the chat, it writes earlier turns
            differently once later ones follow, or no turn is the assistant's.
    """
    if document.messages is None:
        return document
    where = f"document {document.doc_id!r}"
    answers = [i for i, turn in enumerate(document.messages) if turn.role == "assistant"]
    if not answers:
        raise CorpusError(
            f"{where}: the chat has no turn with the role 'assistant', so nothing carries loss; "
            "add one or leave the document out"
        )
    if not tokenizer.chat_template:
        raise CorpusError(
            f"{where} is a chat, but the tokenizer has no chat template; set "
            "tokenizer.chat_template, or give 'prompt' and 'completion' instead of 'messages'"
        )
    turns = document.messages
    try:
        cues = _rendered([turns[:i] for i in answers], tokenizer, cue=True)
        *answered, text = _rendered(
            [*(turns[: i + 1] for i in answers), turns], tokenizer, cue=False
        )
    except Exception as error:  # A template is a program: there is no telling what it raises.
        reason = " ".join(str(error).split())
        raise CorpusError(f"{where}: the chat template refuses it ({reason})") from error
    for i, cue, answer in zip(answers, cues, answered, strict=True):
        if not (answer.startswith(cue) and text.startswith(answer)):
            raise CorpusError(
                f"{where}: the chat template writes what stands before or in message {i + 1} "
                "differently once more follows, so its tokens cannot be told apart; give 'prompt' "
                "and 'completion' instead of 'messages'"
            )
    spans = tuple((len(cue), len(answer)) for cue, answer in zip(cues, answered, strict=True))
    return replace(document, text=text, scored=spans, messages=None, special_tokens=False)


def _rendered(
    chats: Sequence[Sequence[Message]], tokenizer: PreTrainedTokenizerBase, *, cue: bool
) -> list[str]:
    # As a batch, since a chat that opens with the assistant needs the cue after no turn at all,
    # and a single empty conversation is refused.
    conversations = [[{"role": m.role, "content": m.content} for m in chat] for chat in chats]
    return list(
        tokenizer.apply_chat_template(conversations, tokenize=False, add_generation_prompt=cue)
    )
