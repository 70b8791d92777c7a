"""DataInf's text-to-image experiment (Kwon et al. 2024, section 4.3), small enough to train here.

A diffusion model learns emoji by name, and half of them also in four styles. An adapter teaches it
the other half, each in three of the styles. The model then draws these in the fourth, and methods
rank the pictures that the adapter was trained on by what they did for a drawing: do those of the
same style, or of the same subject, come first?
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import wherefrom as wf
from benchmarks.experiments.emoji import (
    STYLES,
    Pictures,
    StyledPictures,
    Subjects,
    emoji_pictures,
)
from benchmarks.experiments.harness import Findings
from benchmarks.experiments.image_model import (
    SIZE,
    adapted,
    caption_vectors,
    draw,
    folded,
    new_model,
    noise_schedule,
    train,
    unfolded,
)
from benchmarks.experiments.kept import kept
from benchmarks.experiments.picture_grid import Cell, Column, draw_grid
from benchmarks.experiments.shared_draws import SharedDraws
from benchmarks.experiments.small_gradients import influences
from wherefrom.evaluation.baselines import baselines
from wherefrom.evaluation.evidence import Evidence, Figure, plain
from wherefrom.evaluation.scores import fit
from wherefrom.evaluation.statistics import Scores, area_under_roc, mean_estimate
from wherefrom.evaluation.subject import Subject

BUDGET_MINUTES = 20

_SUBCATEGORIES = (
    *("food-fruit", "food-vegetable", "food-sweet", "heart", "plant-flower"),
    *("animal-mammal", "animal-bird", "animal-marine", "animal-bug"),
)
_CURVATURES = ("ekfac", "kfac", "datainf")
_STYLES = tuple(STYLES)
_ASKED = ("generated", "real")
_TOP = 10
_SHOWN = 4


@dataclass(frozen=True, slots=True)
class _Sizes:
    """How much of everything.

    Attributes:
        seeds: Adapters, each with other pictures held out.
        subjects: Emoji; half of them are the adapter's.
        base_steps: Of training the model.
        steps: Of training an adapter.
        rank: Of its matrices.
        draws: Times and noises that a picture's log-likelihood is a mean over.
    """

    seeds: int = 2
    subjects: int = 120
    base_steps: int = 2400
    steps: int = 500
    rank: int = 4
    draws: int = 8

    @property
    def recipe(self) -> str:
        """All that decides an adapter and its scores but its seed."""
        return f"{self.subjects} {self.base_steps} {self.steps} {self.rank} {self.draws}"


_QUICK = _Sizes(1, 16, 20, 20, 2, 2)


def run(work: Path, *, quick: bool) -> Findings:
    """Train, tune, draw and judge.

    Args:
        work: Where models, drawings and scores are kept.
        quick: Small sizes.
    """
    sizes = _QUICK if quick else _Sizes()
    everything = emoji_pictures(_SUBCATEGORIES, SIZE)
    order = np.random.default_rng(0).permutation(len(everything))[: sizes.subjects]
    subjects = Subjects(everything, order[: len(order) // 2], order[len(order) // 2 :])
    base = _base(subjects, sizes, work)
    trials = [_trial(subjects, base, sizes, seed, work) for seed in range(sizes.seeds)]
    evidence = (_detection(trials, sizes), _indexed(subjects, base, trials[0], sizes, work))
    return Findings(evidence, {"text_to_image-influential.png": trials[0].draw})


def _tensors(pictures: Pictures) -> tuple[Tensor, Tensor]:
    """Pictures and captions as the model reads them."""
    return folded(pictures.pixels), caption_vectors(pictures.captions)


def _base_documents(subjects: Subjects) -> tuple[Tensor, Tensor]:
    """What the model is trained on before: all emoji as they are, and the others in all styles."""
    as_they_are = _tensors(subjects.unchanged())
    redrawn = _tensors(subjects.others_redrawn())
    return torch.cat([as_they_are[0], redrawn[0]]), torch.cat([as_they_are[1], redrawn[1]])


def _base(subjects: Subjects, sizes: _Sizes, work: Path) -> dict[str, NDArray[Any]]:
    """Weights of the model before it is tuned."""

    def make() -> dict[str, NDArray[Any]]:
        model = new_model(0)
        train(model, *_base_documents(subjects), steps=sizes.base_steps, rate=2e-3, seed=0)
        return {name: value.numpy() for name, value in model.state_dict().items()}

    return kept(work / "base.npz", f"{sizes.subjects} {sizes.base_steps}", make)


def _tuned(
    documents: StyledPictures,
    base: Mapping[str, NDArray[Any]],
    sizes: _Sizes,
    seed: int,
    work: Path,
) -> nn.Module:
    """The model with an adapter trained on the documents."""
    plain_model = new_model(0)
    plain_model.load_state_dict({name: torch.from_numpy(v) for name, v in base.items()})
    model = adapted(plain_model, sizes.rank, seed)

    def make() -> dict[str, NDArray[Any]]:
        train(model, *_tensors(documents), steps=sizes.steps, rate=3e-3, seed=1 + seed)
        wanted = [name for name, p in model.named_parameters() if p.requires_grad]
        return {name: model.get_parameter(name).detach().numpy() for name in wanted}

    found = kept(work / f"adapter-{seed}.npz", sizes.recipe, make)
    weights = {name: torch.from_numpy(value) for name, value in found.items()}
    model.load_state_dict(weights, strict=False)
    return model.eval()


@dataclass(frozen=True, slots=True, eq=False)
class _Trial:
    """One adapter, what it drew, and how methods rank its documents.

    Attributes:
        documents: What it was trained on.
        held: What was held out; its captions are what was asked for.
        generated: Drawings, as ``held.pixels``.
        scores: ``[query, document]`` of each method, first of the drawings, then of what was held
            out.
    """

    documents: StyledPictures
    held: StyledPictures
    generated: NDArray[np.float64]
    scores: Mapping[str, Scores]

    def same(self, what: str) -> NDArray[np.bool_]:
        """Whether a document has the ``style`` or ``subject`` of a query, ``[query, document]``."""
        asked, found = (
            (self.held.styles, self.documents.styles)
            if what == "style"
            else (self.held.subjects, self.documents.subjects)
        )
        same: NDArray[np.bool_] = asked[:, None] == found
        return same

    def of(self, method: str, asked: str) -> Scores:
        """Scores of the drawings or of what was held out."""
        half = len(self.generated)
        return self.scores[method][:half] if asked == "generated" else self.scores[method][half:]

    def recognised(self) -> dict[str, NDArray[np.bool_]]:
        """Of each drawing, whether the real picture nearest to it has its style, its subject."""
        pixels = np.concatenate([self.documents.pixels, self.held.pixels])
        styles = np.concatenate([self.documents.styles, self.held.styles])
        subjects = np.concatenate([self.documents.subjects, self.held.subjects])
        flat = [part.reshape(len(part), -1) for part in (self.generated, pixels)]
        nearest = np.square(flat[0][:, None] - flat[1]).sum(2).argmin(1)
        return {
            "style": styles[nearest] == self.held.styles,
            "subject": subjects[nearest] == self.held.subjects,
        }

    def draw(self, path: Path) -> None:
        """Some drawings of each style, with the documents that methods rank first."""
        rows = [
            int(row)
            for style in range(len(_STYLES))
            for row in np.flatnonzero(self.held.styles == style)[:2]
        ]
        columns = [
            Column("real", [[Cell(self.held.pixels[row])] for row in rows]),
            Column("drawn", [[Cell(self.generated[row])] for row in rows]),
        ]
        for method, title in (("ekfac", "EK-FAC"), ("datainf", "DataInf"), ("dot", "gradient dot")):
            best = np.argsort(-self.of(method, "generated"), 1, kind="stable")[:, :_SHOWN]
            columns.append(
                Column(
                    title, [[self._cell(document, row) for document in best[row]] for row in rows]
                )
            )
        draw_grid(path, columns, [" ".join(self.held.captions[row]) for row in rows])

    def _cell(self, document: int, row: int) -> Cell:
        style = self.documents.styles[document] == self.held.styles[row]
        subject = self.documents.subjects[document] == self.held.subjects[row]
        caption = _STYLES[self.documents.styles[document]]
        return Cell(self.documents.pixels[document], f"{caption} *" if subject else caption, style)


def _trial(
    subjects: Subjects,
    base: Mapping[str, NDArray[Any]],
    sizes: _Sizes,
    seed: int,
    work: Path,
) -> _Trial:
    documents, held = subjects.split(seed)
    model = _tuned(documents, base, sizes, seed, work)
    captions = caption_vectors(held.captions)
    drawings = kept(
        work / f"drawings-{seed}.npz",
        sizes.recipe,
        lambda: {"pixels": unfolded(draw(model, captions, seed))},
    )["pixels"]
    queries = (torch.cat([folded(drawings), folded(held.pixels)]), torch.cat([captions, captions]))
    make = partial(_scores, model, documents, held, queries, sizes, seed)
    scores = kept(work / f"scores-{seed}.npz", sizes.recipe, make)
    return _Trial(documents, held, drawings, scores)


def _objective(kind: type[wf.Diffusion], sizes: _Sizes) -> wf.Diffusion:
    return kind(noise_schedule(), draws=sizes.draws, condition="encoder_hidden_states")


def _scores(
    model: nn.Module,
    documents: StyledPictures,
    held: StyledPictures,
    queries: tuple[Tensor, Tensor],
    sizes: _Sizes,
    seed: int,
) -> dict[str, Scores]:
    """``[query, document]`` of each method."""
    found: dict[str, Scores] = {}
    for kind, suffix in ((wf.Diffusion, ""), (SharedDraws, ", shared draws")):
        subject = Subject.of_tensors(
            f"emoji, adapter {seed}",
            model,
            _tensors(documents),
            queries,
            objective=_objective(kind, sizes),
            layers="lora",
        )
        fitted = {name: fit(subject, name, seed=seed) for name in _CURVATURES}
        of_kind = influences(subject, fitted)
        found |= {name + suffix: scores for name, scores in of_kind.items()}
    found |= baselines(subject, ["embedding", "random"], seed=seed)
    pictures = folded(documents.pixels)
    # Around the mean picture, or else all would be alike for their background.
    asked, known = queries[0] - pictures.mean(0), pictures - pictures.mean(0)
    found["pixels"] = (_unit(asked) @ _unit(known).T).numpy()
    words = [set(caption) for caption in (*held.captions, *held.captions)]
    found["caption"] = np.array(
        [[len(a & {*b}) / np.sqrt(len(a) * len(b)) for b in documents.captions] for a in words]
    )
    return found


def _detection(trials: Sequence[_Trial], sizes: _Sizes) -> Evidence:
    """AUC and recall of each method, over the queries of all adapters."""
    figures: list[Figure] = []
    details: dict[str, Any] = {}
    for asked, what in product(_ASKED, ("style", "subject")):
        for kind, absolute in (("AUC", False), ("AUC of absolute scores", True)):
            name = f"{what} {kind}, {asked}"
            areas = {
                method: [_areas(t, method, asked, what, absolute=absolute) for t in trials]
                for method in trials[0].scores
            }
            for method, found in areas.items():
                every = np.concatenate(found)
                figures.append(Figure.of(method, name, mean_estimate(every)))
                details[f"{name}, {method}"] = [float(one.mean()) for one in found]
                for reference in _references(method):
                    gain = mean_estimate(every - np.concatenate(areas[reference]))
                    figures.append(Figure.of(method, f"{name}, above {reference}", gain))
        for method in trials[0].scores:
            recalls = np.concatenate([_recalls(t, method, asked, what) for t in trials])
            figures.append(Figure.of(method, f"{what} recall, {asked}", mean_estimate(recalls)))
    for what in ("style", "subject"):
        right = np.concatenate([trial.recognised()[what] for trial in trials])
        figures.append(Figure.of("model", f"drawings of the right {what}", mean_estimate(right)))
    return Evidence(
        "detection",
        f"emoji drawn by a diffusion model with an adapter, {sizes.seeds} adapters together",
        tuple(figures),
        {**asdict(sizes), "documents": len(trials[0].documents.styles)},
        (
            "Captions name style and subject, so that `caption`, which reads nothing else, knows "
            "the classes; it is there to show how little this task asks for.",
        ),
        {"each_adapter": plain(details)},
    )


def _references(method: str) -> list[str]:
    """What a method's area under the ROC curve is compared with."""
    name, _, draws = method.partition(", ")
    suffix = f", {draws}" if draws else ""
    references = [f"dot{suffix}"] if name in _CURVATURES else []
    references += [f"datainf{suffix}"] if name == "ekfac" else []
    return references + ([name] if draws else [])


