"""Passages: texts longer than the model's context, cut where a reader would cut them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from wherefrom.errors import CorpusError
from wherefrom.gradients.alignment import AlignedTokens, align
from wherefrom.records import Document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["split_passages"]

# Where a text is best cut, best first: at the end of a paragraph, of a sentence, of a line or
# word. Line breaks stay with what they end; other white space goes with the word that follows, as
# in a byte-level tokenizer, so that a cut adds no token of its own.
_BOUNDARIES = (
    re.compile(r"\n[^\S\n]*\n\s*"),
    re.compile(r"""[.!?]["')\]\u201d\u2019]*(?:\n+|(?=\s))|[\u3002\uff01\uff1f]"""),
    re.compile(r"\n+|(?<=\S)(?=[^\S\n])"),
)
_WORD_START = re.compile(r"(?<=\s)(?=\S)")


def split_passages(
    document: Document, tokenizer: PreTrainedTokenizerBase, context: int
) -> Iterator[Document]:
    """Cut a document into passages of at most ``context`` tokens, special tokens included.

    A document that fits comes back unchanged. Passages of a longer one have the ids
    ``<doc_id>#0000``, ``#0001``, ... and remember their parent and where they start in it. Cuts
    fall at the end of a paragraph, else of a sentence, else of a word, within the last third of
    what fits.

    Where the loss lies on all of the text, the passages joined are the text, save for one without
    a scored token (a single token, with no start token before it). Where it lies on spans,
    stretches without loss are left out, save for up to ``context // 2`` tokens before the next
    scored one. A long document without any scored token has no passages.

    Args:
        document: The document; a chat has to be rendered already.
        tokenizer: A fast tokenizer.
        context: Most tokens that a passage may have.

    Raises:
        CorpusError: ``context`` is too small for a single character, or the document is a chat
            that is not rendered yet.
        ModelError: The tokenizer reports no character offsets.
    """
    (whole,) = align([document], tokenizer)
    if len(whole.ids) <= context:
        yield document
        return
    cutter = _Cutter(document, tokenizer, context, whole)
    ordinal = 0
    start = cutter.next_start(0)
    while start is not None:
        passage, tokens = cutter.passage_at(start)
        if tokens.scored.any():
            yield replace(passage, doc_id=f"{document.doc_id}#{ordinal:04d}")
            ordinal += 1
        start = cutter.next_start(start + len(passage.text))


class _Cutter:
    """Finds where passages start and end in one document."""

    def __init__(
        self,
        document: Document,
        tokenizer: PreTrainedTokenizerBase,
        context: int,
        whole: AlignedTokens,
    ) -> None:
        self._document = document
        self._tokenizer = tokenizer
        self._context = context
        self._room = context - int(whole.special.sum())
        content = ~whole.special
        self._starts = whole.starts[content]
        self._ends = np.maximum.accumulate(whole.ends[content])
        self._targets = np.flatnonzero(whole.scored[content])
        self._target_ends = self._ends[self._targets]
        self._last_word_end = len(document.text.rstrip())
        if self._room < 1:
            raise self._too_small()

    def next_start(self, start: int) -> int | None:
        """Where the first passage that starts at or after ``start`` does; ``None``: nowhere."""
        text = self._document.text
        if self._document.scored is None:
            return start if start < len(text) else None
        ahead = int(np.searchsorted(self._target_ends, start, side="right"))
        if ahead == len(self._targets):
            return None
        target = int(self._targets[ahead])
        first = target - self._context // 2
        if first <= 0 or self._starts[first] <= start:
            return start
        begin, stop = int(self._starts[first]), int(self._starts[(first + target) // 2])
        if text[begin].isspace() or text[begin - 1].isspace():
            return begin
        word = _WORD_START.search(text, begin, stop)
        return word.start() if word else begin

    def passage_at(self, start: int) -> tuple[Document, AlignedTokens]:
        """The passage that starts at ``start``, and its tokens."""
        text = self._document.text
        first = int(np.searchsorted(self._ends, start, side="right"))
        last = first + self._room - 1
        limit = len(text) if last >= len(self._ends) - 1 else int(self._ends[last])
        while limit > start:
            passage = _cut(self._document, start, self._best_cut(start, limit))
            (tokens,) = align([passage], self._tokenizer)
            if len(tokens.ids) <= self._context:
                return passage, tokens
            # Cut off from its neighbours a text may tokenise into more tokens than it had.
            content = tokens.starts[~tokens.special]
            limit = start + int(content[self._room])
        raise self._too_small()

    def _best_cut(self, start: int, limit: int) -> int:
        text = self._document.text
        if limit == len(text):
            return limit
        # White space at the end of the text must not be left over as a passage of its own.
        limit = min(limit, max(self._last_word_end - 1, start + 1))
        low = limit - (limit - start) // 3
        for boundary in _BOUNDARIES:
            cuts = (match.end() for match in boundary.finditer(text, low, limit + 1))
            best = max((cut for cut in cuts if start < cut <= limit), default=None)
            if best is not None:
                return best
        return limit

    def _too_small(self) -> CorpusError:
        return CorpusError(
            f"document {self._document.doc_id!r} cannot be cut into passages of {self._context} "
            "tokens: not even one character fits beside the special tokens; raise the context"
        )


def _cut(document: Document, start: int, end: int) -> Document:
    spans = document.scored
    if spans is not None:
        within = ((max(a, start) - start, min(b, end) - start) for a, b in spans)
        spans = tuple((a, b) for a, b in within if a < b)
    return replace(
        document,
        text=document.text[start:end],
        scored=spans,
        parent_id=document.parent_id or document.doc_id,
        char_start=document.char_start + start,
    )
