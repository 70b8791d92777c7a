"""Curvatures on a LoRA classifier, held to the exact block solve: DataInf's first experiment.

Kwon et al. (2024, section 4.1) tune RoBERTa with adapters on GLUE with a fifth of the labels
turned round, and correlate approximate influence on the held-out loss with that of the exact
damped blocks of the empirical Fisher matrix. Here MiniLM is tuned on film reviews likewise, and
K-FAC and EK-FAC stand beside DataInf, LiSSA and plain gradient products; all are held to the exact
blocks of the expected Fisher matrix too, which is what wherefrom fits by default.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.experiments.adapter_blocks import (
    DAMPING,
    Fit,
    Recording,
    Unscaled,
    fits,
    products,
    self_influence,
    solve_seconds,
)
from benchmarks.experiments.classifier_figures import (
    Cell,
    approximation,
    cost,
    draw_correlations,
    draw_wrong_labels,
    wrong_labels,
)
from benchmarks.experiments.harness import ExperimentError, Findings
from benchmarks.experiments.kept import kept
from benchmarks.packages import MissingPackageError, minilm, rated_snippets
from benchmarks.sentiment import Snippet, accuracy, documents, flip, queries, split, train
from wherefrom.evaluation.evidence import plain
from wherefrom.evaluation.scores import fit, influence
from wherefrom.evaluation.subject import Subject
from wherefrom.gradients.examples import TextExamples, batches
from wherefrom.gradients.fisher import Fisher
from wherefrom.gradients.models import LoadedModel, load_model
from wherefrom.gradients.objectives import SequenceClassification

__all__ = ["BUDGET_MINUTES", "run"]

BUDGET_MINUTES = 18

_FLIPPED = 0.2
_FISHER: Fisher = "expected"
_SWEPT = ("gradient dot", "datainf", "kfac, empirical", "ekfac, empirical", "exact, empirical")
_DAMPINGS = (0.01, 0.1, 1.0, 10.0)
_CHECKED = 64
_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class _Sizes:
    """How much is done.

    Attributes:
        ranks: Of adapters.
        seeds: How many of each rank, from 0 on: of sentences, wrong labels, first weights, order.
        training: Sentences trained on.
        longest: Most characters of a sentence.
        held_out: Others, whose mean log-likelihood is asked about.
        singles: Of them, also asked about one by one.
        test: Others again, for the accuracy.
        epochs: Of training.
        batch: Sentences a step.
    """

    ranks: tuple[int, ...] = (1, 2, 4, 8)
    seeds: tuple[int, ...] = (3, 2, 2, 2)
    training: int = 800
    longest: int = 100
    held_out: int = 200
    singles: int = 20
    test: int = 200
    epochs: int = 3
    batch: int = 16


_QUICK = _Sizes((1, 2), (2, 1), 64, 60, 12, 3, 12, 1, 8)


def run(work: Path, *, quick: bool) -> Findings:
    """Train an adapter of each rank and seed, and compare all curvatures on each."""
    base, rated = minilm(), rated_snippets()
    if importlib.util.find_spec("peft") is None:
        raise MissingPackageError("pip install 'wherefrom[peft]'")
    sizes = _QUICK if quick else _Sizes()
    cells: dict[int, list[Cell]] = {rank: [] for rank in sizes.ranks}
    for seed in range(max(sizes.seeds)):
        for rank, count in zip(sizes.ranks, sizes.seeds, strict=True):
            if seed < count:
                cells[rank].append(_cell(work, base, rated, sizes, rank, seed))
    subject = f"MiniLM with LoRA on film reviews, {_FLIPPED:.0%} of the labels turned round"
    setting = {
        **{name: plain(getattr(sizes, name)) for name in _Sizes.__dataclass_fields__},
        "flipped": _FLIPPED,
        "damping": DAMPING,
        "expected_fisher_of": "both classes",
        "blocks": cells[sizes.ranks[0]][0].by_layer.shape[1],
        "weights_of_a_block": [384 * rank for rank in sizes.ranks],
    }
    return Findings(
        (
            approximation(subject, cells, _DAMPINGS, setting),
            wrong_labels(subject, cells, setting),
            cost(subject, cells, setting),
        ),
        {
            "lora_classifier-correlation.png": partial(draw_correlations, cells, _DAMPINGS),
            "lora_classifier-mislabeled.png": partial(draw_wrong_labels, cells),
        },
    )


def _cell(
    work: Path,
    base: Path,
    rated: Sequence[tuple[str, float]],
    sizes: _Sizes,
    rank: int,
    seed: int,
) -> Cell:
    """Everything about one adapter, from the work folder if it is there."""

    def made() -> dict[str, NDArray[Any]]:
        others = sizes.held_out + sizes.test
        right, drawn = split(rated, sizes.training, others, seed, longest=sizes.longest)
        held_out, test = drawn[: sizes.held_out], drawn[sizes.held_out :]
        wrong = flip(right, _FLIPPED, seed)
        folder = work / f"rank{rank}-seed{seed}"
        train(base, wrong, folder, epochs=sizes.epochs, seed=seed, rank=rank, batch=sizes.batch)
        loaded = load_model(folder, base=base)
        if (rank, seed) == (sizes.ranks[0], 0):
            _check(loaded, wrong[:_CHECKED], held_out[: sizes.singles])
        right_share = accuracy(loaded.module, base, test)
        # What damping does is asked of the smallest adapters: blocks are factored anew for each.
        dampings = _DAMPINGS if rank == sizes.ranks[0] else ()
        singles = sizes.singles
        return _measured(loaded, wrong, held_out, singles, dampings, right_share).arrays()

    alone = replace(sizes, ranks=(rank,), seeds=(seed,))
    recipe = repr((alone, _FLIPPED, _DAMPINGS, DAMPING))
    return Cell.from_arrays(kept(work / f"rank{rank}-seed{seed}.npz", recipe, made))


def _measured(
    loaded: LoadedModel,
    trained_on: Sequence[Snippet],
    held_out: Sequence[Snippet],
    singles: int,
    dampings: Sequence[float],
    accuracy: float,
) -> Cell:
    """Fit all curvatures on one adapter and ask all questions."""
    own, pseudo, asked = _recordings(loaded, trained_on, held_out)
    gradients = own.gradients()
    weights = _weights(len(held_out), singles)
    found = fits(own, pseudo, _FISHER)
    each = {name: _Asked.of(one, own, asked, weights, gradients) for name, one in found.items()}
    return Cell(
        methods=tuple(found),
        scores=np.stack([one.products.sum(0) for one in each.values()]),
        by_layer=np.stack([one.products[:, -1] for one in each.values()]),
        swept_methods=_SWEPT,
        swept=np.array(
            [
                [_swept(found[name], damping, asked, weights, gradients) for name in _SWEPT]
                for damping in dampings
            ]
        ),
        own=np.stack([one.own for one in each.values()]),
        nats=own.nats,
        flipped=np.array([snippet.flipped for snippet in trained_on]),
        accuracy=accuracy,
        seconds=np.array(
            [[one.algebra, one.passes, each[name].solve] for name, one in found.items()]
        ),
    )


@dataclass(frozen=True, slots=True)
class _Asked:
    """What one curvature says.

    Attributes:
        products: Scores, ``[layer, question, document]``.
        own: Self-influence, ``[document]``; NaN where it is not computed.
        solve: CPU seconds of the solve of one question.
    """

    products: NDArray[np.float64]
    own: NDArray[np.float64]
    solve: float

    @classmethod
    def of(
        cls,
        fitted: Fit,
        own: Recording,
        asked: Recording,
        weights: Tensor,
        gradients: Sequence[Tensor],
    ) -> _Asked:
        curvature = fitted.curvature
        # A diverging recursion has none that means anything, and all documents take a minute.
        without = isinstance(curvature, Unscaled)
        return cls(
            products(curvature, asked, weights, gradients),
            np.full(len(own.nats), np.nan) if without else self_influence(curvature, own),
            solve_seconds(curvature, asked, weights),
        )


def _swept(
    fitted: Fit, damping: float, asked: Recording, weights: Tensor, gradients: Sequence[Tensor]
) -> NDArray[np.float64]:
    """Scores for the last question under another damping, ``[document]``."""
    curvature = fitted.curvature.with_damping(damping)
    total: NDArray[np.float64] = products(curvature, asked, weights[-1:], gradients).sum((0, 1))
    return total


def _weights(held_out: int, singles: int) -> Tensor:
    """The first held-out sentences one by one, then the mean of all."""
    mean = torch.full((1, held_out), 1.0 / held_out, dtype=torch.float64)
    return torch.cat([torch.eye(singles, held_out, dtype=torch.float64), mean])


def _recordings(
    loaded: LoadedModel, trained_on: Sequence[Snippet], held_out: Sequence[Snippet]
) -> tuple[Recording, Recording, Recording]:
    """Own and pseudo-gradients of the training sentences, gradients of the held-out ones."""
    subject = _subject(loaded, trained_on, held_out[:1])
    extractor = subject.extractor
    bound = SequenceClassification().bind(loaded.module, loaded.tokenizer)
    asked = TextExamples.of(documents(held_out), bound)
    return (
        Recording.own(extractor, subject.document_batches()),
        Recording.pseudo(extractor, subject.document_batches(), _FISHER, 0),
        Recording.own(extractor, batches(asked, max_documents=32)),
    )


def _subject(
    loaded: LoadedModel, trained_on: Sequence[Snippet], held_out: Sequence[Snippet]
) -> Subject:
    if loaded.tokenizer is None:
        raise ExperimentError("the adapter was loaded without a tokenizer")
    return Subject.of_texts(
        "MiniLM with LoRA",
        loaded.module,
        loaded.tokenizer,
        documents(trained_on),
        queries(held_out),
        objective=SequenceClassification(),
        layers="lora",
    )


def _check(loaded: LoadedModel, some: Sequence[Snippet], asked: Sequence[Snippet]) -> None:
    """Recorded passes give the scores that the package gives, which fits by passes of the model.

    Raises:
        ExperimentError: They do not.
    """
    own, pseudo, questions = _recordings(loaded, some, asked)
    found = fits(own, pseudo, _FISHER)
    subject = _subject(loaded, some, asked)
    weights = torch.eye(len(asked), dtype=torch.float64)
    for name, recorded in (
        ("datainf", "datainf"),
        ("ekfac", f"ekfac, {_FISHER}"),
        ("exact", f"exact, {_FISHER}"),
    ):
        expected = influence(subject, fit(subject, name, damping=DAMPING))
        curvature = found[recorded].curvature
        ours = products(curvature, questions, weights, own.gradients()).sum(0)
        difference = float(np.abs(ours - expected).max() / np.abs(expected).max())
        if not difference < _TOLERANCE:
            raise ExperimentError(f"{recorded}: recorded scores are off by {difference:.1e}")
