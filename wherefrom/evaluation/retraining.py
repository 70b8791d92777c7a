"""Ground truth for influence: models trained anew on some of the documents.

Each run's measurements are appended to a ledger as soon as they are known, so that an interrupted
evaluation goes on where it stopped. A ledger belongs to one recipe, one list of documents, one
measurement and one torch, on a GPU or without; runs are told apart by their members and seed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from wherefrom.errors import EvaluationError
from wherefrom.evaluation.measurement import Measurement
from wherefrom.evaluation.trainers import Run, Trainer
from wherefrom.evaluation.workers import Apart, measured, processes
from wherefrom.gradients.models import resolve_device
from wherefrom.store.durable import storage_errors

if TYPE_CHECKING:
    from wherefrom.records import Progress

__all__ = [
    "LEAST_SUBSETS",
    "NO_CHANCE",
    "Ledger",
    "Outcomes",
    "Retrainer",
    "random_halves",
    "require_subsets",
]

LEAST_SUBSETS = 20
"""Fewer subsets give no interval worth the name: a rank correlation of 20 pairs is sure to .4."""

NO_CHANCE = (
    "All seeds gave the same models: training leaves nothing to chance, or does not use its seed; "
    "they count as one."
)
"""What a reader must know where several seeds were asked for."""

_SAME = 1e-5
_ALIKE = 1e-9
_PHASE = "retrain"


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What models trained on subsets say.

    Attributes:
        members: Whether a document was trained on, bool ``[subset, document]``.
        nats: Of each question, float64 ``[subset, seed, question]``; of one seed where all of them
            gave the same.
        by_chance: Whether seeds make a difference, as far as was seen: several that do not are no
            more evidence than one.
    """

    members: NDArray[np.bool_]
    nats: NDArray[np.float64]
    by_chance: bool = True

    def mean(self) -> NDArray[np.float64]:
        """Mean over seeds, ``[subset, question]``."""
        mean: NDArray[np.float64] = self.nats.mean(1)
        return mean

    def noise(self) -> NDArray[np.float64]:
        """Standard error of that mean, ``[subset, question]``.

        Raises:
            EvaluationError: There is one seed.
        """
        seeds = self.nats.shape[1]
        if seeds < 2:
            raise EvaluationError("one seed shows no noise; retrain with at least two")
        error: NDArray[np.float64] = self.nats.std(1, ddof=1) / np.sqrt(seeds)
        return error


