"""Models whose training can be repeated, with documents, queries and retrainings.

* ``digits``: a perceptron 64-128-128-10 (26,122 weights) on 1,437 of scikit-learn's 8x8 digits; the
  other 360 are the queries. Five models for each of 100 halves.
* ``lm``: a Llama of 3 blocks (442,368 weights in its MLPs), trained on addresses before 1900 and
  fine-tuned on 760 openings of passages of later ones; 40 queries from other passages of the same
  years. One model for each of 80 halves, all from the same first weights.
* ``demo``: the demo's model with its training passages; 40 queries, second halves of other passages
  given the first. Nothing is trained anew: without retrainings there is no linear datamodelling
  score, only how well sums of scores over random halves agree with sums of uncompressed ones.

Everything that takes minutes is kept in a folder of the caller's, under names that hold the seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedTokenizerFast

import wherefrom as wf
from wherefrom.demo.corpus import held_out_passages, load_addresses, training_passages
from wherefrom.demo.model import RECIPE, Recipe, load_or_train
from wherefrom.evaluation.measurement import Measurement
from wherefrom.evaluation.perceptrons import (
    MLPRecipe,
    PerceptronTrainer,
    descend,
    first_weights,
    mlp_logits,
)
from wherefrom.evaluation.retraining import Outcomes, Retrainer, random_halves
from wherefrom.evaluation.trainers import Run
from wherefrom.evaluation.tuning import FineTuner, TuningRecipe
from wherefrom.gradients.batches import Batch
from wherefrom.gradients.examples import Examples, TensorExamples, TextExamples, batches
from wherefrom.gradients.extractor import GradientExtractor
from wherefrom.gradients.fisher import Fisher
from wherefrom.gradients.layers import select_layers
from wherefrom.gradients.objectives import Objective, TextObjective
from wherefrom.indexer.sources import Shard, Source, TensorSource
from wherefrom.query.questions import Question
from wherefrom.records import Document
from wherefrom.store import InputRecord
from wherefrom.store.manifest_parts import ColumnType

__all__ = ["Subject", "demo", "digits", "small_lm"]

DIGIT_HALVES, DIGIT_MODELS = 100, 5
TUNED_DOCUMENTS, TUNED_QUERIES, TUNED_HALVES = 760, 40, 80
DEMO_QUERIES = 40

_TRAINING_DIGITS = 1437
_DIGITS = MLPRecipe()
_BASE = Recipe(
    vocabulary=2048, context=256, width=128, feed_forward=384, layers=3, heads=4, epochs=2
)
_BASE_PASSAGES, _BASE_WORDS = 3200, 64
_TUNING = TuningRecipe(epochs=3, batch_size=16, learning_rate=1e-3)
# Retrainings that are kept were filed under this name.
_TUNING_NAME = "TuningRecipe(epochs=3, batch_size=16, learning_rate=0.001)"
_TUNED_WORDS = 40
_CENTURY = 1900


@dataclass(frozen=True, slots=True)
class Subject:
    """A trained model with documents and queries, and the truth about them where it is known.

    Attributes:
        name: Of the model, and the seed where there are several.
        extractor: Model, objective and layers.
        source: The documents it was trained on, as a build goes over them.
        documents: The same, all at once.
        queries: What is asked; the measurement is the log-likelihood.
        fisher: Where labels of pseudo-gradients come from.
        retrainings: Models trained on random halves, if there are any.
    """

    name: str
    extractor: GradientExtractor
    source: Source
    documents: Examples
    queries: Examples
    fisher: Fisher
    retrainings: Outcomes | None

    def document_batches(self, size: int = 32) -> list[tuple[NDArray[np.int64], Batch]]:
        """The documents in batches, each with their positions."""
        return list(batches(self.documents, max_documents=size))

    def query_batches(self, size: int = 32) -> list[tuple[NDArray[np.int64], Batch]]:
        """The queries in batches, each with their positions."""
        return list(batches(self.queries, max_documents=size))


@dataclass(frozen=True, slots=True)
class _Passages:
    """Passages in memory, as a source of a build."""

    passages: tuple[Document, ...]
    objective: TextObjective
    metadata: dict[str, ColumnType] = field(default_factory=dict)
    inputs: InputRecord | None = None
    content_sha256: str = ""

    def __len__(self) -> int:
        return len(self.passages)

    def doc_ids(self) -> Iterator[str]:
        return (passage.doc_id for passage in self.passages)

    def shards(self, size: int, chosen: NDArray[np.bool_] | None = None) -> Iterator[Shard]:
        kept = self.passages if chosen is None else tuple(compress(self.passages, chosen))
        for start in range(0, len(kept), size):
            part = kept[start : start + size]
            yield _Texts(part, TextExamples.of(part, self.objective))


@dataclass(slots=True)
class _Texts:
    """One shard of them."""

    documents: Sequence[Document]
    examples: Examples
    inputs: NDArray[Any] | None = None
    targets: NDArray[Any] | None = None


def digits(folder: Path, seed: int) -> Subject:
    """The perceptron; the seed decides the split, the model and the halves.

    Args:
        folder: Where retrainings are kept.
        seed: One of 0, 1, 2 for the stored figures.
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    inputs, targets = (pixels / 16).astype(np.float32), labels.astype(np.int64)
    order = np.random.default_rng(seed).permutation(len(targets))
    trained, asked = order[:_TRAINING_DIGITS], order[_TRAINING_DIGITS:]
    x, y = torch.from_numpy(inputs[trained]), torch.from_numpy(targets[trained])
    (whole,) = PerceptronTrainer(x, y, _DIGITS).train([Run(np.ones(len(x), np.bool_), seed)])

    def retrained() -> Outcomes:
        halves = random_halves(len(trained), DIGIT_HALVES, seed)
        members = np.stack([np.flatnonzero(row) for row in halves]).repeat(DIGIT_MODELS, 0)
        chosen = torch.from_numpy(members)
        # One stream of random numbers for all models together: the figures that are kept were
        # measured so.
        generator = torch.Generator().manual_seed(DIGIT_HALVES + seed)
        models = descend(
            first_weights(len(chosen), _DIGITS.widths, generator),
            x,
            y,
            lambda: chosen.gather(1, torch.rand(chosen.shape, generator=generator).argsort(1)),
            _DIGITS,
        )
        questions = torch.from_numpy(inputs[asked]).expand(len(members), -1, -1)
        answers = torch.from_numpy(targets[asked]).expand(len(members), -1).unsqueeze(2)
        nats = mlp_logits(models, questions).double().log_softmax(2).gather(2, answers)
        return Outcomes(halves, nats.reshape(DIGIT_HALVES, DIGIT_MODELS, -1).numpy())

    recipe = f"{_DIGITS} {_TRAINING_DIGITS} {DIGIT_HALVES} {DIGIT_MODELS}"
    return _subject(
        f"digits {seed}",
        _extractor(whole, wf.Classification(), "linear"),
        TensorSource((x, y)),
        TensorExamples(inputs[asked], targets[asked], [f"query {i}" for i in asked]),
        "expected",
        _kept(folder / f"digits_seed{seed}.npz", recipe, retrained),
    )


