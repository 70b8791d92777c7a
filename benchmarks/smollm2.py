"""A real language model on a CPU: SmolLM2-135M's 90 MLP matrices, indexed over addresses.

Nothing is known of what this model was trained on, so two things only can be asked for: that a
passage is the document that most influences its own second half given its first, and that hits for
passages outside the index lie near them in time. A search by words would find the former too: it
shows that nothing is broken at this size, and not that influence is better.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

import wherefrom as wf
from benchmarks.environment import peak_memory
from benchmarks.figures import Figure, Report, command, expect
from benchmarks.packages import MissingPackageError, smollm2
from wherefrom.demo.corpus import held_out_passages, load_addresses, training_passages
from wherefrom.demo.run import check_eras
from wherefrom.evaluation.statistics import shared_top, spearman
from wherefrom.records import Document

__all__ = ["measure"]

BYTES_PER_DOCUMENT = 16384
FIT_SHARE = 0.5
LARGER_DAMPING = 10.0
"""A hundred times the default, asked for in the query; nothing is indexed again."""

_K = 10
_MIB = 2.0**20
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class _Sizes:
    """How much is done.

    Attributes:
        passages: Indexed.
        selves: Of these, asked for their own second half.
        exact: Of these, scored without compression too; each takes 640 MB over all blocks.
        held_out: Others, asked for their time.
        layers: What is indexed.
    """

    passages: int
    selves: int
    exact: int
    held_out: int
    layers: str | tuple[str, ...]


_FULL = _Sizes(150, 20, 4, 20, "mlp")
_QUICK = _Sizes(12, 3, 2, 2, ("model.layers.28.mlp.*", "model.layers.29.mlp.*"))


@dataclass(frozen=True, slots=True)
class _Clock:
    """Wall and CPU seconds of every step."""

    wall: dict[str, list[float]] = field(default_factory=dict)
    cpu: dict[str, list[float]] = field(default_factory=dict)

    def __call__(self, step: str, run: Callable[[], _Result]) -> _Result:
        """Run a step, once more if it ran before."""
        wall, cpu = time.perf_counter(), time.process_time()
        result = run()
        self.wall.setdefault(step, []).append(time.perf_counter() - wall)
        self.cpu.setdefault(step, []).append(time.process_time() - cpu)
        return result

    def figures(self) -> list[Figure]:
        """All steps, in the order in which they first ran."""
        return [
            figure
            for step in self.wall
            for figure in (
                Figure(step, "s", tuple(self.wall[step])),
                Figure(f"{step} (CPU time)", "s", tuple(self.cpu[step])),
            )
        ]


def measure(*, quick: bool) -> Report:
    """Build an index, ask it for passages' own halves and for passages that it does not hold."""
    try:
        model = smollm2()
    except MissingPackageError as error:
        return Report(skipped=f"SmolLM2 is not here; {error}")
    sizes = _QUICK if quick else _FULL
    addresses = load_addresses()
    passages = _evenly(training_passages(addresses, sizes.passages), sizes.passages)
    held_out = held_out_passages(addresses, passages, sizes.held_out)
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "smollm2.index"
        first = clock("build", lambda: _build(model, passages, path, sizes.layers))
        peak = Figure("peak memory, build", "MiB", (peak_memory() / _MIB,))
        answer = _ask(first, passages[0])
        del first  # Its curvature takes as much memory as that of the index opened next.
        index = clock("opening from disk, all digests checked", lambda: wf.open(path))
        checks = [
            expect(len(index) == len(passages), "every passage is indexed"),
            expect(
                _ask(index, passages[0]).proponents == answer.proponents,
                "opened from disk, the index gives the bits that it gave when it was built",
            ),
        ]
        sought = (
            *_own_halves(index, _evenly(passages, sizes.selves), clock),
            *_against_exact(index, _evenly(passages, sizes.exact), clock),
            *_eras(index, held_out, passages),
            *_sweeps(index, held_out[: sizes.exact]),
        )
        on_disk = (_bytes(path), _bytes(path / "encoder.safetensors"))
    record = index.manifest
    return Report(
        (
            *clock.figures(),
            peak,
            Figure("peak memory, uncompressed rows included", "MiB", (peak_memory() / _MIB,)),
            Figure("index on disk", "MiB", (on_disk[0] / _MIB,)),
            Figure("of it the fitted curvature", "MiB", (on_disk[1] / _MIB,)),
            *sought,
        ),
        tuple(checks),
        {
            "passages": len(passages),
            "tokens": record.corpus.tokens,
            "passages_fitted_on": record.curvature.fit_documents,
            "bytes_per_document": record.encoder.bytes_per_document,
            "layers": len(record.layers),
            "weights_of_indexed_layers": sum(layer.d_in * layer.d_out for layer in record.layers),
            "passages_asked_for_their_second_half": sizes.selves,
            "uncompressed_rows": sizes.exact,
            "held_out_passages": sizes.held_out,
            "threads": torch.get_num_threads(),
        },
    )


