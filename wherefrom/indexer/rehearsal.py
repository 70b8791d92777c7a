"""A build of a sample of the documents, watched: what a build of all of them will take.

All phases are the real ones, over the real model. The whole corpus is read, the encoder is chosen
as it will be, and factors are decomposed once; only the passes over the documents, and the writing
of their rows, are those of the sample.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from wherefrom.curvature.fitted import FittedCurvature
from wherefrom.gradients.fisher import PseudoGradients
from wherefrom.indexer.builder import IndexBuilder
from wherefrom.indexer.choice import Chosen
from wherefrom.indexer.ledger import Measured
from wherefrom.indexer.plan import BLOCK
from wherefrom.indexer.sources import Shard, Source, disjoint_samples
from wherefrom.indexer.workshop import Workshop
from wherefrom.store import DocumentTable

__all__ = ["Lap", "Part", "Rehearsal", "Stopwatch", "peak_memory"]

_AFFORDABLE = 60.0
_FEWEST = 64
_WARMING = 8
_RUNS = 5
_QUESTIONS = 32


@dataclass(slots=True)
class Lap:
    """One phase of a build.

    Attributes:
        began: When.
        done: Documents gone over so far.
        counted: When the last of them was.
        told: When it was last heard of.
    """

    began: float
    done: int = 0
    counted: float = 0.0
    told: float = 0.0


@dataclass(slots=True)
class Stopwatch:
    """Times phases by what a build tells of its progress.

    Attributes:
        clock: Tells the time in seconds.
        laps: Of each phase.
        ended: When the last one was over.
    """

    clock: Callable[[], float] = time.perf_counter
    laps: dict[str, Lap] = field(default_factory=dict)
    ended: float = 0.0

    def __call__(self, phase: str, done: int, total: int) -> None:
        """Take note."""
        now = self.clock()
        lap = self.laps.setdefault(phase, Lap(now, counted=now))
        lap.told = now
        if done > lap.done:
            lap.done, lap.counted = done, now

    def stop(self) -> None:
        """The build is over."""
        self.ended = self.clock()

    def end(self, phase: str) -> float:
        """When a phase was over: when the next began."""
        later = [lap.began for lap in self.laps.values() if lap.began > self.laps[phase].began]
        return min(later, default=self.ended)


class Part:
    """Some documents of a source, as a source.

    Args:
        whole: The source.
        positions: Which, ascending.
    """

    def __init__(self, whole: Source, positions: NDArray[np.int64]) -> None:
        self.metadata = whole.metadata
        self.inputs = whole.inputs
        self.content_sha256 = whole.content_sha256
        self._whole = whole
        self._positions = positions

    def __len__(self) -> int:
        """Number of documents."""
        return len(self._positions)

    def doc_ids(self) -> Iterator[str]:
        """Their ids, in order."""
        chosen = set(self._positions.tolist())
        return (doc_id for i, doc_id in enumerate(self._whole.doc_ids()) if i in chosen)

    def part(self, positions: NDArray[np.int64]) -> Shard:
        """The documents at ascending positions among these."""
        return self._whole.part(self._positions[positions])

    def shards(self, size: int, chosen: NDArray[np.bool_] | None = None) -> Iterator[Shard]:
        """Documents in order, ``size`` at a time."""
        wanted = np.arange(len(self)) if chosen is None else np.flatnonzero(chosen)
        for start in range(0, len(wanted), size):
            yield self.part(wanted[start : start + size])


class Rehearsal(IndexBuilder):
    """Builds an index of a sample; takes what :class:`IndexBuilder` takes.

    Attributes:
        watch: When what happened.
        sample: Documents of the sample; as many as a minute or so allows, if not set before.
        whole: The workshop of the whole build, that did not take place.
        tokens: Scored tokens of the sample.
        statistics: Bytes that the statistics of one shard take on the disk.
        rows_seconds: What it takes to go over the sample's rows once, with as many products as are
            taken when an index is measured; spent here beside what a build does.
        spooled: Bytes of the corpus in the work folder.
    """

    watch: Stopwatch
    whole: Workshop
    sample: int | None = None
    tokens: int = 0
    statistics: int = 0
    rows_seconds: float = 0.0
    spooled: int = 0

    def _build(self, workshop: Workshop, *, resumed: bool) -> None:
        self.whole = workshop
        self.spooled = size_of(workshop.work.path)
        self.watch("getting up to speed", 0, 1)
        total = len(workshop.source)
        count = min(total, self.sample or self._affordable(workshop))
        (chosen,) = disjoint_samples(workshop.source, (count,), workshop.plan.seed + 7)
        self.sample = count
        positions = np.flatnonzero(chosen)
        plan = workshop.plan
        corpus = plan.corpus.model_copy(update={"documents": count, "parents": count})
        shorter = plan.model_copy(
            update={"corpus": corpus, "fit_documents": None, "fit_shard": max(BLOCK, count)}
        )
        part = Part(workshop.source, positions)
        # Under the shorter plan, as if the sample were all there is.
        rehearsed = Workshop(workshop.folder, workshop.extractor, part, shorter)
        super()._build(rehearsed, resumed=resumed)
        self.watch.stop()

    def _affordable(self, workshop: Workshop) -> int:
        """Documents that all phases go over in about a minute."""
        (chosen,) = disjoint_samples(workshop.source, (_WARMING,), workshop.plan.seed + 8)
        examples = workshop.source.part(np.flatnonzero(chosen)).examples
        batch = examples.batch(np.arange(int(chosen.sum())))
        fit, seconds = workshop.fit(0), 0.0
        for _ in range(2):  # The first time anything runs tells nothing.
            started = self.watch.clock()
            consume = fit.statistics().add if fit.passes else _nothing
            fisher = workshop.plan.fisher or "empirical"
            PseudoGradients(workshop.extractor, lambda: [batch], fisher).run(consume)
            seconds = self.watch.clock() - started
        each = seconds / len(batch)
        return max(_FEWEST, min(BLOCK, int(_AFFORDABLE / (_RUNS * each))))

    def _chosen(self, workshop: Workshop, curvature: FittedCurvature) -> Chosen:
        """As it will be: among documents of the whole corpus."""
        fits = workshop.work.path.glob("curvature.safetensors")
        self.statistics = sum(file.stat().st_size for file in fits)
        return super()._chosen(self.whole, curvature)

    def _measure(self, workshop: Workshop, table: DocumentTable, tokens: int) -> Measured:
        self.tokens = tokens
        started = self.watch.clock()
        asked = np.ones((_QUESTIONS, workshop.encoder.dimension))
        for rows in table.batches(BLOCK):
            np.argmax(asked @ rows.vectors.T, axis=1)
        self.rows_seconds = self.watch.clock() - started
        return super()._measure(workshop, table, tokens)


def _nothing(pair: object) -> None:
    """What a curvature that is fitted on nothing does with a pair."""


def size_of(folder: Path) -> int:
    """Bytes of all files of a folder, or of a file."""
    if folder.is_file():
        return folder.stat().st_size
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def peak_memory(device: torch.device) -> int:
    """The most bytes that were taken so far: of a GPU, or by this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
