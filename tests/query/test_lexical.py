"""Words, BM25 and shared runs against plain Python: the formula written out, every pair of runs."""

from __future__ import annotations

import math
import sys
import time
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wherefrom.query.interpretation.lexical import (
    Lexicon,
    SharedRun,
    SharedRuns,
    words,
    words_in_place,
)
from wherefrom.records import Document
from wherefrom.store import DocumentTable

# Characters that join, reorder, expand or vanish into others when texts are normalised.
MARKS = [chr(i) for i in range(sys.maxunicode + 1) if unicodedata.combining(chr(i))]
FOLDING = [
    chr(i)
    for i in range(sys.maxunicode + 1)
    if not 0xD800 <= i < 0xE000
    and unicodedata.normalize("NFKC", chr(i)).casefold() != chr(i)
    and not unicodedata.combining(chr(i))
]
CHARACTERS = st.one_of(
    st.sampled_from(MARKS),
    st.sampled_from(FOLDING),
    st.sampled_from(
        "aeo i\u03bf\u03c5\u1100\u1161\u11a8가\u0345\uff9e½ﬁ京テ\u0e01\u0e34. \n\u00a0"
    ),
    st.characters(exclude_categories=["Cs"]),
)
TEXTS = st.text(CHARACTERS, max_size=12)
FEW_WORDS = st.lists(st.sampled_from("abc"), max_size=9).map(" ".join)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't STOP, Straße 42nd!", ["don", "t", "stop", "strasse", "42nd"]),
        ("Don't STOP 42nd!", ["don", "t", "stop", "42nd"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("東京2020、テスト", ["東", "京", "2020", "テ", "ス", "ト"]),
        ("ﬁne cafe\u0301", ["fine", "café"]),
        ("ΟΔΟΣ", ["οδοσ"]),
        ("snake_case!", ["snake", "case"]),
        ("½ cup", ["1", "2", "cup"]),
        ("— … !", []),
        ("", []),
    ],
)
def test_words_of_any_script(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@given(TEXTS)
def test_words_ignore_case_and_spaces(text: str) -> None:
    found = words(text)
    assert words("  ".join(found)) == found
    assert all(word and not any(letter.isspace() for letter in word) for word in found)


@given(st.text(st.characters(max_codepoint=127), max_size=40))
def test_words_of_ascii_are_those_of_any_text(text: str) -> None:
    assert [*words(text), "é"] == words(f"{text} é")


@given(TEXTS)
@example("a\uff9e\u0301")  # the accent passes over a mark that only normalising makes one
@example("e\u05b0\u0301 \u1100\u1161\u11a8")
def test_words_lie_where_they_are_said_to_lie(text: str) -> None:
    found = list(words_in_place(text))
    assert [word for word, _, _ in found] == words(text)
    for word, start, end in found:
        once = unicodedata.normalize("NFKC", text[start:end])
        assert word in unicodedata.normalize("NFKC", once.casefold())
    places = [place for _, *place in found]
    assert places == sorted(places)
    assert all(0 <= start < end <= len(text) for start, end in places)


def test_places_are_those_of_the_text_as_given() -> None:
    text = "  Die STRAßE, cafe\u0301s: ½ ﬁne"
    assert [(word, text[start:end]) for word, start, end in words_in_place(text)] == [
        ("die", "Die"),
        ("strasse", "STRAßE"),
        ("cafés", "cafe\u0301s"),
        ("1", "½"),
        ("2", "½"),
        ("fine", "ﬁne"),
    ]


def bm25(documents: Sequence[str], question: str) -> list[float]:
    """Lucene's form, as its source has it, a text and a word at a time."""
    split = [words(document) for document in documents]
    mean = sum(map(len, split)) / len(split)
    scores = []
    for document in split:
        counts, score = Counter(document), 0.0
        for word in words(question):
            if counts[word]:
                holding = sum(word in other for other in split)
                rarity = math.log(1 + (len(split) - holding + 0.5) / (holding + 0.5))
                reach = 1.5 * (1 - 0.75 + 0.75 * len(document) / mean)
                score += rarity * counts[word] / (counts[word] + reach)
        scores.append(score)
    return scores


@given(st.lists(FEW_WORDS, min_size=1, max_size=6), st.lists(st.sampled_from("abcd")).map(" ".join))
def test_bm25_is_its_formula(documents: list[str], question: str) -> None:
    lexicon = Lexicon(documents)
    found = lexicon.scores(question)
    np.testing.assert_allclose(found, bm25(documents, question), rtol=1e-12, atol=1e-15)
    assert found.dtype == np.float64
    assert len(lexicon) == len(found) == len(documents)


def test_bm25_takes_texts_as_they_come() -> None:
    texts = ["Gold and SILVER trade", "straße nach Rom", "gold, gold, gold"]
    read: list[str] = []

    def stream() -> Iterator[str]:
        for text in texts:
            read.append(text)
            yield text

    lexicon = Lexicon(stream())
    assert read == texts
    for question in ("GOLD", "gold gold trade", "STRASSE", "nothing of it", "", "!!"):
        expected = bm25(texts, question)
        np.testing.assert_allclose(lexicon.scores(question), expected, rtol=1e-12)
    assert lexicon.scores("gold").argmax() == 2


def test_bm25_of_no_words_is_nothing() -> None:
    assert Lexicon([]).scores("gold").shape == (0,)
    assert Lexicon(["... !", ""]).scores("gold").tolist() == [0.0, 0.0]


def test_bm25_of_a_table_is_in_its_order(tmp_path: Path) -> None:
    texts = [f"{'gold ' * (i % 5)}word{i % 7} and war" for i in range(30)]
    table = DocumentTable.create(tmp_path, metadata={}, dimension=2, bits=16)
    documents = [Document(f"speech {29 - i:02d}", text) for i, text in enumerate(texts)]
    ones = np.ones(30)
    table.append(documents, np.ones((30, 2), np.float32), norms=ones, tokens=ones.astype(int))
    found = Lexicon.of_table(table).scores("gold word3 peace")
    np.testing.assert_allclose(found, bm25(texts, "gold word3 peace"), rtol=1e-12)


def runs_by_hand(asked: Sequence[str], text: str) -> tuple[int, int]:
    """Length and first word of the longest run of ``text`` that one of ``asked`` holds."""
    split = words(text)
    held = {
        tuple(known[i:j])
        for known in map(words, asked)
        for i in range(len(known))
        for j in range(i + 1, len(known) + 1)
    }
    shared = [
        (i - j, i)
        for i in range(len(split))
        for j in range(i + 1, len(split) + 1)
        if tuple(split[i:j]) in held
    ]
    length, first = min(shared, default=(0, 0))
    return -length, first


@given(st.lists(FEW_WORDS, max_size=3), FEW_WORDS)
@example(["b a a b b"], "b a b b")
@example(["a a b b a b"], "a b a b c")
def test_shared_runs_are_the_longest_of_all(asked: list[str], text: str) -> None:
    found = SharedRuns(asked).longest(text)
    length, first = runs_by_hand(asked, text)
    # Words of one letter, one space between.
    assert found == SharedRun(length, 2 * first, 2 * (first + length) - 1 if length else 0)


def test_shared_runs_lie_within_one_text_asked_about() -> None:
    runs = SharedRuns(["shall not perish", "from the earth"])
    text = "It shall not\nPERISH from the EARTH."
    words_shared, start, end = runs.longest(text)
    assert (words_shared, text[start:end]) == (3, "shall not\nPERISH")
    assert SharedRuns([]).longest(text) == runs.longest("none of these") == SharedRun(0, 0, 0)


@pytest.mark.parametrize("word", ["the ", "京"])
def test_shared_runs_of_long_texts_take_no_time_to_speak_of(word: str) -> None:
    started = time.process_time()
    assert SharedRuns([word * 3000]).longest(word * 60_000).words == 3000
    # Comparing every word with every word takes minutes.
    assert time.process_time() - started < 10.0
