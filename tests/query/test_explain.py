"""Truth 6: shares of layers and tokens are the dense ones, and each kind sums to the score."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import dense
import wherefrom as wf
from small_models import mlp
from test_index import Pseudo, drawn, influence_by_layer, whole_text
from tiny_bert import CONTEXT, bert_classifier, bert_tokenizer, labelled_documents, masked_bert
from tiny_lm import text_documents, tiny_llama, tiny_tokenizer, token_log_likelihood
from wherefrom.errors import MismatchError, ModelError, QueryError
from wherefrom.query.interpretation.explain import layer_names
from wherefrom.query.interpretation.explanation import HitShares, TokenShare

TOKENIZER = tiny_tokenizer()
SINGLE = 2e-6
"""What float32 in Llama's norms and rotations leaves of agreement, relative to the shares."""
QUERY = wf.Query("the union of states", " shall be preserved")


def numbered_documents() -> list[wf.Document]:
    return [replace(d, metadata={"mood": i % 3}) for i, d in enumerate(labelled_documents())]


def shares_of(tokens: Sequence[TokenShare] | None) -> NDArray[np.float64]:
    assert tokens is not None
    return np.array([0.0 if one.share is None else one.share for one in tokens])


def assert_sums(hit: HitShares, symmetry: float = SINGLE) -> None:
    """Every kind of share sums to the score; ``symmetry`` is that of the curvature's solutions."""
    scale = max(sum(map(abs, hit.layers)), 1e-12)
    assert sum(hit.layers) == pytest.approx(hit.score, abs=1e-12 * scale)
    if hit.tokens is not None:
        total = shares_of(hit.tokens).sum() + hit.elsewhere
        assert total == pytest.approx(hit.score, abs=SINGLE * scale)
    if hit.question is not None:
        sides = sum(shares_of(one.tokens).sum() for one in hit.question)
        assert sides + hit.question_elsewhere == pytest.approx(hit.score, abs=symmetry * scale)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> wf.Index:
    path = tmp_path_factory.mktemp("explained") / "i"
    return wf.build(
        tiny_llama(),
        text_documents(),
        path,
        objective=wf.CausalLM(TOKENIZER),
        encoder="none",
        seed=4,
    )


@pytest.fixture(scope="module")
def answer(index: wf.Index) -> wf.Answer:
    return index.query(prompt=QUERY.prompt, completion=QUERY.completion, k=20, rerank="recompute")


def test_shares_of_predictions_are_those_of_the_dense_route(
    index: wf.Index, answer: wf.Answer
) -> None:
    """Each prediction taken for a document (or a question) by itself, layer by layer."""
    model = tiny_llama()
    documents = text_documents()
    pseudo = []
    for one in documents:
        ids, scored = whole_text(one.text)
        labels = drawn(model, ids, one.doc_id, 4)
        pseudo.append([Pseudo(1.0, token_log_likelihood(ids, scored, labels))])
    prompt = len(TOKENIZER(QUERY.prompt)["input_ids"])
    asked = TOKENIZER(QUERY.prompt + QUERY.completion)["input_ids"]
    queries = [token_log_likelihood(asked, [i]) for i in range(prompt, len(asked))]
    chosen = [next(d for d in documents if d.doc_id == answer.hits[i].doc_id) for i in (0, 3, -1)]
    texts = [whole_text(one.text) for one in chosen]
    predictions = [(ids, i) for ids, scored in texts for i in scored]
    truth = influence_by_layer(
        model, "mlp", [token_log_likelihood(ids, [i]) for ids, i in predictions], queries, pseudo
    ).numpy()
    truth *= len(predictions) / len(documents)  # which it takes for as many documents
    explanation = index.explain(answer, doc_ids=[one.doc_id for one in chosen])
    assert explanation.tokens_are == "predictions"
    start = 0
    for (ids, scored), hit in zip(texts, explanation.hits, strict=True):
        part = truth[:, :, start : start + len(scored)]
        start += len(scored)
        atol = SINGLE * np.abs(part).sum()
        np.testing.assert_allclose(hit.layers, part.sum((1, 2)), rtol=0, atol=atol)
        found = shares_of(hit.tokens)
        assert len(found) == len(ids)
        np.testing.assert_allclose(found[1:], part.sum((0, 1)), rtol=0, atol=atol)
        assert hit.tokens is not None
        assert hit.question is not None
        assert hit.tokens[0].share is None, "nothing predicts the first token"
        (side,) = hit.question
        np.testing.assert_allclose(
            shares_of(side.tokens)[prompt:], part.sum((0, 2)), rtol=0, atol=atol
        )
        assert [token.share for token in side.tokens[:prompt]] == [None] * prompt
        assert_sums(hit)


