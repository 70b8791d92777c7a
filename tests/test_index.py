"""Truths 5, 6, 7 and 9: an index equals the dense float64 route and depends on nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

import dense
import wherefrom as wf
from small_models import mlp
from tiny_lm import CONTEXT, text_documents, tiny_llama, tiny_tokenizer, token_log_likelihood
from wherefrom.gradients.batches import document_key
from wherefrom.gradients.counter import key_of, uniforms
from wherefrom.gradients.layers import select_layers
from wherefrom.indexer import plan, room
from wherefrom.query import documents as reading

TOKENIZER = tiny_tokenizer()
QUESTIONS = [
    wf.Query("the union of states", " shall be preserved"),
    wf.Query("gold", " silver trade ships"),
    wf.Query("", "war or peace"),
]
FILTERS: dict[str, tuple[dict[str, Any], Callable[[wf.Document], bool]]] = {
    "none": ({}, lambda d: True),
    "below": ({"year": ("<", 1900)}, lambda d: (d.metadata["year"] or 9999) < 1900),
    "equal": ({"party": "Whig"}, lambda d: d.metadata["party"] == "Whig"),
    "quoted": ({"party": ("in", ["d'Or"])}, lambda d: d.metadata["party"] == "d'Or"),
    "missing": ({"party": None}, lambda d: d.metadata["party"] is None),
    "both": (
        {"year": [(">=", 1830), ("<", 1960)], "party": ("!=", "Whig")},
        lambda d: (
            d.metadata["year"] is not None
            and 1830 <= d.metadata["year"] < 1960
            and d.metadata["party"] not in ("Whig", None)
        ),
    ),
    "nothing": ({"year": (">", 3000)}, lambda d: False),
}


BUDGETS: dict[str, dict[str, Any]] = {
    "none": {"encoder": "none"},
    "sketch": {"encoder": "sketch", "bits": 16, "bytes_per_document": 512},
    "signs": {"encoder": "sketch", "bits": 1, "bytes_per_document": 64},
}


@dataclass(frozen=True)
class Pseudo:
    """One pseudo-gradient of a document: the scalar it is the gradient of, and its weight."""

    weight: float
    score: dense.Score


def influence_by_layer(
    model: nn.Module,
    layers: str,
    documents: Sequence[dense.Score],
    queries: Sequence[dense.Score],
    pseudo: Sequence[Sequence[Pseudo]],
    damping: float = 0.1,
) -> Tensor:
    """Dense EK-FAC influence, float64 ``[layer, query, document]``."""
    result = []
    for layer in select_layers(model, layers):
        activations, deltas, squares = [], [], []
        for terms in pseudo:
            pairs = [dense.tokens_of(model, layer.modules, term.score) for term in terms]
            activations.append(pairs[0][0])
            deltas += [term.weight * d for term, (_, d) in zip(terms, pairs, strict=True)]
            squares.append(
                [t.weight * dense.weight_gradient(model, layer.name, t.score) for t in terms]
            )
        block, mean = dense.ekfac_matrix(activations, deltas, squares)
        asked, stored = (
            torch.stack([dense.weight_gradient(model, layer.name, s).reshape(-1) for s in scores])
            for scores in (queries, documents)
        )
        result.append(dense.influence([block], [asked], [stored], [float(damping * mean)]))
    return torch.stack(result)


def class_log_likelihood(x: Tensor, label: int) -> dense.Score:
    return lambda model: torch.log_softmax(model(x[None]), 1)[0, label]


@dataclass(frozen=True)
class Examples:
    """A classifier with documents and questions for it."""

    model: nn.Module
    x: Tensor
    y: Tensor
    asked_x: Tensor
    asked_y: Tensor

    @property
    def asked(self) -> tuple[Tensor, Tensor]:
        return self.asked_x, self.asked_y

    def truth(self, fisher: str) -> Tensor:
        pseudo = []
        for x, y in zip(self.x, self.y.tolist(), strict=True):
            p = torch.softmax(self.model(x[None]), 1)[0].detach()
            expected = [Pseudo(float(p[c]) ** 0.5, class_log_likelihood(x, c)) for c in range(3)]
            empirical = [Pseudo(1.0, class_log_likelihood(x, y))]
            pseudo.append(expected if fisher == "expected" else empirical)
        documents, queries = (
            [class_log_likelihood(a, b) for a, b in zip(inputs, labels.tolist(), strict=True)]
            for inputs, labels in ((self.x, self.y), self.asked)
        )
        return influence_by_layer(self.model, "linear", documents, queries, pseudo)


def examples(bias: tuple[bool, bool, bool]) -> Examples:
    """Twelve documents; 7 and 2 repeat others and 5 is zero (no gradient where no bias is)."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(12, 5, dtype=torch.float64, generator=generator)
    y = torch.randint(0, 3, (12,), generator=generator)
    x[7], y[7], x[2], y[2], x[5] = x[3], y[3], x[9], y[9], 0.0
    asked = torch.randn(4, 5, dtype=torch.float64, generator=generator)
    return Examples(mlp(bias), x, y, asked, torch.tensor([0, 1, 2, 0]))


