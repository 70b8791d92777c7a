"""The demo's corpus, tokenizer and small model."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from wherefrom.demo import corpus, model
from wherefrom.errors import CorpusError, ModelError
from wherefrom.records import Document

SMALL = dataclasses.replace(
    model.RECIPE,
    vocabulary=400,
    context=400,
    width=16,
    feed_forward=32,
    layers=1,
    heads=2,
    epochs=6,
    learning_rate=1e-2,
)


@pytest.fixture(scope="module")
def addresses() -> tuple[corpus.Address, ...]:
    return corpus.load_addresses()


@pytest.fixture(scope="module")
def passages(addresses: tuple[corpus.Address, ...]) -> list[Document]:
    return corpus.training_passages(addresses)


@pytest.fixture(scope="module")
def few(passages: list[Document]) -> list[Document]:
    return passages[::40]


class Calls(list[tuple[str, int, int]]):
    def __call__(self, phase: str, done: int, total: int) -> None:
        self.append((phase, done, total))


def address(text: str) -> corpus.Address:
    return corpus.Address("sotu-1900-nobody", 1900, "No Body", "none", text)


def test_every_address_is_there_with_its_metadata(addresses: tuple[corpus.Address, ...]) -> None:
    assert len({a.doc_id for a in addresses}) == 233
    assert (addresses[0].year, addresses[-1].year) == (1790, 2021)
    assert addresses[0].president == "George Washington"


def test_training_passages_are_many_distinct_and_even(
    addresses: tuple[corpus.Address, ...], passages: list[Document]
) -> None:
    per_address = Counter(passage.parent_id for passage in passages)
    assert len(passages) == len({passage.doc_id for passage in passages}) >= 4000
    assert len(per_address) == len(addresses)
    assert max(per_address.values()) == 18
    assert min(per_address.values()) == 8
    assert passages == corpus.training_passages(addresses)


def test_a_passage_says_where_it_comes_from(
    addresses: tuple[corpus.Address, ...], passages: list[Document]
) -> None:
    sources = {a.doc_id: a for a in addresses}
    for passage in passages:
        assert passage.parent_id is not None
        source = sources[passage.parent_id]
        end = passage.char_start + len(passage.text)
        assert source.text[passage.char_start : end] == passage.text
        assert re.fullmatch(rf"{source.doc_id}-\d{{3}}", passage.doc_id)
        assert passage.metadata == {
            "year": source.year,
            "president": source.president,
            "party": source.party,
            "address": source.doc_id,
        }


def test_held_out_passages_are_not_trained_on(
    addresses: tuple[corpus.Address, ...], passages: list[Document]
) -> None:
    held_out = corpus.held_out_passages(addresses, passages, 300)
    assert len({passage.doc_id for passage in held_out}) == 300
    assert {p.doc_id for p in held_out}.isdisjoint(p.doc_id for p in passages)


def test_more_passages_than_there_are_is_an_error(
    addresses: tuple[corpus.Address, ...],
) -> None:
    with pytest.raises(CorpusError, match="ask for fewer"):
        corpus.training_passages(addresses[:9], 10**6)
    with pytest.raises(CorpusError, match="ask for fewer"):
        corpus.held_out_passages(addresses[:9], [], 10**6)


def test_passages_end_with_sentences() -> None:
    sentence = "Mr. Adams spoke of peace, and the House agreed to No. 5 of the treaty. "
    cut = corpus.cut_passages(address((sentence * 40).strip()))
    assert len(cut) > 2
    assert all(passage.text.endswith("treaty.") for passage in cut)
    assert all(passage.text.startswith("Mr. Adams") for passage in cut)


@given(st.text(alphabet="ab .;!\"Z1'", max_size=3000))
def test_cutting_loses_nothing_but_the_gaps(text: str) -> None:
    cut = corpus.cut_passages(address(text))
    end = 0
    for passage in cut:
        assert text[end : passage.char_start].strip() == ""
        end = passage.char_start + len(passage.text)
        assert text[passage.char_start : end] == passage.text
    assert text[end:].strip() == ""
    longest_word = max(map(len, text.split()), default=0)
    limit = max(corpus.PASSAGE_CHARACTERS, longest_word)
    assert all(len(passage.text) <= limit for passage in cut[:-1])


def test_questions_are_of_four_eras_and_quoted_nowhere(
    addresses: tuple[corpus.Address, ...],
) -> None:
    for question in corpus.QUESTIONS:
        assert question.completion.startswith(" ")
        assert not any(question.prompt in a.text for a in addresses)
        assert not any(question.completion.strip() in a.text for a in addresses)
    eras = [question.years for question in corpus.QUESTIONS]
    assert len(eras) >= 3
    assert all(first < last for first, last in eras)
    assert all(last < first for (_, last), (first, _) in itertools.pairwise(eras))


def test_the_tokenizer_puts_a_start_token_first_and_loses_nothing(few: list[Document]) -> None:
    tokenizer = model.train_tokenizer(few, SMALL)
    assert len(tokenizer) == SMALL.vocabulary
    text = "A naïve “quote” — 100° north.\n"
    tokens = tokenizer(text)["input_ids"]
    assert tokens[0] == tokenizer.bos_token_id
    assert tokenizer.decode(tokens[1:]) == text


def test_all_training_passages_fit_the_context(passages: list[Document]) -> None:
    tokenizer = model.train_tokenizer(passages)
    lengths = [len(tokens) for tokens in tokenizer([p.text for p in passages])["input_ids"]]
    assert len(tokenizer) == model.RECIPE.vocabulary
    assert max(lengths) <= model.RECIPE.context
    assert 100 <= sum(lengths) / len(lengths) <= 130


def test_training_learns_reports_and_repeats_itself_bit_by_bit(few: list[Document]) -> None:
    tokenizer = model.train_tokenizer(few, SMALL)
    calls = Calls()
    torch.manual_seed(5)
    first = model.train_model(few, tokenizer, seed=3, progress=calls, recipe=SMALL)
    draw = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(draw, torch.rand(1)), "the caller's random state was touched"
    again = model.train_model(few, tokenizer, seed=3, progress=Calls(), recipe=SMALL)
    other = model.train_model(few, tokenizer, seed=4, progress=Calls(), recipe=SMALL)

    steps = SMALL.epochs * -(-len(few) // SMALL.batch_size)
    assert calls == [("train model", step + 1, steps) for step in range(steps)]
    weights = first.state_dict()
    assert all(torch.equal(weights[name], w) for name, w in again.state_dict().items())
    assert any(not torch.equal(weights[name], w) for name, w in other.state_dict().items())
    assert not first.training
    assert model.mean_loss(first, tokenizer, few) < unigram_loss(tokenizer, few) - 0.1


def unigram_loss(tokenizer: PreTrainedTokenizerFast, documents: list[Document]) -> float:
    """Entropy of the documents' token frequencies: the best that a model without context can do."""
    encodings = tokenizer([document.text for document in documents])["input_ids"]
    counts = Counter(token for tokens in encodings for token in tokens[1:])
    share = torch.tensor(list(counts.values()), dtype=torch.float64)
    share = share / share.sum()
    return float(-(share * share.log()).sum())