def _kept(path: Path, recipe: str, make: Callable[[], Outcomes]) -> Outcomes:
    """What ``path`` holds, means over the models of a subset, or else what ``make`` gives.

    Args:
        path: Of a ``.npz`` file.
        recipe: All that decides the result; what was kept under another is made anew.
        make: Trains the models.
    """
    if path.is_file():
        with np.load(path) as stored:
            if str(stored["recipe"]) == recipe:
                return Outcomes(stored["members"], stored["nats"][:, None])
    made = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, members=made.members, nats=made.mean(), recipe=recipe)
    partial.rename(path)
    return Outcomes(made.members, made.mean()[:, None])


def small_lm(folder: Path) -> Subject:
    """The fine-tuned language model.

    Args:
        folder: Where models and retrainings are kept.
    """
    addresses = load_addresses()
    early = [address for address in addresses if address.year < _CENTURY]
    late = [address for address in addresses if address.year >= _CENTURY]
    first = [_opening(p, _BASE_WORDS) for p in training_passages(early, _BASE_PASSAGES)]
    base, tokenizer = load_or_train(
        folder / "lm-base", first, seed=0, progress=_quiet, recipe=_BASE
    )
    passages = training_passages(late, TUNED_DOCUMENTS)[:TUNED_DOCUMENTS]
    held_out = held_out_passages(late, passages, TUNED_QUERIES)
    documents = [_opening(passage, _TUNED_WORDS) for passage in passages]
    queries = [_opening(passage, _TUNED_WORDS) for passage in held_out]
    objective = wf.CausalLM().bind(base, tokenizer)
    tuner = FineTuner.of_texts(base, documents, tokenizer=tokenizer, recipe=_TUNING)

    def retrained() -> Outcomes:
        examples = TextExamples.of(queries, objective)
        asked = [examples.batch(np.array([i])) for i in range(len(queries))]
        measurement = Measurement(objective, [Question(None, ((1.0, batch),)) for batch in asked])
        halves = random_halves(len(documents), TUNED_HALVES, 0)
        return Retrainer(tuner, measurement, texts, cache=folder).outcomes(halves, [0])

    recipe = f"{_BASE} {_BASE_PASSAGES} {_BASE_WORDS} {_TUNING_NAME} {TUNED_HALVES}"
    texts = hashlib.sha256("\0".join(d.text for d in (*documents, *queries)).encode()).hexdigest()
    retrainings = _kept(folder / "lm.npz", f"{recipe} {texts}", retrained)
    (model,) = tuner.train([Run(np.ones(len(documents), np.bool_), 0)])
    return _language_subject("lm", model, tokenizer, documents, queries, retrainings)


