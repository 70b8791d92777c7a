"""How much of EK-FAC's quality a searchable index keeps, by bytes a document, on the demo's model.

The demo's language model is trained from scratch on a random half of its passages and fine-tuned on
every fourth one of the others, which are indexed: at eight sizes, by the builder's own choice of
encoder. Stored scores, uncompressed ones and simpler rankings are set against models fine-tuned on
random halves of those passages, and against models fine-tuned without a query's top passages.

Retraining from scratch was tried before: a query's log-likelihood then varies so much from half to
half, and a run takes so long, that an hour could not tell 85 % of EK-FAC's score from all of it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedTokenizerFast

import wherefrom as wf
from benchmarks.experiments.found_documents import Found, highest
from benchmarks.experiments.harness import Findings
from benchmarks.experiments.kept import kept
from benchmarks.experiments.small_models import kept_model
from wherefrom.demo.corpus import held_out_passages, load_addresses, training_passages
from wherefrom.demo.model import RECIPE, Recipe, train_tokenizer
from wherefrom.evaluation.baselines import baselines
from wherefrom.evaluation.counterfactual import removals
from wherefrom.evaluation.effects import crossed_mean
from wherefrom.evaluation.evidence import Evidence, Figure
from wherefrom.evaluation.lds import linear_datamodelling
from wherefrom.evaluation.measurement import Measurement
from wherefrom.evaluation.plots import plot
from wherefrom.evaluation.retraining import Outcomes, Retrainer, random_halves
from wherefrom.evaluation.statistics import (
    Estimate,
    Scores,
    interval,
    rank_correlations,
    shared_top,
    spearman,
)
from wherefrom.evaluation.subject import Subject
from wherefrom.evaluation.trainers import Run
from wherefrom.evaluation.tuning import FineTuner, TuningRecipe
from wherefrom.gradients.objectives.base import JSON
from wherefrom.records import Document, Query

__all__ = ["BUDGET_MINUTES", "run"]

BUDGET_MINUTES = 60

_SUBJECT = "the demo's model, fine-tuned"
_WHOLE, _WORDS = "ekfac", "bm25"
_TOP = 10
_CANDIDATES = 100
_DRAWS = 1000
_TUNING = TuningRecipe(epochs=1, batch_size=8, learning_rate=1e-3)
_TARGETS = {8192: 0.85, 32768: 0.95}
"""Share of the uncompressed LDS that an index should keep."""
_ABOVE_BM25 = 2048
"""From this size on an index should beat BM25."""


@dataclass(frozen=True, slots=True)
class _Sizes:
    """How much is done.

    Attributes:
        recipe: Of the base.
        passages: Of the addresses, half of them for the base.
        every: One in so many of the others is indexed.
        queries: Second halves of held-out passages.
        halves: Retrained.
        budgets: Bytes a document.
        removed_for: Queries whose top passages are removed.
        k: How many.
        judged: Budgets of indexes whose top passages are removed.
        fit: Passages that the curvature is fitted on.
    """

    recipe: Recipe
    passages: int
    every: int
    queries: int
    halves: int
    budgets: tuple[int, ...]
    removed_for: int
    k: tuple[int, ...]
    judged: tuple[int, ...]
    fit: int


_FULL = _Sizes(RECIPE, 4100, 4, 40, 30, tuple(256 << i for i in range(8)), 6, (25,), (2048,), 350)
_QUICK = _Sizes(
    replace(RECIPE, width=32, feed_forward=48, layers=1, heads=2, epochs=1),
    *(240, 2, 6, 20, (256, 2048), 2, (5,), (2048,), 32),
)


def run(work: Path, *, quick: bool) -> Findings:
    """Tune, index, retrain, compare.

    Args:
        work: Where models, scores and retrainings are kept.
        quick: Small sizes: whether it runs, not what comes out.
    """
    sizes = _QUICK if quick else _FULL
    tuned = _tuned(work, sizes)
    subject = tuned.subject
    measurement = Measurement(subject.extractor.objective, subject.questions)
    retrainer = Retrainer(tuned.tuner, measurement, subject.digest, cache=work)
    halves = random_halves(len(subject), sizes.halves, seed=0)
    outcomes = retrainer.outcomes(halves, [0])
    indexes = {budget: _indexed(work, tuned, budget, sizes) for budget in sizes.budgets}
    whole = indexes[sizes.budgets[0]]["exact"]
    scores = {
        _WHOLE: whole,
        **{_name(budget): found["stored"] for budget, found in indexes.items()},
        **baselines(subject),
    }
    judged = _judged(scores, outcomes, sizes)
    removed = _removed(work, tuned, scores, sizes)
    fidelity = _fidelity(indexes, whole, sizes)
    return Findings(
        (judged, removed, fidelity),
        {
            "index_quality-lds.png": lambda path: plot(judged, path, names=["LDS"]),
            "index_quality-removed.png": lambda path: plot(
                removed, path, names=[f"change, top {sizes.k[-1]} removed"]
            ),
        },
    )


@dataclass(frozen=True, slots=True)
class _Tuned:
    """The fine-tuned model, what it was tuned on and what is asked of it.

    Attributes:
        subject: All of it, without an index.
        tuner: How it was tuned.
        model: The module.
        tokenizer: Its tokenizer.
        documents: Passages it was tuned on.
        queries: Second halves of others.
    """

    subject: Subject
    tuner: FineTuner
    model: nn.Module
    tokenizer: PreTrainedTokenizerFast
    documents: tuple[Document, ...]
    queries: tuple[Query, ...]


def _tuned(work: Path, sizes: _Sizes) -> _Tuned:
    addresses = load_addresses()
    passages = training_passages(addresses, sizes.passages)
    held_out = held_out_passages(addresses, passages, sizes.queries)
    tokenizer = train_tokenizer(passages, sizes.recipe)
    (first,) = random_halves(len(passages), 1, seed=0)
    base = kept_model(work, passages, tokenizer, sizes.recipe, 0, first)
    documents = tuple(compress(passages, ~first))[:: sizes.every]
    tuner = FineTuner.of_texts(base, documents, tokenizer=tokenizer, recipe=_TUNING)
    (model,) = tuner.train([Run(np.ones(len(documents), np.bool_), 0)])
    queries = tuple(_second_half(passage) for passage in held_out)
    subject = Subject.of_texts(_SUBJECT, model, tokenizer, documents, queries)
    return _Tuned(subject, tuner, model, tokenizer, documents, queries)


def _second_half(passage: Document) -> Query:
    middle = passage.text.index(" ", len(passage.text) // 2)
    return Query(passage.text[:middle], passage.text[middle:])


def _name(budget: int) -> str:
    return f"index, {budget} B" if budget < 1024 else f"index, {budget // 1024} KB"


def _indexed(work: Path, tuned: _Tuned, budget: int, sizes: _Sizes) -> dict[str, NDArray[Any]]:
    """Build an index and take its scores and answers; it is not kept.

    Returns:
        ``stored`` scores in the order of the subject, ``answers``, the reranked proponents' places
        therein, ``[query, rank]``, and ``bytes`` of a document and ``encoder``. Of the smallest
        budget also ``exact`` scores: all indexes have the same curvature.
    """

    def make() -> dict[str, NDArray[Any]]:
        path = work / f"{budget}.index"
        index = wf.build(
            tuned.model,
            tuned.documents,
            path,
            objective=wf.CausalLM(tuned.tokenizer),
            bytes_per_document=budget,
            fit_documents=sizes.fit,
            overwrite=True,
        )
        places = {doc_id: place for place, doc_id in enumerate(tuned.subject.doc_ids)}
        order = np.argsort([places[doc_id] for doc_id in index.doc_ids()])
        answers = index.answers(
            [tuned.queries[place] for place in _looked_at(sizes)],
            k=_TOP,
            sign="proponents",
            rerank="recompute",
            candidates=min(_CANDIDATES, len(order)),
        )
        found = {
            "stored": index.scores(tuned.queries, tier="stored")[:, order],
            "answers": np.array([[places[h.doc_id] for h in a.proponents] for a in answers]),
            "bytes": np.array(index.manifest.encoder.bytes_per_document),
            "encoder": np.array(index.manifest.encoder.name),
        }
        if budget == sizes.budgets[0]:
            found["exact"] = index.scores(tuned.queries)[:, order]
        shutil.rmtree(path)
        return found

    parts = (tuned.tuner.recipe, tuned.subject.digest, sizes.fit, _looked_at(sizes))
    return kept(work / f"index-{budget}.npz", repr(parts), make)


def _looked_at(sizes: _Sizes) -> list[int]:
    """Queries whose answers are looked at and whose passages are removed."""
    return [place * sizes.queries // sizes.removed_for for place in range(sizes.removed_for)]


def _judged(scores: Mapping[str, Scores], outcomes: Outcomes, sizes: _Sizes) -> Evidence:
    """Linear datamodelling scores, and shares of the uncompressed one."""
    evidence = linear_datamodelling(
        scores, outcomes, subject=_SUBJECT, reference=_WHOLE, draws=_DRAWS
    )
    figures, notes = list(evidence.figures), list(evidence.notes)
    for budget in sizes.budgets:
        name = _name(budget)
        ours, whole = _paired(scores[name], scores[_WHOLE], outcomes)
        share = interval(ours[0] / whole[0], ours[1:] / whole[1:])
        figures.append(Figure.of(name, "share of the uncompressed LDS", share))
        ours, words = _paired(scores[name], scores[_WORDS], outcomes)
        above = interval(ours[0] - words[0], ours[1:] - words[1:])
        figures.append(Figure.of(name, "LDS above bm25", above))
        if budget in _TARGETS:
            notes.append(
                f"{name}: {share.value:.0%} of the uncompressed LDS ({share.low:.0%} to "
                f"{share.high:.0%}), {_verdict(share, _TARGETS[budget])} the target of "
                f"{_TARGETS[budget]:.0%}."
            )
        if budget == _ABOVE_BM25:
            notes.append(
                f"{name}: LDS {above.value:+.3f} above bm25 ({above.low:+.3f} to "
                f"{above.high:+.3f}), {_verdict(above, 0.0)} the target of more than bm25's."
            )
    setting = {**evidence.setting, "base": repr(sizes.recipe), "tuning": repr(_TUNING)}
    return replace(evidence, figures=tuple(figures), notes=tuple(notes), setting=setting)


def _verdict(found: Estimate, target: float) -> str:
    if found.value < target:
        return "misses"
    return "reaches" if found.low >= target else "reaches, but not beyond chance,"


def _paired(a: Scores, b: Scores, outcomes: Outcomes) -> tuple[Scores, Scores]:
    """Scores of two methods: on all subsets and queries first, then on the same resampled ones."""
    members, nats = outcomes.members.T.astype(np.float64), outcomes.mean()
    sums = [(scores @ members).T for scores in (a, b)]
    subsets, queries = nats.shape
    generator = np.random.default_rng(0)
    rows = [np.ix_(np.arange(subsets), np.arange(queries))]
    for _ in range(_DRAWS):
        drawn = generator.integers(0, subsets, subsets), generator.integers(0, queries, queries)
        rows.append(np.ix_(*drawn))
    first, second = (
        np.array([rank_correlations(own[chosen], nats[chosen]).mean() for chosen in rows])
        for own in sums
    )
    return first, second


def _removed(work: Path, tuned: _Tuned, scores: Mapping[str, Scores], sizes: _Sizes) -> Evidence:
    """Models tuned without the passages that each method scores highest."""
    chosen = _looked_at(sizes)
    objective = tuned.subject.extractor.objective
    asked = [tuned.subject.questions[place] for place in chosen]
    retrainer = Retrainer(
        tuned.tuner, Measurement(objective, asked), tuned.subject.digest, cache=work
    )
    names = [_WHOLE, *map(_name, sizes.judged), _WORDS]
    evidence = removals(
        {name: scores[name][chosen] for name in names},
        retrainer,
        subject=_SUBJECT,
        k=sizes.k,
        seeds=[0],
    )
    changes = _changes(evidence)
    figures, notes = list(evidence.figures), list(evidence.notes)
    for (name, what), own in changes.items():
        if name in (_WORDS, "random"):
            continue
        gained = crossed_mean(own - changes[_WORDS, what])
        ends = gained.value, gained.low, gained.high
        figures.append(Figure(name, f"change beyond bm25, {what}", *ends, "nats"))
        if name == _name(_ABOVE_BM25):
            notes.append(
                f"{name}, {what}: {gained.value:+.3f} nats against what bm25's passages do "
                f"({gained.low:+.3f} to {gained.high:+.3f}; lower is better)."
            )
    return replace(evidence, figures=tuple(figures), notes=tuple(notes))


def _changes(evidence: Evidence) -> dict[tuple[str, str], Scores]:
    """Of each method and number of passages the change of each query, ``[query]``."""
    # Details are plain JSON, whose form removals() decides.
    details: Any = evidence.details
    found: dict[tuple[str, str], list[float]] = {}
    for query in details["queries"]:
        for entry in query["removals"]:
            own = found.setdefault((entry["method"], entry["what"]), [])
            own.append(entry["change"]["value"])
    return {key: np.array(values) for key, values in found.items()}


def _fidelity(
    indexes: Mapping[int, Mapping[str, NDArray[Any]]], whole: Scores, sizes: _Sizes
) -> Evidence:
    """Stored scores beside uncompressed ones, and lists before and after candidates are rerun."""
    found = Found()
    details: dict[str, JSON] = {}
    best = [highest(row, _TOP) for row in whole]
    for budget, index in indexes.items():
        name, stored = _name(budget), index["stored"]
        rows = list(zip(whole, stored, strict=True))
        found.add(name, "rank correlation", [spearman(a, b) for a, b in rows])
        found.add(name, f"top {_TOP} in {_TOP}", [shared_top(b, a, _TOP) for a, b in rows])
        held = [
            np.isin(own, highest(row, _CANDIDATES)).mean()
            for own, row in zip(best, stored, strict=True)
        ]
        found.add(name, f"top {_TOP} in {_CANDIDATES}", held)
        same = [
            float(np.array_equal(best[place], answer))
            for place, answer in zip(_looked_at(sizes), index["answers"], strict=True)
        ]
        found.add(name, "lists equal, reranked", same)
        details[name] = {"encoder": str(index["encoder"]), "bytes": float(index["bytes"])}
    return Evidence(
        "fidelity",
        _SUBJECT,
        found.figures(),
        {"documents": whole.shape[1], "queries": len(whole), "candidates": _CANDIDATES},
        details=details,
    )
