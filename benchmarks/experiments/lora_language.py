"""Curvatures on a LoRA language model: which training tasks are of a held-out task's class?

Kwon et al. (2024, section 4.3) tune Llama-2-13B-chat on ten classes of sentence transformations and
of math problems, and ask whether the tasks that most influence a held-out one are of its class.
There the held-out tasks repeat the wording of those trained on, which a search by words finds too;
here (:mod:`.instructions`) they are asked in the same wording, and without any shared word.
SmolLM2-135M is tuned with adapters on queries and values of its upper half.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.experiments.adapter_blocks import (
    DAMPING,
    Recording,
    Unscaled,
    fits,
    products,
    self_influence,
)
from benchmarks.experiments.harness import Findings
from benchmarks.experiments.instructions import CLASSES, Task, familiar, held_out, training
from benchmarks.experiments.kept import kept
from benchmarks.packages import MissingPackageError, smollm2
from wherefrom.evaluation.baselines import baselines
from wherefrom.evaluation.evidence import Evidence, Figure, plain
from wherefrom.evaluation.statistics import area_under_roc, mean_estimate
from wherefrom.evaluation.subject import Subject
from wherefrom.evaluation.trainers import Run
from wherefrom.evaluation.tuning import FineTuner, TuningRecipe
from wherefrom.gradients.examples import Examples, TextExamples, batches
from wherefrom.gradients.fisher import Fisher
from wherefrom.gradients.models import load_model
from wherefrom.gradients.objectives import CausalLM
from wherefrom.records import Document, Query

__all__ = ["BUDGET_MINUTES", "run"]

BUDGET_MINUTES = 18

_FISHER: Fisher = "sampled"
_BASELINES = ("embedding", "bm25", "random")
_TOP = 10
_DIVIDED = tuple(f"{m}, RelatIF" for m in ("gradient dot", "datainf", f"ekfac, {_FISHER}"))
"""Scores divided by self-influence that the picture shows."""

_MODULES = ("q_proj", "v_proj")
_BLOCKS = tuple(range(15, 30))
"""The upper half: neither training nor gradients then visit the lower one on the way back."""


@dataclass(frozen=True, slots=True)
class _Sizes:
    """How much is done.

    Attributes:
        recipe: Of training.
        seeds: Of first weights, order and pseudo-labels.
        rank: Of the adapter.
        each: Tasks of a class trained on.
        asked: Held-out tasks of a class.
    """

    recipe: TuningRecipe
    seeds: tuple[int, ...] = (0, 1)
    rank: int = 4
    each: int = 24
    asked: int = 6


_FULL = _Sizes(TuningRecipe(epochs=2, batch_size=16, learning_rate=2e-3))
_QUICK = _Sizes(TuningRecipe(epochs=1, batch_size=15, learning_rate=1e-3), (0,), 2, 3, 1)


@dataclass(frozen=True, slots=True)
class _Cell:
    """What is kept of one adapter.

    Attributes:
        methods: Names of curvatures, then of baselines.
        scores: ``[method, question, document]``.
        own: Self-influence, ``[method, document]``; NaN where there is none.
        nats: Log-likelihoods of answers trained on, tuned and before, ``[2, document]``.
        asked: Likewise of the questions' answers, ``[2, question]``.
    """

    methods: tuple[str, ...]
    scores: NDArray[np.float64]
    own: NDArray[np.float64]
    nats: NDArray[np.float64]
    asked: NDArray[np.float64]


def run(work: Path, *, quick: bool) -> Findings:
    """Tune an adapter with each seed and ask all curvatures for the classes of held-out tasks."""
    folder = smollm2()
    for package, line in (("peft", "'wherefrom[peft]'"), ("bm25s", "'wherefrom[evaluation]'")):
        if importlib.util.find_spec(package) is None:
            raise MissingPackageError(f"pip install {line}")
    sizes = _QUICK if quick else _FULL
    taught = _some(training(), sizes.each)
    strange, known = (_some(tasks, sizes.asked) for tasks in (held_out(), familiar()))
    cells = [_cell(work, folder, taught, [*strange, *known], sizes, seed) for seed in sizes.seeds]
    first, second = slice(None, len(strange)), slice(len(strange), None)
    evidence = (
        _detection(cells, first, taught, strange, sizes, "no word shared"),
        _detection(cells, second, taught, known, sizes, "instructions of the training"),
    )
    return Findings(
        evidence,
        {
            "lora_language-classes.png": partial(_draw, evidence[0]),
            "lora_language-familiar.png": partial(_draw, evidence[1]),
        },
    )


def _some(tasks: Sequence[Task], each: int) -> list[Task]:
    """The first of each class."""
    return [task for kind in CLASSES for task in [t for t in tasks if t.kind == kind][:each]]


def _cell(
    work: Path,
    folder: Path,
    taught: Sequence[Task],
    asked: Sequence[Task],
    sizes: _Sizes,
    seed: int,
) -> _Cell:
    """Everything about one adapter, from the work folder if it is there."""
    recipe = repr((sizes.recipe, sizes.rank, seed, DAMPING, _MODULES, _BLOCKS, taught, asked))
    digest = hashlib.sha256(recipe.encode()).hexdigest()[:8]

    def made() -> dict[str, NDArray[Any]]:
        adapter = work / f"seed{seed}-{digest}"
        if not adapter.is_dir():
            _tune(folder, adapter, taught, sizes, seed)
        cell = _measured(folder, adapter, taught, asked, seed)
        return {f.name: np.asarray(getattr(cell, f.name)) for f in fields(cell)}

    arrays = kept(work / f"seed{seed}.npz", recipe, made)
    methods = tuple(str(method) for method in arrays["methods"])
    return _Cell(methods, *(arrays[name] for name in ("scores", "own", "nats", "asked")))


def _tune(folder: Path, adapter: Path, taught: Sequence[Task], sizes: _Sizes, seed: int) -> None:
    """Train an adapter and save it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(seed)
    wanted = LoraConfig(
        task_type="CAUSAL_LM",
        r=sizes.rank,
        lora_alpha=2 * sizes.rank,
        target_modules=list(_MODULES),
        layers_to_transform=list(_BLOCKS),
    )
    base = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), wanted)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    documents = _documents(taught)
    tuner = FineTuner.of_texts(base, documents, tokenizer=tokenizer, recipe=sizes.recipe)
    (tuned,) = tuner.train([Run(np.ones(len(documents), np.bool_), seed)])
    partial_folder = adapter.with_name(f"{adapter.name}-partial")
    save: Any = tuned
    save.save_pretrained(str(partial_folder))
    partial_folder.rename(adapter)


