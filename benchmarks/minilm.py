"""A real classifier with a LoRA adapter: MiniLM trained on film reviews with some labels wrong.

The adapter is saved by PEFT, head included, and indexed from its folder under DataInf, which was
proposed for adapters, under EK-FAC, and under no curvature at all (gradient dot products, whose
self-influence is the squared gradient norm). A fifth of the training labels was turned round: can
they be found, and would the plain loss have done as well?
"""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import wherefrom as wf
from benchmarks.environment import peak_memory
from benchmarks.figures import Figure, Report, command, expect
from benchmarks.packages import MissingPackageError, minilm, rated_snippets
from benchmarks.sentiment import Snippet, accuracy, documents, flip, losses, queries, split, train
from wherefrom.evaluation.statistics import area_under_roc, shared_top, spearman
from wherefrom.gradients.models import load_model
from wherefrom.query.sweep import FACTORS

__all__ = ["measure"]

CURVATURES = ("identity", "ekfac", "datainf")
FLIPPED = 0.2
SEED = 0

_K = 10
_PARTS = 4
_MIB = 2.0**20


@dataclass(frozen=True, slots=True)
class _Sizes:
    """How much is done.

    Attributes:
        training: Sentences trained on and indexed.
        test: Sentences kept back.
        epochs: Of training.
        asked: Of the sentences kept back, asked one by one.
        held_out: Of them, asked as one set.
        swept: Of them, asked under several dampings.
    """

    training: int
    test: int
    epochs: int
    asked: int
    held_out: int
    swept: int


_FULL = _Sizes(1600, 400, 3, 40, 200, 5)
_QUICK = _Sizes(64, 32, 1, 3, 8, 1)


@dataclass(frozen=True, slots=True)
class _Indexed:
    """One index, and what it says.

    Attributes:
        costs: Time, memory and bytes.
        norms: Self-influence, ``[document]``.
        exact: Uncompressed scores of the sentences asked one by one, ``[query, document]``.
        stored: The same of stored vectors.
        on_held_out: Uncompressed scores for the mean of the held-out set, ``[document]``.
        sweeps: For each factor of the damping, the overlaps with the own damping's top.
    """

    costs: tuple[Figure, ...]
    norms: NDArray[np.float64]
    exact: NDArray[np.float64]
    stored: NDArray[np.float64]
    on_held_out: NDArray[np.float64]
    sweeps: Mapping[float, tuple[float, ...]]


def measure(*, quick: bool) -> Report:
    """Train with right and with some wrong labels, index the latter, look for the wrong ones."""
    try:
        base, rated = minilm(), rated_snippets()
        if importlib.util.find_spec("peft") is None:
            raise MissingPackageError("pip install 'wherefrom[peft]'")
    except MissingPackageError as error:
        return Report(skipped=f"MiniLM, the film reviews or peft are not here; {error}")
    sizes = _QUICK if quick else _FULL
    right, test = split(rated, sizes.training, sizes.test, SEED)
    wrong = flip(right, FLIPPED, SEED)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        accuracies = [
            _accuracy(base, right, test, folder / "before", epochs=0),
            _accuracy(base, right, test, folder / "right", epochs=sizes.epochs),
            _accuracy(base, wrong, test, folder / "wrong", epochs=sizes.epochs),
        ]
        loss = losses(load_model(folder / "wrong").module, base, wrong).double().numpy()
        checks = [_check_reopening(folder, base, wrong[:32], test)]
        found = {
            curvature: _index(curvature, folder, base, wrong, test, sizes)
            for curvature in CURVATURES
        }
    flipped = np.array([snippet.flipped for snippet in wrong])
    return Report(
        (
            Figure("accuracy, head untrained", "", (accuracies[0],)),
            Figure("accuracy, right labels", "", (accuracies[1],)),
            Figure(f"accuracy, {FLIPPED:.0%} of the labels wrong", "", (accuracies[2],)),
            *(figure for indexed in found.values() for figure in indexed.costs),
            _detection("loss", loss, flipped),
            *(_detection(f"self-influence, {c}", found[c].norms, flipped) for c in CURVATURES),
            *(
                _detection(f"harm to the held-out set, {c}", -found[c].on_held_out, flipped)
                for c in CURVATURES
            ),
            *_agreement(found),
            *_sweeps(found),
        ),
        tuple(checks),
        {
            "training_sentences": sizes.training,
            "test_sentences": sizes.test,
            "epochs": sizes.epochs,
            "labels_turned_round": int(flipped.sum()),
            "sentences_asked": sizes.asked,
            "held_out_set": sizes.held_out,
            "seed": SEED,
            "threads": torch.get_num_threads(),
        },
    )


