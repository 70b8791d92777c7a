"""Whether refined queries foretell retraining better than EK-FAC does, against the same index.

Documents' vectors are those of EK-FAC at its default damping, uncompressed; only the queries' side
differs: EK-FAC's own solution, or conjugate gradients on the Gauss-Newton matrix of all layers, by
number of steps, damping, and share of the documents that the matrix stands on. Linear datamodelling
scores (LDS) are means over the same queries.

Retraining takes some ten minutes of one core and is kept in ``--cache``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.figures import BenchmarkError, Figure, Report, command, expect
from benchmarks.lds_subjects import Subject, digits, small_lm
from wherefrom.curvature.ekfac import EKFAC
from wherefrom.evaluation.lds import datamodelling_scores
from wherefrom.gradients.batches import Batch
from wherefrom.gradients.extractor import LayerPair
from wherefrom.gradients.fisher import PseudoGradients, true_gradients
from wherefrom.query.conjugate_gradients import REFINE_DAMPING, Refined, refinements

__all__ = ["measure"]

Scores = NDArray[np.float64]

_SEEDS = (0, 1, 2)
_DAMPINGS = (4.0, 60.0)
_SHARES = (0.5, 0.2)
_STEPS = (1, 2, 3, 5, 10)
_LM_SHARES = (1.0, 0.13)
_LM_STEPS = (1, 2, 4, 6)
_GAINED = 0.06
_BATCH = 128


@dataclass(frozen=True, slots=True)
class _Trial:
    """How queries are refined.

    Attributes:
        damping: Of the whole matrix.
        share: Of the documents, that it stands on.
        steps: After which of them to look.
    """

    damping: float
    share: float
    steps: Sequence[int]

    def __str__(self) -> str:
        documents = "all documents" if self.share == 1.0 else f"{self.share:.0%} of the documents"
        return f"damping {self.damping:g}, {documents}"


@dataclass(frozen=True, slots=True)
class _Measured:
    """What came of one subject.

    Attributes:
        factored: LDS of EK-FAC's own solution, of each query.
        refined: The same by trial and number of steps.
        rising: Whether every step did what conjugate gradients promise.
        setting: Sizes and residuals.
    """

    factored: Scores
    refined: Mapping[tuple[str, int], Scores]
    rising: bool
    setting: Mapping[str, Any]

    def gained(self, trial: _Trial, step: int) -> Scores:
        """LDS above EK-FAC's, of each query."""
        return self.refined[str(trial), step] - self.factored


def measure(*, quick: bool, cache: Path) -> Report:
    """Refine queries of a digits perceptron and of a small language model."""
    trials = [_Trial(REFINE_DAMPING, 1.0, _STEPS)]
    if not quick:
        trials += [_Trial(damping, 1.0, _STEPS) for damping in _DAMPINGS]
        trials += [_Trial(REFINE_DAMPING, share, _STEPS) for share in _SHARES]
    makers = [partial(digits, cache, seed) for seed in _SEEDS[: 1 if quick else None]]
    runs = {
        "digits": [_Refinement(make(), 60 if quick else 12).measured(trials) for make in makers]
    }
    asked = {"digits": trials}
    if not quick:
        asked["lm"] = [_Trial(REFINE_DAMPING, share, _LM_STEPS) for share in _LM_SHARES]
        runs["lm"] = [_Refinement(small_lm(cache), 8).measured(asked["lm"])]
    figures = [
        figure for name, found in runs.items() for figure in _figures(name, found, asked[name])
    ]
    claim = "each step raises grad f^T h, the query's influence on itself, for every query"
    check = expect(all(one.rising for found in runs.values() for one in found), claim)
    settings = {name: [_setting(one) for one in found] for name, found in runs.items()}
    return Report(tuple(figures), (check,), {"default_damping": REFINE_DAMPING, **settings})


def _setting(run: _Measured) -> dict[str, Any]:
    """Sizes, residuals, and how sure the mean gains are: a standard error over queries."""
    errors = {
        f"{trial}, {step} steps": float((lds - run.factored).std() / len(lds) ** 0.5)
        for (trial, step), lds in run.refined.items()
    }
    return {**run.setting, "standard_errors": errors}


def _figures(name: str, runs: Sequence[_Measured], trials: Sequence[_Trial]) -> Iterator[Figure]:
    """Figures of one subject; each has a value for every seed."""
    yield Figure(f"{name}: LDS, EK-FAC", "", tuple(float(run.factored.mean()) for run in runs))
    for trial in trials:
        for step in trial.steps:
            gained = tuple(float(run.gained(trial, step).mean()) for run in runs)
            judged = name == "digits" and trial == trials[0] and step == 5
            yield Figure(
                f"{name}: LDS gained, {trial}, {step} step{'s' if step > 1 else ''}",
                "",
                gained,
                at_least=_GAINED if judged else None,
            )