def _documents(tasks: Sequence[Task]) -> list[Document]:
    return [Document.completion(task.name, task.prompt, task.answer) for task in tasks]


def _measured(
    folder: Path, adapter: Path, taught: Sequence[Task], asked: Sequence[Task], seed: int
) -> _Cell:
    loaded = load_model(adapter, base=folder)
    tuned: Any = loaded.module
    bound = CausalLM().bind(tuned, loaded.tokenizer)
    questions = [Query(task.prompt, task.answer) for task in asked]
    subject = Subject.of_texts(
        "", tuned, bound.bound_tokenizer, _documents(taught), questions, layers="lora"
    )
    held = TextExamples.of(_documents(asked), bound)
    with tuned.disable_adapter():
        before = [_nats(subject, examples) for examples in (subject.documents, held)]
    own = Recording.own(subject.extractor, subject.document_batches())
    pseudo = Recording.pseudo(subject.extractor, subject.document_batches(), _FISHER, seed)
    given = Recording.own(subject.extractor, batches(held, max_documents=32))
    gradients = own.gradients()
    alone = torch.eye(len(asked), dtype=torch.float64)
    found = fits(own, pseudo, _FISHER)
    scores = {
        name: products(one.curvature, given, alone, gradients).sum(0) for name, one in found.items()
    }
    nothing = np.full(len(taught), np.nan)
    energies = {
        name: nothing if isinstance(one.curvature, Unscaled) else self_influence(one.curvature, own)
        for name, one in found.items()
    }
    scores |= baselines(subject, _BASELINES, seed=seed)
    return _Cell(
        tuple(scores),
        np.stack(list(scores.values())),
        np.stack([energies.get(name, nothing) for name in scores]),
        np.stack([own.nats, before[0]]),
        np.stack([given.nats, before[1]]),
    )


def _nats(subject: Subject, documents: Examples) -> NDArray[np.float64]:
    """Log-likelihoods of the answers in nats, ``[document]``."""
    extractor = subject.extractor
    found = np.zeros(len(documents.lengths))
    with torch.no_grad():
        for positions, batch in batches(documents, max_documents=32):
            outputs = extractor.objective.outputs(extractor.model, batch)
            nats = extractor.objective.log_likelihood(outputs, batch.targets, batch)
            found[positions] = nats.double().numpy()
    return found