def pair_norms(index: wf.Index, queries: Any) -> NDArray[np.float64]:
    """``|phi(q)| |phi(z)| / N``: what rounding errors of a score are relative to."""
    asked = np.linalg.norm(index.encode(queries).astype(np.float64), axis=1)
    stored = np.linalg.norm(index.vectors().astype(np.float64), axis=1)
    return np.outer(asked, stored) / len(index)


def ranked(
    scores: NDArray[np.float64], doc_ids: Sequence[str], k: int, *, tie: float = 0.0
) -> list[str]:
    """Ids of the top k positive scores; scores within ``tie`` of each other by id."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    groups: list[list[int]] = []
    for i in order:
        if groups and scores[groups[-1][0]] - scores[i] <= tie:
            groups[-1].append(i)
        else:
            groups.append([i])
    positive = [g for g in groups if scores[g[0]] > tie]
    return [i for group in positive for i in sorted(doc_ids[j] for j in group)][:k]


def assert_hits(
    answer: wf.Answer,
    scores: NDArray[np.float64],
    doc_ids: Sequence[str],
    k: int,
    sign: str,
    norms: NDArray[np.float64],
) -> None:
    """The answer lists what the dense ``scores`` put first, with these scores."""
    tie = 1e-7 * float(norms.max(initial=0.0))
    for hits, direction, wanted in (
        (answer.proponents, 1.0, sign != "opponents"),
        (answer.opponents, -1.0, sign != "proponents"),
    ):
        expected = ranked(direction * scores, doc_ids, k, tie=tie) if wanted else []
        assert [hit.doc_id for hit in hits] == expected
        assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))
        where = [doc_ids.index(hit.doc_id) for hit in hits]
        found = np.array([hit.score for hit in hits])
        assert (direction * found > 0).all()
        assert (np.abs(found - scores[where]) <= 1e-6 * norms[where]).all()


@pytest.mark.parametrize("fisher", ["expected", "empirical"])
@pytest.mark.parametrize("bias", [(True,) * 3, (False,) * 3, (True, False, True)])
def test_a_classifiers_index_equals_the_dense_route(
    tmp_path: Path, bias: tuple[bool, bool, bool], fisher: str
) -> None:
    case = examples(bias)
    index = wf.build(
        case.model,
        (case.x, case.y),
        tmp_path / "i",
        encoder="none",
        fisher=None if fisher == "expected" else fisher,
    )
    assert index.manifest.curvature.fisher == fisher
    truth = case.truth(fisher).sum(0).numpy()
    norms = pair_norms(index, case.asked)
    largest = np.abs(truth).max()
    np.testing.assert_allclose(index.scores(case.asked), truth, rtol=1e-6, atol=1e-9 * largest)
    stored = index.scores(case.asked, tier="stored")
    assert (np.abs(stored - truth) <= 1e-6 * norms).all()
    ids = index.doc_ids()
    assert ids == [f"{i:02d}" for i in range(12)]
    for row, scores in enumerate(truth):
        for k in (1, 3, 12, 30):
            answer = index.query(inputs=case.asked_x[row], target=int(case.asked_y[row]), k=k)
            assert_hits(answer, scores, ids, k, "both", norms[row])
            assert answer.certificate.certified
            assert answer.certificate.documents == 12
    shown = [hit.doc_id for hit in (*answer.proponents, *answer.opponents)]
    assert len(shown) == len(set(shown)) == (12 if any(bias) else 11)
    assert ("05" in shown) == any(bias), "a document without gradient is on neither side"


@dataclass(frozen=True)
class Language:
    """An index over texts, its documents in order, and the dense truth ``[layer, query, doc]``."""

    index: wf.Index
    documents: list[wf.Document]
    truth: NDArray[np.float64]


def drawn(model: nn.Module, ids: list[int], doc_id: str, seed: int) -> Tensor:
    """The labels that the sampled Fisher draws for a text, by inversion of the cumulative sum."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids[:-1]])).logits[0]
    cumulative = torch.softmax(logits, -1).cumsum(-1).numpy()
    key = np.array([document_key(doc_id)], np.uint64)
    level = uniforms(key_of(seed, 0), key, len(ids) - 1)[0]
    labels = [np.searchsorted(c, u, side="right") for c, u in zip(cumulative, level, strict=True)]
    return torch.tensor(np.array(labels))


