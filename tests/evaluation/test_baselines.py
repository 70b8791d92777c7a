"""Baselines against brute force: gradients by ``torch.func``, BM25 written out, states by hand."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dense
import wherefrom as wf
from small_models import convolutions, mlp, with_lora
from tiny_bert import LABELS, bert_classifier, bert_tokenizer, labelled_documents
from tiny_lm import text_documents, tiny_llama, tiny_tokenizer
from wherefrom.errors import EvaluationError
from wherefrom.evaluation.baselines import BASELINES, baselines
from wherefrom.evaluation.subject import Subject

CONTRASTED = wf.Query("the union", " of states", contrast=" of gold and silver")
QUERIES: list[wf.Query | wf.QuerySet] = [
    wf.Query("gold", " silver trade"),
    CONTRASTED,
    wf.QuerySet((wf.Query("war", " or peace"), wf.Query("the army", " will end")), "mean"),
]


def language_model() -> Subject:
    return Subject.of_texts("lm", tiny_llama(), tiny_tokenizer(), text_documents(9), QUERIES)


def tensors(model: nn.Module | None = None, shape: tuple[int, ...] = (5,)) -> Subject:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(10, *shape, dtype=torch.float64, generator=generator)
    y = torch.randint(0, 3, (10,), generator=generator)
    return Subject.of_tensors("mlp", model or mlp(), (x[:7], y[:7]), (x[7:], y[7:]))


def whole_gradient(subject: Subject, score: dense.Score) -> Tensor:
    model = subject.extractor.model
    names = [layer.name for layer in subject.extractor.layers]
    return torch.cat([dense.weight_gradient(model, name, score).reshape(-1) for name in names])


def class_score(x: Tensor, y: int) -> dense.Score:
    return lambda model: torch.log_softmax(model(x[None]), 1)[0, y]


def test_gradient_baselines_are_those_of_whole_gradients() -> None:
    subject = tensors()
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(10, 5, dtype=torch.float64, generator=generator)
    y = torch.randint(0, 3, (10,), generator=generator).tolist()
    gradients = torch.stack(
        [whole_gradient(subject, class_score(a, b)) for a, b in zip(x, y, strict=True)]
    )
    dots = gradients[7:] @ gradients[:7].T
    found = baselines(subject, ["dot", "cosine"])
    np.testing.assert_allclose(found["dot"], dots.numpy(), rtol=1e-9, atol=1e-12)
    norms = gradients.norm(dim=1)
    cosines = dots / torch.outer(norms[7:], norms[:7])
    np.testing.assert_allclose(found["cosine"], cosines.numpy(), rtol=1e-9, atol=1e-12)


def test_a_document_without_a_gradient_is_near_nothing() -> None:
    x = torch.zeros(3, 5, dtype=torch.float64)
    x[0] = 1.0
    y = torch.tensor([0, 1, 2])
    subject = Subject.of_tensors("flat", mlp((False,) * 3), (x, y), (x[:1], y[:1]))
    found = baselines(subject, ["cosine", "embedding"])
    assert found["cosine"][0, 1:].tolist() == [0.0, 0.0]
    assert found["embedding"][0, 1:].tolist() == [0.0, 0.0]
    assert found["cosine"][0, 0] == pytest.approx(1.0)


def bm25(documents: Sequence[str], query: str) -> list[float]:
    """Lucene's form: ``log(1 + (N - n + .5) / (n + .5)) tf / (tf + k1 (1 - b + b len / mean))``."""
    split = [document.split() for document in documents]
    mean = sum(map(len, split)) / len(split)
    scores = []
    for document in split:
        counts, score = Counter(document), 0.0
        for word in query.split():
            holding = sum(word in other for other in split)
            rarity = math.log(1 + (len(split) - holding + 0.5) / (holding + 0.5))
            reach = 1.5 * (1 - 0.75 + 0.75 * len(document) / mean)
            score += rarity * counts[word] / (counts[word] + reach)
        scores.append(score)
    return scores


def test_bm25_is_its_formula_and_terms_are_weighted() -> None:
    subject = language_model()
    texts = [document.text for document in text_documents(9)]
    expected = [
        bm25(texts, "gold silver trade"),
        np.subtract(bm25(texts, "of states"), bm25(texts, "of gold and silver")),
        np.add(bm25(texts, "war or peace"), bm25(texts, "the army will end")) / 2,
    ]
    found = baselines(subject, ["bm25"])["bm25"]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)
    assert np.ptp(found, axis=1).min() > 0.1


