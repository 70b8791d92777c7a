"""What was measured on the LoRA classifiers, as figures with intervals over seeds and pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wherefrom.evaluation.evidence import Evidence, Figure, plain
from wherefrom.evaluation.statistics import (
    Estimate,
    area_under_roc,
    mean_estimate,
    pearson,
    spearman,
)
from wherefrom.gradients.objectives.base import JSON

__all__ = [
    "Cell",
    "approximation",
    "cost",
    "draw_correlations",
    "draw_wrong_labels",
    "wrong_labels",
]

_EMPIRICAL, _EXPECTED = "exact, empirical", "exact, expected"
_INSPECTED = 0.2
_COLOURS = {
    "gradient dot": "#888888",
    "datainf": "#d95f02",
    "lissa, 10 steps": "#7570b3",
    "lissa, unscaled": "#cab2d6",
    "kfac, empirical": "#a6cee3",
    "ekfac, empirical": "#1f78b4",
    "kfac, expected": "#b2df8a",
    "ekfac, expected": "#33a02c",
    "exact, empirical": "#000000",
    "exact, expected": "#555555",
    "loss": "#e7298a",
}

_SEEDS_ONLY = (
    "Intervals are over seeds (sentences, wrong labels, first weights, order); of so few they say "
    "hardly more than the smallest and the largest value. 'All ranks': of the seeds that all have."
)


@dataclass(frozen=True, slots=True)
class Cell:
    """What is kept of one adapter; the last question is the mean of the held-out sentences.

    Attributes:
        methods: Names of curvatures.
        scores: ``[method, question, document]``.
        by_layer: Of the last question, ``[method, layer, document]``.
        swept_methods: Names of those that were asked under other dampings.
        swept: Of the last question, ``[damping, swept method, document]``; empty where not asked.
        own: Self-influence, ``[method, document]``; NaN where it is not computed.
        nats: Log-likelihoods of the labels trained on, ``[document]``.
        flipped: Whether they were turned round.
        accuracy: On other sentences.
        seconds: ``[method, (algebra of the fit, its passes, solve of a question)]``, CPU time.
    """

    methods: tuple[str, ...]
    scores: NDArray[np.float64]
    by_layer: NDArray[np.float64]
    swept_methods: tuple[str, ...]
    swept: NDArray[np.float64]
    own: NDArray[np.float64]
    nats: NDArray[np.float64]
    flipped: NDArray[np.bool_]
    accuracy: float
    seconds: NDArray[np.float64]

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Cell:
        """Inverse of :meth:`arrays`."""
        methods, swept = (
            tuple(str(method) for method in arrays[name]) for name in ("methods", "swept_methods")
        )
        given = {**arrays, "methods": methods, "swept_methods": swept}
        return cls(**{**given, "accuracy": float(arrays["accuracy"])})

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All attributes, by name."""
        return {f.name: np.asarray(getattr(self, f.name)) for f in fields(self)}

    def of(self, method: str) -> int:
        """Position of a method."""
        return self.methods.index(method)


Cells = Mapping[int, Sequence[Cell]]
"""Of each rank, one a seed."""

_Statistic = Callable[[Cell, str], float]
_Ranking = Callable[[Cell, str], NDArray[np.float64]]


def approximation(
    subject: str, cells: Cells, dampings: Sequence[float], setting: Mapping[str, JSON]
) -> Evidence:
    """How scores correlate with those of the exact damped blocks."""
    methods = [m for m in _methods(cells) if m != _EMPIRICAL]
    statistics: dict[str, _Statistic] = {
        f"{what} with {reference}": _against(reference, correlation)
        for reference in (_EMPIRICAL, _EXPECTED)
        for what, correlation in (("Pearson", pearson), ("Spearman", spearman))
    }
    statistics["Spearman with exact, empirical, single sentences"] = _singles
    statistics["Pearson with exact, empirical, layer by layer"] = _layers
    figures = [
        *_by_rank(cells, methods, f"Pearson with {_EMPIRICAL}", _against(_EMPIRICAL, pearson)),
        *(
            figure
            for name, measured in statistics.items()
            for figure in _over_ranks(cells, methods, name, measured)
        ),
        *_swept(cells, dampings),
    ]
    statistic = _against(_EMPIRICAL, pearson)
    for method in (
        "ekfac, empirical",
        "ekfac, expected",
        "lissa, 10 steps",
        "lissa, unscaled",
        "gradient dot",
    ):
        values = _per_seed(
            cells, lambda cell, m=method: statistic(cell, m) - statistic(cell, "datainf")
        )
        figures.append(Figure.of(method, "Pearson above datainf, all ranks", _mean(values)))
    details = {
        name: {m: _table(cells, lambda c, m=m, s=measured: s(c, m)) for m in methods}
        for name, measured in statistics.items()
    }
    return Evidence(
        "approximation", subject, tuple(figures), setting, (_SEEDS_ONLY,), plain(details)
    )