def dense_language(
    model: nn.Module,
    documents: Sequence[tuple[str, list[int], Sequence[int]]],
    queries: Sequence[wf.Query],
    seed: int,
) -> NDArray[np.float64]:
    """``[layer, query, document]`` for documents of known tokens, scored at known positions."""
    true, pseudo = [], []
    for doc_id, ids, scored in documents:
        true.append(token_log_likelihood(ids, scored))
        labels = drawn(model, ids, doc_id, seed)
        pseudo.append([Pseudo(1.0, token_log_likelihood(ids, scored, labels))])
    asked = []
    for query in queries:
        prompt = TOKENIZER(query.prompt)["input_ids"] if query.prompt else []
        ids = [*prompt, *TOKENIZER(query.completion)["input_ids"]]
        assert ids == TOKENIZER(query.prompt + query.completion)["input_ids"]
        asked.append(token_log_likelihood(ids, range(max(len(prompt), 1), len(ids))))
    return influence_by_layer(model, "mlp", true, asked, pseudo).numpy()


def whole_text(text: str) -> tuple[list[int], range]:
    ids = TOKENIZER(text)["input_ids"]
    return ids, range(1, len(ids))


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Language:
    model, documents = tiny_llama(), text_documents()
    path = tmp_path_factory.mktemp("language") / "i"
    index = wf.build(
        model, documents, path, objective=wf.CausalLM(TOKENIZER), encoder="none", seed=4
    )
    texts = [(d.doc_id, *whole_text(d.text)) for d in documents]
    return Language(index, documents, dense_language(model, texts, QUESTIONS, 4))


def test_a_language_models_index_equals_the_dense_route(language: Language) -> None:
    truth = language.truth.sum(0)
    largest = np.abs(truth).max()
    exact = language.index.scores(QUESTIONS)
    np.testing.assert_allclose(exact, truth, rtol=1e-6, atol=1e-9 * largest)
    norms = pair_norms(language.index, QUESTIONS)
    stored = language.index.scores(QUESTIONS, tier="stored")
    assert (np.abs(stored - exact) <= 1e-6 * norms).all()
    assert language.index.manifest.curvature.fisher == "sampled"
    assert language.index.manifest.warnings == ()


@pytest.mark.parametrize("sign", ["both", "proponents", "opponents"])
@pytest.mark.parametrize("name", FILTERS)
def test_answers_equal_the_dense_route_under_every_filter(
    language: Language, name: str, sign: Any
) -> None:
    where, passes = FILTERS[name]
    kept = [i for i, document in enumerate(language.documents) if passes(document)]
    ids = [language.documents[i].doc_id for i in kept]
    truth, norms = language.truth.sum(0), pair_norms(language.index, QUESTIONS)
    for row, query in enumerate(QUESTIONS):
        for k in (1, 4, 20, 50):
            answer = language.index.query(
                prompt=query.prompt, completion=query.completion, k=k, sign=sign, where=where
            )
            assert_hits(answer, truth[row, kept], ids, k, sign, norms[row, kept])
            assert answer.certificate.documents == len(kept)
            for hit in (*answer.proponents, *answer.opponents):
                document = next(d for d in language.documents if d.doc_id == hit.doc_id)
                assert (hit.text, hit.metadata) == (document.text, document.metadata)