def _detection(
    cells: Sequence[_Cell],
    chosen: slice,
    taught: Sequence[Task],
    asked: Sequence[Task],
    sizes: _Sizes,
    wording: str,
) -> Evidence:
    """How well the tasks of a held-out task's class come before all others.

    Args:
        cells: Of all seeds.
        chosen: Which of the questions.
        taught: Tasks trained on.
        asked: The chosen questions.
        sizes: For the setting.
        wording: Of the questions, for the title.
    """
    classes = np.array([task.kind for task in taught])
    same = np.array([task.kind for task in asked])[:, None] == classes
    rankings = [_rankings(cell, chosen) for cell in cells]
    aucs = {
        method: np.array([_areas(ranking[method], same) for ranking in rankings])
        for method in rankings[0]
    }
    figures = [
        *(Figure.of(m, "AUC", mean_estimate(values.mean(0))) for m, values in aucs.items()),
        *_lists(f"share of the top {_TOP}", rankings, partial(_share, same=same)),
        *_lists("recall, as published", rankings, partial(_published_recall, same=same)),
    ]
    for method in ("gradient dot", "datainf"):
        for better in (f"ekfac, {_FISHER}", f"ekfac, {_FISHER}, RelatIF"):
            difference = (aucs[better] - aucs[method]).mean(0)
            figures.append(Figure.of(better, f"AUC above {method}", mean_estimate(difference)))
    for state, name in enumerate(("tuned", "before")):
        trained = np.mean([cell.nats[state] for cell in cells], 0)
        others = np.mean([cell.asked[state, chosen] for cell in cells], 0)
        for what, nats in (("trained on", trained), ("held out", others)):
            title = f"log-likelihood of an answer {what}"
            figures.append(Figure.of(f"model, {name}", title, mean_estimate(nats), "nats"))
    return Evidence(
        "detection",
        f"SmolLM2-135M with LoRA (r={sizes.rank}) on {len(taught)} tasks of {len(CLASSES)} "
        f"classes, {len(asked)} held-out tasks, {wording}",
        tuple(figures),
        {
            "seeds": list(sizes.seeds),
            "rank": sizes.rank,
            "adapted": list(_MODULES),
            "blocks": list(_BLOCKS),
            "training": repr(sizes.recipe),
            "tasks_of_a_class": sizes.each,
            "held_out_of_a_class": sizes.asked,
            "damping": DAMPING,
            "fisher": _FISHER,
        },
        (
            "Intervals are over held-out tasks, each a mean over the seeds.",
            "RelatIF divides a score by the square root of the document's self-influence; that of "
            "the plain gradient dot is the cosine of gradients.",
            "Recall as published takes scores without their sign, and as many documents as the "
            "class has.",
        ),
        {
            "auc_by_class": plain(
                {
                    method: {
                        kind: float(values[:, [task.kind == kind for task in asked]].mean())
                        for kind in CLASSES
                    }
                    for method, values in aucs.items()
                }
            ),
            "auc_by_seed": plain({method: values.mean(1) for method, values in aucs.items()}),
        },
    )


_Ranking = Mapping[str, NDArray[np.float64]]


def _rankings(cell: _Cell, chosen: slice) -> dict[str, NDArray[np.float64]]:
    """Scores by method, ``[question, document]``, and those divided by self-influence."""
    found: dict[str, NDArray[np.float64]] = {}
    for method, scores, own in zip(cell.methods, cell.scores[:, chosen], cell.own, strict=True):
        found[method] = scores
        if np.isfinite(own).all():
            found[f"{method}, RelatIF"] = scores / np.sqrt(own)
    return found


def _lists(
    name: str,
    rankings: Sequence[_Ranking],
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]],
) -> list[Figure]:
    return [
        Figure.of(
            method,
            name,
            mean_estimate(np.mean([statistic(ranking[method]) for ranking in rankings], 0)),
        )
        for method in rankings[0]
    ]


def _areas(scores: NDArray[np.float64], same: NDArray[np.bool_]) -> NDArray[np.float64]:
    return np.array([area_under_roc(*rows) for rows in zip(scores, same, strict=True)])


def _share(scores: NDArray[np.float64], *, same: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Of each question's highest documents, how many are of its class."""
    highest = np.argsort(-scores, axis=1, kind="stable")[:, :_TOP]
    found: NDArray[np.float64] = np.take_along_axis(same, highest, 1).mean(1)
    return found


def _published_recall(
    scores: NDArray[np.float64], *, same: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """The same of scores without sign, over as many documents as the class has."""
    largest = np.argsort(-np.abs(scores), axis=1, kind="stable")[:, : int(same[0].sum())]
    found: NDArray[np.float64] = np.take_along_axis(same, largest, 1).mean(1)
    return found


def _draw(evidence: Evidence, path: Path) -> None:
    """Area under the ROC curve of each method and class."""
    from matplotlib.figure import Figure as Canvas

    table: Any = evidence.details["auc_by_class"]
    shown = [method for method in table if "RelatIF" not in method or method in _DIVIDED]
    methods = sorted(shown, key=lambda method: -evidence.value(method, "AUC"))
    values = np.array([[table[method][kind] for kind in CLASSES] for method in methods])
    canvas = Canvas(figsize=(9, 0.3 * len(methods) + 1.6), layout="constrained")
    axes = canvas.subplots()
    image = axes.imshow(values, cmap="RdBu", vmin=0.0, vmax=1.0, aspect="auto")
    axes.set_xticks(range(len(CLASSES)), CLASSES, rotation=30, ha="right")
    labels = [f"{method}  {evidence.value(method, 'AUC'):.2f}" for method in methods]
    axes.set_yticks(range(len(methods)), labels)
    for row, column in np.ndindex(values.shape):
        colour = "black" if 0.2 < values[row, column] < 0.8 else "white"
        axes.text(
            column,
            row,
            f"{values[row, column]:.2f}",
            ha="center",
            va="center",
            color=colour,
            size=7,
        )
    axes.set_title("area under the ROC curve by class of the held-out task; right of a name: mean")
    canvas.colorbar(image, shrink=0.6)
    canvas.savefig(path, dpi=80)
