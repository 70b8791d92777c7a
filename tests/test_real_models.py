"""Real weights, small versions of the benchmarks: a language model, and a classifier's adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

import wherefrom as wf
from wherefrom.demo.corpus import load_addresses, training_passages
from wherefrom.gradients.extractor import GradientExtractor, LayerPair
from wherefrom.gradients.fisher import true_gradients
from wherefrom.gradients.layers import select_layers
from wherefrom.gradients.models import LoadedModel, load_model
from wherefrom.gradients.objectives import TextObjective

packages = pytest.importorskip("benchmarks.packages", reason="needs the repository's benchmarks")
sentiment = pytest.importorskip("benchmarks.sentiment")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
]

BLOCKS = ["model.layers.28.self_attn.[kv]_proj", "model.layers.29.mlp.down_proj"]
ADAPTER = "*.layer.5.attention.self.*.lora_*.default"
PASSAGES = 8
SNIPPETS = 64
QUESTIONS = 3

Gradients = dict[str, Tensor]


def by_autograd(loaded: LoadedModel, layers: Sequence[str], query: wf.Query) -> Gradients:
    """A question's gradients, by nothing of the package but the loaded weights."""
    names = [layer.name for layer in select_layers(loaded.module, layers)]
    weights = [loaded.module.get_parameter(f"{name}.weight") for name in names]
    for weight in weights:
        weight.requires_grad_(True)
    classifies = loaded.task == "sequence_classification"
    text = query.prompt if classifies else query.prompt + query.completion
    tokens = loaded.tokenizer(text, return_tensors="pt")
    logits = loaded.module(**tokens).logits
    if classifies:
        nats = F.log_softmax(logits, -1)[0, int(query.completion)]
    else:
        context = len(loaded.tokenizer(query.prompt)["input_ids"])
        ids = tokens["input_ids"][0]
        chosen = F.log_softmax(logits[0, :-1], -1).gather(1, ids[1:, None])
        nats = chosen[context - 1 :].sum()
    found = torch.autograd.grad(nats, weights)
    return dict(zip(names, found, strict=True))


def by_the_package(
    loaded: LoadedModel, objective: TextObjective, layers: Sequence[str], query: wf.Query
) -> Gradients:
    extractor = GradientExtractor(loaded.module, objective, select_layers(loaded.module, layers))
    found: Gradients = {}

    def keep(pair: LayerPair) -> None:
        name = extractor.layers[pair.layer].name
        found[name] = torch.einsum("bto,bti->oi", pair.deltas, pair.activations)

    with extractor.session():
        true_gradients(extractor, objective.query_batch(query), keep)
    return found


def require_same_gradients(found: Gradients, expected: Gradients, within: float) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.norm() > 0.0
        assert (found[name] - gradient).norm() <= within * gradient.norm(), name


def require_close(found: NDArray[np.float64], expected: NDArray[np.float64], within: float) -> None:
    """Each query's scores agree to a share of its largest."""
    assert (np.abs(found - expected).max(1) <= within * np.abs(expected).max(1)).all()


