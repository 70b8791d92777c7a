"""Alignment: which characters of a document each of its tokens stands for.

Tokenizers report a character span per token, but trim it: a byte-level BPE leaves the space out
of the span of ``Ġword``, so that a token of nothing but spaces spans nothing. Here such tokens get
their characters back, and every token learns whether it overlaps a scored span of its document.

All documents of a call are laid on one line of characters and treated at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wherefrom.errors import CorpusError, ModelError
from wherefrom.records import Document, Span

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["AlignedTokens", "align"]

Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]

_AT_ONCE = 1 << 20
"""Characters that go through the tokenizer at once, which takes about 250 bytes for each and does
not give them back; more than any context holds."""


@dataclass(frozen=True, slots=True, eq=False)
class AlignedTokens:
    """The tokens of one document and the characters that they stand for.

    Attributes:
        ids: int64 ``[token]``.
        special: bool ``[token]``: the tokenizer added it; it stands for no character.
        starts: int64 ``[token]``: first character of ``document.text``.
        ends: int64 ``[token]``: one past the last character.
        scored: bool ``[token]``: the token is a prediction target.
    """

    ids: Integers
    special: Booleans
    starts: Integers
    ends: Integers
    scored: Booleans


def align(documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase) -> list[AlignedTokens]:
    """Tokenise documents, each as one text, and align their tokens.

    Raises:
        ModelError: The tokenizer reports no character offsets.
        CorpusError: A document is a chat that is not rendered yet.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"the tokenizer {type(tokenizer).__name__} reports no character offsets; "
            "use the model's fast tokenizer (tokenizer.json)"
        )
    for document in documents:
        if document.messages is not None:
            raise CorpusError(
                f"document {document.doc_id!r} is a chat that is not rendered yet; "
                "pass it through render_chat first"
            )
    aligned: list[AlignedTokens | None] = [None] * len(documents)
    for special_tokens in (True, False):
        positions = [
            i for i, document in enumerate(documents) if document.special_tokens is special_tokens
        ]
        if positions:
            group = [documents[i] for i in positions]
            for i, tokens in zip(positions, _align_group(group, tokenizer), strict=True):
                aligned[i] = tokens
    return [tokens for tokens in aligned if tokens is not None]


def _align_group(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase
) -> Iterator[AlignedTokens]:
    """Align documents that agree in ``special_tokens``, so much text at a time as is allowed."""
    waiting: list[Document] = []
    room = _AT_ONCE
    for document in documents:
        room -= len(document.text)
        if room < 0 and waiting:
            yield from _align_together(waiting, tokenizer)
            waiting, room = [], _AT_ONCE - len(document.text)
        if room < 0:
            yield _align_in_pieces(document, tokenizer)
            room = _AT_ONCE
        else:
            waiting.append(document)
    if waiting:
        yield from _align_together(waiting, tokenizer)


def _align_in_pieces(document: Document, tokenizer: PreTrainedTokenizerBase) -> AlignedTokens:
    """Align a document that is far longer than any context, which will be cut into passages.

    Tokens beside the ends of pieces, which fall between words, may differ from those of the whole.
    """
    text, parts, start = document.text, [], 0
    while start < len(text):
        end = min(start + _AT_ONCE, len(text))
        if end < len(text):
            space = max(text.rfind(" ", start + 1, end), text.rfind("\n", start + 1, end))
            end = space if space > start else end
        piece = replace(document, text=text[start:end], scored=None)
        (tokens,) = _align_together([piece], tokenizer)
        content = np.flatnonzero(~tokens.special)
        low = 0 if start == 0 or not len(content) else int(content[0])
        high = len(tokens.ids) if end == len(text) or not len(content) else int(content[-1]) + 1
        kept = slice(low, high)
        parts.append(
            (
                tokens.ids[kept],
                tokens.special[kept],
                tokens.starts[kept] + start,
                tokens.ends[kept] + start,
            )
        )
        start = end
    ids, special, starts, ends = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    scored = _overlaps(starts, ends, _laid_out([document], np.zeros(1, np.int64))) & ~special
    scored[:1] = False
    return AlignedTokens(ids, special, starts, ends, scored)


def _align_together(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase
) -> Iterator[AlignedTokens]:
    """Align documents in one call of the tokenizer."""
    encoded = tokenizer(
        [document.text for document in documents],
        add_special_tokens=documents[0].special_tokens,
        padding=False,
        truncation=False,
        return_attention_mask=False,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        verbose=False,
    )
    lengths = np.array([len(ids) for ids in encoded["input_ids"]], dtype=np.int64)
    count = int(lengths.sum())
    ids = np.fromiter(chain.from_iterable(encoded["input_ids"]), np.int64, count)
    special = np.fromiter(chain.from_iterable(encoded["special_tokens_mask"]), np.bool_, count)
    pairs = chain.from_iterable(chain.from_iterable(encoded["offset_mapping"]))
    offsets = np.fromiter(pairs, np.int64, 2 * count).reshape(count, 2)

    # One spare character between documents keeps each one's tokens off the next one's spans.
    widths = np.array([len(document.text) + 1 for document in documents], dtype=np.int64)
    bases = np.cumsum(widths) - widths
    base = np.repeat(bases, lengths)
    starts, ends = _untrimmed(offsets[:, 0] + base, offsets[:, 1] + base, base, special)
    scored = _overlaps(starts, ends, _laid_out(documents, bases)) & ~special
    stops = np.cumsum(lengths)
    # Nothing predicts the first token of a text.
    scored[(stops - lengths)[lengths > 0]] = False

    for base_of, low, high in zip(bases, stops - lengths, stops, strict=True):
        part = slice(low, high)
        yield AlignedTokens(
            ids[part], special[part], starts[part] - base_of, ends[part] - base_of, scored[part]
        )


def _untrimmed(
    starts: Integers, ends: Integers, base: Integers, special: Booleans
) -> tuple[Integers, Integers]:
    """Give tokens whose span is empty the characters since the end of the token before.

    Where there are none (the first token of a text), it is the one character that follows.
    """
    empty = (starts == ends) & ~special
    ends = np.where(empty & (_end_before(ends, base) >= starts), starts + 1, ends)
    return np.where(empty, np.minimum(_end_before(ends, base), starts), starts), ends


def _end_before(ends: Integers, base: Integers) -> Integers:
    """Where the text before each token ends, not going back beyond its document."""
    before = np.concatenate([np.zeros(min(1, len(ends)), np.int64), ends[:-1]])
    return np.maximum(np.maximum.accumulate(before), base)


def _laid_out(documents: Sequence[Document], bases: Integers) -> Integers:
    """The scored spans of all documents on the common line: sorted and disjoint, ``[span, 2]``."""
    spans = [
        (base + start, base + end)
        for document, base in zip(documents, bases.tolist(), strict=True)
        for start, end in _disjoint(document)
    ]
    return np.array(spans, dtype=np.int64).reshape(-1, 2)


def _disjoint(document: Document) -> list[Span]:
    if document.scored is None:
        return [(0, len(document.text) + 1)]
    merged: list[Span] = []
    for start, end in sorted(span for span in document.scored if span[0] < span[1]):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _overlaps(starts: Integers, ends: Integers, spans: Integers) -> Booleans:
    begun = np.searchsorted(spans[:, 0], ends, side="left")
    over = np.searchsorted(spans[:, 1], starts, side="right")
    return begun > over