def test_scores_are_those_of_the_answer_to_the_last_bit(index: wf.Index, answer: wf.Answer) -> None:
    explanation = index.explain(answer)
    assert [hit.doc_id for hit in explanation.hits] == [hit.doc_id for hit in answer.hits]
    assert [hit.score for hit in explanation.hits] == [hit.score for hit in answer.hits]
    assert len(answer.hits) == 20
    assert explanation == index.explain(answer)
    for hit in explanation.hits:
        assert_sums(hit)
        assert explanation.of(hit.doc_id) is hit


def test_tokens_are_the_characters_of_the_text(index: wf.Index, answer: wf.Answer) -> None:
    for hit, shares in zip(answer.hits, index.explain(answer, by="token").hits, strict=True):
        assert shares.tokens is not None
        assert shares.question is not None
        assert "".join(token.text for token in shares.tokens) == hit.text
        assert all(hit.text[t.start : t.end] == t.text for t in shares.tokens)
        assert shares.question[0].text == QUERY.prompt + QUERY.completion


def test_by_layer_leaves_tokens_out(index: wf.Index, answer: wf.Answer) -> None:
    explanation = index.explain(answer, by="layer")
    assert explanation.tokens_are is None
    assert all(hit.tokens is None and hit.question is None for hit in explanation.hits)
    assert [hit.layers for hit in explanation.hits] == [
        hit.layers for hit in index.explain(answer).hits
    ]


@pytest.mark.filterwarnings("ignore:scores correlate")
@pytest.mark.parametrize("curvature", ["identity", "datainf", "exact", "kfac", "lissa"])
def test_shares_sum_to_the_score_for_every_curvature(tmp_path: Path, curvature: str) -> None:
    built = wf.build(
        tiny_llama(),
        text_documents(9),
        tmp_path / "i",
        objective=wf.CausalLM(TOKENIZER),
        layers=["*down_proj"],
        curvature=curvature,
        encoder="none",
    )
    found = built.query(prompt="gold", completion=" silver trade ships", damping=0.5, k=9)
    scores = built.scores([wf.Query("gold", " silver trade ships")], damping=0.5)[0]
    for hit in built.explain(found).hits:
        # LiSSA stops when a vector is solved well enough, after more or fewer steps.
        assert_sums(hit, symmetry=1e-3 if curvature == "lissa" else SINGLE)
        assert hit.score == pytest.approx(scores[built.doc_ids().index(hit.doc_id)], rel=1e-9)


def test_contrasts_and_sets_have_a_text_each(index: wf.Index) -> None:
    contrast = wf.Query("the union", " shall be free", contrast=" will not end")
    other = wf.Query("gold", " silver ships")
    asked = wf.QuerySet((contrast, other), "sum")
    answer = index.query(queries=asked, k=3, rerank="recompute")
    for hit in index.explain(answer).hits:
        assert hit.question is not None
        assert [(one.weight, one.text) for one in hit.question] == [
            (1.0, "the union shall be free"),
            (-1.0, "the union will not end"),
            (1.0, "gold silver ships"),
        ]
        assert_sums(hit)


def test_a_refined_question_has_shares_of_documents_only(index: wf.Index) -> None:
    answer = index.query(prompt="gold", completion=" silver trade", k=2, refine=2)
    explanation = index.explain(answer)
    assert answer.certificate.tier == "exact"
    for hit, shown in zip(explanation.hits, answer.hits, strict=True):
        assert hit.question is None
        assert hit.score == shown.score
        assert_sums(hit)