def halves(passage: wf.Document) -> wf.Query:
    middle = passage.text.index(" ", len(passage.text) // 2)
    return wf.Query(passage.text[:middle], passage.text[middle:])


@pytest.fixture(scope="module")
def smollm2() -> Path:
    try:
        return packages.smollm2()
    except packages.MissingPackageError as error:
        pytest.skip(f"SmolLM2 is not here; {error}")


@pytest.fixture(scope="module")
def passages() -> list[wf.Document]:
    return training_passages(load_addresses(), PASSAGES)[:: 233 // PASSAGES][:PASSAGES]


@pytest.fixture(scope="module")
def passage_index(
    smollm2: Path, passages: list[wf.Document], tmp_path_factory: pytest.TempPathFactory
) -> wf.Index:
    path = tmp_path_factory.mktemp("smollm2") / "passages.index"
    return wf.build(smollm2, passages, path, layers=BLOCKS, encoder="none")


def test_gradients_of_smollm2_are_those_of_autograd(
    smollm2: Path, passages: list[wf.Document]
) -> None:
    loaded = load_model(smollm2)
    objective = wf.CausalLM().bind(loaded.module, loaded.tokenizer)
    query = halves(passages[0])
    expected = by_autograd(loaded, BLOCKS, query)
    assert len(expected) == 3
    require_same_gradients(by_the_package(loaded, objective, BLOCKS, query), expected, 1e-4)


def test_stored_scores_of_smollm2_are_the_exact_ones(
    passage_index: wf.Index, passages: list[wf.Document]
) -> None:
    asked = [halves(passage) for passage in passages[:QUESTIONS]]
    exact = passage_index.scores(asked, tier="exact")
    require_close(passage_index.scores(asked, tier="stored"), exact, 1e-3)
    ids = passage_index.doc_ids()
    best = [ids[place] for place in exact.argmax(1)]
    assert best == [passage.doc_id for passage in passages[:QUESTIONS]]


def test_reopened_index_of_smollm2_gives_the_same_bits(
    passage_index: wf.Index, passages: list[wf.Document]
) -> None:
    asked = [halves(passage) for passage in passages[:QUESTIONS]]
    reopened = wf.open(passage_index.path)
    for query in asked:
        question = {"prompt": query.prompt, "completion": query.completion}
        answer = passage_index.query(**question, k=PASSAGES)
        assert reopened.query(**question, k=PASSAGES).proponents == answer.proponents


@pytest.fixture(scope="module")
def minilm() -> Path:
    try:
        pytest.importorskip("peft", reason="needs peft: pip install 'wherefrom[peft]'")
        return packages.minilm()
    except packages.MissingPackageError as error:
        pytest.skip(f"MiniLM is not here; {error}")


@dataclass(frozen=True)
class Snippets:
    """Sentences of film reviews: trained on, as documents and as questions, and others."""

    trained: list[Any]
    documents: list[wf.Document]
    own: list[wf.Query]
    asked: list[wf.Query]


@pytest.fixture(scope="module")
def snippets() -> Snippets:
    try:
        rated = packages.rated_snippets()
    except packages.MissingPackageError as error:
        pytest.skip(f"the film reviews are not here; {error}")
    trained, others = sentiment.split(rated, SNIPPETS, QUESTIONS, seed=0)
    return Snippets(
        trained,
        sentiment.documents(trained),
        sentiment.queries(trained),
        sentiment.queries(others),
    )


@pytest.fixture(scope="module")
def adapter(minilm: Path, snippets: Snippets, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter and its head, trained on the snippets and saved by PEFT."""
    folder = tmp_path_factory.mktemp("minilm") / "adapter"
    sentiment.train(minilm, snippets.trained, folder, epochs=1, seed=0)
    return folder


def test_adapter_is_loaded_as_peft_loads_it(
    minilm: Path, adapter: Path, snippets: Snippets
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    loaded = load_model(adapter, base=minilm)
    plain = AutoModelForSequenceClassification.from_pretrained(minilm, num_labels=2)
    expected = PeftModel.from_pretrained(plain, adapter).eval()
    tokens = loaded.tokenizer(snippets.documents[0].text, return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(loaded.module(**tokens).logits, expected(**tokens).logits)


def test_gradients_of_the_adapter_are_those_of_autograd(
    minilm: Path, adapter: Path, snippets: Snippets
) -> None:
    loaded = load_model(adapter, base=minilm)
    objective = wf.SequenceClassification().bind(loaded.module, loaded.tokenizer)
    query = snippets.asked[0]
    expected = by_autograd(loaded, [ADAPTER], query)
    assert len(expected) == 4
    require_same_gradients(by_the_package(loaded, objective, [ADAPTER], query), expected, 1e-4)


@pytest.mark.parametrize("curvature", ["identity", "datainf"])
def test_scores_are_the_formula_over_gradients_of_autograd(
    curvature: str,
    minilm: Path,
    adapter: Path,
    snippets: Snippets,
    tmp_path: Path,
) -> None:
    documents, asked = snippets.documents, snippets.asked
    index = wf.build(
        adapter,
        documents,
        tmp_path / "formula.index",
        base_model=minilm,
        curvature=curvature,
        layers=ADAPTER,
    )
    loaded = load_model(adapter, base=minilm)
    trained = [by_autograd(loaded, [ADAPTER], query) for query in snippets.own]
    questions = [by_autograd(loaded, [ADAPTER], query) for query in asked]
    expected = torch.zeros(len(asked), len(documents), dtype=torch.float64)
    for name in trained[0]:
        g = torch.stack([gradients[name].double().flatten() for gradients in trained])
        q = torch.stack([gradients[name].double().flatten() for gradients in questions])
        products = q @ g.T
        if curvature == "datainf":  # Kwon et al. (2024), equation 5.
            squares = g.square().sum(1)
            damping = 0.1 * squares.mean() / g.shape[1]
            shrunk = products / (damping + squares) @ (g @ g.T) / len(g)
            products = (products - shrunk) / damping
        expected += products / len(documents)
    places = [index.doc_ids().index(document.doc_id) for document in documents]
    require_close(index.scores(asked, tier="exact")[:, places], expected.numpy(), 1e-3)


@pytest.mark.parametrize("curvature", ["identity", "ekfac", "datainf"])
def test_index_of_the_adapter_stores_the_exact_scores_and_reopens(
    curvature: str,
    minilm: Path,
    adapter: Path,
    snippets: Snippets,
    tmp_path: Path,
) -> None:
    documents, asked = snippets.documents, snippets.asked
    path = tmp_path / "adapter.index"
    index = wf.build(
        adapter,
        documents,
        path,
        base_model=minilm,
        curvature=curvature,
        layers=ADAPTER,
        encoder="none",
    )
    stored = index.scores(asked, tier="stored")
    require_close(stored, index.scores(asked, tier="exact"), 1e-3)
    assert np.array_equal(wf.open(path).scores(asked, tier="stored"), stored)
