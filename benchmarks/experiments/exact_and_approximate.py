"""Exact and approximate influence against three truths: LDS, leave-one-out and PBRF.

Three kinds of model, each small enough to be exact about:

* logistic regression on digits, whose Hessian is its Gauss-Newton matrix;
* a perceptron 64-32-32-10 on digits, with both matrices written out over all its weights;
* a Llama of two narrow blocks, fine-tuned on openings of addresses. The demo's model would take
  hours: a proximal Bregman response costs a hundred passes over all of the documents.

Every method is held against the linear datamodelling score (random halves), against leaving single
documents out (``LOO``), and against the proximal Bregman response to the same documents under
EK-FAC's damping (``PBRF``). Responses are themselves held against leaving out.

For the logistic regression they are responses to taking a document out. For networks they are to
adding one: taken out, a document whose log-likelihood only falls has no minimum far away.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor

import wherefrom as wf
from benchmarks.experiments.harness import Findings
from benchmarks.experiments.kept import kept
from benchmarks.experiments.whole_matrices import WholeMatrices
from wherefrom.curvature.fitted import FittedCurvature
from wherefrom.demo.corpus import held_out_passages, load_addresses, training_passages
from wherefrom.demo.model import Recipe, load_or_train
from wherefrom.evaluation.evidence import Evidence, Figure, plain
from wherefrom.evaluation.lds import linear_datamodelling
from wherefrom.evaluation.leave_out import leave_out, one_document_each
from wherefrom.evaluation.measurement import Measurement
from wherefrom.evaluation.pbrf import Responses, damping_of, proximal_bregman, proximal_responses
from wherefrom.evaluation.perceptrons import LogisticTrainer, MLPRecipe, PerceptronTrainer
from wherefrom.evaluation.plots import plot, scatter
from wherefrom.evaluation.retraining import Retrainer, random_halves
from wherefrom.evaluation.scores import fit, influence
from wherefrom.evaluation.statistics import Scores, mean_estimate
from wherefrom.evaluation.subject import Subject
from wherefrom.evaluation.trainers import Run, Trainer
from wherefrom.evaluation.tuning import FineTuner, TuningRecipe
from wherefrom.query.conjugate_gradients import REFINE_DAMPING, refinements
from wherefrom.query.exact import exact_products, gradient_of
from wherefrom.records import Document

BUDGET_MINUTES = 15

_KINDS = ("exact", "ekfac", "kfac", "datainf", "diagonal", "identity")
_NAMES = {"exact": "exact blocks", "identity": "gradient dot"}
_REFINED = "ekfac, refined"
_STEPS = 5
_PBRF = "pbrf"
_LARGE = f"damping {REFINE_DAMPING:g}"
_MLP = MLPRecipe((64, 32, 32, 10))
_L2 = 1e-3
_BASE = Recipe(vocabulary=512, context=128, width=32, feed_forward=64, layers=2, heads=2, epochs=2)
_BASE_PASSAGES, _BASE_WORDS, _WORDS = 2000, 24, 16
_TUNING = TuningRecipe(epochs=4, batch_size=16, learning_rate=2e-3, dropout=False)
_CENTURY = 1900


@dataclass(frozen=True, slots=True)
class _Sizes:
    """How much of everything.

    Attributes:
        splits: Times that digits are split and all is done.
        documents: To train on.
        queries: To ask.
        halves: Random halves to retrain on.
        models: Retrainings of each half.
        left_out: Documents to leave out, drawn at random.
        seeds: Retrainings without each of them.
        tolerance: Of responses.
    """

    splits: int
    documents: int
    queries: int
    halves: int
    models: int
    left_out: int
    seeds: int
    tolerance: float = 1e-2


_LOGISTIC = _Sizes(3, 500, 40, 100, 1, 60, 1, 1e-4)
_PERCEPTRON = _Sizes(3, 500, 40, 100, 2, 40, 12)
_LANGUAGE = _Sizes(1, 160, 20, 40, 2, 12, 4, 3e-2)


@dataclass(frozen=True, slots=True, eq=False)
class _Judged:
    """One model under the three truths.

    Attributes:
        evidence: LDS, LOO and PBRF.
        scores: Of the documents left out, by each method, ``[document, question]``.
        responses: Of the same documents.
    """

    evidence: tuple[Evidence, Evidence, Evidence]
    scores: Mapping[str, NDArray[np.float64]]
    responses: NDArray[np.float64]

    def value(self, method: str, truth: int, name: str) -> float | None:
        """A figure's value, where the method has one."""
        found = [f for f in self.evidence[truth].figures if (f.method, f.name) == (method, name)]
        return found[0].value if found else None