def _accuracy(
    base: Path, snippets: Sequence[Snippet], test: Sequence[Snippet], folder: Path, *, epochs: int
) -> float:
    """Train and save an adapter; its accuracy once it is loaded again."""
    train(base, snippets, folder, epochs=epochs, seed=SEED)
    return accuracy(load_model(folder, base=base).module, base, test)


def _check_reopening(
    folder: Path, base: Path, snippets: Sequence[Snippet], test: Sequence[Snippet]
) -> str:
    """An index over an adapter names both its parts, and finds them again."""
    path = folder / "reopened.index"
    built = wf.build(folder / "wrong", documents(snippets), path, base_model=base)
    asked = queries(test[:2])
    return expect(
        np.array_equal(
            built.scores(asked, tier="stored"), wf.open(path).scores(asked, tier="stored")
        ),
        "an index built from an adapter's folder gives the same bits when it is opened by its path",
    )


def _index(
    curvature: str,
    folder: Path,
    base: Path,
    snippets: Sequence[Snippet],
    test: Sequence[Snippet],
    sizes: _Sizes,
) -> _Indexed:
    """Build an index from the adapter's folder and ask all there is to ask."""
    path = folder / f"{curvature}.index"
    wall, cpu = time.perf_counter(), time.process_time()
    index = wf.build(
        folder / "wrong", documents(snippets), path, base_model=base, curvature=curvature
    )
    build = time.perf_counter() - wall, time.process_time() - cpu
    peak = peak_memory()
    asked = queries(test[: sizes.asked])
    taken = []
    for query in asked:
        cpu = time.process_time()
        index.query(prompt=query.prompt, completion=query.completion, k=_K)
        taken.append(time.process_time() - cpu)
    held_out = wf.QuerySet(tuple(queries(test[-sizes.held_out :])))
    exact = index.scores([*asked, held_out], tier="exact")
    # By document in the order of training, whatever the order of the index.
    places = {doc_id: place for place, doc_id in enumerate(index.doc_ids())}
    order = np.array([places[snippet.doc_id] for snippet in snippets])
    curve = path / "encoder.safetensors"
    return _Indexed(
        (
            Figure(f"{curvature}: build", "s", build[:1]),
            Figure(f"{curvature}: build (CPU time)", "s", build[1:]),
            Figure(f"{curvature}: query (CPU time)", "s", tuple(taken)),
            Figure(f"{curvature}: peak memory so far", "MiB", (peak / _MIB,)),
            Figure(f"{curvature}: fitted curvature on disk", "MiB", (curve.stat().st_size / _MIB,)),
        ),
        index.self_influence()[order],
        exact[:-1, order],
        index.scores(asked, tier="stored")[:, order],
        exact[-1, order],
        {} if curvature == "identity" else _swept(index, asked[: sizes.swept]),
    )


def _swept(index: wf.Index, asked: Sequence[wf.Query]) -> Mapping[float, tuple[float, ...]]:
    sweeps = [
        index.sweep_damping(prompt=query.prompt, completion=query.completion, k=_K)
        for query in asked
    ]
    return {
        factor: tuple(sweep.rows[i].overlap for sweep in sweeps) for i, factor in enumerate(FACTORS)
    }


def _detection(what: str, scores: NDArray[np.float64], flipped: NDArray[np.bool_]) -> Figure:
    """How well a score tells wrong labels from right ones, in disjoint parts of the documents."""
    part = np.arange(len(scores)) % _PARTS
    values = tuple(area_under_roc(scores[part == p], flipped[part == p]) for p in range(_PARTS))
    return Figure(f"wrong labels by {what}: AUC in {_PARTS} parts", "", values)


def _agreement(found: Mapping[str, _Indexed]) -> list[Figure]:
    """Between curvatures, and between stored and uncompressed scores."""

    def each(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[float, ...]:
        return tuple(spearman(*rows) for rows in zip(a, b, strict=True))

    between = [
        Figure(f"Spearman of scores, {a} and {b}", "", each(found[a].exact, found[b].exact))
        for a, b in combinations(found, 2)
    ]
    kept = [
        figure
        for curvature, indexed in found.items()
        for figure in (
            Figure(
                f"Spearman of stored with uncompressed scores, {curvature}",
                "",
                each(indexed.stored, indexed.exact),
            ),
            Figure(
                f"uncompressed top {_K} within the stored top {_K}, {curvature}",
                "",
                tuple(
                    shared_top(*rows, _K)
                    for rows in zip(indexed.stored, indexed.exact, strict=True)
                ),
            ),
        )
    ]
    return [*between, *kept]


def _sweeps(found: Mapping[str, _Indexed]) -> list[Figure]:
    return [
        Figure(f"{curvature}: damping {factor:g} × its own, overlap of top {_K}s", "", overlaps)
        for curvature, indexed in found.items()
        for factor, overlaps in indexed.sweeps.items()
    ]


if __name__ == "__main__":
    command(measure)()