def _build(
    model: Path, passages: Sequence[Document], path: Path, layers: str | tuple[str, ...]
) -> wf.Index:
    return wf.build(
        model,
        passages,
        path,
        layers=layers,
        fit_documents=FIT_SHARE,
        bytes_per_document=BYTES_PER_DOCUMENT,
    )


def _own_halves(index: wf.Index, passages: Sequence[Document], clock: _Clock) -> list[Figure]:
    """Does a passage find itself?"""
    answers = [clock("query", partial(_ask, index, passage)) for passage in passages]
    found = [[hit.doc_id for hit in answer.proponents] for answer in answers]
    pairs = list(zip(passages, found, strict=True))
    first = float(np.mean([ids[0] == passage.doc_id for passage, ids in pairs]))
    among = float(np.mean([passage.doc_id in ids for passage, ids in pairs]))
    return [
        Figure("share of passages that are 1st for their own second half", "", (first,)),
        Figure(f"share of them among the first {_K}", "", (among,)),
        Figure(
            "score of the 1st hit", "nats", tuple(answer.proponents[0].score for answer in answers)
        ),
        Figure(
            "score of the 2nd hit / of the 1st",
            "×",
            tuple(a.proponents[1].score / a.proponents[0].score for a in answers),
        ),
        Figure(
            "log-likelihood of the second half",
            "nats",
            tuple(answer.log_likelihood for answer in answers),
        ),
    ]


def _against_exact(index: wf.Index, passages: Sequence[Document], clock: _Clock) -> list[Figure]:
    """What is lost to compression."""
    asked = [_second_half(passage) for passage in passages]
    exact = clock(f"{len(asked)} uncompressed rows", lambda: index.scores(asked, tier="exact"))
    stored = index.scores(asked, tier="stored")
    ids = index.doc_ids()
    own = [ids.index(passage.doc_id) for passage in passages]
    first = float(np.mean(exact.argmax(1) == own))
    # Of the passage itself the score is so much higher that it alone would make most figures good.
    others = [np.delete(np.arange(len(ids)), place) for place in own]
    rows = [(a[kept], b[kept]) for a, b, kept in zip(stored, exact, others, strict=True)]
    off = tuple(
        float(abs(a[i] - b[i]) / abs(b[i])) for a, b, i in zip(stored, exact, own, strict=True)
    )
    return [
        Figure("share of passages that are 1st, uncompressed", "", (first,)),
        Figure("stored score of the passage itself, off by", "×", off),
        Figure(
            "Spearman of stored and uncompressed scores, the passage itself left out",
            "",
            tuple(spearman(*row) for row in rows),
        ),
        Figure(
            f"uncompressed top {_K} within the stored top {_K}, the passage itself left out",
            "",
            tuple(shared_top(*row, _K) for row in rows),
        ),
    ]


def _eras(
    index: wf.Index, held_out: Sequence[Document], passages: Sequence[Document]
) -> list[Figure]:
    """How near in time are the hits of passages that are not in the index?"""
    everything = [_year(passage.metadata) for passage in passages]
    figures = []
    for damping in (None, LARGER_DAMPING):
        asked = []
        for passage in held_out:
            answer = _ask(index, passage, damping)
            year = _year(passage.metadata)
            asked.append(((year, year), [_year(hit.metadata) for hit in answer.proponents]))
        check = check_eras("held-out passages", asked, everything)
        under = "" if damping is None else f", damping {damping:g}"
        figures += [
            Figure(f"years from a held-out passage to its top {_K}{under}", "", (check.hits,)),
            Figure(f"share of random draws that lie as near{under}", "", (check.as_near,)),
        ]
    return [*figures, Figure("years to random passages", "", (check.random,))]


def _sweeps(index: wf.Index, passages: Sequence[Document]) -> list[Figure]:
    """How far does the ranking depend on the damping?"""
    asked = [_second_half(passage) for passage in passages]
    sweeps = [
        index.sweep_damping(prompt=query.prompt, completion=query.completion, k=_K)
        for query in asked
    ]
    return [
        Figure(
            f"damping {rows[0].damping:.3g}: {what}",
            "",
            tuple(float(getattr(row, kind)) for row in rows),
        )
        for rows in zip(*(sweep.rows for sweep in sweeps), strict=True)
        for kind, what in (("overlap", f"overlap of top {_K}s"), ("spearman", "Spearman"))
    ]


def _second_half(passage: Document) -> wf.Query:
    """The second half of a passage, given its first."""
    middle = passage.text.index(" ", len(passage.text) // 2)
    return wf.Query(passage.text[:middle], passage.text[middle:])


def _ask(index: wf.Index, passage: Document, damping: float | None = None) -> wf.Answer:
    query = _second_half(passage)
    return index.query(prompt=query.prompt, completion=query.completion, k=_K, damping=damping)


def _year(metadata: Mapping[str, object]) -> int:
    return int(str(metadata["year"]))


def _evenly(items: Sequence[_Item], count: int) -> list[_Item]:
    places: NDArray[np.int64] = np.arange(count) * len(items) // count
    return [items[place] for place in places]


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


if __name__ == "__main__":
    command(measure)()
