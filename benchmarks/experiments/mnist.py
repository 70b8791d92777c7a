"""MNIST and a perceptron: which training digits decide what is read into a test digit?

Perceptrons 784-128-64-10 are trained on 4,000 digits, three times over with other digits and other
first weights. Methods rank the training digits for test digits, by the log-likelihood of the true
label, and are judged by retraining on random halves, by labels, and by what comes first.

The same with all 60,000 digits goes through an index, as a user would do it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor

from benchmarks.experiments.digits import Digits, label_share, log_likelihoods, mnist_digits
from benchmarks.experiments.harness import Findings
from benchmarks.experiments.kept import kept
from benchmarks.experiments.mnist_index import IndexedDigits
from wherefrom.evaluation.baselines import baselines
from wherefrom.evaluation.evidence import Evidence, Figure, plain
from wherefrom.evaluation.lds import OTHER_SEEDS, linear_datamodelling
from wherefrom.evaluation.measurement import Measurement
from wherefrom.evaluation.perceptrons import MLPRecipe, PerceptronTrainer
from wherefrom.evaluation.retraining import Outcomes, Retrainer, random_halves
from wherefrom.evaluation.scores import fit, influence, self_influence
from wherefrom.evaluation.statistics import Scores, mean_estimate
from wherefrom.evaluation.subject import Subject
from wherefrom.evaluation.trainers import Run

BUDGET_MINUTES = 12

_RECIPE = MLPRecipe(
    (784, 128, 64, 10), epochs=15, batch_size=64, learning_rate=0.05, weight_decay=3e-3
)
_TOP = 10
_SELVES = "self-influence"
_REFERENCES = {
    "ekfac": ("kfac", "datainf", "dot", "ekfac, relatif"),
    "kfac": ("dot",),
    "datainf": ("dot",),
}


@dataclass(frozen=True, slots=True)
class _Sizes:
    """How much of everything.

    Attributes:
        seeds: Times that all of the first part is done.
        documents: Training digits of the first part.
        queries: Test digits drawn at random.
        wrong: Test digits that the model misreads, at most.
        halves: Random halves to retrain on.
        models: Retrainings of each half.
        datainf: Documents that DataInf keeps the gradients of.
        indexed: Training digits of the index.
        fitted: How many of them its curvature is fitted on.
        asked: Test digits drawn at random that the index is asked about.
    """

    seeds: int = 3
    documents: int = 4000
    queries: int = 80
    wrong: int = 20
    halves: int = 60
    models: int = 3
    datainf: int = 300
    indexed: int = 60_000
    fitted: int = 3000
    asked: int = 50


_QUICK = _Sizes(1, 600, 10, 5, 20, 2, 100, 1000, 500, 10)


def run(work: Path, *, quick: bool) -> Findings:
    """Do both parts.

    Args:
        work: Where retrainings and the index are kept.
        quick: Small sizes.
    """
    sizes = _QUICK if quick else _Sizes()
    digits = mnist_digits()
    trials = [
        _trial(digits["train"], digits["test"], sizes, seed, work) for seed in range(sizes.seeds)
    ]
    shown = IndexedDigits.made(
        digits["train"],
        digits["test"],
        work / "index",
        indexed=sizes.indexed,
        fitted=sizes.fitted,
        drawn=sizes.asked,
    )
    each = [trial.lds(f"MNIST perceptron, seed {seed}") for seed, trial in enumerate(trials)]
    evidence = (
        *each,
        _lds_of_all(trials, each, sizes),
        _what_comes_first(trials, sizes),
        shown.evidence(),
    )
    return Findings(evidence, {"mnist-influential.png": shown.draw})


@dataclass(frozen=True, slots=True, eq=False)
class _Trial:
    """One model with its queries, and how methods rank its documents.

    Attributes:
        scores: ``[query, document]`` of each method.
        outcomes: Of retraining.
        labels: Of documents.
        asked: True labels of queries.
        read: What the model takes queries for.
        chosen: How many queries were drawn at random; those after them are misread.
        percentiles: Of each document: by self-influence and by loss.
        accuracy: On all test digits.
    """

    scores: Mapping[str, Scores]
    outcomes: Outcomes
    labels: NDArray[np.int64]
    asked: NDArray[np.int64]
    read: NDArray[np.int64]
    chosen: int
    percentiles: Mapping[str, NDArray[np.float64]]
    accuracy: float

    def lds(self, subject: str) -> Evidence:
        """Over the queries drawn at random."""
        scores = {method: found[: self.chosen] for method, found in self.scores.items()}
        nats = self.outcomes.nats[:, :, : self.chosen]
        outcomes = Outcomes(self.outcomes.members, nats)
        return linear_datamodelling(scores, outcomes, subject=subject, reference="dot")

    def top(self, method: str) -> NDArray[np.int64]:
        """The first ten documents of each query, ``[query, place]``."""
        return np.argsort(-self.scores[method], 1, kind="stable")[:, :_TOP]

    def last(self, method: str) -> NDArray[np.int64]:
        """The ten strongest opponents of each query."""
        return np.argsort(self.scores[method], 1, kind="stable")[:, :_TOP]


def _trial(train: Digits, test: Digits, sizes: _Sizes, seed: int, work: Path) -> _Trial:
    generator = np.random.default_rng(seed)
    documents = generator.permutation(len(train))[: sizes.documents]
    x, y = train.tensors(documents)
    trainer = PerceptronTrainer(x, y, _RECIPE)
    (model,) = trainer.train([Run(np.ones(sizes.documents, np.bool_), seed)])
    everything, truth = test.tensors(np.arange(len(test)))
    read = log_likelihoods(model, everything).argmax(1)
    chosen = generator.permutation(len(test))[: sizes.queries]
    wrong = np.setdiff1d(np.flatnonzero((read != truth).numpy()), chosen)
    wrong = generator.permutation(wrong)[: sizes.wrong]
    asked = np.concatenate([chosen, wrong])
    queries = test.tensors(asked)
    subject = Subject.of_tensors(f"MNIST perceptron, seed {seed}", model, (x, y), queries)
    measurement = Measurement(subject.extractor.objective, subject.questions)
    retrainer = Retrainer(trainer, measurement, subject.digest, cache=work / "retrained")
    outcomes = retrainer.outcomes(
        random_halves(sizes.documents, sizes.halves, seed), range(1, 1 + sizes.models)
    )
    scores = kept(
        work / f"scores-{seed}.npz",
        f"{sizes} {_RECIPE} {subject.digest} {measurement.digest}",
        lambda: _scores(subject, x, y, queries, sizes.datainf, seed),
    )
    selves = scores.pop(_SELVES)
    loss = -log_likelihoods(model, x).gather(1, y[:, None])[:, 0].numpy()
    return _Trial(
        scores,
        outcomes,
        y.numpy(),
        truth[asked].numpy(),
        read[asked].numpy(),
        len(chosen),
        {_SELVES: _percentiles(selves), "loss": _percentiles(loss)},
        float((read == truth).double().mean()),
    )


def _scores(
    subject: Subject,
    x: Tensor,
    y: Tensor,
    queries: tuple[Tensor, Tensor],
    datainf: int,
    seed: int,
) -> dict[str, NDArray[np.float64]]:
    """``[query, document]`` of each method, and EK-FAC's self-influence ``[document]``."""
    fitted = fit(subject, "ekfac")
    ekfac, selves = influence(subject, fitted), self_influence(subject, fitted)
    # Its first documents stand for all: DataInf averages over them, and keeps their gradients.
    part = Subject.of_tensors(
        subject.name, subject.extractor.model, (x[:datainf], y[:datainf]), queries
    )
    return {
        _SELVES: selves,
        "ekfac": ekfac,
        "ekfac, relatif": ekfac / np.sqrt(selves),
        "kfac": influence(subject, fit(subject, "kfac")),
        "datainf": influence(subject, fit(part, "datainf")),
        **baselines(subject, ["dot", "cosine", "embedding", "random"], seed=seed),
        "pixels": (_unit(queries[0]) @ _unit(x).T).numpy(),
    }