def wrong_labels(subject: str, cells: Cells, setting: Mapping[str, JSON]) -> Evidence:
    """How well wrong labels are told from right ones."""
    figures = []
    ways: dict[str, _Ranking] = {
        "self-influence": lambda cell, method: cell.own[cell.of(method)],
        "harm to held-out sentences": lambda cell, method: -cell.scores[cell.of(method), -1],
    }
    details: dict[str, JSON] = {
        "accuracy": plain({rank: [c.accuracy for c in some] for rank, some in cells.items()})
    }
    for way, ranking in ways.items():
        methods = _ranking_methods(cells, ranking)

        def auc(cell: Cell, method: str, ranking: _Ranking = ranking) -> float:
            return area_under_roc(ranking(cell, method), cell.flipped)

        def share(cell: Cell, method: str, ranking: _Ranking = ranking) -> float:
            return _found(ranking(cell, method), cell.flipped)

        figures += _by_rank(cells, methods, f"AUC by {way}", auc)
        figures += _over_ranks(cells, methods, f"AUC by {way}", auc)
        figures += _over_ranks(cells, methods, f"found in {_INSPECTED:.0%} by {way}", share)
        details[way] = plain({m: _table(cells, lambda c, m=m, s=auc: s(c, m)) for m in methods})
    figures += _over_ranks(
        cells, ["loss"], "AUC", lambda cell, _: area_under_roc(-cell.nats, cell.flipped)
    )
    figures += _over_ranks(
        cells, ["loss"], f"found in {_INSPECTED:.0%}", lambda c, _: _found(-c.nats, c.flipped)
    )
    figures += _by_rank(
        cells, ["loss"], "AUC", lambda cell, _: area_under_roc(-cell.nats, cell.flipped)
    )
    figures += _by_rank(cells, ["model"], "accuracy", lambda cell, _: cell.accuracy)
    notes = (
        _SEEDS_ONLY,
        "Self-influence of the plain gradient dot is the squared norm of the gradient.",
    )
    return Evidence("mislabeled", subject, tuple(figures), setting, notes, details)


def cost(subject: str, cells: Cells, setting: Mapping[str, JSON]) -> Evidence:
    """CPU time of each curvature."""
    methods = _methods(cells)
    columns: dict[str, tuple[str, float, Callable[[NDArray[np.float64]], float]]] = {
        "fit, passes of the model included": ("s", 1.0, lambda row: float(row[0] + row[1])),
        "fit, algebra alone": ("s", 1.0, lambda row: float(row[0])),
        "solve of a question": ("ms", 1e3, lambda row: float(row[2])),
    }
    figures = []
    for name, (unit, factor, column) in columns.items():
        for rank, some in cells.items():
            for method in methods:
                values = [factor * column(cell.seconds[cell.of(method)]) for cell in some]
                figures.append(Figure.of(method, f"{name}, r={rank}", _mean(values), unit))
    notes = (
        "CPU time of one thread. A pass is recorded once and shown to all; each curvature is "
        "charged with as many passes as it takes.",
        "The exact block is solved by a Cholesky factor of the smaller of documents and weights.",
    )
    return Evidence("cost", subject, tuple(figures), setting, notes)


def draw_correlations(cells: Cells, dampings: Sequence[float], path: Path) -> None:
    """Correlation with the exact block over ranks, and over dampings."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(10, 4.8), layout="constrained")
    left, right = canvas.subplots(1, 2, sharey=True)
    ranks = list(cells)
    for offset, method in enumerate(m for m in _methods(cells) if m != _EMPIRICAL):
        statistic = _against(_EMPIRICAL, pearson)
        values = [[statistic(cell, method) for cell in cells[rank]] for rank in ranks]
        places = np.arange(len(ranks)) + 0.04 * (offset - 3.5)
        _line(left, places, values, method)
    left.set_xticks(range(len(ranks)), [f"r={rank}" for rank in ranks])
    left.set_ylabel("Pearson with the exact damped block")
    left.set_title("damping 0.1")
    for offset, method in enumerate(_swept_methods(cells)):
        values = [[_at(cell, i, method) for cell in cells[ranks[0]]] for i in range(len(dampings))]
        _line(right, np.arange(len(dampings)) + 0.04 * (offset - 1.5), values, method)
    right.set_xticks(range(len(dampings)), [f"{damping:g}" for damping in dampings])
    right.set_xlabel("damping, in mean eigenvalues")
    right.set_title(f"r={ranks[0]}, exact under the same damping")
    left.set_ylim(0.0, 1.02)
    canvas.legend(
        *left.get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=5
    )
    canvas.savefig(path, dpi=110)


def draw_wrong_labels(cells: Cells, path: Path) -> None:
    """Areas under the ROC curve, by rank."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(10, 4.8), layout="constrained")
    ranks = list(cells)
    for axes, (title, ranking) in zip(
        canvas.subplots(1, 2, sharey=True),
        (
            ("self-influence", lambda c, m: c.own[c.of(m)]),
            ("harm to held-out sentences", lambda c, m: -c.scores[c.of(m), -1]),
        ),
        strict=True,
    ):
        for offset, method in enumerate([*_ranking_methods(cells, ranking), "loss"]):
            values = [
                [
                    area_under_roc(-c.nats if method == "loss" else ranking(c, method), c.flipped)
                    for c in cells[rank]
                ]
                for rank in ranks
            ]
            _line(axes, np.arange(len(ranks)) + 0.04 * (offset - 4.5), values, method)
        axes.axhline(0.5, color="#cccccc", zorder=0)
        axes.set_xticks(range(len(ranks)), [f"r={rank}" for rank in ranks])
        axes.set_title(f"wrong labels by {title}")
        axes.set_ylabel("area under the ROC curve")
    handles = axes.get_legend_handles_labels()
    canvas.legend(*handles, fontsize=8, loc="outside lower center", ncols=5)
    canvas.savefig(path, dpi=110)


