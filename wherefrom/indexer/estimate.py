"""What a build will take, before it is begun: measured on a sample of its documents."""

from __future__ import annotations

import math
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wherefrom.encoding.persistence import ENCODER_FILE
from wherefrom.errors import IndexExistsError
from wherefrom.gradients.models import ModelSource
from wherefrom.indexer.options import BuildOptions
from wherefrom.indexer.planning import Documents
from wherefrom.indexer.rehearsal import Rehearsal, Stopwatch, peak_memory, size_of
from wherefrom.indexer.workplace import refuse_taken_path
from wherefrom.store import SCAN_DIRECTORY, state, storage_errors
from wherefrom.store.directory import TABLE_DIRECTORY, beside
from wherefrom.store.lock import writer_lock

__all__ = ["Estimate", "estimate"]

_SHARDS_AT_ONCE = 8
_STAGED = 1 << 28


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a build will take.

    Attributes:
        documents: How many there are (passages count one each).
        tokens: Scored tokens in all, from the sample's mean.
        sample: Documents that were gone over to find out.
        workers: How many tasks run at once.
        seconds: Of each phase.
        disk: Bytes of each part of the finished index, and of ``work``, the most that lies beside
            it while it is built.
        memory: Bytes of each part of a worker at its peak.
    """

    documents: int
    tokens: int
    sample: int
    workers: int
    seconds: Mapping[str, float]
    disk: Mapping[str, int]
    memory: Mapping[str, int]

    @property
    def total_seconds(self) -> float:
        """Of all phases."""
        return sum(self.seconds.values())

    @property
    def index_bytes(self) -> int:
        """Of the finished index."""
        return sum(size for part, size in self.disk.items() if part != "work")

    @property
    def peak_memory(self) -> int:
        """Bytes that a worker takes."""
        return sum(self.memory.values())

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        sums = {
            "total_seconds": self.total_seconds,
            "index_bytes": self.index_bytes,
            "peak_memory": self.peak_memory,
        }
        return asdict(self) | sums


def estimate(
    model: ModelSource,
    documents: Documents,
    path: str | os.PathLike[str],
    options: BuildOptions,
    *,
    workers: int = 1,
    sample: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
    **given: Any,
) -> Estimate:
    """What a build will take in time, memory and disk; nothing of it stays.

    A sample of the documents is built in a folder beside ``path``. It holds for this machine while
    nothing else runs on it.

    Args:
        model: As for a build, as all but these.
        documents: What would be indexed; an iterator is used up.
        path: Where the index would stand.
        options: How to build.
        workers: How many tasks would run at once, each on processors of its own.
        sample: Documents to go over; as many as a minute or so allows, up to 1024, by default.
        clock: What seconds are told by; ``time.process_time`` is fairer to a build in one process
            on a machine that is busy with other things.
        **given: What else :class:`~wherefrom.indexer.builder.IndexBuilder` takes.

    Raises:
        WherefromError: What the build would refuse.
    """
    place = Path(path)
    refuse_taken_path(place, overwrite=bool(given.get("overwrite")))
    unwanted = ("executor", "overwrite", "progress", "replay", "resume")
    settings = {name: value for name, value in given.items() if name not in unwanted}
    with _workplace(place) as index:
        started = clock()
        watch = Stopwatch(clock)
        build = Rehearsal(
            model, documents, index, options, executor="serial", progress=watch, **settings
        )
        build.watch, build.sample = watch, sample
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # What a build warns of, it warns of when it is run.
            build.run()
        return _Extrapolation(build, started, workers).estimate(index)


@contextmanager
def _workplace(place: Path) -> Iterator[Path]:
    """A path beside ``place``, on its disk, for an index that does not stay.

    What an estimate that was killed left there is removed first.

    Raises:
        IndexBusyError: Another estimate of the same is under way.
        IndexExistsError: Something else is in the way.
        StorageError: The disk refuses.
    """
    parent = next(p for p in place.absolute().parents if p.is_dir())
    folder = beside(parent / place.name, "estimate")
    index = folder / "index"
    with storage_errors(folder):
        folder.mkdir(exist_ok=True)
    if folder.is_symlink() or state(index) == "foreign":
        raise IndexExistsError(f"{folder} is in the way and is no estimate's; move it elsewhere")
    try:
        with writer_lock(folder):
            _remove(index)
            try:
                yield index
            finally:
                _remove(index)
    finally:
        with suppress(OSError):  # Another estimate has come to it, or left something in it.
            folder.rmdir()


def _remove(index: Path) -> None:
    with storage_errors(index):
        if index.exists():
            shutil.rmtree(index)


class _Extrapolation:
    """From the sample to all documents."""

    def __init__(self, build: Rehearsal, started: float, workers: int) -> None:
        self._build = build
        self._watch = build.watch
        self._started = started
        self._workers = workers
        self._plan = build.whole.plan
        self._sample = build.sample or 1
        self._ratio = self._plan.documents / self._sample

    def estimate(self, index: Path) -> Estimate:
        """All of it."""
        return Estimate(
            documents=self._plan.documents,
            tokens=round(self._build.tokens * self._ratio),
            sample=self._sample,
            workers=self._workers,
            seconds=self._seconds(),
            disk=self._disk(index),
            memory=self._memory(),
        )

    def _seconds(self) -> dict[str, float]:
        first = min(lap.began for lap in self._watch.laps.values())
        found = {"opening the model": first - self._started}
        for phase, lap in self._watch.laps.items():
            took, over = self._watch.end(phase) - lap.began, self._watch.end(phase)
            if phase.startswith("fitting"):
                found[phase] = self._fitting(phase)
            elif phase == "encoding the documents":
                counted = (lap.counted - lap.began) / self._workers
                writing = over - lap.counted - self._build.rows_seconds
                found[phase] = self._ratio * (counted + writing)
            elif phase == "measuring the index":
                found[phase] = took + (self._ratio - 1.0) * self._build.rows_seconds
            elif phase == "writing the index":
                found[phase] = self._ratio * took
            elif phase != "getting up to speed":
                found[phase] = took
        return found

    def _fitting(self, phase: str) -> float:
        """Shards are gone over and saved; sums of two are saved, too; in the end they are used."""
        lap, over = self._watch.laps[phase], self._watch.end(phase)
        saving, using = lap.told - lap.counted, over - lap.told
        shards = self._shards
        over_documents = (lap.counted - lap.began) * self._fitted / self._sample
        return (over_documents + saving * (3 * shards - 2)) / self._workers + using

    @property
    def _fitted(self) -> int:
        """Documents of the fit."""
        return len(self._build.whole.chosen)

    @property
    def _shards(self) -> int:
        return math.ceil(self._fitted / self._plan.fit_shard)

    def _disk(self, index: Path) -> dict[str, int]:
        table, scan = (size_of(index / part) for part in (TABLE_DIRECTORY, SCAN_DIRECTORY))
        encoder = size_of(index / ENCODER_FILE)
        together = min(self._shards, _SHARDS_AT_ONCE) + math.ceil(math.log2(self._shards + 1))
        beside = max(together * self._build.statistics, min(_STAGED, round(table * self._ratio)))
        return {
            "documents": round(table * self._ratio),
            "scan": round(scan * self._ratio),
            "encoder": encoder,
            "other": size_of(index) - table - scan - encoder,
            "work": self._build.spooled + beside,
        }

    def _memory(self) -> dict[str, int]:
        parameters = self._build.model.parameters()
        model = sum(p.numel() * p.element_size() for p in parameters)
        peak = peak_memory(self._build.whole.extractor.device)
        factors = self._build.statistics
        kept = 0
        if self._plan.curvature in ("datainf", "lissa"):
            kept = round(factors * max(0.0, self._fitted / self._sample - 1.0))
        return {
            "model": model,
            "curvature": factors + kept,
            "program and documents at hand": max(0, peak - model - factors),
        }
