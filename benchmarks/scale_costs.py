"""What a build and a search are made of, measured piece by piece: the input of the cost model.

Rates of this machine (products of matrices, eigendecompositions, the store, digests), and three
builds of growing width, phase by phase, with the bare forward and backward pass of the same batches
beside them. All in CPU seconds of one thread. :mod:`benchmarks.scale_model` takes the rates, and is
held against the builds.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import wherefrom as wf
from benchmarks.figures import Figure, Report, command, expect
from benchmarks.workload import demo_passages, random_llama
from wherefrom.demo.model import RECIPE, Recipe, train_tokenizer
from wherefrom.gradients.examples import TextExamples, batches
from wherefrom.gradients.extractor import GradientExtractor
from wherefrom.gradients.fisher import true_gradients
from wherefrom.gradients.layers import select_layers
from wherefrom.query.scan import Candidates
from wherefrom.query.selection import merged
from wherefrom.records import Document
from wherefrom.store import SCAN_DIRECTORY, DocumentTable, ScanCopy, file_sha256
from wherefrom.store.quantise import quantise

__all__ = ["RECIPES", "measure"]

RECIPES = {
    "small": (replace(RECIPE, vocabulary=1024, width=96, feed_forward=256, layers=3), 120),
    "middle": (replace(RECIPE, vocabulary=1024, width=192, feed_forward=512, layers=3), 80),
    "large": (replace(RECIPE, vocabulary=1024, width=384, feed_forward=1024, layers=3), 40),
}
"""Models whose builds are timed, and on how many documents."""

_WIDTHS = (512, 1024, 2048, 4096)
_TOKENS = 512
_STORED = 4096
"""Bytes of a row that the store is timed with."""


class Stopwatch:
    """CPU seconds of the phases of a build, as its progress tells them."""

    def __init__(self) -> None:
        self.phases: dict[str, float] = {}
        self._before = time.process_time()

    def __call__(self, phase: str, done: int, total: int | None) -> None:
        """Count what went by since the last call to this phase."""
        now = time.process_time()
        self.phases[phase] = self.phases.get(phase, 0.0) + now - self._before
        self._before = now


def measure(*, quick: bool) -> Report:
    """Measure rates, then builds."""
    figures = [
        *_products(_WIDTHS[:2] if quick else _WIDTHS),
        *_decompositions(_WIDTHS[:2] if quick else _WIDTHS),
        *_store(2_000 if quick else 50_000),
        *_merges(100 if quick else 1000),
    ]
    builds = {
        name: _build(recipe, 24 if quick else documents)
        for name, (recipe, documents) in RECIPES.items()
    }
    for name, build in builds.items():
        ratio = sum(build["seconds"].values()) / build["bare_seconds"]
        figures.append(Figure(f"{name} model: build / bare pass", "×", (ratio,)))
    return Report(tuple(figures), ("every document is indexed",), {"builds": builds, "threads": 1})


@contextmanager
def _timed(taken: list[float]) -> Iterator[None]:
    started = time.process_time()
    yield
    taken.append(time.process_time() - started)


def _seconds(run: Callable[[], object], rounds: int = 3) -> tuple[float, ...]:
    taken: list[float] = []
    for _ in range(rounds):
        with _timed(taken):
            run()
    return tuple(taken)


def _products(widths: tuple[int, ...]) -> Iterator[Figure]:
    """Rotating the tokens of a document: ``[tokens, d] @ [d, d]``."""
    for width in widths:
        rotate = partial(torch.mm, torch.randn(_TOKENS, width), torch.randn(width, width))
        rotate()
        rates = tuple(2e-9 * _TOKENS * width * width / s for s in _seconds(rotate))
        yield Figure(f"product of width {width}, float32", "GFLOP/s", rates)


def _decompositions(widths: tuple[int, ...]) -> Iterator[Figure]:
    for width in widths:
        half = torch.randn(width, width, dtype=torch.float64)
        taken = _seconds(partial(torch.linalg.eigh, half @ half.T), 1 if width >= 2048 else 3)
        yield Figure(f"eigendecomposition of width {width}, float64", "s", taken)


def _store(rows: int) -> Iterator[Figure]:
    """The documents table and the scan copy: what is written a second, and what a row takes."""
    vectors = np.random.default_rng(0).standard_normal((1000, 8 * _STORED)).astype(np.float32)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = DocumentTable.create(folder, metadata={}, dimension=8 * _STORED, bits=1)
        quantising = _seconds(partial(quantise, vectors, 1))
        writing: list[float] = []
        count = 0
        while count < rows:
            documents = [Document(f"document-{count + i:09d}") for i in range(len(vectors))]
            norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
            with _timed(writing):
                table.append(
                    documents, vectors, norms=norms, tokens=np.ones(len(vectors), np.int64)
                )
            count += len(vectors)
        copying: list[float] = []
        with _timed(copying):
            record = ScanCopy.build(table, folder / SCAN_DIRECTORY)
        hashing: list[float] = []
        codes = next((folder / SCAN_DIRECTORY).rglob("codes.npy"))
        with _timed(hashing):
            file_sha256(codes)
        opened = ScanCopy.open(folder / SCAN_DIRECTORY, record, table.live, verify=False)
        expect(len(opened) == count, "all rows are in the scan copy")
        table_bytes = _bytes_under(folder / "documents.lance") / count - _STORED
        scan_bytes = _bytes_under(folder / SCAN_DIRECTORY) / count - _STORED
        hashed = codes.stat().st_size
    each = len(vectors) * _STORED * 1e-6
    yield Figure("quantising rows to 1 bit", "MB/s", tuple(each / s for s in quantising))
    yield Figure("quantising and writing rows", "MB/s", tuple(each / s for s in writing))
    yield Figure(
        "writing the scan copy", "MB/s", tuple(count * _STORED * 1e-6 / s for s in copying)
    )
    yield Figure("SHA-256", "MB/s", tuple(hashed * 1e-6 / s for s in hashing))
    yield Figure("documents table: a row beside code and text", "bytes", (table_bytes,))
    yield Figure("scan copy: a row beside its code", "bytes", (scan_bytes,))


def _bytes_under(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _merges(shards: int) -> Iterator[Figure]:
    """Merging the candidates that shards send of one query and direction."""
    random = np.random.default_rng(0)
    parts = []
    for shard in range(shards):
        estimate = np.sort(random.standard_normal(110))
        ordinals = np.arange(110) + 1000 * shard
        parts.append(Candidates(ordinals, estimate, np.full(110, 1e-3), float(estimate[0])))
    taken = _seconds(lambda: merged(parts, 100))
    yield Figure(
        f"merging {shards} shards, one query and sign", "ms", tuple(1e3 * s for s in taken)
    )


def _build(recipe: Recipe, count: int) -> dict[str, Any]:
    """A build, phase by phase, and a bare pass over the same documents."""
    documents = demo_passages(count)
    tokenizer = train_tokenizer(documents, recipe)
    model = random_llama(len(tokenizer), recipe)
    objective = wf.CausalLM(tokenizer)
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        index = wf.build(
            model, documents, Path(folder) / "index", objective=objective, progress=watch
        )
        expect(len(index) == len(documents), "every document is indexed")
        tokens = index.manifest.corpus.tokens + len(documents)  # The first of each is not scored.
        record = index.manifest.encoder
    return {
        "width": recipe.width,
        "feed_forward": recipe.feed_forward,
        "layers": recipe.layers,
        "vocabulary": len(tokenizer),
        "documents": len(documents),
        "tokens": tokens,
        "bytes_per_document": record.bytes_per_document,
        "encoder": record.name,
        "bare_seconds": min(_bare(model, objective, documents)),
        "seconds": watch.phases,
    }


def _bare(
    model: torch.nn.Module, objective: wf.CausalLM, documents: list[Document]
) -> tuple[float, ...]:
    """Forward and backward to the layers' outputs; nobody looks at the gradients."""
    extractor = GradientExtractor(model, objective, select_layers(model))
    held = [batch for _, batch in batches(TextExamples.of(documents, objective), max_documents=64)]

    def run() -> None:
        with extractor.session():
            for batch in held:
                true_gradients(extractor, batch, lambda pair: None)

    return _seconds(run)


if __name__ == "__main__":
    command(measure)()