def test_masked_tokens_carry_the_shares_of_a_masked_language_model(tmp_path: Path) -> None:
    texts = [replace(one, metadata={}) for one in labelled_documents()]
    tokenizer = bert_tokenizer()
    index = wf.build(
        masked_bert(),
        texts,
        tmp_path / "i",
        objective=wf.MaskedLM(tokenizer, probability=0.4),
        encoder="none",
    )
    answer = index.query(prompt="gold silver", completion=" trade ships", k=8, rerank="recompute")
    explanation = index.explain(answer)
    assert explanation.tokens_are == "predictions"
    for hit in explanation.hits:
        assert_sums(hit)
        assert hit.tokens is not None
        masked = [token for token in hit.tokens if token.share is not None]
        assert 0 < len(masked) < len(hit.tokens)
        assert all(token.text for token in masked), "special tokens are never predicted"
        assert hit.question is not None
        assert [t.text for t in hit.question[0].tokens if t.share is not None] == ["trade", "ships"]


@contextmanager
def weights_by_position(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Every linear layer with a weight of its own for each position, to be differentiated."""
    leaves: dict[str, Tensor] = {}
    handles = []
    for name in names:
        module = model.get_submodule(name)

        def own(layer: Any, inputs: Any, output: Tensor, name: str = name) -> Tensor:
            matrix = torch.cat([layer.weight, layer.bias[:, None]], 1).detach()
            leaf = matrix.expand(inputs[0].shape[1], -1, -1).clone().requires_grad_()
            leaves[name] = leaf
            ones = torch.ones_like(inputs[0][..., :1])
            return torch.einsum("toi,bti->bto", leaf, torch.cat([inputs[0], ones], 2))

        handles.append(module.register_forward_hook(own))
    try:
        yield leaves
    finally:
        for handle in handles:
            handle.remove()


def test_a_classifiers_shares_are_of_positions(tmp_path: Path) -> None:
    """Against weights that are split by position and differentiated by torch itself."""
    model, tokenizer = bert_classifier(), bert_tokenizer()
    documents = numbered_documents()
    index = wf.build(
        model,
        documents,
        tmp_path / "i",
        objective=wf.SequenceClassification(tokenizer, label="mood"),
        curvature="identity",
        encoder="none",
        layers="mlp",
    )
    query = wf.Query("gold silver trade", "angry", contrast="calm")
    asked = index.query(prompt=query.prompt, completion="angry", contrast="calm", k=8)
    explanation = index.explain(asked)
    assert explanation.tokens_are == "positions"
    names = [layer.name for layer in explanation.layers]

    def by_position(text: str, label: int) -> dict[str, Tensor]:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with weights_by_position(model, names) as leaves:
            nats = torch.log_softmax(model(input_ids=ids).logits, 1)[0, label]
            found = torch.autograd.grad(nats, list(leaves.values()))
        return dict(zip(leaves, found, strict=True))

    one, two = by_position(query.prompt, 1), by_position(query.prompt, 0)
    for hit in explanation.hits:
        document = next(d for d in documents if d.doc_id == hit.doc_id)
        own = by_position(document.text, int(str(document.metadata["mood"])))
        count = len(documents)
        direction = {n: (one[n] - two[n]).sum(0) / count for n in names}
        truth = sum((own[n] * direction[n]).sum((1, 2)) for n in names)
        np.testing.assert_allclose(shares_of(hit.tokens), truth.numpy(), atol=1e-9)
        solved = {n: own[n].sum(0) / count for n in names}
        assert hit.question is not None
        for side, asked_of in zip(hit.question, (one, two), strict=True):
            truth = side.weight * sum((asked_of[n] * solved[n]).sum((1, 2)) for n in names)
            np.testing.assert_allclose(shares_of(side.tokens), truth.numpy(), atol=1e-9)
        assert_sums(hit)


def test_layers_that_see_no_tokens_are_elsewhere(tmp_path: Path) -> None:
    index = wf.build(
        bert_classifier(),
        numbered_documents(),
        tmp_path / "i",
        objective=wf.SequenceClassification(bert_tokenizer(), label="mood"),
        encoder="none",
        layers="linear",
    )
    answer = index.query(prompt="war peace gold", completion="merry", k=8)
    for hit in index.explain(answer).hits:
        assert_sums(hit)
        assert hit.elsewhere != 0.0
        assert hit.question_elsewhere != 0.0


def test_a_truncated_text_shows_what_was_read(tmp_path: Path) -> None:
    long = " ".join(["gold silver trade ships army law"] * 8)
    objective = wf.SequenceClassification(bert_tokenizer(), label="mood", context=CONTEXT)
    index = wf.build(
        bert_classifier(),
        [*numbered_documents(), wf.Document("long", long, {"mood": 0})],
        tmp_path / "i",
        objective=objective,
        encoder="none",
        layers="mlp",
    )
    (hit,) = index.explain(wf.Query("gold", "calm"), doc_ids=["long"]).hits
    assert hit.tokens is not None
    assert len(hit.tokens) == CONTEXT
    assert [t.text for t in hit.tokens] == ["", *long.split()[: CONTEXT - 2], ""]
    assert_sums(hit)


def test_tensors_have_layers_only(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(12, 5, dtype=torch.float64, generator=generator)
    y = torch.randint(0, 3, (12,), generator=generator)
    model = mlp((True, False, True))
    index = wf.build(model, (x, y), tmp_path / "i", curvature="identity", encoder="none")
    answer = index.query(inputs=x[0], target=int(y[0]), contrast=2, k=12)
    explanation = index.explain(answer, inputs=x[0], target=int(y[0]), contrast=2)
    assert explanation.tokens_are is None
    layers = [layer.name for layer in explanation.layers]

    def score(i: int, label: int) -> dense.Score:
        return lambda m: torch.log_softmax(m(x[i : i + 1]), 1)[0, label]

    for hit in explanation.hits:
        i = int(hit.doc_id)
        truth = [
            float(
                (
                    dense.weight_gradient(model, name, score(i, int(y[i])))
                    * (
                        dense.weight_gradient(model, name, score(0, int(y[0])))
                        - dense.weight_gradient(model, name, score(0, 2))
                    )
                ).sum()
            )
            / 12
            for name in layers
        ]
        np.testing.assert_allclose(hit.layers, truth, rtol=1e-9, atol=1e-12)
        assert hit.tokens is None
        assert hit.question is None
        assert_sums(hit)
    with pytest.raises(QueryError, match="which it does not keep"):
        index.explain(answer)
    with pytest.raises(QueryError, match="no tokens"):
        index.explain(answer, by="token", inputs=x[0], target=int(y[0]))


class _NoForwardMode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def test_a_model_without_forward_mode_still_has_layers(
    index: wf.Index, answer: wf.Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = index.asker.extractor.model
    head = model.get_submodule("lm_head")
    handle = head.register_forward_pre_hook(lambda m, x: (_NoForwardMode.apply(x[0]),))
    try:
        with pytest.raises(ModelError, match='by="layer"'):
            index.explain(answer)
        assert index.explain(answer, by="layer").hits[0].score == answer.hits[0].score
    finally:
        handle.remove()


def test_what_cannot_be_explained_is_refused(
    index: wf.Index, answer: wf.Answer, tmp_path: Path
) -> None:
    with pytest.raises(QueryError, match="holds no document 'nowhere'"):
        index.explain(answer, doc_ids=["nowhere"])
    with pytest.raises(QueryError, match="no documents yet"):
        index.explain(QUERY)
    with pytest.raises(QueryError, match="by='depth' is unknown"):
        index.explain(answer, by="depth")  # type: ignore[arg-type]
    with pytest.raises(QueryError, match="target= goes with tensors"):
        index.explain(answer, target=1)
    other = replace(answer, index={**answer.index, "manifest_sha256": "ab" * 32})
    with pytest.raises(MismatchError, match="another index"):
        index.explain(other)


def test_layers_are_placed_by_the_number_of_their_block() -> None:
    names = ["model.layers.11.mlp.down_proj", "h.0.attn.c_attn", "score", "0", "unet.mid.conv"]
    assert [(one.depth, one.module) for one in layer_names(names)] == [
        (11, "mlp.down_proj"),
        (0, "attn.c_attn"),
        (None, "score"),
        (0, "0"),
        (None, "unet.mid.conv"),
    ]