def random_halves(documents: int, count: int, seed: int) -> NDArray[np.bool_]:
    """``count`` random subsets of half of the documents, bool ``[subset, document]``."""
    generator = np.random.default_rng(seed)
    members = np.zeros((count, documents), np.bool_)
    for row in members:
        row[generator.permutation(documents)[: documents // 2]] = True
    return members


def require_subsets(count: int) -> None:
    """Refuse fewer subsets than an interval needs.

    Raises:
        EvaluationError: There are fewer than ``LEAST_SUBSETS``.
    """
    if count < LEAST_SUBSETS:
        raise EvaluationError(
            f"{count} subsets are too few for an interval; retrain on at least {LEAST_SUBSETS} "
            "(100 for a figure to report)"
        )


class Ledger:
    """Measurements of finished runs: JSON Lines, one run a line, appended as they finish.

    Args:
        path: Of the file; ``None`` keeps them in memory only.
        questions: How many measurements a run has.
    """

    def __init__(self, path: Path | None, questions: int) -> None:
        self._path = path
        self._kept: dict[str, NDArray[np.float64]] = {}
        self._checked = False
        if path is None:
            return
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = path.read_bytes().split(b"\n") if path.exists() else []
        for number, line in enumerate(lines[:-1], start=1):
            try:
                row = json.loads(line)
                nats = np.array(row["nats"], np.float64)
                self._checked = self._checked or bool(row["repeated"])
                if nats.shape != (questions,):
                    raise ValueError(f"{nats.shape} measurements")
                self._kept[row["run"]] = nats
            except (ValueError, KeyError, TypeError) as error:
                raise EvaluationError(
                    f"{path}, line {number} holds no retraining ({type(error).__name__}); remove "
                    "that line or the file"
                ) from error
        if lines and lines[-1]:
            # A line without its end was being written when the process died.
            with storage_errors(path), path.open("r+b") as file:
                file.truncate(sum(len(line) + 1 for line in lines[:-1]))

    def __len__(self) -> int:
        """Number of runs."""
        return len(self._kept)

    def __contains__(self, run: Run) -> bool:
        """Whether a run's measurements are known."""
        return run.key in self._kept

    @property
    def repeated(self) -> bool:
        """Whether a run was made twice and gave the same."""
        return self._checked

    def nats(self, run: Run) -> NDArray[np.float64]:
        """The measurements of a run that is known."""
        return self._kept[run.key]

    def add(self, run: Run, nats: NDArray[np.float64], *, repeated: bool = False) -> None:
        """Keep a run's measurements.

        Raises:
            StorageError: The disk refuses.
        """
        self._kept[run.key] = nats
        self._checked = self._checked or repeated
        if self._path is None:
            return
        row = {"run": run.key, "seed": run.seed, "repeated": repeated, "nats": nats.tolist()}
        with storage_errors(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


class Retrainer:
    """Trains models anew and measures them; what was trained once is not trained again.

    Another version of torch, or a machine with a GPU instead of one without, begins a new ledger:
    the same seed gives other models there.

    Args:
        trainer: How.
        measurement: What is asked of the models.
        documents: Digest of the documents that members are positions of.
        cache: Folder of ledgers; ``None`` keeps nothing beyond the object's life.
        workers: Processes that train at the same time, a thread each; with one, this process. The
            trainer is sent to each of them once.
        progress: Called after every run.

    Attributes:
        key: Of the ledger.
        path: Of the ledger's file.
        ledger: Runs that are known.
    """

    def __init__(
        self,
        trainer: Trainer,
        measurement: Measurement,
        documents: str,
        *,
        cache: Path | None = None,
        workers: int = 1,
        progress: Progress | None = None,
    ) -> None:
        if workers < 1:
            raise EvaluationError(f"workers={workers}; give at least 1")
        self.trainer = trainer
        self.measurement = measurement
        self._workers = workers
        self._progress = progress
        where = [torch.__version__, resolve_device("auto").type]
        parts = [trainer.recipe, measurement.digest, documents, *where]
        self.key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        self.path = None if cache is None else cache / f"{self.key[:24]}.jsonl"
        self.ledger = Ledger(self.path, len(measurement))

    def outcomes(self, members: NDArray[np.bool_], seeds: Sequence[int]) -> Outcomes:
        """Train on each subset with each seed.

        The first run that is not known is made twice, once for each ledger: what differs between
        two runs of the same seed would pass for influence.

        Args:
            members: bool ``[subset, document]``.
            seeds: Of the models of each subset.

        Raises:
            EvaluationError: Training is not deterministic, a model diverged, all models are the
                same, or the trainer cannot be sent to workers, or one of them died.
            StorageError: The ledger cannot be written.
        """
        if members.ndim != 2 or not len(members) or not len(seeds):
            raise EvaluationError(
                f"members of shape {members.shape} and {len(seeds)} seeds; give [subset, document] "
                "and at least one of each"
            )
        runs = [Run(row, seed) for row in members for seed in seeds]
        missing = list({run.key: run for run in runs if run not in self.ledger}.values())
        start = len(runs) - len(missing) - len(self.ledger)

        def told() -> None:
            if self._progress is not None:
                self._progress(_PHASE, start + len(self.ledger), len(runs))

        several = self._workers > 1 and len(missing) > 1
        # They begin before the first training: what cannot be sent is refused before it.
        with (
            processes(self.trainer, self.measurement, min(self._workers, len(missing)))
            if several
            else nullcontext()
        ) as apart:
            if missing and not self.ledger.repeated:
                self._check(missing.pop(0))
                told()
            self._train(missing, apart, told)
        found = np.stack([self.ledger.nats(run) for run in runs])
        nats = found.reshape(len(members), len(seeds), -1)
        if (members != members[0]).any() and _alike(nats, nats[:1]):
            raise EvaluationError(
                "models trained on different documents say the same, to the last digit; does "
                "train_fn use the members it is given?"
            )
        if len(seeds) > 1 and _alike(nats, nats[:, :1]):
            return Outcomes(members, nats[:, :1], by_chance=False)
        return Outcomes(members, nats)

    def _check(self, run: Run) -> None:
        """Make a run twice, alone, and keep it if both agree."""
        ((_, first),) = measured(self.trainer, self.measurement, [run])
        ((_, second),) = measured(self.trainer, self.measurement, [run])
        if not np.allclose(first, second, rtol=_SAME, atol=_SAME):
            worst = int(np.argmax(np.abs(first - second)))
            raise EvaluationError(
                f"training twice with seed {run.seed} on the same documents gave "
                f"{first[worst]:.6g} and {second[worst]:.6g} nats of query {worst}: train_fn is "
                "not deterministic; take all chance (weights, order, dropout) from its seed, as "
                "by torch.manual_seed(seed)"
            )
        self.ledger.add(run, first, repeated=True)

    def _train(self, runs: Sequence[Run], apart: Apart | None, told: Callable[[], None]) -> None:
        # However many a trainer likes to get together, every worker gets some.
        size = max(1, min(self.trainer.at_once, math.ceil(len(runs) / self._workers)))
        shares = [runs[first : first + size] for first in range(0, len(runs), size)]
        if apart is not None and len(shares) > 1:
            apart.train(shares, self._keep, told)
            return
        for share in shares:
            for run, nats in measured(self.trainer, self.measurement, share):
                self._keep(run, nats)
                told()

    def _keep(self, run: Run, nats: NDArray[np.float64]) -> None:
        if run not in self.ledger:
            self.ledger.add(run, nats)


def _alike(nats: NDArray[np.float64], others: NDArray[np.float64]) -> bool:
    return np.allclose(nats, others, rtol=_ALIKE, atol=_ALIKE)
