"""Likeness in words: BM25, and the longest run of words that two texts share.

What a word is holds for any script: letters, marks and digits make words, normalised (NFKC) and
case folded; scripts without spaces between words give one for each character.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, pre_tokenizers

from wherefrom.store import DocumentTable

__all__ = ["Lexicon", "SharedRun", "SharedRuns", "words", "words_in_place"]

# Where words are not parted by spaces, each character (with its marks) is taken for one.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_WORDS = pre_tokenizers.Split(
    Regex(rf"[{_UNSPACED}&&\P{{M}}]\p{{M}}*|[\p{{L}}\p{{M}}\p{{N}}&&[^{_UNSPACED}]]+"),
    behavior="removed",
    invert=True,
)
# What the pattern above finds in folded ASCII, five times as fast.
_ASCII_WORDS = re.compile(r"[a-z0-9]+")
_UNBROKEN = re.compile(r"\S+")
_ROWS_PER_READ = 1024
# Words hold no spaces, so that no document's run goes over this.
_BETWEEN = " "


def words(text: str) -> list[str]:
    """The words of a text in any script, normalised (NFKC) and case folded, in order.

    Letters, marks and digits make words. Scripts without spaces between words give a word for each
    character.
    """
    folded = _folded(text)
    if folded.isascii():
        return _ASCII_WORDS.findall(folded)
    return [word for word, _ in _WORDS.pre_tokenize_str(folded)]


def words_in_place(text: str) -> Iterator[tuple[str, int, int]]:
    """The words of a text, as :func:`words` gives them, and where they lie in it.

    Yields:
        A word, the character that it starts at in the text as given, and one past its end. Words
        that one character stands for (½ is 1 and 2) lie at the same place.
    """
    # Normalisation acts across no space: pieces can be folded by themselves.
    for piece in _UNBROKEN.finditer(text):
        start = piece.start()
        if piece[0].isascii():
            for found in _ASCII_WORDS.finditer(piece[0].lower()):
                yield found[0], start + found.start(), start + found.end()
            continue
        segments = list(_segments(piece[0]))
        origins = [(first, end) for part, first, end in segments for _ in part]
        folded = "".join(part for part, _, _ in segments)
        for word, (first, end) in _WORDS.pre_tokenize_str(folded):
            yield word, start + origins[first][0], start + origins[end - 1][1]


class Lexicon:
    """BM25 over texts: words they share with a question, weighted by how rare these are.

    Lucene's form (Kamphuis et al. 2020, table 1), ``k1 = 1.5``, ``b = 0.75``::

        sum over its words of  log(1 + (N - n + .5) / (n + .5)) f / (f + k1 (1 - b + b L))

    with ``n`` of ``N`` texts that hold the word, ``f`` times in this one, which is ``L`` times as
    long as the mean. A word that the question repeats counts each time.

    Counting takes about 0.1 ms for a passage of 80 words, and keeps 0.7 kB of each; a question then
    takes well under a millisecond for thousands of texts.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        """Count the words of texts, which are read one by one and not kept."""
        # Importing bm25s takes in whatever it finds to run faster with (numba, SciPy, JAX).
        import bm25s

        # Numbered as they appear: a set's order changes from run to run, and with it the rounding.
        self._vocabulary: dict[str, int] = {}
        number = self._vocabulary.setdefault
        numbered = [
            array("i", [number(word, len(self._vocabulary)) for word in words(text)])
            for text in texts
        ]
        self._texts = len(numbered)
        self._bm25 = bm25s.BM25(method="lucene", k1=1.5, b=0.75, dtype="float64")
        if self._vocabulary:
            self._bm25.index(
                (numbered, self._vocabulary), create_empty_token=False, show_progress=False
            )

    @classmethod
    def of_table(cls, table: DocumentTable) -> Lexicon:
        """Over the texts of all documents of an index, in its order.

        Raises:
            IntegrityError: The table cannot be read.
            StorageError: The disk refuses.
        """
        blocks = table.batches(_ROWS_PER_READ)
        return cls(text for rows in blocks for text in rows.texts)

    def __len__(self) -> int:
        """Number of texts."""
        return self._texts

    def scores(self, question: str) -> NDArray[np.float64]:
        """BM25 of every text for the words of a question, float64 ``[text]``, at least 0."""
        numbers = (self._vocabulary.get(word) for word in words(question))
        known = [number for number in numbers if number is not None]
        if not known:
            return np.zeros(self._texts)
        return np.asarray(self._bm25.get_scores_from_ids(known), np.float64)


class SharedRun(NamedTuple):
    """A run of words that two texts share.

    Attributes:
        words: How many; 0 if the texts share none.
        start: Where it starts in the document's text, in characters.
        end: One past where it ends.
    """

    words: int
    start: int
    end: int


class SharedRuns:
    """The longest run of words that documents share with what was asked.

    A suffix automaton (Blumer et al. 1985) of the words asked about: making it and reading a
    document take time that grows with their words, not with the product.
    """

    def __init__(self, asked: Sequence[str]) -> None:
        """Of the texts asked about; a run lies within one of them."""
        self._next: list[dict[str, int]] = [{}]
        self._shorter = [-1]
        self._length = [0]
        last = 0
        for text in asked:
            for word in (*words(text), _BETWEEN):
                last = self._extend(last, word)

    def longest(self, text: str) -> SharedRun:
        """The longest run of words in a document's text, the first of those of equal length."""
        state = length = 0
        best = SharedRun(0, 0, 0)
        starts: list[int] = []
        for word, start, end in words_in_place(text):
            starts.append(start)
            while state and word not in self._next[state]:
                state = self._shorter[state]
                length = self._length[state]
            if word in self._next[state]:
                state = self._next[state][word]
                length += 1
            if length > best.words:
                best = SharedRun(length, starts[-length], end)
        return best

    def _extend(self, last: int, word: str) -> int:
        """Take in one more word after the state of all that came before."""
        added = self._state({}, self._length[last] + 1, 0)
        state = last
        while state >= 0 and word not in self._next[state]:
            self._next[state][word] = added
            state = self._shorter[state]
        if state < 0:
            return added
        found = self._next[state][word]
        if self._length[found] == self._length[state] + 1:
            self._shorter[added] = found
            return added
        copy = self._state(dict(self._next[found]), self._length[state] + 1, self._shorter[found])
        self._shorter[added] = self._shorter[found] = copy
        while state >= 0 and self._next[state].get(word) == found:
            self._next[state][word] = copy
            state = self._shorter[state]
        return added

    def _state(self, following: dict[str, int], length: int, shorter: int) -> int:
        self._next.append(following)
        self._length.append(length)
        self._shorter.append(shorter)
        return len(self._length) - 1


def _folded(text: str) -> str:
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def _segments(text: str) -> Iterator[tuple[str, int, int]]:
    """Stretches of a text that fold by themselves, folded, with their places in it."""
    start = 0
    for i in range(1, len(text)):
        alone = _folded(text[i])
        # A mark may be put before other marks, and then join the letter that these follow.
        if unicodedata.combining(text[i]) or unicodedata.combining(alone[0]):
            continue
        before = _folded(text[start:i])
        if _folded(text[start : i + 1]) == before + alone:
            yield before, start, i
            start = i
    yield _folded(text[start:]), start, len(text)