def test_ties_are_broken_by_doc_id(language: Language) -> None:
    later, earlier = language.documents[1], language.documents[6]
    assert later.text == earlier.text
    assert earlier.doc_id < later.doc_id
    shown = 0
    for query in QUESTIONS:
        answer = language.index.query(prompt=query.prompt, completion=query.completion, k=20)
        for hits in (answer.proponents, answer.opponents):
            pair = [hit for hit in hits if hit.text == later.text]
            assert [hit.doc_id for hit in pair] in ([], [earlier.doc_id, later.doc_id])
            assert len({hit.score for hit in pair}) <= 1
            shown += len(pair)
    assert shown == 2 * len(QUESTIONS)


def test_layer_shares_are_products_of_whitened_blocks_and_sum_to_the_score(
    language: Language,
) -> None:
    index = language.index
    vectors, asked = index.vectors().astype(np.float64), index.encode(QUESTIONS).astype(np.float64)
    sizes = [layer.size for layer in index.curvature.layers]
    blocks = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    shares = np.stack([asked[:, b] @ vectors[:, b].T / len(index) for b in blocks])
    norms = pair_norms(index, QUESTIONS)
    assert (np.abs(shares - language.truth) <= 1e-6 * norms).all()
    stored = index.scores(QUESTIONS, tier="stored")
    np.testing.assert_allclose(shares.sum(0), stored, rtol=1e-9, atol=1e-12 * norms.max())


@pytest.mark.parametrize("encoder", ["none", "sketch"])
def test_self_influence_is_the_diagonal_whatever_the_encoder(tmp_path: Path, encoder: str) -> None:
    documents = [wf.Document("0", "war and peace"), *text_documents(8)]
    index = wf.build(
        tiny_llama(),
        documents,
        tmp_path / "i",
        objective=wf.CausalLM(TOKENIZER),
        encoder=encoder,
        bytes_per_document=128,
    )
    queries = [wf.Query("", document.text) for document in documents]
    diagonal = np.diagonal(index.scores(queries))
    np.testing.assert_allclose(index.self_influence(), diagonal, rtol=1e-7)
    assert (index.self_influence() >= 0).all()
    hits = index.query(prompt="war", completion=" and peace", k=9).proponents
    at = {doc_id: i for i, doc_id in enumerate(index.doc_ids())}
    for hit in hits:
        assert hit.norm**2 / len(index) == pytest.approx(index.self_influence()[at[hit.doc_id]])


def test_a_document_without_gradient_has_no_self_influence(tmp_path: Path) -> None:
    case = examples((False, False, False))
    index = wf.build(case.model, (case.x, case.y), tmp_path / "i", encoder="sketch")
    assert index.self_influence()[5] == 0.0
    assert not index.vectors()[5].any()
    assert (index.scores(case.asked)[:, 5] == 0.0).all()


def scores_by_id(index: wf.Index, tier: Any) -> NDArray[np.float64]:
    order = np.argsort(index.doc_ids())
    return np.asarray(index.scores(QUESTIONS, tier=tier)[:, order])


def shuffled(documents: list[wf.Document]) -> list[wf.Document]:
    return [documents[i] for i in np.random.default_rng(9).permutation(len(documents))]


