"""What is measured of an index when it is built: the background of cosines, the model's speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wherefrom.curvature.bases import gradients_of
from wherefrom.encoding.encoder import Encoder
from wherefrom.gradients.batches import Batch
from wherefrom.gradients.extractor import GradientExtractor, LayerPair
from wherefrom.gradients.fisher import true_gradients
from wherefrom.indexer.sources import Named, Source, disjoint_samples
from wherefrom.store import BackgroundRecord, DocumentTable

__all__ = ["LEVELS", "background", "encoded_queries", "seconds_per_document"]

LEVELS = (
    *(0.0, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5),
    *(0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 1.0),
)
"""Probabilities at which quantiles are kept."""

_QUERIES, _DOCUMENTS = 32, 256
_ENTRIES_PER_READ = 1 << 22
_TIMED = 5


class _Strongest:
    """For each query the document with the largest product so far, and its cosine."""

    def __init__(self, queries: int) -> None:
        self._products = np.full(queries, -np.inf)
        self._cosines = np.zeros(queries)

    def offer(self, products: NDArray[np.float64], cosines: NDArray[np.float64]) -> None:
        """Take in documents ``[query, document]``."""
        best = products.argmax(1)[:, None]
        product = np.take_along_axis(products, best, 1)[:, 0]
        better = product > self._products
        self._products[better] = product[better]
        self._cosines[better] = np.take_along_axis(cosines, best, 1)[better, 0]

    def cosines(self) -> NDArray[np.float64]:
        """Of the strongest, for each query that has any."""
        return np.asarray(self._cosines[np.isfinite(self._products)])


def background(
    documents: Named,
    encode: Callable[[NDArray[np.bool_]], NDArray[np.float64]],
    table: DocumentTable,
    seed: int,
) -> BackgroundRecord | None:
    """Cosines between random documents in the place of queries, and stored vectors.

    Pairs of equal documents are left out. ``None`` where there are none but these, or only vectors
    of zeros.

    Args:
        documents: Of the index.
        encode: Vectors of some documents in the place of queries, [q, dimension].
        table: Its stored vectors, all of which are read.
        seed: Of the sample.
    """
    asked, searched = disjoint_samples(documents, (_QUERIES, _DOCUMENTS), seed + 4)
    queries = encode(asked)
    own = table.rows(np.flatnonzero(asked)).content_hashes
    lengths = np.linalg.norm(queries, axis=1)
    sampled: list[NDArray[np.float64]] = []
    ends = {sign: _Strongest(len(queries)) for sign in (1, -1)}
    start = 0
    for rows in table.batches(max(1, _ENTRIES_PER_READ // table.layout.dimension)):
        reach = lengths[:, None] * rows.norms[None]
        other = np.array([[a != b for b in rows.content_hashes] for a in own]) & (reach > 0.0)
        products = queries @ rows.vectors.T
        cosines = np.divide(products, reach, out=np.zeros_like(reach), where=other)
        for sign, best in ends.items():
            signed = np.where(other, sign * products, -np.inf)
            best.offer(signed, cosines)
        here = searched[start : start + len(rows)]
        sampled.append(cosines[:, here][other[:, here]])
        start += len(rows)
    pairs = np.concatenate(sampled)
    highest, lowest = ends[1].cosines(), ends[-1].cosines()
    if not len(pairs) or not len(highest):
        return None
    return BackgroundRecord(
        pairs=len(pairs),
        queries=len(queries),
        documents=len(table),
        seed=seed,
        levels=LEVELS,
        quantiles=tuple(float(q) for q in np.quantile(pairs, LEVELS)),
        highest=tuple(np.sort(highest).tolist()),
        lowest=tuple(np.sort(lowest).tolist()),
    )


def encoded_queries(
    extractor: GradientExtractor, encoder: Encoder, batches: Iterable[Batch]
) -> NDArray[np.float64]:
    """Documents in the place of queries, [q, dimension].

    Args:
        extractor: Model, objective and layers.
        encoder: The index's.
        batches: The documents, shortened as :func:`~wherefrom.indexer.choice.query_batches` does.
    """
    with extractor.session():
        return np.concatenate([encoder.encode_query(extractor, one).vectors for one in batches])


def seconds_per_document(
    extractor: GradientExtractor, source: Source, positions: float, seed: int
) -> float:
    """How long a document's exact gradient takes, run alone.

    Args:
        extractor: Model, objective and layers.
        source: The corpus, a few of whose documents are run: the least time a position counts.
        positions: Of a document, on average.
        seed: Of their choice.
    """
    (chosen,) = disjoint_samples(source, (_TIMED,), seed + 6)
    (shard,) = source.shards(_TIMED, chosen)
    total = torch.zeros((), dtype=torch.float64, device=extractor.device)

    def use(pair: LayerPair, total: Tensor = total) -> None:
        total.add_(gradients_of(pair).double().sum())

    times = []
    with extractor.session():
        for i, length in enumerate(shard.examples.lengths):
            batch = shard.examples.batch(np.array([i]))
            started = time.perf_counter()
            true_gradients(extractor, batch, use)
            total.item()
            times.append((time.perf_counter() - started) / max(int(length), 1))
    return min(times) * positions
