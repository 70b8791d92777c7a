"""Scores from the codes of many encoders beside the uncompressed ones, for one subject.

Documents run through the model once: their whitened gradients are encoded by all encoders together
and stored vectors are multiplied with the queries batch by batch, so that only scores are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.lds_subjects import Subject
from benchmarks.logra import ProjectedGradients, Projections
from wherefrom.curvature.ekfac import EKFAC
from wherefrom.curvature.fitted import FittedCurvature
from wherefrom.encoding.factory import make_encoder
from wherefrom.encoding.stages import Stages
from wherefrom.encoding.together import encode_together
from wherefrom.evaluation.lds import datamodelling_scores
from wherefrom.evaluation.retraining import Outcomes, random_halves
from wherefrom.evaluation.statistics import spearman
from wherefrom.gradients.extractor import LayerPair
from wherefrom.gradients.fisher import PseudoGradients, true_gradients
from wherefrom.indexer.candidates import EncoderWish
from wherefrom.indexer.choice import EncoderChoice
from wherefrom.records import Bits
from wherefrom.store.quantise import quantise

__all__ = ["Measured", "measure_subject"]

Scores = NDArray[np.float64]

_SKETCH_BITS: tuple[Bits, ...] = (1, 2, 4, 8)
_ENERGY_BITS: tuple[Bits, ...] = (1, 2, 4)
_PARTS = (2, 4, 8)
_BASELINES: dict[str, Projections] = {"logra": "random", "logra-pca": "largest"}
_TOP = 10
_TOGETHER = 16
_HALVES = 100


@dataclass(frozen=True, slots=True)
class Measured:
    """One encoder at one budget.

    Attributes:
        encoder: In words.
        family: ``sketch``, ``sketch of part``, ``energy``, ``none``, ``random``, ``logra`` (random
            projections), ``logra-pca`` or ``uncompressed``.
        bits: Of an entry.
        bytes: Of a document.
        chosen: Whether the builder takes this one at its budget.
        lds: Linear datamodelling score, mean over queries; ``None`` without retrainings.
        sums: Rank correlation of sums of scores over random halves with the uncompressed sums.
        spearman: Rank correlation of scores with the uncompressed ones.
        top50: Share of the uncompressed top 10 proponents among the encoded top 50.
        top100: The same among the top 100.
        opponents100: The same of opponents.
    """

    encoder: str
    family: str
    bits: int
    bytes: int
    chosen: bool
    lds: float | None
    sums: float
    spearman: float
    top50: float
    top100: float
    opponents100: float

    @property
    def quality(self) -> float:
        """The linear datamodelling score, or else ``sums`` in its place."""
        return self.sums if self.lds is None else self.lds


def _within(budget: int, weights: int, seed: int) -> list[Stages]:
    """Every encoder that fills a budget, the ``random`` baseline included.

    Args:
        budget: Bytes of a document.
        weights: Of all layers.
        seed: Of everything random.
    """
    found = []
    for bits in _SKETCH_BITS:
        entries = 8 * budget // bits
        if entries >= weights:
            found.append(Stages("none", weights, bits, seed=seed))
            continue
        found.append(Stages("sketch", entries, bits, seed=seed))
        if bits in _ENERGY_BITS:
            found.append(Stages("energy", entries, bits, seed=seed))
        for part in (weights // of for of in _PARTS):
            if bits == 1 and part > entries:
                found.append(Stages("sketch", entries, bits, sketched=part, seed=seed))
    found.append(Stages("random", min(budget // 2, weights), 16, rotate=False, seed=seed))
    return found


def measure_subject(
    subject: Subject, budgets: Sequence[int], seed: int
) -> dict[int, list[Measured]]:
    """Measure the uncompressed scores, and every encoder and baseline at every budget.

    Args:
        subject: Model, documents, queries, retrainings.
        budgets: Bytes of a document.
        seed: Of everything random.

    Returns:
        By budget; the uncompressed scores alone under 0.
    """
    curvature = EKFAC().fit(
        PseudoGradients(
            subject.extractor,
            lambda: (batch for _, batch in subject.document_batches()),
            subject.fisher,
            seed=seed,
        ),
        documents=len(subject.source),
    )
    weights = sum(layer.size for layer in curvature.layers)
    chosen = {budget: _chosen(subject, curvature, budget, seed) for budget in budgets}
    within = {
        budget: [
            *_within(budget, weights, seed),
            chosen[budget],
        ]
        for budget in budgets
    }
    run = _Run(subject, curvature, list(dict.fromkeys(chain(*within.values()))), budgets, seed)
    run.ask()
    run.score()
    judge = _Judge(subject, run.exact, seed)
    result = {0: [judge.measured("uncompressed", "uncompressed", 32, 4 * weights, run.exact)]}
    for budget, encoders in within.items():
        result[budget] = [
            judge.measured(
                one.describe(),
                one.reduce if one.sketched is None else "sketch of part",
                one.bits,
                one.code_bytes,
                run.encoded[one],
                chosen=one == chosen[budget],
            )
            for one in dict.fromkeys(encoders)
        ]
        result[budget] += [
            judge.best_damping(name, run.baselines[budget, name]) for name in _BASELINES
        ]
    return result


def _chosen(subject: Subject, curvature: FittedCurvature, budget: int, seed: int) -> Stages:
    """The encoder that a build takes for this budget."""
    choice = EncoderChoice(
        subject.extractor,
        curvature,
        subject.source,
        EncoderWish("auto", None, None, seed),
        budget=budget,
        fidelity=None,
        batch_size=_TOGETHER,
        progress=lambda done, total: None,
    )
    return choice.choose().stages


class _Judge:
    """Compares scores with the truth and with the uncompressed ones."""

    def __init__(self, subject: Subject, exact: Scores, seed: int) -> None:
        self._retrainings = subject.retrainings
        self._exact = exact
        halves = random_halves(exact.shape[1], _HALVES, seed)
        self._sums = Outcomes(halves, (halves.astype(np.float64) @ exact.T)[:, None])

    def measured(
        self,
        encoder: str,
        family: str,
        bits: int,
        size: int,
        scores: Scores,
        *,
        chosen: bool = False,
    ) -> Measured:
        """One encoder's figures."""
        lds = None
        if self._retrainings is not None:
            lds = float(datamodelling_scores(scores, self._retrainings).mean())
        pairs = zip(scores, self._exact, strict=True)
        return Measured(
            encoder,
            family,
            bits,
            size,
            chosen,
            lds,
            float(datamodelling_scores(scores, self._sums).mean()),
            float(np.mean([spearman(a, b) for a, b in pairs])),
            _top_among(self._exact, scores, 50),
            _top_among(self._exact, scores, 100),
            _top_among(-self._exact, -scores, 100),
        )

    def best_damping(self, name: str, gradients: ProjectedGradients) -> Measured:
        """A baseline under the damping that suits it best."""
        tried = [
            self.measured(f"{name}, damping {damping:g}, fp16", name, 16, gradients.bytes, scores)
            for damping, scores in gradients.scores().items()
        ]
        return max(tried, key=lambda row: row.quality)


