"""The demo from end to end: train, index, ask one question per era, check the answers' years."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wherefrom.api import build
from wherefrom.api import open as open_index
from wherefrom.demo.corpus import QUESTIONS, Question, load_addresses, training_passages
from wherefrom.demo.model import load_or_train
from wherefrom.errors import NotAnIndexError, UnfinishedIndexError
from wherefrom.gradients.models import tokenizer_sha256, weights_sha256
from wherefrom.query.answer import Answer
from wherefrom.query.index import Index
from wherefrom.query.report import write_report
from wherefrom.records import Document, Hit, Progress
from wherefrom.store import Manifest

__all__ = ["DemoRun", "EraCheck", "check_eras", "run_demo"]

SEED = 0
FIT_SHARE = 0.5
"""Share of the passages on which the curvature is fitted."""

HITS = 10
_DRAWS = 20_000


@dataclass(frozen=True, slots=True)
class EraCheck:
    """How far the years of top hits lie from their question's era, against chance.

    Attributes:
        hits: Mean distance in years of the proponents found, over all questions.
        random: Mean distance of all passages, which is what random ones are expected to have.
        as_near: Share of random draws (of as many passages for each question) that lie as near.
        draws: How many random draws were made, seeded.
        by_question: ``(name, hits, random)`` of each question.
    """

    hits: float
    random: float
    as_near: float
    draws: int
    by_question: tuple[tuple[str, float, float], ...]

    def in_words(self) -> str:
        """One line, every number of which was computed."""
        chance = f"fewer than 1 in {self.draws:,}" if self.as_near == 0.0 else f"{self.as_near:.1%}"
        return (
            f"The top proponents' years lie {self.hits:.1f} years from the question's era on "
            f"average, those of random passages {self.random:.1f}; {chance} of {self.draws:,} "
            "random draws lie as near."
        )


@dataclass(frozen=True, slots=True)
class DemoRun:
    """What the demo found.

    Attributes:
        answers: Each question with its answer.
        eras: The check of the answers' years.
        report: The HTML report.
        index: The index asked.
        reused: Whether model and index of an earlier run were reused.
        seconds: Time taken.
    """

    answers: tuple[tuple[Question, Answer], ...]
    eras: EraCheck
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
    passages = training_passages(load_addresses())
    index, reused = _index(directory, passages, progress)
    answers = tuple(
        (
            question,
            index.query(prompt=question.prompt, completion=question.completion, k=HITS),
        )
        for question in QUESTIONS
    )
    eras = check_eras([(q, answer.proponents) for q, answer in answers], passages)
    sections = [(f"{q.name}, {q.years[0]}-{q.years[1]}", answer) for q, answer in answers]
    report = write_report(sections, directory / "report.html", notes=[eras.in_words()])
    seconds = time.perf_counter() - started
    return DemoRun(answers, eras, report, index, reused, seconds)


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
        seed=SEED,
        overwrite=True,
        progress=progress,
        replay=f"wherefrom demo --directory {directory}",
    )
    return index, False


def check_eras(
    found: Sequence[tuple[Question, Sequence[Hit]]], passages: Sequence[Document]
) -> EraCheck:
    """Compare the years of hits with those of random passages.

    Args:
        found: Hits with an integer ``year``, for each question.
        passages: All documents that could have been found, likewise.
    """
    generator = np.random.default_rng(SEED)
    years = np.array([int(p.metadata["year"] or 0) for p in passages])
    rows = []
    chance = np.zeros(_DRAWS)
    for question, hits in found:
        away = np.array([question.years_away(int(year)) for year in years], np.float64)
        near = [question.years_away(int(hit.metadata["year"] or 0)) for hit in hits]
        rows.append((question.name, float(np.mean(near)), float(away.mean())))
        draws = generator.integers(0, len(away), (_DRAWS, max(len(near), 1)))
        chance += away[draws].mean(1) / len(found)
    mean = float(np.mean([row[1] for row in rows]))
    return EraCheck(
        mean,
        float(np.mean([row[2] for row in rows])),
        float(np.mean(chance <= mean)),
        _DRAWS,
        tuple(rows),
    )