def demo(folder: Path) -> Subject:
    """The demo's language model.

    Args:
        folder: Where the model is kept.
    """
    addresses = load_addresses()
    passages = training_passages(addresses)
    held_out = held_out_passages(addresses, passages, DEMO_QUERIES)
    queries = [_second_half(passage) for passage in held_out]
    model, tokenizer = load_or_train(
        folder / "demo-model", passages, seed=0, progress=_quiet, recipe=RECIPE
    )
    return _language_subject("demo", model, tokenizer, passages, queries, None)


def _language_subject(
    name: str,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    documents: Sequence[Document],
    queries: Sequence[Document],
    retrainings: Outcomes | None,
) -> Subject:
    objective = wf.CausalLM().bind(model, tokenizer)
    return _subject(
        name,
        _extractor(model, objective, "mlp"),
        _Passages(tuple(documents), objective),
        TextExamples.of(queries, objective),
        "sampled",
        retrainings,
    )


def _subject(
    name: str,
    extractor: GradientExtractor,
    source: Source,
    queries: Examples,
    fisher: Fisher,
    retrainings: Outcomes | None,
) -> Subject:
    (whole,) = source.shards(len(source))
    return Subject(name, extractor, source, whole.examples, queries, fisher, retrainings)


def _extractor(model: nn.Module, objective: Objective, layers: str) -> GradientExtractor:
    return GradientExtractor(model, objective, select_layers(model, layers))


def _opening(passage: Document, words: int) -> Document:
    return replace(passage, text=" ".join(passage.text.split(" ")[:words]))


def _second_half(passage: Document) -> Document:
    """The end of a passage, given its beginning: what the demo asks of held-out passages."""
    middle = passage.text.index(" ", len(passage.text) // 2)
    return Document.completion(passage.doc_id, passage.text[:middle], passage.text[middle:])


def _quiet(phase: str, done: int, total: int | None) -> None:
    """Training says nothing."""