def pad_left(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    tokenizer.padding_side = tokenizer.truncation_side = "left"
    return tokenizer


@pytest.mark.parametrize("encoder", ["none", "sketch"])
def test_scores_depend_on_nothing_but_model_and_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: str
) -> None:
    documents = text_documents(24)

    def scores(name: str, **changes: Any) -> NDArray[np.float64]:
        given: dict[str, Any] = {
            "documents": documents,
            "objective": wf.CausalLM(tiny_tokenizer()),
            **BUDGETS[encoder],
            **changes,
        }
        index = wf.build(tiny_llama(), given.pop("documents"), tmp_path / name, **given)
        return np.stack([scores_by_id(index, tier) for tier in ("stored", "exact")])

    usual = scores("usual")
    left = wf.CausalLM(pad_left(tiny_tokenizer()))
    variants = {
        "batches of one": scores("one", batch_size=1),
        "odd batches": scores("odd", batch_size=7),
        "another order": scores("order", documents=shuffled(documents)),
        "padding on the left": scores("left", objective=left),
    }
    monkeypatch.setattr(plan, "BLOCK", 3)
    monkeypatch.setattr(plan, "_SMALLEST_SHARD", 2)
    monkeypatch.setattr(plan, "_SHARD_BYTES", 1)
    monkeypatch.setattr(room, "MOST_POSITIONS", 20)
    monkeypatch.setattr(reading, "_ROWS_PER_READ", 7)
    variants["small shards"] = scores("shards")
    # A stored float16 may round to the other side: one part in 2048 of the largest entries.
    allowed = np.abs(usual).max() * np.array([1e-7 if encoder == "none" else 1e-3, 1e-9])
    for name, found in variants.items():
        assert (np.abs(found - usual).max((1, 2)) <= allowed).all(), name


@pytest.mark.parametrize("encoder", BUDGETS)
def test_building_and_asking_twice_gives_the_same_bits(tmp_path: Path, encoder: str) -> None:
    first, second = (
        wf.build(
            tiny_llama(),
            text_documents(18),
            tmp_path / name,
            objective=wf.CausalLM(TOKENIZER),
            **BUDGETS[encoder],
        )
        for name in "ab"
    )
    unstamped = [
        i.manifest.model_dump(
            exclude={"created": True, "seconds_per_document": True, "store": {"files"}}
        )
        for i in (first, second)
    ]
    assert unstamped[0] == unstamped[1]
    assert first.vectors().tobytes() == second.vectors().tobytes()
    reopened = wf.open(first.path, model=tiny_llama(), objective=wf.CausalLM(TOKENIZER))
    for tier in ("stored", "exact"):
        bits = {
            index.scores(QUESTIONS, tier=tier).tobytes()
            for index in (first, first, second, reopened)
        }
        assert len(bits) == 1
    plain = [
        index.query(prompt="gold", completion=" silver", k=5).to_dict()
        for index in (first, first, reopened)
    ]
    for answer in plain:
        answer.pop("seconds")
    assert plain[0] == plain[1] == plain[2]
    assert json.loads(first.query(prompt="gold", completion=" silver").to_json())["contract"]


@pytest.mark.parametrize("encoder", BUDGETS)
def test_a_query_is_the_same_to_the_bit_alone_and_among_others(
    tmp_path: Path, encoder: str
) -> None:
    index = wf.build(
        tiny_llama(),
        text_documents(),
        tmp_path / "i",
        objective=wf.CausalLM(TOKENIZER),
        **BUDGETS[encoder],
    )
    together = index.encode(QUESTIONS), index.scores(QUESTIONS, tier="stored")
    at = {doc_id: i for i, doc_id in enumerate(index.doc_ids())}
    for row, query in enumerate(QUESTIONS):
        assert index.encode([query]).tobytes() == together[0][row].tobytes()
        alone = index.scores([query], tier="stored")
        assert alone.tobytes() == together[1][row].tobytes()
        asked: Any = {"prompt": query.prompt, "completion": query.completion, "k": 20}
        answer = index.query(**asked, rerank="stored")
        for hit in (*answer.proponents, *answer.opponents):
            assert hit.score == together[1][row, at[hit.doc_id]]
        shown = len(answer.proponents) + len(answer.opponents)
        assert shown == np.count_nonzero(together[1][row])
    for rerank in ("stored", "recompute"):
        options: Any = {"k": 3, "candidates": 4, "rerank": rerank}
        for query, answer in zip(QUESTIONS, index.answers(QUESTIONS, **options), strict=True):
            alone = index.query(prompt=query.prompt, completion=query.completion, **options)
            assert unstamped(alone) == unstamped(answer)


