"""An index over all of MNIST, as a user would make it, and what it answers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import wherefrom as wf
from benchmarks.experiments.digits import Digits, label_share, log_likelihoods
from benchmarks.experiments.picture_grid import Cell, Column, draw_grid
from wherefrom.evaluation.evidence import Evidence, Figure, plain
from wherefrom.evaluation.perceptrons import MLPRecipe, PerceptronTrainer
from wherefrom.evaluation.scores import fit, influence
from wherefrom.evaluation.statistics import Scores, mean_estimate
from wherefrom.evaluation.subject import Subject
from wherefrom.evaluation.trainers import Run

__all__ = ["IndexedDigits"]

_RECIPE = MLPRecipe(
    (784, 128, 64, 10), epochs=5, batch_size=64, learning_rate=0.05, weight_decay=1e-4
)
_TOP = 10
_SHOWN = 5
_SHOWN_LABELS = (0, 2, 3, 5, 7, 9)
_SHOWN_WRONG = 2
_BYTES = 2048
_CANDIDATES = 50


@dataclass(frozen=True, slots=True, eq=False)
class IndexedDigits:
    """The index over all training digits, and what it answered.

    Attributes:
        train: All digits.
        test: Likewise.
        indexed: How many of the first ``train`` it holds.
        fitted: On how many of these the curvature was fitted.
        asked: Positions in ``test`` of what was asked: first a digit of each of some labels, read
            right, and two that are misread, which are shown; then digits drawn at random.
        read: What the model takes all test digits for.
        answers: To each.
        exact: Uncompressed scores of those that are shown, ``[query, document]``.
        dot: Their gradient dot products.
        seconds: That the build took, and the answers.
    """

    train: Digits
    test: Digits
    indexed: int
    fitted: int
    asked: NDArray[np.int64]
    read: NDArray[np.int64]
    answers: Sequence[wf.Answer]
    exact: Scores
    dot: Scores
    seconds: tuple[float, float]

    @classmethod
    def made(
        cls, train: Digits, test: Digits, path: Path, *, indexed: int, fitted: int, drawn: int
    ) -> IndexedDigits:
        """Train a perceptron on digits, index them and ask.

        Args:
            train: What to index the first of.
            test: What to ask about.
            path: Of the index.
            indexed: How many digits.
            fitted: On how many of these to fit the curvature.
            drawn: How many random digits to ask about, besides those that are shown.
        """
        x, y = train.tensors(np.arange(indexed))
        (model,) = PerceptronTrainer(x, y, _RECIPE).train([Run(np.ones(len(x), np.bool_), 0)])
        everything, _ = test.tensors(np.arange(len(test)))
        read = log_likelihoods(model, everything).argmax(1).numpy()
        generator = np.random.default_rng(0)
        order = generator.permutation(len(test))
        right = order[read[order] == test.labels[order]]
        wrong = order[read[order] != test.labels[order]]
        shown = [right[test.labels[right] == label][0] for label in _SHOWN_LABELS]
        shown += wrong[:_SHOWN_WRONG].tolist()
        asked = np.concatenate([shown, np.setdiff1d(order, shown, assume_unique=True)[:drawn]])
        started = time.perf_counter()
        index = wf.build(
            model,
            (x, y),
            path,
            bytes_per_document=_BYTES,
            fit_documents=fitted,
            overwrite=True,
        )
        built = time.perf_counter()
        answers = index.answers(
            test.tensors(asked), k=_TOP, rerank="recompute", candidates=_CANDIDATES
        )
        seconds = (built - started, time.perf_counter() - built)
        queries = test.tensors(asked[: len(shown)])
        subject = Subject.of_tensors("", model, (x, y), queries)
        dot = influence(subject, fit(subject, "identity"))
        exact = index.scores(queries)
        return cls(train, test, indexed, fitted, asked, read, answers, exact, dot, seconds)

    def evidence(self) -> Evidence:
        """What the answers are like, and whether they are those of the uncompressed scores."""
        figures = []
        shown = len(self.exact)
        labels = self.test.labels[self.asked[shown:]]
        for name in ("proponents", "opponents"):
            hits = [[int(hit.doc_id) for hit in getattr(a, name)] for a in self.answers]
            share = label_share(self.train.labels[np.array(hits[shown:])], labels)
            wanted = f"{name} with the query's label"
            figures.append(Figure.of("index", wanted, mean_estimate(share)))
            sign = -1 if name == "proponents" else 1
            true = np.argsort(sign * self.exact, 1, kind="stable")[:, :_TOP]
            pairs = zip(hits[:shown], true, strict=True)
            found = [len(np.intersect1d(hit, best)) / _TOP for hit, best in pairs]
            figures.append(
                Figure.of("index", f"uncompressed top 10 {name} found", float(np.mean(found)))
            )
        accuracy = float((self.read == self.test.labels).mean())
        figures += [
            Figure.of("index", "build", self.seconds[0], "s"),
            Figure.of("index", "answer", self.seconds[1] / len(self.answers), "s"),
            Figure.of("model", "test accuracy", accuracy),
        ]
        return Evidence(
            "index",
            f"{self.indexed:,} digits of MNIST at {_BYTES} bytes each",
            tuple(figures),
            {
                "recipe": repr(_RECIPE),
                "fitted": self.fitted,
                "drawn": len(labels),
                "candidates": _CANDIDATES,
                "compared": shown,
            },
            details={"queries_shown": plain(self.asked[:shown])},
        )

    def draw(self, path: Path) -> None:
        """The shown queries with what comes first."""
        asked = self.asked[: len(self.exact)]
        hits = self.answers[: len(asked)]
        chance = np.random.default_rng(1).integers(0, self.indexed, (len(asked), 3))
        best = np.argsort(-self.dot, 1, kind="stable")[:, :_SHOWN]
        columns = {
            "proponents, EK-FAC index": [
                [int(hit.doc_id) for hit in answer.proponents[:_SHOWN]] for answer in hits
            ],
            "opponents, EK-FAC index": [
                [int(hit.doc_id) for hit in answer.opponents[:_SHOWN]] for answer in hits
            ],
            "proponents, gradient dot": best.tolist(),
            "random": chance.tolist(),
        }
        queries = [[Cell(self.test.pixels[i] / 255, str(self.test.labels[i]))] for i in asked]
        cells = [Column("query", queries)]
        for title, chosen in columns.items():
            found = [
                [self._cell(document, self.test.labels[i]) for document in documents]
                for i, documents in zip(asked, chosen, strict=True)
            ]
            cells.append(Column(title, found))
        draw_grid(path, cells, [f"read as {self.read[i]}" for i in asked])

    def _cell(self, document: int, wanted: int) -> Cell:
        label = self.train.labels[document]
        return Cell(self.train.pixels[document] / 255, str(label), bool(label == wanted))
