"""Influence on a two-layer transformer that predicts characters, where the truth is known.

Three questions of three kinds of truth. **Passages**: a model trained on old addresses to the
Congress is fine-tuned on openings of newer ones, and retrained on random halves of them; do scores
for held-out continuations add up to what retraining does, at a low learning rate and at a high one?
**Ciphers**: sequences are written by hidden rules; does influence find those that a letter's rule
was learnt from, and among them those that state it most often? **Facts**: invented facts are
planted among real passages in three wordings; does influence find them from a fourth, while they
are being learnt and once they are known by heart?
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

import wherefrom as wf
from benchmarks.experiments.found_documents import POOLED, Found, highest
from benchmarks.experiments.harness import Findings
from benchmarks.experiments.hidden_ciphers import cipher_task
from benchmarks.experiments.planted_facts import fact_task
from benchmarks.experiments.small_models import CONTEXT, character_tokenizer, kept_model, opening
from wherefrom.demo.corpus import held_out_passages, load_addresses, training_passages
from wherefrom.demo.model import Recipe
from wherefrom.evaluation.baselines import baselines
from wherefrom.evaluation.evidence import Evidence, Figure
from wherefrom.evaluation.lds import linear_datamodelling
from wherefrom.evaluation.measurement import Measurement
from wherefrom.evaluation.plots import plot
from wherefrom.evaluation.retraining import Retrainer, random_halves
from wherefrom.evaluation.scores import fit, influence, self_influence
from wherefrom.evaluation.statistics import (
    Scores,
    area_under_roc,
    mean_estimate,
    rank_correlations,
)
from wherefrom.evaluation.subject import Subject
from wherefrom.evaluation.trainers import Run
from wherefrom.evaluation.tuning import FineTuner, TuningRecipe
from wherefrom.query.questions import questions
from wherefrom.records import Document, Query

__all__ = ["BUDGET_MINUTES", "run"]

BUDGET_MINUTES = 25

_REFERENCE = "dot"
_CENTURY = 1900
_PROMPT = 55
_TOP = 10
_PIECE = 4
_PASSAGES = Recipe(
    context=CONTEXT, width=96, feed_forward=288, layers=2, heads=4, epochs=4, batch_size=16
)
_SEQUENCES = replace(_PASSAGES, width=64, feed_forward=192, epochs=10)
_LEARNING, _MEMORISED = replace(_SEQUENCES, epochs=12), replace(_SEQUENCES, epochs=40)
_GENTLY = TuningRecipe(epochs=3, batch_size=8, learning_rate=5e-5)
_THOROUGHLY = TuningRecipe(epochs=3, batch_size=16, learning_rate=1e-3)


@dataclass(frozen=True, slots=True)
class _Sizes:
    """How much is done.

    Attributes:
        old: Passages that the base is trained on.
        passages: It is fine-tuned on.
        continuations: Held out and asked.
        halves: Retrained.
        tunings: Models for each half.
        sequences: Of ciphers.
        letters: Asked.
        seeds: Of ciphers and facts, a model each.
        background: Passages among which facts are planted.
        facts: Planted and asked.
    """

    old: int
    passages: int
    continuations: int
    halves: int
    tunings: int
    sequences: int
    letters: int
    seeds: int
    background: int
    facts: int


_FULL = _Sizes(2500, 600, 40, 30, 2, 800, 80, 3, 150, 24)
_QUICK = _Sizes(40, 32, 3, 20, 1, 32, 16, 1, 16, 6)


def run(work: Path, *, quick: bool) -> Findings:
    """All three.

    Args:
        work: Where models and retrainings are kept.
        quick: Small sizes: whether it runs, not what comes out.
    """
    sizes = _QUICK if quick else _FULL
    gently, _ = _on_passages(work, sizes, _GENTLY)
    thoroughly, years = _on_passages(work, sizes, _THOROUGHLY)
    ciphers = _on_ciphers(work, sizes)
    facts = [_on_facts(work, sizes, recipe) for recipe in (_LEARNING, _MEMORISED)]
    return Findings(
        (gently, thoroughly, years, ciphers, *facts),
        {
            "next_character-gently.png": lambda path: plot(gently, path, names=["LDS"]),
            "next_character-thoroughly.png": lambda path: plot(thoroughly, path, names=["LDS"]),
            "next_character-ciphers.png": lambda path: plot(ciphers, path, names=_CIPHER_FIGURES),
            "next_character-facts.png": lambda path: plot(facts[0], path, names=_FACT_FIGURES),
            "next_character-memorised.png": lambda path: plot(facts[1], path, names=_FACT_FIGURES),
        },
    )


def _on_passages(work: Path, sizes: _Sizes, tuning: TuningRecipe) -> tuple[Evidence, Evidence]:
    """Retraining on halves of real passages; and the years of those that score highest."""
    addresses = load_addresses()
    new = [address for address in addresses if address.year >= _CENTURY]
    old = [address for address in addresses if address.year < _CENTURY]
    taken = training_passages(new, sizes.passages)[: sizes.passages]
    held_out = [opening(p) for p in held_out_passages(new, taken, sizes.continuations)]
    first = [opening(passage) for passage in training_passages(old, sizes.old)]
    documents = [opening(passage) for passage in taken]
    tokenizer = character_tokenizer(document.text for document in (*first, *documents))
    base = kept_model(work, first, tokenizer, _PASSAGES, seed=0)
    tuner = FineTuner.of_texts(base, documents, tokenizer=tokenizer, recipe=tuning)
    (model,) = tuner.train([Run(np.ones(len(documents), np.bool_), 0)])
    subject = Subject.of_texts(
        f"openings of addresses since 1900, rate {tuning.learning_rate:g}",
        model,
        tokenizer,
        documents,
        [_continuation(document.text) for document in held_out],
    )
    scores = {"ekfac": influence(subject, fit(subject)), **baselines(subject)}
    measurement = Measurement(subject.extractor.objective, subject.questions)
    retrainer = Retrainer(tuner, measurement, subject.digest, cache=work)
    halves = random_halves(len(documents), sizes.halves, seed=0)
    outcomes = retrainer.outcomes(halves, range(sizes.tunings))
    judged = linear_datamodelling(scores, outcomes, subject=subject.name, reference=_REFERENCE)
    setting = {**judged.setting, "base": repr(_PASSAGES), "tuning": repr(tuning)}
    return replace(judged, setting=setting), _of_years(scores, documents, held_out, subject.name)


def _continuation(text: str) -> Query:
    cut = text.index(" ", min(_PROMPT, len(text) // 2))
    return Query(text[:cut], text[cut:])


def _of_years(
    scores: Mapping[str, Scores],
    documents: Sequence[Document],
    asked: Sequence[Document],
    subject: str,
) -> Evidence:
    """How far the highest-scored passages' years lie from the query's."""
    apart = np.abs(_years(asked)[:, None] - _years(documents))
    found = Found()
    for method, own in scores.items():
        values = [row[highest(each, _TOP)].mean() for each, row in zip(own, apart, strict=True)]
        found.add(method, f"years apart, top {_TOP}", values)
    return Evidence(
        "years",
        subject,
        found.figures("years"),
        {"queries": len(asked), "documents": len(documents), "top": _TOP},
    )


def _years(documents: Sequence[Document]) -> NDArray[np.int64]:
    return np.array([document.metadata["year"] for document in documents], np.int64)


_CIPHER_FIGURES = (f"same cipher in top {_TOP}", "AUC of the cipher", "order within the cipher")


def _on_ciphers(work: Path, sizes: _Sizes) -> Evidence:
    """Which documents state the rule that a letter follows from."""
    found = Found()
    nats = []
    for seed in range(sizes.seeds):
        task = cipher_task(sizes.sequences, sizes.letters, seed)
        tokenizer = character_tokenizer(document.text for document in task.documents)
        model = kept_model(work, task.documents, tokenizer, _SEQUENCES, seed)
        subject = Subject.of_texts("ciphers", model, tokenizer, task.documents, task.queries)
        nats.append(Measurement(subject.extractor.objective, subject.questions)(model))
        scores = _rankings(subject)
        scores["bm25"] = baselines(_in_pieces(subject), ["bm25"])["bm25"]
        for method, own in scores.items():
            rows = list(zip(own, task.relevant, task.stated, strict=True))
            precise, curve, order = _CIPHER_FIGURES
            found.add(method, precise, [right[highest(x, _TOP)].mean() for x, right, _ in rows])
            found.add(method, curve, [area_under_roc(x, right) for x, right, _ in rows])
            inside = [
                rank_correlations(x[right, None], often[right, None].astype(np.float64))[0]
                for x, right, often in rows
            ]
            found.add(method, order, inside)
    answer = mean_estimate(np.concatenate(nats))
    return Evidence(
        "retrieval",
        "sequences by hidden ciphers",
        (
            *found.figures(),
            *found.above(_REFERENCE),
            Figure.of("model", "log-likelihood of the answer", answer, "nats"),
        ),
        {
            "documents": sizes.sequences,
            "queries": sizes.letters,
            "seeds": sizes.seeds,
            "model": repr(_SEQUENCES),
            "bm25": f"over all pieces of {_PIECE} letters",
        },
        (POOLED,),
        found.details(),
    )


def _in_pieces(subject: Subject) -> Subject:
    """The same with words of four letters each, one from every place, for BM25 to compare."""
    questions = [
        replace(question, asked=Query("", _pieces(text)))
        for question, text in zip(subject.questions, subject.asked or (), strict=True)
    ]
    texts = tuple(_pieces(text) for text in subject.texts or ())
    return replace(subject, questions=tuple(questions), texts=texts)


def _pieces(text: str) -> str:
    return " ".join(text[start : start + _PIECE] for start in range(len(text) - _PIECE + 1))


_FACT_FIGURES = (
    "share of stating documents in top 3",
    f"share of stating documents in top {_TOP}",
    "1 / rank of the first",
)


def _on_facts(work: Path, sizes: _Sizes, recipe: Recipe) -> Evidence:
    """Which documents taught the model where somebody is at home."""
    found = Found()
    new = [address for address in load_addresses() if address.year >= _CENTURY]
    passages = training_passages(new, sizes.background)[: sizes.background]
    for seed in range(sizes.seeds):
        task = fact_task(sizes.facts, seed)
        documents = [*(opening(passage) for passage in passages), *task.planted]
        asked = [query.prompt for query in task.queries]
        tokenizer = character_tokenizer([*(document.text for document in documents), *asked])
        model = kept_model(work, documents, tokenizer, recipe, seed)
        subject = Subject.of_texts("facts", model, tokenizer, documents, task.queries)
        answered, recited = (
            _right(model, tokenizer, choices, task.answers)
            for choices in (task.choices, task.recited)
        )
        found.add("model", "right town, as asked", answered)
        found.add("model", "right town, as taught", recited)
        stating, town = (
            np.pad(part, ((0, 0), (len(passages), 0))) for part in (task.stating, task.same_town)
        )
        for method, own in _rankings(subject).items():
            order = np.stack([highest(row, len(documents)) for row in own])
            hits = np.take_along_axis(stating, order, 1)
            few, many, first = _FACT_FIGURES
            found.add(method, few, hits[:, :3].sum(1) / hits.sum(1))
            found.add(method, many, hits[:, :_TOP].sum(1) / hits.sum(1))
            found.add(method, first, 1.0 / (1 + hits.argmax(1)))
            homes = np.take_along_axis(town, order[:, :_TOP], 1)
            found.add(method, f"about that town, of top {_TOP}", homes.mean(1))
    return Evidence(
        "retrieval",
        f"facts planted among passages, {recipe.epochs} epochs",
        (*found.figures(), *found.above(_REFERENCE)),
        {
            "facts": sizes.facts,
            "stated_by": 3,
            "background": sizes.background,
            "seeds": sizes.seeds,
            "model": repr(recipe),
        },
        (POOLED,),
        found.details(),
    )


def _rankings(subject: Subject) -> dict[str, Scores]:
    """EK-FAC, the same divided by the documents' own whitened norms, and what it has to beat."""
    fitted = fit(subject)
    scores = influence(subject, fitted)
    normalised = scores / np.sqrt(self_influence(subject, fitted))
    return {"ekfac": scores, "ekfac, normalised": normalised, **baselines(subject)}


def _right(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    choices: Sequence[Sequence[Query]],
    answers: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Whether the right choice is the likeliest, ``[query]``."""
    objective = wf.CausalLM().bind(model, tokenizer)
    asked = list(questions(objective, None, [query for own in choices for query in own]))
    nats = Measurement(objective, asked)(model)
    right: NDArray[np.bool_] = nats.reshape(len(answers), -1).argmax(1) == answers
    return right