def unstamped(answer: wf.Answer) -> dict[str, Any]:
    return {name: value for name, value in answer.to_dict().items() if name != "seconds"}


def test_stored_scores_are_products_of_the_vectors_shown(tmp_path: Path) -> None:
    stored = []
    for seed in (0, 1):
        index = wf.build(
            tiny_llama(),
            text_documents(),
            tmp_path / str(seed),
            objective=wf.CausalLM(TOKENIZER),
            fisher="empirical",
            encoder="sketch",
            bits=16,
            bytes_per_document=512,
            seed=seed,
        )
        assert index.vectors().shape == (20, 256)
        stored.append(index.scores(QUESTIONS, tier="stored"))
        product = index.encode(QUESTIONS).astype(float) @ index.vectors().astype(float).T / 20
        np.testing.assert_allclose(stored[-1], product, atol=1e-12 * np.abs(product).max())
        correlation = np.corrcoef(stored[-1].ravel(), index.scores(QUESTIONS).ravel())[0, 1]
        assert 0.5 < correlation < 0.9999
    assert np.abs(stored[0] - stored[1]).max() > 1e-3, "another seed, another sketch"


@pytest.mark.parametrize(
    ("wanted", "count"), [(10, 10), (0.25, 5), (0.001, 1), (99, 20), (1.0, 20)]
)
def test_the_curvature_may_be_fitted_on_a_sample(tmp_path: Path, wanted: float, count: int) -> None:
    """Which documents these are does not depend on their order."""
    documents = text_documents()
    first, second = (
        wf.build(
            tiny_llama(),
            given,
            tmp_path / name,
            objective=wf.CausalLM(TOKENIZER),
            encoder="none",
            fit_documents=wanted,
        )
        for name, given in (("first", documents), ("second", shuffled(documents)))
    )
    assert first.manifest.curvature.fit_documents == first.curvature.documents == count
    assert first.manifest.scale == 1 / 20
    scores = [scores_by_id(index, "exact") for index in (first, second)]
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-6, atol=1e-9 * np.abs(scores).max())


@pytest.mark.parametrize(
    ("wanted", "reduce", "bits", "dimension", "stored"),
    [
        ({"bytes_per_document": 2880}, "none", 32, 720, 2880),
        ({"bytes_per_document": 2879, "bits": 16}, "none", 16, 720, 1440),
        ({"bytes_per_document": 128, "encoder": "sketch", "bits": 4}, "sketch", 4, 256, 128),
        ({"bytes_per_document": 64, "encoder": "energy", "bits": 2}, "energy", 2, 256, 64),
        ({"bytes_per_document": 80, "encoder": "random", "bits": 16}, "random", 16, 40, 80),
        ({"encoder": "none", "bits": 1}, "none", 1, 720, 90),
        ({"encoder": "none", "pca": 5, "bits": 8}, "none", 8, 5, 5 + 4 * 720 * 5 / 8),
        ({"encoder": "none", "fidelity": 0.5}, "none", 1, 720, 90),
    ],
)
def test_an_encoder_is_what_was_asked_for(
    tmp_path: Path,
    wanted: dict[str, Any],
    reduce: str,
    bits: int,
    dimension: int,
    stored: float,
) -> None:
    index = wf.build(
        tiny_llama(),
        text_documents(8),
        tmp_path / "i",
        objective=wf.CausalLM(TOKENIZER),
        **wanted,
    )
    record = index.manifest.encoder
    assert (record.reduce, record.bits, record.dimension) == (reduce, bits, dimension)
    assert record.bytes_per_document == stored
    assert index.vectors().shape == (8, dimension)


def test_absurd_damping_warns_and_is_remembered(tmp_path: Path) -> None:
    def build(name: str, damping: float) -> wf.Index:
        return wf.build(
            tiny_llama(),
            text_documents(),
            tmp_path / name,
            objective=wf.CausalLM(TOKENIZER),
            encoder="none",
            damping=damping,
        )

    usual = build("usual", 0.1)
    assert usual.manifest.warnings == ()
    with pytest.warns(UserWarning, match="gradient dot product"):
        absurd = build("absurd", 1e6)
    assert [note for note in absurd.manifest.warnings if "smaller damping" in note]