def run(work: Path, *, quick: bool) -> Findings:
    """Judge all models.

    Args:
        work: Where models, retrainings and responses are kept.
        quick: Small sizes.
    """
    models = {
        "logistic": ("Logistic regression", _quick(_LOGISTIC) if quick else _LOGISTIC, _logistic),
        "perceptron": ("Perceptron", _quick(_PERCEPTRON) if quick else _PERCEPTRON, _perceptron),
        "language": ("Language model", _quick(_LANGUAGE) if quick else _LANGUAGE, _language),
    }
    evidence: list[Evidence] = []
    pictures: dict[str, Callable[[Path], None]] = {}
    for key, (title, sizes, judge) in models.items():
        judged = [judge(work, sizes, split) for split in range(sizes.splits)]
        summary = _summary(title, judged, sizes)
        evidence += [summary, *(one for found in judged for one in found.evidence)]
        pictures[f"exact_and_approximate-{key}.png"] = partial(_draw, summary, title)
        if key == "perceptron":
            pictures["exact_and_approximate-responses.png"] = partial(_draw_responses, judged[0])
    return Findings(tuple(evidence), pictures)


def _quick(sizes: _Sizes) -> _Sizes:
    return replace(
        sizes, splits=1, documents=64, queries=4, halves=20, models=1, left_out=4, seeds=2
    )


def _logistic(work: Path, sizes: _Sizes, split: int) -> _Judged:
    documents, queries = _digits(sizes, split)
    trainer = LogisticTrainer(*documents, _L2)
    subject = _trained(f"digits, logistic regression, split {split}", trainer, documents, queries)
    fitted = fit(subject, "ekfac")
    scores = _approximate(subject, fitted)
    whole = WholeMatrices(subject.extractor.model, *documents)
    matrix = whole.gauss_newton()
    decay = "exact Hessian, damping = weight decay"
    scores[decay] = whole.influence(matrix, [_L2, _L2], queries)
    own = float(matrix.diagonal().mean())
    responses = _Responding(subject, fitted, trainer.recipe, sizes, work, split, step=-1.0)
    others = {"pbrf, damping = weight decay": responses.of(_L2 / own)}
    return _judged(subject, trainer, scores, responses, others, work)


def _perceptron(work: Path, sizes: _Sizes, split: int) -> _Judged:
    documents, queries = _digits(sizes, split)
    trainer = PerceptronTrainer(*documents, _MLP)
    subject = _trained(f"digits, perceptron, split {split}", trainer, documents, queries)
    fitted = fit(subject, "ekfac")

    def scored() -> dict[str, Scores]:
        scores = _approximate(subject, fitted)
        scores[_REFINED] = _refined(subject, fitted)
        whole = WholeMatrices(subject.extractor.model, *documents)
        for name, matrix in (
            ("exact Gauss-Newton", whole.gauss_newton()),
            ("exact Hessian", whole.hessian()),
        ):
            for suffix, lambdas in (
                ("", damping_of(fitted)),
                (f", {_LARGE}", damping_of(fitted, REFINE_DAMPING)),
            ):
                each = [value for value in lambdas for _ in ("weight", "bias")]
                scores[name + suffix] = whole.influence(matrix, each, queries)
        return scores

    recipe = f"{sizes} {subject.digest} {trainer.recipe}"
    scores = kept(work / f"perceptron-{split}.npz", recipe, scored)
    responses = _Responding(subject, fitted, trainer.recipe, sizes, work, split, step=1.0)
    others = {f"pbrf, {_LARGE}": responses.of(REFINE_DAMPING)}
    return _judged(subject, trainer, scores, responses, others, work)


