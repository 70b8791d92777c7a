"""Subjects of evaluations that train in milliseconds: a linear model, whose truth is known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

import wherefrom as wf
from wherefrom.evaluation.subject import Subject
from wherefrom.evaluation.trainers import Run

DOCUMENTS, QUERIES, WIDTH = 24, 3, 4


def tensors(count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, WIDTH, generator=generator, dtype=torch.float64)
    slope = torch.arange(1.0, WIDTH + 1, dtype=torch.float64)
    noise = torch.randn(count, generator=generator, dtype=torch.float64)
    return inputs, (inputs @ slope + noise)[:, None]


def least_squares(inputs: Tensor, targets: Tensor) -> nn.Module:
    module = nn.Linear(WIDTH, 1, bias=False, dtype=torch.float64)
    solved = torch.linalg.lstsq(inputs, targets).solution
    module.load_state_dict({"weight": solved.T})
    return module.eval()


def regression() -> Subject:
    documents = tensors(DOCUMENTS, 0)
    return Subject.of_tensors(
        "least squares",
        least_squares(*documents),
        documents,
        tensors(QUERIES, 1),
        objective=wf.Regression(),
    )


class LeastSquares:
    """Trains by solving; counts what it trained."""

    recipe = "least squares"
    at_once = 4

    def __init__(self, drift: float = 0.0) -> None:
        self.trained: list[Run] = []
        self._drift = drift

    def train(self, runs: Sequence[Run]) -> Iterator[nn.Module]:
        inputs, targets = tensors(DOCUMENTS, 0)
        for run in runs:
            self.trained.append(run)
            rows = torch.from_numpy(np.flatnonzero(run.members))
            moved = targets[rows] + 0.01 * run.seed + self._drift * len(self.trained)
            yield least_squares(inputs[rows], moved)


def train_rows(members: np.ndarray, seed: int) -> nn.Module:
    """A training function such as users write, importable by a worker."""
    inputs, targets = tensors(DOCUMENTS, 0)
    rows = torch.from_numpy(members)
    return least_squares(inputs[rows], targets[rows] + 0.01 * seed)