def test_a_build_leaves_no_trace_in_the_next(tmp_path: Path) -> None:
    model, dampings = tiny_llama(), (0.1, 1.0, 0.1)
    first, other, again = (
        wf.build(
            model,
            text_documents(),
            tmp_path / str(i),
            objective=wf.CausalLM(TOKENIZER),
            encoder="none",
            damping=damping,
        )
        for i, damping in enumerate(dampings)
    )
    scores = [index.scores(QUESTIONS) for index in (first, other, again, first)]
    assert scores[0].tobytes() == scores[2].tobytes() == scores[3].tobytes()
    assert np.abs(scores[1]).max() < 0.8 * np.abs(scores[0]).max()
    assert [index.manifest.curvature.damping for index in (first, other, again)] == [*dampings]
    for i in range(len(first.curvature.layers)):
        values = first.curvature.eigenvalues[i]
        added = other.curvature.damped(i) - values
        torch.testing.assert_close(added, values.mean().expand_as(values))


def rows_with_completions(folder: Path) -> Path:
    """Plain, prompt/completion and chat rows."""
    chat = [
        {"role": "user", "content": "is it war"},
        {"role": "assistant", "content": "peace"},
        {"role": "user", "content": "and gold"},
        {"role": "assistant", "content": "silver and trade"},
    ]
    rows = [
        {"doc_id": "plain", "text": "the great nation shall be free now"},
        {"doc_id": "pair", "prompt": "the union of states", "completion": " will end by war"},
        {"doc_id": "bare", "prompt": "", "completion": "people and president"},
        {"doc_id": "chat", "messages": chat[:2]},
        {"doc_id": "long chat", "messages": chat},
    ]
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_only_completions_and_answers_enter_the_loss(tmp_path: Path) -> None:
    model = tiny_llama()
    objective = wf.CausalLM(TOKENIZER)
    corpus = rows_with_completions(tmp_path)
    index = wf.build(model, corpus, tmp_path / "i", objective=objective, encoder="none", seed=4)

    def ids(text: str) -> list[int]:
        return list(TOKENIZER(text)["input_ids"])

    def after(context: str, answer: str) -> tuple[list[int], range]:
        prompt, whole = ids(context), [*ids(context), *ids(answer)]
        assert whole == ids(context + answer)
        return whole, range(len(prompt), len(whole))

    first = after("<user>is it war</end>\n<assistant>", "peace</end>\n")
    opened = "<user>is it war</end>\n<assistant>peace</end>\n<user>and gold</end>\n<assistant>"
    second = after(opened, "silver and trade</end>\n")
    assert len(second[0]) <= CONTEXT

    spans = {
        "plain": whole_text("the great nation shall be free now"),
        "pair": after("the union of states", " will end by war"),
        "bare": whole_text("people and president"),
        "chat": first,
        "long chat": (second[0], [*first[1], *second[1]]),
    }
    assert second[0][: len(first[0])] == first[0]
    true = [token_log_likelihood(*span) for span in spans.values()]
    pseudo = [
        [Pseudo(1.0, token_log_likelihood(*span, drawn(model, span[0], doc_id, 4)))]
        for doc_id, span in spans.items()
    ]
    query = token_log_likelihood(*after("gold", " silver trade ships"))
    truth = influence_by_layer(model, "mlp", true, [query], pseudo).sum(0).numpy()
    assert index.doc_ids() == ["plain", "pair", "bare", "chat", "long chat"]
    found = index.scores([QUESTIONS[1]])
    np.testing.assert_allclose(found, truth, rtol=1e-6, atol=1e-9 * np.abs(truth).max())
    assert index.manifest.corpus.tokens == sum(len(scored) for _, scored in spans.values())
    answer = index.query(prompt="gold", completion=" silver trade ships")
    assert answer.log_likelihood == pytest.approx(float(query(model).detach()), rel=1e-9)
    assert answer.scored_tokens == len(ids(" silver trade ships"))