def test_a_repeated_word_of_the_query_counts_each_time() -> None:
    documents = [wf.Document("a", "gold gold law"), wf.Document("b", "law of the union")]
    queries = [wf.Query("gold", " gold law")]
    subject = Subject.of_texts("lm", tiny_llama(), tiny_tokenizer(), documents, queries)
    expected = bm25([d.text for d in documents], "gold gold law")
    np.testing.assert_allclose(baselines(subject, ["bm25"])["bm25"], [expected], rtol=1e-12)


def test_texts_without_words_score_nothing() -> None:
    documents = [wf.Document("a", "!!! ..."), wf.Document("b", "--- ???")]
    subject = Subject.of_texts("lm", tiny_llama(), tiny_tokenizer(), documents, QUERIES)
    assert not baselines(subject, ["bm25"])["bm25"].any()


def states(subject: Subject, batch: Any) -> Tensor:
    """What enters the head, unpadded."""
    hidden = subject.extractor.model.model(input_ids=batch.inputs, use_cache=False)
    return hidden.last_hidden_state.mean(1)[0].detach()


def test_embeddings_of_language_models_are_what_enters_the_head() -> None:
    subject = language_model()
    lengths = {len(batch.inputs[0]) for _, batch in subject.document_batches(1)}
    assert len(lengths) > 1  # so that there is padding to leave out
    documents = torch.zeros(9, 12, dtype=torch.float64)
    for positions, batch in subject.document_batches(1):
        documents[int(positions[0])] = states(subject, batch)
    expected = torch.zeros(3, 9, dtype=torch.float64)
    for row, question in zip(expected, subject.questions, strict=True):
        for weight, batch in question.terms:
            row += weight * nn.functional.cosine_similarity(states(subject, batch)[None], documents)
    found = baselines(subject, ["embedding"])["embedding"]
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-9, atol=1e-12)


def test_embeddings_of_other_modules_are_what_their_last_map_reads() -> None:
    subject = tensors(convolutions(), (1, 5, 5))
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(10, 1, 5, 5, dtype=torch.float64, generator=generator)
    read = subject.extractor.model[:5](x).detach()
    expected = nn.functional.cosine_similarity(read[7:, None], read[None, :7], dim=2)
    found = baselines(subject, ["embedding"])["embedding"]
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-9)


def test_an_adapter_on_the_head_does_not_hide_what_it_reads() -> None:
    plain = tensors()
    adapted = tensors(with_lora(mlp(), "default", target_modules=["4"]))
    found = [baselines(subject, ["embedding"])["embedding"] for subject in (plain, adapted)]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-12)


def test_the_model_is_left_as_it_was() -> None:
    subject = tensors(nn.Sequential(nn.Dropout(0.5), mlp()).double())
    model = subject.extractor.model.train()
    model[1].eval()
    first, second = (baselines(subject)["embedding"] for _ in range(2))
    assert (first == second).all()
    assert model.training
    assert model[0].training
    assert not model[1].training
    assert not any(module._forward_hooks for module in model.modules())


def test_contrasts_of_labels_compare_the_text() -> None:
    text = "gold trade war"
    asked = [wf.Query(text, LABELS[0]), wf.Query(text, LABELS[0], contrast=LABELS[1])]
    subject = Subject.of_texts(
        "classifier",
        bert_classifier(),
        bert_tokenizer(),
        labelled_documents(8),
        asked,
        objective=wf.SequenceClassification(label="mood"),
    )
    found = baselines(subject, ["bm25", "embedding", "dot"])
    texts = [document.text for document in labelled_documents(8)]
    np.testing.assert_allclose(found["bm25"][0], bm25(texts, text), rtol=1e-12)
    for name in ("bm25", "embedding"):
        assert (found[name][0] == found[name][1]).all()
        assert np.ptp(found[name][0]) > 0.0
    assert (found["dot"][0] != found["dot"][1]).all()


def test_random_scores_follow_the_seed() -> None:
    subject = tensors()
    first, again, other = (baselines(subject, ["random"], seed=s)["random"] for s in (1, 1, 2))
    assert first.shape == (3, 7)
    assert (first == again).all()
    assert (first != other).any()


def test_what_applies_is_what_is_made() -> None:
    assert tuple(baselines(language_model())) == BASELINES
    assert set(baselines(tensors())) == set(BASELINES) - {"bm25"}
    for scores in baselines(language_model()).values():
        assert scores.shape == (3, 9)
        assert scores.dtype == np.float64


def test_bad_names_are_refused() -> None:
    with pytest.raises(EvaluationError, match="baseline 'tfidf' is unknown; choose among dot"):
        baselines(tensors(), ["tfidf"])
    with pytest.raises(EvaluationError, match="bm25 compares words, and these documents are tens"):
        baselines(tensors(), ["bm25"])