def _areas(
    trial: _Trial, method: str, asked: str, what: str, *, absolute: bool = False
) -> NDArray[np.float64]:
    """Area under the ROC curve of each query, of scores or of their absolute values."""
    found = trial.of(method, asked)
    pairs = zip(np.abs(found) if absolute else found, trial.same(what), strict=True)
    return np.array([area_under_roc(scores, same) for scores, same in pairs])


def _recalls(trial: _Trial, method: str, asked: str, what: str) -> NDArray[np.float64]:
    """Share of a query's class among as many first documents as there are of it."""
    recalls = []
    for scores, same in zip(trial.of(method, asked), trial.same(what), strict=True):
        first = np.argsort(-scores, kind="stable")[: same.sum()]
        recalls.append(same[first].mean())
    return np.array(recalls)


def _indexed(
    subjects: Subjects,
    base: Mapping[str, NDArray[Any]],
    trial: _Trial,
    sizes: _Sizes,
    work: Path,
) -> Evidence:
    """The same by an index of the first adapter's documents, as a user would ask it."""
    model = _tuned(trial.documents, base, sizes, 0, work)
    index = wf.build(
        model,
        _tensors(trial.documents),
        work / "index",
        objective=_objective(wf.Diffusion, sizes),
        layers="lora",
        overwrite=True,
    )
    queries = (folded(trial.generated), caption_vectors(trial.held.captions))
    answers = index.answers(queries, k=_TOP, rerank="stored")
    true = np.argsort(-trial.of("ekfac", "generated"), 1, kind="stable")[:, :_TOP]
    found, styles = [], []
    for answer, best, style in zip(answers, true.tolist(), trial.held.styles, strict=True):
        # An answer holds documents of positive scores only, which may be fewer.
        if hits := [int(hit.doc_id) for hit in answer.proponents]:
            found.append(len({*hits} & {*best[: len(hits)]}) / len(hits))
            styles.append(float((trial.documents.styles[hits] == style).mean()))
    return Evidence(
        "index",
        "the first adapter's documents, 4096 bytes each, stored scores",
        (
            Figure.of("index", "uncompressed top 10 found", mean_estimate(found)),
            Figure.of("index", "top 10 of the right style", mean_estimate(styles)),
        ),
        {"encoder": index.manifest.encoder.name},
    )


def _unit(pictures: Tensor) -> Tensor:
    return torch.nn.functional.normalize(pictures.flatten(1).double())
