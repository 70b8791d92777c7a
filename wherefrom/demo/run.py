"""The demo from end to end: train, index, ask one question per era, check the answers' years."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wherefrom.api import build
from wherefrom.api import open as open_index
from wherefrom.demo.corpus import (
    QUESTIONS,
    Question,
    held_out_passages,
    load_addresses,
    training_passages,
)
from wherefrom.demo.model import load_or_train
from wherefrom.errors import NotAnIndexError, UnfinishedIndexError
from wherefrom.gradients.fingerprints import tokenizer_sha256, weights_sha256
from wherefrom.maintenance.index import Index
from wherefrom.query.answer import Answer
from wherefrom.query.report.html import write_report
from wherefrom.records import Document, MetadataValue, Progress
from wherefrom.store import Manifest

__all__ = ["DemoRun", "EraCheck", "check_eras", "run_demo"]

SEED = 0
FIT_SHARE = 0.5
"""Share of the passages on which the curvature is fitted."""

BYTES_PER_DOCUMENT = 16384

HITS = 10
HELD_OUT = 40
"""How many passages that the model never saw are traced for the check of years."""

_DRAWS = 20_000


@dataclass(frozen=True, slots=True)
class EraCheck:
    """How far the years of top hits lie from the year of what was asked, against chance.

    Attributes:
        what: What was asked, in words.
        hits: Mean distance in years of the proponents found, over all queries.
        random: Mean distance of all passages, which is what random ones are expected to have.
        as_near: Share of random draws (of as many passages for each query) that lie as near.
        draws: How many random draws were made, seeded.
    """

    what: str
    hits: float
    random: float
    as_near: float
    draws: int

    def in_words(self) -> str:
        """One line, every number of which was computed."""
        chance = (
            f"none of {self.draws:,} random draws lies"
            if self.as_near == 0.0
            else f"{self.as_near:.2%} of {self.draws:,} random draws lie"
        )
        return (
            f"{self.what}: top proponents lie {self.hits:.1f} years away on average, random "
            f"passages {self.random:.1f}; {chance} as near."
        )


@dataclass(frozen=True, slots=True)
class DemoRun:
    """What the demo found.

    Attributes:
        answers: Each question with its answer.
        eras: The checks of the answers' years: of the four questions, which were chosen to be
            telling, and of held-out passages, which were not chosen by anyone.
        report: The HTML report.
        index: The index asked.
        reused: Whether model and index of an earlier run were reused.
        seconds: Time taken.
    """

    answers: tuple[tuple[Question, Answer], ...]
    eras: tuple[EraCheck, ...]
    report: Path
    index: Index
    reused: bool
    seconds: float


def run_demo(directory: Path, progress: Progress) -> DemoRun:
    """Train a small model on speeches, index all of its training passages, and ask.

    Args:
        directory: Where model, index and report go; what is there and fits is reused.
        progress: Told how far the work is.

    Raises:
        WherefromError: The directory cannot be used, or the disk refuses.
    """
    started = time.perf_counter()
    addresses = load_addresses()
    passages = training_passages(addresses)
    index, reused = _index(directory, passages, progress)
    answers = tuple(
        (
            question,
            index.query(
                prompt=question.prompt,
                completion=question.completion,
                k=HITS,
                rerank="recompute",
            ),
        )
        for question in QUESTIONS
    )
    years = [_year(passage.metadata) for passage in passages]
    asked = [(question.years, _years(answer)) for question, answer in answers]
    unseen = _trace(index, held_out_passages(addresses, passages, HELD_OUT), progress)
    eras = (
        check_eras("The questions (their era)", asked, years),
        check_eras(f"{HELD_OUT} held-out passages (their year)", unseen, years),
    )
    sections = [
        (f"{q.name}, {q.years[0]}-{q.years[1]}", index.annotate(answer, group_by={"year": 10}))
        for q, answer in answers
    ]
    notes = [check.in_words() for check in eras]
    report = write_report(sections, directory / "report.html", notes=notes)
    seconds = time.perf_counter() - started
    return DemoRun(answers, eras, report, index, reused, seconds)


def _trace(
    index: Index, passages: Sequence[Document], progress: Progress
) -> list[tuple[tuple[int, int], list[int]]]:
    """Ask for the second half of each passage given its first: its year, and the hits' years."""
    found = []
    for done, passage in enumerate(passages, start=1):
        middle = passage.text.index(" ", len(passage.text) // 2)
        answer = index.query(
            prompt=passage.text[:middle],
            completion=passage.text[middle:],
            k=HITS,
            sign="proponents",
            rerank="stored",
        )
        year = _year(passage.metadata)
        found.append(((year, year), _years(answer)))
        progress("tracing held-out passages", done, len(passages))
    return found


def _years(answer: Answer) -> list[int]:
    return [_year(hit.metadata) for hit in answer.proponents]


def _year(metadata: Mapping[str, MetadataValue]) -> int:
    return int(metadata["year"] or 0)


def _index(directory: Path, passages: Sequence[Document], progress: Progress) -> tuple[Index, bool]:
    """The index of the demo's model over its passages: the one that is there, or a new one."""
    folder, path = directory / "model", directory / "index"
    model, tokenizer = load_or_train(folder, passages, seed=SEED, progress=progress)
    try:
        manifest = Manifest.read(path)
    except (NotAnIndexError, UnfinishedIndexError):
        manifest = None
    if (
        manifest is not None
        and manifest.model.weights_sha256 == weights_sha256(model)
        and manifest.model.tokenizer_sha256 == tokenizer_sha256(tokenizer)
        and manifest.corpus.documents == len(passages)
    ):
        return open_index(path, model=folder), True
    index = build(
        folder,
        passages,
        path,
        fit_documents=FIT_SHARE,
        bytes_per_document=BYTES_PER_DOCUMENT,
        seed=SEED,
        overwrite=True,
        progress=progress,
        replay=f"wherefrom demo --directory {directory}",
    )
    return index, False


def check_eras(
    what: str, found: Sequence[tuple[tuple[int, int], Sequence[int]]], years: Sequence[int]
) -> EraCheck:
    """Compare the years of hits with those of random passages.

    Args:
        what: What was asked, in words.
        found: For each query its era (first and last year) and its hits' years, at least one.
        years: Of all passages that could have been found.
    """
    generator = np.random.default_rng(SEED)
    everything = np.array(years)
    near, random = [], []
    chance = np.zeros(_DRAWS)
    for (first, last), hits in found:
        away = np.maximum(np.maximum(first - everything, everything - last), 0)
        near.append(float(np.mean([max(first - year, year - last, 0) for year in hits])))
        random.append(float(away.mean()))
        draws = generator.integers(0, len(away), (_DRAWS, len(hits)))
        chance += away[draws].mean(1) / len(found)
    mean = float(np.mean(near))
    as_near = float(np.mean(chance <= mean))
    return EraCheck(what, mean, float(np.mean(random)), as_near, _DRAWS)