def _line(
    axes: Any, places: NDArray[np.float64], values: Sequence[Sequence[float]], name: str
) -> None:
    """Means with smallest and largest value of all seeds, at each place those of ``values``."""
    mean = np.array([np.mean(row) for row in values])
    reach = [mean - [min(row) for row in values], [max(row) for row in values] - mean]
    axes.errorbar(
        places, mean, reach, marker="o", markersize=3, lw=1, label=name, color=_COLOURS[name]
    )


def _methods(cells: Cells) -> list[str]:
    return list(next(iter(cells.values()))[0].methods)


def _ranking_methods(cells: Cells, ranking: _Ranking) -> list[str]:
    """The curvatures that rank documents so."""
    (first, *_) = next(iter(cells.values()))
    return [m for m in first.methods if np.isfinite(ranking(first, m)).all()]


def _swept_methods(cells: Cells) -> list[str]:
    methods = next(iter(cells.values()))[0].swept_methods
    return [method for method in methods if method != _EMPIRICAL]


def _against(reference: str, correlation: Callable[..., float]) -> _Statistic:
    """Correlation with a reference of the scores for the mean held-out sentence."""
    return lambda cell, method: correlation(
        cell.scores[cell.of(method), -1], cell.scores[cell.of(reference), -1]
    )


def _singles(cell: Cell, method: str) -> float:
    ours, exact = cell.scores[cell.of(method), :-1], cell.scores[cell.of(_EMPIRICAL), :-1]
    return float(np.mean([spearman(a, b) for a, b in zip(ours, exact, strict=True)]))


def _layers(cell: Cell, method: str) -> float:
    ours, exact = cell.by_layer[cell.of(method)], cell.by_layer[cell.of(_EMPIRICAL)]
    return float(np.mean([pearson(a, b) for a, b in zip(ours, exact, strict=True)]))


def _at(cell: Cell, damping: int, method: str) -> float:
    row = cell.swept[damping]
    names = cell.swept_methods
    return pearson(row[names.index(method)], row[names.index(_EMPIRICAL)])


def _swept(cells: Cells, dampings: Sequence[float]) -> list[Figure]:
    return [
        Figure.of(
            method,
            f"Pearson with {_EMPIRICAL}, both at damping {damping:g}, r={min(cells)}",
            _mean([_at(cell, i, method) for cell in cells[min(cells)]]),
        )
        for i, damping in enumerate(dampings)
        for method in _swept_methods(cells)
    ]


def _by_rank(
    cells: Cells, methods: Sequence[str], name: str, statistic: _Statistic
) -> list[Figure]:
    return [
        Figure.of(method, f"{name}, r={rank}", _mean([statistic(cell, method) for cell in some]))
        for rank, some in cells.items()
        for method in methods
    ]


def _over_ranks(
    cells: Cells, methods: Sequence[str], name: str, statistic: _Statistic
) -> list[Figure]:
    return [
        Figure.of(
            method,
            f"{name}, all ranks",
            _mean(_per_seed(cells, lambda cell, m=method: statistic(cell, m))),
        )
        for method in methods
    ]


def _per_seed(cells: Cells, statistic: Callable[[Cell], float]) -> list[float]:
    """Mean over ranks of each seed that all ranks have.

    Of each seed, for its adapters are trained on the same sentences.
    """
    rows = zip(*_table(cells, statistic), strict=False)
    return [float(np.mean(row)) for row in rows]


def _mean(values: Sequence[float]) -> Estimate | float:
    """With an interval, where there are several."""
    return mean_estimate(values) if len(values) > 1 else values[0]


def _table(cells: Cells, statistic: Callable[[Cell], float]) -> list[list[float]]:
    """Of each rank, one value a seed."""
    return [[statistic(cell) for cell in some] for some in cells.values()]


def _found(scores: NDArray[np.float64], flipped: NDArray[np.bool_]) -> float:
    """Share of the wrong labels among the highest scores."""
    inspected = round(_INSPECTED * len(scores))
    highest = np.argsort(-scores, kind="stable")[:inspected]
    return float(flipped[highest].sum() / flipped.sum())