def test_mean_loss_is_that_of_each_text_alone(few: list[Document]) -> None:
    tokenizer = model.train_tokenizer(few, SMALL)
    recipe = dataclasses.replace(SMALL, epochs=1)
    trained = model.train_model(few, tokenizer, seed=0, progress=Calls(), recipe=recipe)
    total, count = 0.0, 0
    for document in few[:11]:
        tokens = torch.tensor(tokenizer(document.text)["input_ids"])
        with torch.no_grad():
            predicted = trained(tokens[None]).logits[0, :-1].double().log_softmax(-1)
        total -= predicted.gather(1, tokens[1:, None]).sum().item()
        count += len(tokens) - 1
    assert model.mean_loss(trained, tokenizer, few[:11]) == pytest.approx(total / count, rel=1e-5)


def test_a_finished_model_is_reused_and_another_recipe_or_corpus_retrains(
    few: list[Document], tmp_path: Path
) -> None:
    recipe = dataclasses.replace(SMALL, epochs=1)
    folder = tmp_path / "kept" / "model"

    def train(
        documents: list[Document], recipe: model.Recipe = recipe, seed: int = 0
    ) -> tuple[LlamaForCausalLM, int]:
        calls = Calls()
        kept, _ = model.load_or_train(folder, documents, seed=seed, progress=calls, recipe=recipe)
        return kept, len(calls)

    first, steps = train(few)
    again, no_steps = train(few)
    assert steps > 0
    assert no_steps == 0
    assert sorted(path.name for path in folder.parent.iterdir()) == ["model"]
    assert (folder / "model.safetensors").is_file()
    weights = first.state_dict()
    assert all(torch.equal(weights[name], w) for name, w in again.state_dict().items())
    assert train(few[:-1])[1] > 0
    assert train(few[:-1], dataclasses.replace(recipe, learning_rate=1e-3))[1] > 0
    assert train(few[:-1], dataclasses.replace(recipe, learning_rate=1e-3), seed=1)[1] > 0


def test_an_interrupted_training_leaves_no_model(few: list[Document], tmp_path: Path) -> None:
    def interrupt(phase: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    folder = tmp_path / "model"
    with pytest.raises(KeyboardInterrupt):
        model.load_or_train(folder, few, seed=0, progress=interrupt, recipe=SMALL)
    assert not folder.exists()
    (tmp_path / "model.partial").mkdir()
    calls = Calls()
    recipe = dataclasses.replace(SMALL, epochs=1)
    model.load_or_train(folder, few, seed=0, progress=calls, recipe=recipe)
    assert calls


def test_a_folder_of_someone_else_is_not_touched(few: list[Document], tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ModelError, match="no finished demo model"):
        model.load_or_train(tmp_path, few, seed=0, progress=Calls(), recipe=SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_text_longer_than_the_context_is_named(few: list[Document]) -> None:
    tokenizer = model.train_tokenizer(few, SMALL)
    long = Document("long-one", "peace " * 900)
    with pytest.raises(CorpusError, match="'long-one' has"):
        model.train_model([*few, long], tokenizer, seed=0, progress=Calls(), recipe=SMALL)


def test_no_documents_is_an_error(few: list[Document]) -> None:
    tokenizer = model.train_tokenizer(few, SMALL)
    with pytest.raises(CorpusError, match="at least one"):
        model.train_model([], tokenizer, seed=0, progress=Calls(), recipe=SMALL)


def test_a_diverging_training_says_so(few: list[Document]) -> None:
    tokenizer = model.train_tokenizer(few, SMALL)
    recipe = dataclasses.replace(SMALL, learning_rate=float("inf"))
    with pytest.raises(ModelError, match="learning_rate below"):
        model.train_model(few, tokenizer, seed=0, progress=Calls(), recipe=recipe)