def _language(work: Path, sizes: _Sizes, split: int) -> _Judged:
    addresses = load_addresses()
    early = [address for address in addresses if address.year < _CENTURY]
    late = [address for address in addresses if address.year >= _CENTURY]
    first = [_opening(one, _BASE_WORDS) for one in training_passages(early, _BASE_PASSAGES)]
    base, tokenizer = load_or_train(
        work / "base", first, seed=split, progress=_silent, recipe=_BASE
    )
    passages = training_passages(late, sizes.documents)[: sizes.documents]
    documents = [_opening(passage, _WORDS) for passage in passages]
    held_out = [_opening(one, _WORDS) for one in held_out_passages(late, passages, sizes.queries)]
    trainer = FineTuner.of_texts(base, documents, tokenizer=tokenizer, recipe=_TUNING)
    (model,) = trainer.train([Run(np.ones(len(documents), np.bool_), split)])
    queries = [wf.Query("", passage.text) for passage in held_out]
    subject = Subject.of_texts("addresses, two-block Llama", model, tokenizer, documents, queries)
    fitted = fit(subject, "ekfac")

    def scored() -> dict[str, Scores]:
        return {**_approximate(subject, fitted), _REFINED: _refined(subject, fitted)}

    recipe = f"{sizes} {subject.digest} {trainer.recipe}"
    scores = kept(work / f"language-{split}.npz", recipe, scored)
    responses = _Responding(subject, fitted, trainer.recipe, sizes, work, split, step=1.0)
    others = {f"pbrf, {_LARGE}": responses.of(REFINE_DAMPING)}
    return _judged(subject, trainer, scores, responses, others, work)


