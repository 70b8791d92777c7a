"""Tokens: exactly the completion carries loss, chats and passages lose nothing they should keep."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from wherefrom.errors import CorpusError, ModelError, QueryError
from wherefrom.gradients.tokens import (
    query_document,
    render_chat,
    split_passages,
    tokenise,
    tokenise_batch,
    tokenise_query,
)
from wherefrom.records import Document, Message, Query

PROSE = """The quick brown fox jumps over the lazy dog. A dog barks; the fox runs!

Did the crow see it? "Yes," said the crow. The fox, the dog and the crow went home
together, and the house was warm. a b c d e 1863.
"""


def byte_level(*, start_token: bool) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([PROSE] * 3, trainer)
    processor: Any = processors.ByteLevel(trim_offsets=True)
    if start_token:
        template = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
        processor = processors.Sequence([processor, template])
    backend.post_processor = processor
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def word_piece() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    backend.train_from_iterator([PROSE] * 3, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")


def sentence_piece() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    special = ["<unk>", "<s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    backend.train_from_iterator(PROSE.replace("▁", " ").split("\n"), trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend)


TOKENIZERS = {
    "bytes": byte_level(start_token=False),
    "bytes with start": byte_level(start_token=True),
    "words": word_piece(),
    "pieces": sentence_piece(),
}
BYTES = TOKENIZERS["bytes"]
START = TOKENIZERS["bytes with start"]

every_tokenizer = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS.keys())
messy_text = st.text(st.sampled_from('ab xy  \n\té🙂漢.,"\0\u0301'), max_size=30)


def strings(tokenizer: PreTrainedTokenizerFast, document: Document) -> list[str]:
    tokens = tokenise(document, tokenizer)
    return tokenizer.convert_ids_to_tokens(tokens.ids[tokens.scored].tolist())


def byte_lengths(tokenizer: PreTrainedTokenizerFast, ids: np.ndarray) -> list[int]:
    """How many bytes of the text each token of a byte-level tokenizer is: one per character."""
    return [
        0 if token == "<s>" else len(token)
        for token in tokenizer.convert_ids_to_tokens(ids.tolist())
    ]


@every_tokenizer
def test_types_and_first_token(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = tokenise(Document("d", "The fox runs."), tokenizer)
    assert tokens.ids.dtype == np.int64
    assert tokens.scored.dtype == np.bool_
    assert tokens.ids.tolist() == tokenizer("The fox runs.")["input_ids"]
    assert not tokens.scored[0]
    names = tokenizer.convert_ids_to_tokens(tokens.ids)
    assert tokens.scored[1:].tolist() == [n not in ("<s>", "[CLS]", "[SEP]") for n in names[1:]]


@every_tokenizer
def test_empty_text(tokenizer: PreTrainedTokenizerFast) -> None:
    assert not tokenise(Document("d", ""), tokenizer).scored.any()


def test_exactly_the_completion_is_scored() -> None:
    assert strings(BYTES, Document.completion("d", "a b", " c")) == ["Ġc"]
    assert strings(BYTES, Document.completion("d", "a b ", "c")) == ["Ġc"]
    assert strings(BYTES, Document.completion("d", "a b", " c d")) == ["Ġc", "Ġd"]
    assert strings(BYTES, Document.completion("d", "a", "  b ")) == ["Ġ", "Ġb", "Ġ"]
    assert strings(BYTES, Document.completion("d", "a b", " ")) == ["Ġ"]
    assert strings(BYTES, Document.completion("d", "a b  ", "c")) == ["Ġc"]
    assert len(strings(BYTES, Document.completion("d", "a ", "🙂"))) == 4
    assert strings(BYTES, Document.completion("d", "a 🙂", " b")) == ["Ġb"]


def test_empty_prompt_scores_the_first_token_only_after_a_start_token() -> None:
    assert strings(BYTES, Document.completion("d", "", "a b c")) == ["Ġb", "Ġc"]
    assert strings(START, Document.completion("d", "", "a b c")) == ["a", "Ġb", "Ġc"]
    assert strings(START, Document("d", "a b c", special_tokens=False)) == ["Ġb", "Ġc"]
    assert strings(START, Document("d", "  a b")) == ["Ġ", "Ġa", "Ġb"]


def test_other_tokenizers_score_the_completion() -> None:
    words = TOKENIZERS["words"]
    assert strings(words, Document.completion("d", "The fox", " and the dog")) == [
        "and",
        "the",
        "dog",
    ]
    assert strings(words, Document.completion("d", "The fox ", "and the dog")) == [
        "and",
        "the",
        "dog",
    ]
    pieces = TOKENIZERS["pieces"]
    scored = strings(pieces, Document.completion("d", "The fox", " and the dog"))
    assert "".join(scored) == "▁and▁the▁dog"
    assert strings(pieces, Document.completion("d", "The fox", "é")) == ["<0xC3>", "<0xA9>"]


@given(prompt=messy_text, completion=messy_text, start_token=st.booleans())
def test_scored_tokens_are_those_that_end_in_the_completion(
    prompt: str, completion: str, start_token: bool
) -> None:
    tokenizer = START if start_token else BYTES
    tokens = tokenise(Document.completion("d", prompt, completion), tokenizer)
    lengths = byte_lengths(tokenizer, tokens.ids)
    ends = itertools.accumulate(lengths)
    expected = [
        end > len(prompt.encode()) and length > 0 for end, length in zip(ends, lengths, strict=True)
    ]
    expected[:1] = [False] * len(expected[:1])
    assert tokens.scored.tolist() == expected


@given(texts=st.lists(st.tuples(messy_text, st.lists(st.integers(0, 30), max_size=6)), max_size=5))
@pytest.mark.parametrize("name", TOKENIZERS)
def test_batches_equal_single_documents(name: str, texts: list[tuple[str, list[int]]]) -> None:
    tokenizer = TOKENIZERS[name]
    documents = []
    for number, (text, cuts) in enumerate(texts):
        ends = [min(cut, len(text)) for cut in cuts]
        pairs = zip(ends[::2], ends[1::2], strict=False)
        spans = tuple((min(pair), max(pair)) for pair in pairs)
        documents.append(
            Document(str(number), text, scored=spans or None, special_tokens=number % 2 == 0)
        )
    for document, tokens in zip(documents, tokenise_batch(documents, tokenizer), strict=True):
        alone = tokenise(document, tokenizer)
        assert tokens.ids.tolist() == alone.ids.tolist()
        assert tokens.scored.tolist() == alone.scored.tolist()


def test_a_batch_does_not_leak_spans_into_the_next_document() -> None:
    documents = [Document("1", "ab "), Document("2", "  x", scored=((0, 1),))]
    tokens = tokenise_batch(documents, BYTES)
    assert tokens[1].scored.tolist() == tokenise(documents[1], BYTES).scored.tolist()
    assert not tokens[1].scored.any()


def test_a_token_counts_when_it_overlaps_any_span() -> None:
    text = "the fox and the dog"
    overlapping = ((4, 6), (5, 7), (12, 12), (16, 17))
    assert strings(BYTES, Document("d", text, scored=overlapping)) == ["Ġfox", "Ġdog"]
    assert strings(BYTES, Document("d", text, scored=overlapping[::-1])) == ["Ġfox", "Ġdog"]
    assert strings(BYTES, Document("d", text, scored=())) == []
    nested = Document("d", text, scored=((4, 12), (5, 6)))
    assert strings(BYTES, nested)[:2] == ["Ġfox", "Ġand"]
    assert strings(START, Document("d", "  x", scored=((0, 1),))) == ["Ġ"]
    assert strings(START, Document("d", "  x", scored=((1, 2),))) == ["Ġ"]


def test_special_tokens_written_in_the_text_are_text() -> None:
    assert strings(START, Document("d", "a<|end|>", scored=((1, 8),))) == ["<|end|>"]


def test_truncation_and_padding_of_the_tokenizer_are_not_applied() -> None:
    tokenizer = byte_level(start_token=True)
    tokenizer.model_max_length = 4
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=200)
    tokens = tokenise(Document("d", PROSE), tokenizer)
    assert tokens.ids.tolist() == START(PROSE)["input_ids"]


def test_tokenizers_without_offsets_are_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(ModelError, match="Slow reports no character offsets"):
        tokenise(Document("d", "x"), Slow())  # type: ignore[arg-type]


def test_batches_cost_little_more_than_the_tokenizer_itself() -> None:
    documents = [Document.completion(str(n), PROSE[:50], PROSE[50:]) for n in range(2000)]

    def cost(work: Callable[[], object]) -> float:
        start = time.process_time()
        work()
        return time.process_time() - start

    plain = min(cost(lambda: START([d.text for d in documents])) for _ in range(2))
    assert min(cost(lambda: tokenise_batch(documents, START)) for _ in range(2)) < 2.5 * plain


# Queries


def test_query_document() -> None:
    assert query_document(Query("a", " b")) == Document.completion("query", "a", " b")
    assert strings(BYTES, query_document(Query("a", " b"))) == ["Ġb"]
    assert tokenise_query(Query("", "a"), START).scored.tolist() == [False, True]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (Query("a", ""), "the completion is empty"),
        (Query("", "a"), "'a' has no token to score: .*give a prompt"),
        (Query("a", None), "the completion is of type NoneType"),  # type: ignore[arg-type]
        (Query("\ud800", "a"), "the prompt is not valid Unicode at character 0"),
    ],
)
def test_bad_queries(query: Query, message: str) -> None:
    with pytest.raises(QueryError, match=message):
        tokenise_query(query, BYTES)


# Chats

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def chat_tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    tokenizer = byte_level(start_token=True)
    tokenizer.chat_template = template
    return tokenizer


def chat(*turns: str) -> Document:
    """Turns written as ``u:text`` and ``a:text``."""
    roles = {"u": "user", "a": "assistant", "s": "system"}
    return Document.chat("d", [Message(roles[t[0]], t[2:]) for t in turns], {"year": 1})


def test_chats_are_scored_on_the_answers_and_their_end_marks() -> None:
    tokenizer = chat_tokenizer(CHATML)
    document = render_chat(
        chat("s:be brief", "u:hi", "a:the fox", "u:more", "a:the dog"), tokenizer
    )
    assert document.text.startswith(
        "<|system|>\nbe brief<|end|>\n<|user|>\nhi<|end|>\n<|assistant|>"
    )
    assert document.scored is not None
    assert [document.text[start:end] for start, end in document.scored] == [
        "the fox<|end|>\n",
        "the dog<|end|>\n",
    ]
    assert (document.messages, document.special_tokens) == (None, False)
    assert (document.doc_id, document.metadata) == ("d", {"year": 1})
    scored = strings(tokenizer, document)
    assert (
        "".join(scored).replace("Ġ", " ").replace("Ċ", "\n") == "the fox<|end|>\nthe dog<|end|>\n"
    )


def test_a_chat_may_open_with_the_assistant_and_end_with_the_user() -> None:
    document = render_chat(chat("a:hello", "u:bye"), chat_tokenizer(CHATML))
    assert document.scored is not None
    assert [document.text[slice(*span)] for span in document.scored] == ["hello<|end|>\n"]
    assert document.text.endswith("<|user|>\nbye<|end|>\n")


def test_other_documents_pass_through() -> None:
    document = Document("d", "text")
    assert render_chat(document, chat_tokenizer(None)) is document


@pytest.mark.parametrize(
    ("template", "turns", "message"),
    [
        (None, ("u:hi", "a:yo"), "has no chat template; set tokenizer.chat_template"),
        (CHATML, ("u:hi",), "no turn with the role 'assistant'"),
        (
            CHATML + "{{ raise_exception('no\nsystems') }}",
            ("u:hi", "a:yo"),
            r"refuses it \(no syst",
        ),
        (CHATML.replace("<|assistant|>\n", "<|other|>"), ("u:hi", "a:yo"), "differently"),
        (
            CHATML.replace("m.content", "m.content if loop.last else 'cut'"),
            ("u:hi", "a:yo", "u:hi"),
            "what stands before or in message 2",
        ),
        (
            CHATML.replace("m.content", "m.content if loop.last or m.role == 'user' else 'cut'"),
            ("u:hi", "a:yo", "u:hi"),
            "what stands before or in message 2",
        ),
    ],
)
def test_bad_chats(template: str | None, turns: tuple[str, ...], message: str) -> None:
    with pytest.raises(CorpusError, match=message) as caught:
        render_chat(chat(*turns), chat_tokenizer(template))
    assert str(caught.value).startswith("document 'd'")
    assert "\n" not in str(caught.value)


def test_unrendered_chats_are_not_taken_for_empty_text() -> None:
    for use in (tokenise, lambda d, t: list(split_passages(d, t, 8))):
        with pytest.raises(CorpusError, match="render_chat first"):
            use(chat("u:hi", "a:yo"), BYTES)  # type: ignore[operator]


# Passages


@every_tokenizer
def test_documents_that_fit_come_back_unchanged(tokenizer: PreTrainedTokenizerFast) -> None:
    document = Document("d", "The quick brown fox.", {"year": 1})
    size = len(tokenise(document, tokenizer).ids)
    assert next(split_passages(document, tokenizer, size)) is document
    passages = list(split_passages(document, tokenizer, size - 1))
    assert [p.parent_id for p in passages] == ["d"] * len(passages)
    assert len(passages) > 1


@every_tokenizer
@pytest.mark.parametrize("context", [9, 16, 40])
def test_passages_join_to_the_text(tokenizer: PreTrainedTokenizerFast, context: int) -> None:
    document = Document("d", PROSE * 3 + "🙂é漢" * 20 + "x" * 50, {"year": 1})
    passages = list(split_passages(document, tokenizer, context))
    assert "".join(p.text for p in passages) == document.text
    assert [p.doc_id for p in passages] == [f"d#{n:04d}" for n in range(len(passages))]
    for passage in passages:
        assert len(tokenise(passage, tokenizer).ids) <= context
        assert passage.text == document.text[passage.char_start :][: len(passage.text)]
        assert passage.metadata == {"year": 1}
        assert passage.scored is None


@given(text=messy_text.map(lambda text: text * 3), context=st.integers(6, 20))
def test_no_character_is_lost_whatever_the_text(text: str, context: int) -> None:
    document = Document("d", text)
    passages = list(split_passages(document, START, context))
    assert "".join(p.text for p in passages) == text
    assert all(len(tokenise(p, START).ids) <= context for p in passages)


def test_cuts_fall_where_a_reader_would_cut() -> None:
    def passages(text: str, context: int) -> list[str]:
        return [p.text for p in split_passages(Document("d", text), START, context)]

    words = "the fox and the dog and the crow"
    size = len(tokenise(Document("d", words), START).ids)
    assert passages(f"{words}.\n\n{words} went home.", size + 4)[0] == f"{words}.\n\n"
    assert passages(f"{words}. The {words} went home.", size + 4)[0] == f"{words}."
    assert passages(f"{words} went {words}", size + 1) == [f"{words} went", f" {words}"]
    assert passages(f"{words}\n{words} went", size + 1)[0] == f"{words}\n"


def test_passages_are_nearly_full() -> None:
    passages = list(split_passages(Document("d", PROSE * 20), START, 64))
    sizes = [len(tokenise(p, START).ids) for p in passages]
    assert min(sizes[:-1]) >= 64 * 2 // 3 - 2


def test_the_end_is_not_a_passage_of_white_space() -> None:
    for tail in (" ", "\n", "\n\n", "  \n "):
        document = Document("d", "the fox and the dog and the crow" + tail)
        size = len(tokenise(document, START).ids)
        for context in range(6, size):
            *_, last = split_passages(document, START, context)
            assert last.text.strip()


def test_a_long_prompt_keeps_half_a_context_before_the_completion() -> None:
    prompt, completion = PROSE * 4, " Then the fox and the dog went home."
    document = Document.completion("d", prompt, completion)
    (passage,) = split_passages(document, START, 60)
    assert passage.text.endswith(completion)
    assert passage.scored == ((len(passage.text) - len(completion), len(passage.text)),)
    assert passage.char_start == len(document.text) - len(passage.text)
    tokens = tokenise(passage, START)
    context_tokens = int(np.argmax(tokens.scored)) - 1
    assert 30 * 2 // 3 <= context_tokens <= 30
    assert passage.text[0].isspace() or prompt[passage.char_start - 1].isspace()
    whole = tokenise(document, START)
    assert tokens.ids[tokens.scored].tolist() == whole.ids[whole.scored].tolist()


def test_the_context_kept_starts_with_a_word() -> None:
    document = Document.completion("d", PROSE * 4, " Then the fox and the dog went home.")
    for context in range(30, 80):
        first = next(split_passages(document, START, context))
        before = document.text[first.char_start - 1]
        assert before.isspace() or first.text[0].isspace()


def test_passages_without_a_scored_token_are_dropped() -> None:
    document = Document("d", "a b c d e")
    assert [p.text for p in split_passages(document, BYTES, 2)] == ["a b", " c d"]


def test_a_short_prompt_is_kept_whole() -> None:
    document = Document.completion("d", "the fox", PROSE * 2)
    passages = list(split_passages(document, START, 40))
    assert passages[0].char_start == 0
    assert passages[0].scored == ((7, len(passages[0].text)),)
    assert all(p.scored == ((0, len(p.text)),) for p in passages[1:])
    assert "".join(p.text for p in passages) == document.text


def test_stretches_without_loss_are_left_out() -> None:
    text = PROSE * 3 + "ANSWER one" + PROSE * 3 + "ANSWER two" + PROSE * 3
    spans = tuple((at, at + 10) for at in (text.index("ANSWER o"), text.index("ANSWER t")))
    document = Document("d", text, scored=spans)
    passages = list(split_passages(document, START, 48))
    scored = [p.text[a:b] for p in passages for a, b in p.scored or ()]
    assert "".join(scored) == "ANSWER oneANSWER two"
    assert all(tokenise(p, START).scored.any() for p in passages)
    assert list(split_passages(Document("d", text, scored=()), START, 48)) == []


@given(
    text=messy_text.map(lambda text: text * 3),
    cuts=st.lists(st.integers(0, 90), min_size=2, max_size=6),
    context=st.integers(8, 20),
)
def test_every_scored_character_keeps_its_place(text: str, cuts: list[int], context: int) -> None:
    ends = sorted({min(cut, len(text)) for cut in cuts})
    document = Document("d", text, scored=tuple(zip(ends[::2], ends[1::2], strict=False)))
    expected = {at for start, end in document.scored or () for at in range(start, end)}
    found = [
        passage.char_start + at
        for passage in split_passages(document, START, context)
        for start, end in passage.scored or ()
        for at in range(start, end)
    ]
    assert len(found) == len(set(found))
    assert set(found) == expected


def test_passages_of_a_rendered_chat_and_of_a_passage() -> None:
    tokenizer = chat_tokenizer(CHATML)
    document = render_chat(chat("u:" + PROSE * 3, "a:the fox and the dog"), tokenizer)
    (passage,) = split_passages(document, tokenizer, 64)
    assert passage.special_tokens is False
    parent = Document("p#0001", PROSE * 2, parent_id="p", char_start=1000)
    passages = list(split_passages(parent, START, 48))
    assert {p.parent_id for p in passages} == {"p"}
    assert passages[1].char_start == 1000 + len(passages[0].text)


def test_a_context_too_small_is_refused() -> None:
    with pytest.raises(CorpusError, match="document 'd' cannot be cut into passages of 1 tokens"):
        list(split_passages(Document("d", "a b"), START, 1))
    with pytest.raises(CorpusError, match="not even one character fits"):
        list(split_passages(Document("d", "漢🙂"), START, 3))


def test_long_documents_are_cut_in_linear_time() -> None:
    def cost(copies: int) -> float:
        start = time.process_time()
        passages = list(split_passages(Document("d", PROSE * copies), START, 64))
        assert len(passages) >= copies
        return time.process_time() - start

    # Ten times the text; quadratic work would cost a hundred times as much.
    assert cost(1000) < 30 * min(cost(100), cost(100))