class _Refinement:
    """One subject's EK-FAC, its documents' gradients and some of its queries'.

    Args:
        subject: Model, documents, queries, retrainings.
        stride: Every how manieth query is asked.
    """

    def __init__(self, subject: Subject, stride: int) -> None:
        if subject.retrainings is None:
            raise BenchmarkError(f"{subject.name} was not trained anew: there is no LDS")
        self._subject = subject
        self._batches = [batch for _, batch in subject.document_batches(_BATCH)]
        source = PseudoGradients(subject.extractor, lambda: self._batches, subject.fisher)
        self._curvature = EKFAC().fit(source)
        self._documents = self._gradients(subject.document_batches(_BATCH))
        every = self._gradients(subject.query_batches(_BATCH))
        chosen = slice(None, None, stride)
        self._queries = [layer[chosen].double() for layer in every]
        nats = subject.retrainings.nats[:, :, chosen]
        self._retrainings = replace(subject.retrainings, nats=nats)

    def measured(self, trials: Sequence[_Trial]) -> _Measured:
        """The LDS of all trials."""
        factored = [self._curvature.solve(i, layer) for i, layer in enumerate(self._queries)]
        refined: dict[tuple[str, int], Scores] = {}
        residuals: dict[str, list[float]] = {}
        rising = True
        for trial in trials:
            runs = [list(self._estimates(trial, row)) for row in range(len(self._queries[0]))]
            rising = rising and all(self._rises(row, run) for row, run in enumerate(runs))
            for i, step in enumerate(trial.steps):
                solved = [
                    torch.stack(layer)
                    for layer in zip(*(run[i].solved for run in runs), strict=True)
                ]
                refined[str(trial), step] = self._lds(solved)
            reached = np.array([[estimate.residual for estimate in run] for run in runs])
            residuals[str(trial)] = reached.mean(0).tolist()
        setting = {
            "documents": len(self._documents[0]),
            "queries": len(self._queries[0]),
            "weights": sum(layer.size for layer in self._curvature.layers),
            "mean_residuals": residuals,
        }
        return _Measured(self._lds(factored), refined, rising, setting)

    def _estimates(self, trial: _Trial, row: int) -> Iterator[Refined]:
        """One query's estimates after the steps to look at."""
        kept = self._batches[: round(trial.share * len(self._batches))]
        estimates = refinements(
            self._subject.extractor,
            self._curvature,
            [layer[row] for layer in self._queries],
            lambda: kept,
            damping=trial.damping,
        )
        for estimate in islice(estimates, trial.steps[-1] + 1):
            if estimate.steps in trial.steps:
                yield estimate

    def _rises(self, row: int, run: Sequence[Refined]) -> bool:
        """Whether ``grad f^T h`` grows from estimate to estimate."""
        energies = [
            sum(
                float((layer[row] * solved).sum())
                for layer, solved in zip(self._queries, estimate.solved, strict=True)
            )
            for estimate in run
        ]
        return bool(np.all(np.diff([0.0, *energies]) >= 0.0))

    def _lds(self, solved: Sequence[Tensor]) -> Scores:
        """Of each query, from solutions ``[query, d_out, d_in]`` of each layer."""
        scores = np.zeros((len(solved[0]), len(self._documents[0])))
        for h, g in zip(solved, self._documents, strict=True):
            scores += (h.flatten(1) @ g.flatten(1).double().T).numpy()
        return datamodelling_scores(scores, self._retrainings)

    def _gradients(self, batches: Sequence[tuple[NDArray[np.int64], Batch]]) -> list[Tensor]:
        """Coordinates of true gradients, ``[doc, d_out, d_in]`` of each layer."""
        count = sum(len(batch) for _, batch in batches)
        found = [torch.zeros(count, *layer.shape) for layer in self._curvature.layers]
        coordinates = self._curvature.coordinates()
        with self._subject.extractor.session():
            for positions, batch in batches:

                def keep(pair: LayerPair, rows: NDArray[np.int64] = positions) -> None:
                    found[pair.layer][rows] = coordinates(pair)

                true_gradients(self._subject.extractor, batch, keep)
        return found


if __name__ == "__main__":
    command(
        measure,
        click.option(
            "--cache",
            type=click.Path(path_type=Path, file_okay=False),
            default=Path(tempfile.gettempdir()) / "wherefrom-retrainings",
            show_default=True,
            help="Where models and retrainings are kept.",
        ),
    )()