def _digits(sizes: _Sizes, split: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Documents and queries, inputs and targets each."""
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(split).permutation(len(labels))
    inputs = torch.from_numpy((pixels / 16).astype(np.float32))[order]
    targets = torch.from_numpy(labels.astype(np.int64))[order]
    last = sizes.documents + sizes.queries
    chosen = slice(sizes.documents, last)
    return (inputs[: sizes.documents], targets[: sizes.documents]), (
        inputs[chosen],
        targets[chosen],
    )


def _trained(
    name: str,
    trainer: PerceptronTrainer | LogisticTrainer,
    documents: tuple[Tensor, Tensor],
    queries: tuple[Tensor, Tensor],
) -> Subject:
    (model,) = trainer.train([Run(np.ones(len(documents[0]), np.bool_), 0)])
    return Subject.of_tensors(name, model, documents, queries)


def _opening(passage: Document, words: int) -> Document:
    return replace(passage, text=" ".join(passage.text.split(" ")[:words]))


def _silent(phase: str, done: int, total: int | None) -> None:
    """Training says nothing."""


def _approximate(subject: Subject, fitted: FittedCurvature) -> dict[str, Scores]:
    """Every curvature at its default damping, block by block."""
    scores = {}
    for kind in _KINDS:
        curvature = fitted if kind == fitted.kind else fit(subject, kind)
        scores[_NAMES.get(kind, kind)] = influence(subject, curvature)
    return scores


def _refined(subject: Subject, fitted: FittedCurvature) -> Scores:
    """Five steps of conjugate gradients on the whole Gauss-Newton matrix, for each question."""
    batches = [batch for _, batch in subject.document_batches(128)]
    solved: list[list[Tensor]] = [[] for _ in fitted.layers]
    for question in subject.questions:
        gradient, _ = gradient_of(subject.extractor, fitted, question)
        estimates = refinements(subject.extractor, fitted, gradient, lambda: batches)
        *_, last = islice(estimates, _STEPS + 1)
        for layer, part in enumerate(last.solved):
            solved[layer].append(fitted.raw(layer, part).flatten())
    stacked = [torch.stack(rows) for rows in solved]
    count = len(subject)
    return exact_products(subject.extractor, stacked, subject.document_batches(), count) / count


class _Responding:
    """Proximal Bregman responses of leaving out documents drawn at random, kept on disk."""

    def __init__(
        self,
        subject: Subject,
        fitted: FittedCurvature,
        recipe: str,
        sizes: _Sizes,
        work: Path,
        split: int,
        *,
        step: float,
    ) -> None:
        generator = np.random.default_rng(split)
        self.chosen = np.sort(generator.permutation(len(subject))[: sizes.left_out])
        self.sizes, self.split = sizes, split
        self._subject, self._fitted, self._work = subject, fitted, work
        self._recipe = f"{subject.digest} {recipe} {sizes} {step}"
        self._step = step

    def of(self, damping: float | None = None) -> Responses:
        """Under EK-FAC's own damping, or one for all layers."""

        def respond() -> dict[str, NDArray[np.float64]]:
            found = proximal_responses(
                self._subject,
                self.chosen,
                self._fitted,
                damping=damping,
                step=self._step,
                tolerance=self.sizes.tolerance,
                most=2000,
            )
            return {
                "documents": found.documents,
                "nats": found.nats,
                "residuals": found.residuals,
                "passes": found.passes,
                "damping": np.array(found.damping),
            }

        recipe = f"{self._recipe} {damping}"
        kind = self._subject.extractor.objective.kind
        layers = len(self._subject.extractor.layers)
        name = f"responses-{kind}-{layers}-{self.split}-{damping or 'own'}.npz"
        known = kept(self._work / name, recipe, respond)
        lambdas = tuple(float(value) for value in known["damping"])
        return Responses(
            known["documents"],
            known["nats"],
            known["residuals"],
            known["passes"],
            self._step,
            lambdas,
            tuple(np.setdiff1d(self.chosen, known["documents"]).tolist()),
        )


def _judged(
    subject: Subject,
    trainer: Trainer,
    scores: Mapping[str, Scores],
    responding: _Responding,
    others: Mapping[str, Responses],
    work: Path,
) -> _Judged:
    """One model under the three truths."""
    sizes, responses = responding.sizes, responding.of()
    measurement = Measurement(subject.extractor.objective, subject.questions)
    retrainer = Retrainer(trainer, measurement, subject.digest, cache=work / "retrained")
    halves = random_halves(len(subject), sizes.halves, responding.split)
    # Other seeds than the judged model's own.
    outcomes = retrainer.outcomes(halves, range(1, 1 + sizes.models))
    predicted = {_PBRF: responses, **others}
    missed = np.unique([place for found in predicted.values() for place in found.unreached])
    left_out = np.setdiff1d(responding.chosen, missed)
    groups = one_document_each(len(subject), left_out)
    everything = {
        **scores,
        **{name: found.as_scores(len(subject)) for name, found in predicted.items()},
    }
    evidence = (
        linear_datamodelling(scores, outcomes, subject=subject.name, reference="ekfac"),
        leave_out(
            everything,
            groups,
            retrainer,
            range(1, 1 + sizes.seeds),
            subject=subject.name,
            reference="ekfac",
        ),
        proximal_bregman(scores, responses, subject=subject.name, reference="ekfac"),
    )
    chosen = {name: found[:, responses.documents].T for name, found in scores.items()}
    lds, loo, pbrf = (_brief(one) for one in evidence)
    return _Judged((lds, loo, pbrf), chosen, responses.nats)


def _brief(evidence: Evidence) -> Evidence:
    """Without what every model said: the result is to be read."""
    details = {name: one for name, one in evidence.details.items() if name.endswith("per_query")}
    return replace(evidence, details=details)


def _summary(title: str, judged: Sequence[_Judged], sizes: _Sizes) -> Evidence:
    """Methods against truths; means over splits, with all splits' values in the details."""
    methods = dict.fromkeys(
        figure.method for found in judged for one in found.evidence for figure in one.figures
    )
    figures, each = [], {}
    columns = (("LDS", 0, "LDS"), ("LOO", 1, "Pearson"), ("PBRF", 2, "Pearson"))
    extra = (("LOO noise", 1, "noise"), ("LOO effect", 1, "effect"), ("LOO slope", 1, "slope"))
    for column, truth, name in (*columns, *extra):
        for method in methods:
            found = [one.value(method, truth, name) for one in judged]
            values = [value for value in found if value is not None]
            if not values:
                continue
            if len(values) > 1:
                figures.append(Figure.of(method, column, mean_estimate(values)))
            else:
                own = judged[0].evidence[truth].figure(method, name)
                figures.append(replace(own, name=column))
            each[f"{method}: {column}"] = values
    notes = [note for found in judged for one in found.evidence for note in one.notes]
    return Evidence(
        "exact_and_approximate",
        title,
        tuple(figures),
        {**asdict(sizes), "mlp": repr(_MLP), "l2": _L2, "tuning": repr(_TUNING)},
        tuple(dict.fromkeys(notes)),
        {"of_each_split": plain(each)},
    )


def _draw(summary: Evidence, title: str, path: Path) -> None:
    names = ("LDS", "LOO", "PBRF")
    shown = [f.method for f in summary.figures if f.name in names]
    plot(summary, path, names=names, methods=list(dict.fromkeys(shown)), title=title)


def _draw_responses(judged: _Judged, path: Path) -> None:
    methods = ("exact Gauss-Newton", "ekfac", "kfac", "gradient dot")
    scatter(
        {method: judged.scores[method] for method in methods},
        judged.responses,
        path,
        title="Perceptron: proximal Bregman responses over scores",
    )
