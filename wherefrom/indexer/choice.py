"""The encoder of an index: what was asked for, or the best of what its budget allows, measured.

Candidates are compared on a sample of documents with other documents in the place of queries. The
one with the largest product of recall and correlation is taken, or with a fidelity asked for the
smallest that reaches it; what was tried is kept for the manifest.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wherefrom.curvature.fitted import FittedCurvature
from wherefrom.encoding.encoder import Encoder
from wherefrom.encoding.factory import make_encoder
from wherefrom.encoding.pca import fit_pca
from wherefrom.encoding.stages import Stages
from wherefrom.errors import WherefromError
from wherefrom.gradients.batches import Batch
from wherefrom.gradients.examples import batches
from wherefrom.gradients.extractor import GradientExtractor
from wherefrom.indexer.candidates import EncoderWish, budgets, candidates, lossless
from wherefrom.indexer.fidelity import Fidelity, among, measure, most_queries
from wherefrom.indexer.sources import Source, disjoint_samples
from wherefrom.store import ChoiceRecord, FidelityRecord, TriedRecord

__all__ = ["Chosen", "EncoderChoice", "query_batches"]

DEFAULT_BUDGET = 4096
QUERY_POSITIONS = 64
"""Documents that stand for queries are cut to so many positions: people ask about less."""

_SHARD = 256
_FEWEST, _MOST, _SHARE = 128, 512, 8
_ALIKE = 0.005
_TELLING = 32
_FEWEST_FOR_PCA = 512


@dataclass(frozen=True, slots=True)
class Chosen:
    """The encoder of an index.

    Attributes:
        stages: What it does.
        encoder: Fitted.
        bytes_per_document: Of a code, and a document's share of bases.
        fidelity: As measured; ``None`` for one that loses nothing.
        choice: What was tried, if anything was chosen.
        note: What to warn of, if anything.
    """

    stages: Stages
    encoder: Encoder
    bytes_per_document: float
    fidelity: FidelityRecord | None = None
    choice: ChoiceRecord | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class _Tried:
    stages: Stages
    encoder: Encoder
    bytes: float
    fidelity: Fidelity


class EncoderChoice:
    """Measures and chooses.

    Args:
        extractor: Model, objective and layers.
        curvature: Fitted.
        source: The corpus.
        wish: What was asked for of the encoder.
        budget: Bytes a document; by default 4096, and without limit where a fidelity is asked for.
        fidelity: Recall and correlation to reach.
        batch_size: Most documents that run together.
        progress: Called with the number of documents done and their total.
    """

    def __init__(
        self,
        extractor: GradientExtractor,
        curvature: FittedCurvature,
        source: Source,
        wish: EncoderWish,
        *,
        budget: int | None,
        fidelity: float | None,
        batch_size: int,
        progress: Callable[[int, int], None],
    ) -> None:
        self._extractor = extractor
        self._curvature = curvature
        self._source = source
        self._wish = wish
        self._asked_budget = budget
        self._fidelity = fidelity
        self._batch_size = batch_size
        self._progress = progress
        self._sizes = tuple(layer.size for layer in curvature.layers)
        count = len(source)
        documents = min(count, max(_FEWEST, min(_MOST, count // _SHARE)))
        queries = most_queries(self._sizes)
        for_pca = 0 if wish.pca is None else max(_FEWEST_FOR_PCA, 2 * wish.pca)
        self._documents, self._queries, self._for_pca = disjoint_samples(
            source, (documents, queries, for_pca), wish.seed + 2
        )

    def choose(self) -> Chosen:
        """The encoder.

        Raises:
            WherefromError: Nothing of what was asked for fits the budget.
        """
        budget = self._budget()
        if self._fidelity is None:
            whole = lossless(self._sizes, self._wish, budget)
            if whole is not None:
                return self._whole(whole)
            tried = self._tried(budget or 4 * sum(self._sizes))
            return self._chosen(_best(tried, int(self._documents.sum())), tried)
        every: list[_Tried] = []
        unfit: WherefromError | None = None
        for step in budgets(self._sizes, budget):
            if lossless(self._sizes, self._wish, step) is not None:
                break
            try:
                tried = self._tried(step, {one.stages for one in every})
            except WherefromError as error:
                unfit = error  # Too few bytes for what was asked for; the next step may do.
                continue
            every += tried
            reached = [one for one in tried if one.fidelity.worth >= self._fidelity]
            if reached:
                smallest = min(reached, key=lambda one: (one.bytes, -one.fidelity.worth))
                return self._chosen(smallest, every)
        whole = lossless(self._sizes, self._wish, budget or 4 * sum(self._sizes))
        if whole is not None:
            return self._whole(whole, every)
        if unfit is not None and not every:
            raise unfit
        best = max(every, key=lambda one: one.fidelity.worth)
        note = (
            f"no encoder tried reaches fidelity {self._fidelity}: {best.stages.describe()} with "
            f"{best.bytes:.0f} bytes a document reaches {best.fidelity.worth:.3f} and was taken"
        )
        return self._chosen(best, every, note)

    def _budget(self) -> int | None:
        """Bytes a document; ``None`` for no limit."""
        if self._asked_budget is not None or self._fidelity is not None:
            return self._asked_budget
        return None if self._wish.reduce == "none" else DEFAULT_BUDGET

    def _tried(self, budget: int, known: Collection[Stages] = ()) -> list[_Tried]:
        """All candidates of a budget that are not known yet, measured."""
        energies = self._curvature.expected_energy(0) is not None
        wanted = candidates(
            self._sizes, self._wish, budget, energies=energies, documents=len(self._source)
        )
        made = [(stages, self._encoder(stages)) for stages in wanted if stages not in known]
        if not made:
            return []
        total = int(self._documents.sum())
        found = measure(
            self._extractor,
            self._curvature,
            made,
            list(query_batches(self._source, self._queries)),
            self._counted(self._batches(self._documents), total),
        )
        return [
            _Tried(stages, encoder, self._bytes(stages, encoder), fidelity)
            for (stages, encoder), fidelity in zip(made, found, strict=True)
        ]

    def _encoder(self, stages: Stages) -> Encoder:
        if stages.pca is None:
            return make_encoder(self._curvature, stages)
        before = Stages(stages.reduce, stages.reduced, 32, rotate=False, seed=stages.seed)
        reducer = make_encoder(self._curvature, before)
        vectors: list[Tensor] = []
        with self._extractor.session():
            for batch in self._batches(self._for_pca):
                vectors.append(torch.from_numpy(reducer.encode(self._extractor, batch).vectors))
        return make_encoder(self._curvature, stages, fit_pca(torch.cat(vectors), stages.pca))

    def _bytes(self, stages: Stages, encoder: Encoder) -> float:
        return stages.code_bytes + encoder.basis_bytes / len(self._source)

    def _batches(self, mask: NDArray[np.bool_]) -> Iterator[Batch]:
        for shard in self._source.shards(_SHARD, mask):
            for _, batch in batches(shard.examples, max_documents=self._batch_size):
                yield batch

    def _counted(self, documents: Iterator[Batch], total: int) -> Iterator[Batch]:
        done = 0
        for batch in documents:
            yield batch
            done += len(batch)
            self._progress(done, total)

    def _whole(self, stages: Stages, tried: Sequence[_Tried] = ()) -> Chosen:
        """The encoder that loses nothing."""
        choice = self._record(tried, None) if tried else None
        encoder = make_encoder(self._curvature, stages)
        return Chosen(stages, encoder, float(stages.code_bytes), choice=choice)

    def _chosen(self, best: _Tried, tried: Sequence[_Tried], note: str | None = None) -> Chosen:
        fidelity = FidelityRecord(
            documents=int(self._documents.sum()),
            queries=int(self._queries.sum()),
            among=among(int(self._documents.sum())),
            recall=best.fidelity.recall,
            correlation=best.fidelity.correlation,
            noise=best.fidelity.noise,
            slope=best.fidelity.slope,
        )
        record = self._record(tried, best)
        return Chosen(best.stages, best.encoder, best.bytes, fidelity, record, note)

    def _record(self, tried: Sequence[_Tried], best: _Tried | None) -> ChoiceRecord:
        return ChoiceRecord(
            bytes_per_document=self._asked_budget,
            fidelity=self._fidelity,
            documents=int(self._documents.sum()),
            queries=int(self._queries.sum()),
            tried=tuple(
                TriedRecord(
                    encoder=one.stages.describe(),
                    bytes_per_document=one.bytes,
                    recall=one.fidelity.recall,
                    correlation=one.fidelity.correlation,
                    noise=one.fidelity.noise,
                    chosen=one is best,
                )
                for one in tried
            ),
        )


def query_batches(source: Source, mask: NDArray[np.bool_]) -> Iterator[Batch]:
    """Documents in the place of queries: shortened, and one by one."""
    for shard in source.shards(_SHARD, mask):
        examples = shard.examples.shortened(QUERY_POSITIONS)
        for i in range(len(shard.documents)):
            yield examples.batch(np.array([i]))


def _best(tried: Sequence[_Tried], documents: int) -> _Tried:
    """The best balance; among those that are alike the smallest, then the first.

    A sample of a few documents tells nothing: then it is the largest.
    """
    if documents < _TELLING:
        return max(tried, key=lambda one: one.bytes)
    most = max(one.fidelity.balance for one in tried)
    alike = [one for one in tried if one.fidelity.balance >= most - _ALIKE]
    return min(alike, key=lambda one: one.bytes)
