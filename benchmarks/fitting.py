"""One fit of a curvature: its time, and the memory it takes above the model and one batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from benchmarks.environment import peak_memory
from wherefrom.curvature.fitted import Curvature, FittedCurvature
from wherefrom.gradients.batches import Batch
from wherefrom.gradients.extractor import GradientExtractor, LayerPair
from wherefrom.gradients.fisher import Fisher, PseudoGradients

__all__ = ["Fit", "drop", "measured_fit", "seconds", "stored_bytes"]


@dataclass(frozen=True, slots=True)
class Fit:
    """What one fit gave and took.

    Attributes:
        curvature: The fit.
        wall: Seconds.
        cpu: Seconds, over all threads.
        peak_bytes: How far the peak of resident memory rose above that of the model and a batch.
    """

    curvature: FittedCurvature
    wall: float
    cpu: float
    peak_bytes: int


def measured_fit(
    recipe: Curvature, extractor: GradientExtractor, batches: Sequence[Batch], fisher: Fisher
) -> Fit:
    """Fit a curvature on batches, after a run over the largest of them.

    Args:
        recipe: What to fit.
        extractor: Model, objective and layers.
        batches: The documents.
        fisher: Where labels come from; not read by curvatures that are fitted on no gradients.

    Raises:
        CurvatureError: The fit fails.
    """
    largest = max(batches, key=lambda batch: batch.inputs.numel())
    PseudoGradients(extractor, lambda: [largest], fisher).run(drop)
    torch.linalg.eigh(torch.eye(64, dtype=torch.float64))  # Loads LAPACK.
    source = PseudoGradients(extractor, lambda: batches, fisher)
    fitted: list[FittedCurvature] = []
    before = peak_memory()
    wall, cpu = seconds(lambda: fitted.append(recipe.fit(source, documents=sum(map(len, batches)))))
    return Fit(fitted[0], wall, cpu, peak_memory() - before)


def seconds(run: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def stored_bytes(curvature: FittedCurvature) -> int:
    """Size of the tensors that an index keeps of a curvature; what layers share counts once."""
    return sum(tensor.nbytes for tensor in curvature.state().values())


def drop(pair: LayerPair) -> None:
    """Keep nothing of a pair: runs model and taps alone."""
