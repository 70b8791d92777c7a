"""Texts far longer than any context go through the tokenizer in pieces."""

from __future__ import annotations

import numpy as np
import pytest

from tiny_lm import WORDS, tiny_tokenizer
from wherefrom.gradients import alignment
from wherefrom.gradients.alignment import align
from wherefrom.gradients.passages import split_passages
from wherefrom.records import Document

TOKENIZER = tiny_tokenizer()
FIELDS = ("ids", "special", "starts", "ends", "scored")


def documents() -> list[Document]:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, count)) for count in (3, 400, 20, 900, 1, 60)]
    texts[3] = texts[3].replace(" gold", "\n\ngold").replace(" and", ".  and")
    found = [Document(f"{i}", text) for i, text in enumerate(texts)]
    found[1] = Document("1", texts[1], scored=((40, 90), (500, 1700)))
    return [*found, Document("empty", ""), Document("one word", "union" * 200)]


@pytest.mark.parametrize("at_once", [64, 100, 1000])
def test_pieces_are_aligned_as_the_whole(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    given = documents()[:-1]
    wanted = align(given, TOKENIZER)
    monkeypatch.setattr(alignment, "_AT_ONCE", at_once)
    for found, expected in zip(align(given, TOKENIZER), wanted, strict=True):
        for field in FIELDS:
            np.testing.assert_array_equal(getattr(found, field), getattr(expected, field))


@pytest.mark.parametrize("at_once", [64, 300])
def test_passages_do_not_depend_on_pieces(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    for document in documents()[:-1]:
        with monkeypatch.context() as patch:
            wanted = list(split_passages(document, TOKENIZER, 24))
            patch.setattr(alignment, "_AT_ONCE", at_once)
            assert list(split_passages(document, TOKENIZER, 24)) == wanted


def test_a_word_longer_than_a_piece_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignment, "_AT_ONCE", 64)
    word = documents()[-1]
    (tokens,) = align([word], TOKENIZER)
    assert "".join(word.text[a:b] for a, b in zip(tokens.starts, tokens.ends, strict=True)) == (
        word.text
    )
    assert "".join(p.text for p in split_passages(word, TOKENIZER, 24)) == word.text


def test_special_tokens_stand_at_the_ends_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenizers import processors

    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<pad> $A <pad>", special_tokens=[("<pad>", 0)]
    )
    given = documents()[:-2]
    wanted = align(given, tokenizer)
    assert wanted[1].special.sum() == 2
    monkeypatch.setattr(alignment, "_AT_ONCE", 100)
    for found, expected in zip(align(given, tokenizer), wanted, strict=True):
        content = ~expected.special
        for field in ("ids", "special"):
            np.testing.assert_array_equal(getattr(found, field), getattr(expected, field))
        for field in ("starts", "ends", "scored"):
            np.testing.assert_array_equal(
                getattr(found, field)[content], getattr(expected, field)[content]
            )