def _lds_of_all(trials: Sequence[_Trial], found: Sequence[Evidence], sizes: _Sizes) -> Evidence:
    """The score of each method over the queries of all seeds, from that of each seed."""
    figures, each = [], {}
    per_query: list[Any] = [one.details["lds_per_query"] for one in found]
    for method in (*trials[0].scores, OTHER_SEEDS):
        every = [value for one in per_query for value in one[method]]
        figures.append(Figure.of(method, "LDS", mean_estimate(every)))
        for reference in _REFERENCES.get(method, ()):
            other = [value for one in per_query for value in one[reference]]
            gain = mean_estimate(np.subtract(every, other))
            figures.append(Figure.of(method, f"LDS above {reference}", gain))
        each[method] = [one.value(method, "LDS") for one in found]
    return Evidence(
        "lds",
        f"MNIST perceptron, {sizes.seeds} seeds together",
        tuple(figures),
        {**asdict(sizes), "recipe": repr(_RECIPE)},
        ("Intervals are of other queries; those of each seed are of other halves too.",),
        {"lds_of_each_seed": plain(each), "accuracy": [trial.accuracy for trial in trials]},
    )


def _what_comes_first(trials: Sequence[_Trial], sizes: _Sizes) -> Evidence:
    """Labels and oddity of the first ten, by method, over the queries of all seeds."""
    figures: list[Figure] = []

    def add(method: str, name: str, rows: Sequence[NDArray[np.float64]], unit: str = "") -> None:
        figures.append(Figure.of(method, name, mean_estimate(np.concatenate(rows)), unit))

    for method in trials[0].scores:
        tops, lasts = [t.top(method) for t in trials], [t.last(method) for t in trials]
        drawn = [slice(t.chosen) for t in trials]
        wrong = [slice(t.chosen, None) for t in trials]
        for name, side in (("proponents", tops), ("opponents", lasts)):
            parts = zip(trials, side, drawn, strict=True)
            share = [label_share(t.labels[ten], t.asked)[rows] for t, ten, rows in parts]
            add(method, f"{name} with the query's label", share)
        parts = zip(trials, tops, wrong, strict=True)
        true = [label_share(t.labels[ten], t.asked)[rows] for t, ten, rows in parts]
        add(method, "misread: proponents with the true label", true)
        parts = zip(trials, lasts, wrong, strict=True)
        taken = [label_share(t.labels[ten], t.read)[rows] for t, ten, rows in parts]
        add(method, "misread: opponents with the label read", taken)
        pairs = list(zip(trials, tops, drawn, strict=True))
        for of in (_SELVES, "loss"):
            odd = [t.percentiles[of][top].mean(1)[rows] for t, top, rows in pairs]
            add(method, f"{of} percentile of proponents", odd, "%")
        several = [len(np.unique(top[rows])) / top[rows].size for _, top, rows in pairs]
        figures.append(Figure.of(method, "different proponents", float(np.mean(several))))
    return Evidence(
        "first ten",
        f"MNIST perceptron, {sizes.seeds} seeds together",
        tuple(figures),
        {**asdict(sizes), "recipe": repr(_RECIPE), "first": _TOP},
        (
            "Different proponents: of all places in the lists of a seed's random queries, the "
            "share that different digits would fill; low where the same few come first always.",
        ),
        {"accuracy": [trial.accuracy for trial in trials]},
    )


def _unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows.double())


def _percentiles(values: NDArray[np.float64]) -> NDArray[np.float64]:
    ranks: NDArray[np.float64] = (rankdata(values) - 0.5) / len(values) * 100
    return ranks
