"""How long it takes to see why: shares of ten hits, similarity in words, sums by a column.

On an index of the demo's size and dimensions, the model untrained, after the question has been
answered; what is made once in a process (the words of all documents) is a figure of its own.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import wherefrom as wf
from benchmarks.figures import Figure, Report, command, expect
from benchmarks.workload import demo_index
from wherefrom.demo.corpus import QUESTIONS, TRAINING_PASSAGES

__all__ = ["measure"]

_Result = TypeVar("_Result")


def measure(*, quick: bool) -> Report:
    """Time what :meth:`wherefrom.Index.annotate` adds to an answer of ten hits."""
    documents = 60 if quick else TRAINING_PASSAGES
    rounds = 2 if quick else 7
    question = QUESTIONS[1]
    with tempfile.TemporaryDirectory() as folder:
        index = demo_index(Path(folder), documents)
        answer = index.query(
            prompt=question.prompt, completion=question.completion, k=10, rerank="recompute"
        )
        ten = [hit.doc_id for hit in answer.hits[:10]]
        explained = [_timed(lambda: index.explain(answer, doc_ids=ten)) for _ in range(rounds)]
        layers = [
            _timed(lambda: index.explain(answer, by="layer", doc_ids=ten)) for _ in range(rounds)
        ]
        words, _ = _timed(lambda: index.similarity(answer))
        similar = [_timed(lambda: index.similarity(answer)) for _ in range(rounds)]
        grouped = [_timed(lambda: index.groups(answer, "president")) for _ in range(rounds)]
        stored = index.scores([wf.Query(question.prompt, question.completion)], tier="stored")[0]
    explanation, groups = explained[0][1], grouped[0][1]
    off = max(
        abs(sum(token.share or 0.0 for token in hit.tokens or ()) - hit.score)
        / sum(map(abs, hit.layers))
        for hit in explanation.hits
    )
    return Report(
        (
            Figure(
                "shares of ten hits, by layer and by token of both sides",
                "s",
                tuple(seconds for seconds, _ in explained),
                at_most=3.0,
            ),
            Figure(
                "shares of ten hits, by layer only", "s", tuple(seconds for seconds, _ in layers)
            ),
            Figure("similarity in words, first of a process", "s", (words,)),
            Figure("similarity in words", "s", tuple(seconds for seconds, _ in similar)),
            Figure(
                "influence summed by a column, stored scores",
                "s",
                tuple(seconds for seconds, _ in grouped),
            ),
        ),
        (
            expect(len(explanation.hits) == 10, "ten hits are explained"),
            expect(
                all(
                    hit.score == shown.score
                    for hit, shown in zip(explanation.hits, answer.hits[:10], strict=True)
                ),
                "explained scores are those of the answer, bit for bit",
            ),
            expect(off <= 1e-5, "shares of tokens sum to the score within 1e-5 of the shares"),
            expect(
                math.isclose(
                    math.fsum(group.total for group in groups.groups),
                    math.fsum(stored),
                    rel_tol=0.0,
                    abs_tol=1e-9 * float(abs(stored).sum()),
                ),
                "sums of all groups are the sum of all stored scores",
            ),
        ),
        {"documents": len(index), "rounds": rounds, "hits": len(explanation.hits)},
    )


def _timed(work: Callable[[], _Result]) -> tuple[float, _Result]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


if __name__ == "__main__":
    command(measure)()