class _Run:
    """Documents and queries of a subject under all encoders.

    Attributes:
        exact: Uncompressed scores, ``[query, document]``, not divided by N.
        encoded: The same from stored vectors, for each encoder.
        baselines: Projected gradients by budget and kind.
    """

    def __init__(
        self,
        subject: Subject,
        curvature: FittedCurvature,
        stages: Sequence[Stages],
        budgets: Sequence[int],
        seed: int,
    ) -> None:
        self._subject = subject
        self._curvature = curvature
        documents, queries = len(subject.documents.lengths), len(subject.queries.lengths)
        # Encoders that differ in bits alone share their vectors.
        self._vectors_of: dict[Stages, list[Stages]] = {}
        for one in stages:
            self._vectors_of.setdefault(replace(one, bits=32), []).append(one)
        self._encoders = [make_encoder(curvature, whole) for whole in self._vectors_of]
        shapes = [layer.shape for layer in curvature.layers]
        self.baselines = {
            (budget, name): ProjectedGradients(shapes, budget, kind, documents, queries, seed)
            for budget in budgets
            for name, kind in _BASELINES.items()
        }
        self.exact: Scores = np.zeros((queries, documents))
        self.encoded: Mapping[Stages, Scores] = {
            one: np.zeros((queries, documents)) for one in stages
        }
        self._psi: list[Tensor] = []
        self._asked: list[Scores] = []

    def ask(self) -> None:
        """Run the queries and precondition them."""
        curvature, extractor = self._curvature, self._subject.extractor
        coordinates = curvature.coordinates()
        solved = [
            torch.zeros(len(self.exact), *layer.shape, dtype=torch.float64)
            for layer in curvature.layers
        ]
        with extractor.session():
            for positions, batch in self._subject.query_batches():

                def keep(pair: LayerPair, rows: NDArray[np.int64] = positions) -> None:
                    gradients = coordinates(pair)
                    solved[pair.layer][rows] = curvature.solve(pair.layer, gradients)
                    for baseline in self.baselines.values():
                        baseline.ask(pair.layer, rows, gradients)

                true_gradients(extractor, batch, keep)
        self._psi = [
            (part / curvature.scale(layer)).flatten(1).float() for layer, part in enumerate(solved)
        ]
        self._asked = [encoder.encode_solved(solved) for encoder in self._encoders]

    def score(self) -> None:
        """Run the documents, once."""
        curvature = self._curvature
        unscaled = [curvature.scale(layer).reciprocal().float() for layer in range(len(self._psi))]
        shapes = [layer.shape for layer in curvature.layers]
        with self._subject.extractor.session():
            for positions, batch in self._subject.document_batches(_TOGETHER):

                def whitened(layer: int, phi: Tensor, rows: NDArray[np.int64] = positions) -> None:
                    self.exact[:, rows] += (self._psi[layer] @ phi.T).double().numpy()
                    if self.baselines:
                        gradients = phi.reshape(-1, *shapes[layer]) * unscaled[layer]
                        for baseline in self.baselines.values():
                            baseline.add(layer, rows, gradients)

                vectors = encode_together(self._encoders, self._subject.extractor, batch, whitened)
                parts = zip(vectors, self._asked, self._vectors_of.values(), strict=True)
                for found, asked, wanted in parts:
                    for one in wanted:
                        stored = quantise(found, one.bits).vectors
                        self.encoded[one][:, positions] = asked @ stored.T


def _top_among(truth: Scores, scores: Scores, among: int) -> float:
    """Share of the uncompressed top 10 among the first of the encoded, mean over queries."""
    best = np.argsort(-truth, 1, kind="stable")[:, :_TOP]
    found = np.argsort(-scores, 1, kind="stable")[:, :among]
    return float(np.mean([np.isin(a, b).mean() for a, b in zip(best, found, strict=True)]))
