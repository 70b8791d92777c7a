"""An index against what it stands for: stored scores and answers beside uncompressed ones.

The uncompressed scores come from running every document through the model again, with the index's
own curvature (``index.scores(tier="exact")``). Whether *those* are true only retraining can tell.

The encoder is linear, so a query that is zero in all layers but one has the stored scores of that
layer: which layers a small vector speaks for is seen by setting them against the exact ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from wherefrom.curvature.bases import gradients_of
from wherefrom.curvature.memory import require_memory
from wherefrom.errors import EvaluationError
from wherefrom.evaluation.evidence import Evidence, Figure, plain
from wherefrom.evaluation.retraining import random_halves
from wherefrom.evaluation.statistics import (
    Estimate,
    Scores,
    mean_estimate,
    pearson,
    rank_correlations,
)
from wherefrom.gradients.extractor import LayerPair
from wherefrom.gradients.fisher import true_gradients
from wherefrom.maintenance.index import Index
from wherefrom.query.answer import Answer
from wherefrom.query.documents import document_batches, row_blocks
from wherefrom.query.questions import Queries, Question

__all__ = ["index_fidelity", "layer_scores"]

_SIGNS = (1.0, -1.0)
_TOP, _AMONG = 10, (10, 100)
_SAME = 1e-5
_SOLVED_BYTES = 1 << 30
_ENCODED_BYTES = 1 << 28
# Exact and stored scores of every layer, and those of the queries at work on their way there.
_PARTS = 3


def index_fidelity(
    index: Index,
    queries: Queries,
    *,
    k: Sequence[int] | None = None,
    top: int | None = None,
    subsets: int = 200,
    by_layer: bool = True,
    draws: int = 1000,
    seed: int = 0,
) -> Evidence:
    """How well an index stands for uncompressed influence.

    Figures of ``stored`` scores against exact ones, each the mean over queries: ``Spearman``,
    ``Pearson``, ``slope`` (of stored on exact ones, through the origin), ``sums over halves`` (rank
    correlation of the sums over random halves of the documents: what retraining could tell apart)
    and ``top 10 in k`` (share of the exact top 10 of both signs among the k best stored ones).
    Those of ``reranked`` answers, whose ``max(k)`` best documents of each sign were scored anew:
    ``top 10 held``, ``lists equal`` (both lists, in order), and ``recall claimed`` by their
    certificates. And of each layer ``Pearson`` of its part of the stored scores, and the ``share
    of variance`` that its part has of the exact ones.

    Args:
        index: Opened with its model.
        queries: Text queries, sets of them, or ``(inputs, targets)`` tensors; others than the
            index was chosen by.
        k: Among how many of the best stored documents the exact top is looked for; by default 10
            and 100, as far as there are so many documents.
        top: How many documents of each sign are the exact top; by default 10, or half of fewer
            than 20 documents.
        subsets: Random halves.
        by_layer: Whether to look at layers; stored vectors are read once more, and a solution for
            each layer and query is held, as are the scores of each layer.
        draws: Of the bootstrap over queries; one query has no interval.
        seed: Of halves and draws.

    Raises:
        EvaluationError: There are no queries, or fewer documents than ``top`` or ``k``.
        CurvatureError: The layers' scores do not fit in memory.
        ModelError: The index was opened without its model.
        QueryError: A query is not well formed.
    """
    asked = index.questions(queries)
    if top is None:
        top = min(_TOP, max(1, len(index) // 2))
    if k is None:
        k = tuple(count for count in _AMONG if top <= count <= len(index)) or (top,)
    _require(len(asked), len(index), k, top)
    figures: list[Figure] = []
    if by_layer:
        parts, encoded = layer_scores(index, asked)
        exact: Scores = parts.sum(0)
        figures = _of_layers(index, parts, encoded, draws, seed)
    else:
        exact = index.scores(queries, tier="exact")
    stored = index.scores(queries, tier="stored")
    halves = random_halves(len(index), subsets, seed).astype(np.float64)
    per_query: dict[tuple[str, str], ArrayLike] = {
        ("stored", "Spearman"): rank_correlations(exact.T, stored.T),
        ("stored", "Pearson"): [pearson(a, b) for a, b in zip(exact, stored, strict=True)],
        ("stored", "slope"): _slopes(exact, stored),
        ("stored", "sums over halves"): rank_correlations(halves @ exact.T, halves @ stored.T),
    }
    for count in k:
        per_query["stored", f"top {top} in {count}"] = [
            _held(a, b, top, count) for a, b in zip(exact, stored, strict=True)
        ]
    answers = index.answers(queries, k=top, rerank="recompute", candidates=max(*k, top))
    places = {doc_id: place for place, doc_id in enumerate(index.doc_ids())}
    lists = [_lists(answer, own, top, places) for answer, own in zip(answers, exact, strict=True)]
    per_query["reranked", f"top {top} held"] = [held for held, _ in lists]
    per_query["reranked", "lists equal"] = [float(equal) for _, equal in lists]
    per_query["reranked", "recall claimed"] = [_claimed(answer) for answer in answers]
    means = [
        Figure.of(method, name, _mean(values, draws, seed))
        for (method, name), values in per_query.items()
    ]
    encoder = index.manifest.encoder
    return Evidence(
        "fidelity",
        f"{index.manifest.model.architecture}, {index.location.name}",
        (*means, *figures),
        {
            "documents": len(index),
            "queries": len(asked),
            "encoder": encoder.name,
            "bytes_per_document": encoder.bytes_per_document,
            "curvature": index.manifest.curvature.kind,
            "damping": index.manifest.curvature.damping,
            "subsets": subsets,
            "same_within": _SAME,
            "bootstrap_draws": draws,
            "seed": seed,
        },
        _notes(len(index), k, top, per_query["reranked", "lists equal"]),
        {"per_query": plain({f"{m}, {n}": np.asarray(v) for (m, n), v in per_query.items()})},
    )


def layer_scores(
    index: Index, asked: Sequence[Question]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Each layer's part of every score, exact and stored.

    Args:
        index: Opened with its model.
        asked: Questions, from ``index.questions(queries)``.

    Returns:
        Both float64 ``[layer, query, document]``, nats per added copy. The exact ones add up to
        ``index.scores(queries, tier="exact")``, the stored ones to those of ``tier="stored"``.

    Raises:
        CurvatureError: They do not fit in memory.
    """
    extractor = index.asker.extractor
    size = sum(layer.size for layer in extractor.layers)
    # Solutions and their copies in the order of weights.
    at_once = max(1, _SOLVED_BYTES // (16 * size))
    shape = (len(extractor.layers), len(asked), len(index))
    require_memory(
        _PARTS * 8 * math.prod(shape),
        f"scores of {shape[0]} layers, {shape[1]} queries and {shape[2]:,} documents",
        "ask fewer queries, or leave layers out (by_layer=False, --no-layers)",
        torch.device("cpu"),
    )
    exact, stored = np.zeros(shape), np.zeros(shape)
    for start in range(0, len(asked), at_once):
        chosen = slice(start, start + at_once)
        solved = _solved(index, asked[chosen])
        exact[:, chosen] = _exact_parts(index, solved)
        stored[:, chosen] = _stored_parts(index, solved)
    return exact * index.manifest.scale, stored * index.manifest.scale


def _solved(index: Index, asked: Sequence[Question]) -> list[Tensor]:
    """``(G + lambda)^-1 grad f``, of each layer ``[query, d_out, d_in]`` in its coordinates."""
    extractor, curvature = index.asker.extractor, index.curvature
    coordinates = curvature.coordinates()
    solved = [
        torch.zeros(len(asked), *layer.shape, dtype=torch.float64, device=extractor.device)
        for layer in extractor.layers
    ]
    with extractor.session():
        for row, question in enumerate(asked):
            for weight, batch in question.terms:

                def keep(pair: LayerPair, row: int = row, weight: float = weight) -> None:
                    inverse = curvature.solve(pair.layer, coordinates(pair))
                    solved[pair.layer][row] += weight * inverse.sum(0)

                true_gradients(extractor, batch, keep)
    return solved


def _exact_parts(index: Index, solved: Sequence[Tensor]) -> NDArray[np.float64]:
    extractor = index.asker.extractor
    raw = [index.curvature.raw(layer, part).flatten(1) for layer, part in enumerate(solved)]
    found = np.zeros((len(solved), len(solved[0]), len(index)))
    with extractor.session():
        for positions, batch in document_batches(index.table, extractor):

            def add(pair: LayerPair, positions: NDArray[np.int64] = positions) -> None:
                gradients = gradients_of(pair).double().flatten(1)
                products = raw[pair.layer] @ gradients.T
                found[pair.layer][:, positions] += products.cpu().numpy()

            true_gradients(extractor, batch, add)
    return found


def _stored_parts(index: Index, solved: Sequence[Tensor]) -> NDArray[np.float64]:
    """A few layers at a time: vectors of all would outgrow what they are made of."""
    encoder = index.asker.encoder
    found = np.zeros((len(solved), len(solved[0]), len(index)))
    nothing = [torch.zeros_like(part) for part in solved]
    at_once = max(1, _ENCODED_BYTES // (8 * len(solved[0]) * encoder.dimension))
    for start in range(0, len(solved), at_once):
        layers = range(start, min(start + at_once, len(solved)))
        vectors = np.stack(
            [
                encoder.encode_solved([*nothing[:one], solved[one], *nothing[one + 1 :]])
                for one in layers
            ]
        )
        for positions, rows in row_blocks(index.table):
            found[start : layers.stop][:, :, positions] = vectors @ rows.vectors.T
    return found


def _require(queries: int, documents: int, k: Sequence[int], top: int) -> None:
    if not queries:
        raise EvaluationError("no query to compare by; give at least one, better twenty")
    if not 1 <= top <= documents:
        raise EvaluationError(f"top={top} of {documents} documents; give 1 to {documents}")
    if not len(k) or min(k) < top or max(k) > documents:
        raise EvaluationError(
            f"k={list(k)}: the exact top {top} is looked for among the k best of {documents} "
            f"documents; give numbers from {top} to {documents}"
        )


def _of_layers(
    index: Index,
    exact: NDArray[np.float64],
    stored: NDArray[np.float64],
    draws: int,
    seed: int,
) -> list[Figure]:
    """Figures of each layer."""
    whole = exact.sum(0) - exact.sum(0).mean(1, keepdims=True)
    variance = np.square(whole).sum(1)
    figures = []
    for layer, own, found in zip(index.asker.extractor.layers, exact, stored, strict=True):
        alike = [pearson(a, b) for a, b in zip(own, found, strict=True)]
        together = ((own - own.mean(1, keepdims=True)) * whole).sum(1)
        share = np.divide(together, variance, out=np.zeros_like(variance), where=variance > 0.0)
        figures += [
            Figure.of(layer.name, "Pearson", _mean(alike, draws, seed)),
            Figure.of(layer.name, "share of variance", _mean(share, draws, seed)),
        ]
    return figures


def _mean(values: ArrayLike, draws: int, seed: int) -> Estimate | float:
    """Over queries; of one query there is no interval."""
    observed = np.asarray(values, np.float64)
    if len(observed) == 1:
        return float(observed[0])
    return mean_estimate(observed, draws=draws, seed=seed)


def _slopes(exact: Scores, stored: Scores) -> NDArray[np.float64]:
    """Least squares through the origin, of each query; 1 where all exact scores are zero."""
    squares = np.square(exact).sum(1)
    slopes: NDArray[np.float64] = np.divide(
        (exact * stored).sum(1), squares, out=np.ones_like(squares), where=squares > 0.0
    )
    return slopes


def _held(exact: NDArray[np.float64], stored: NDArray[np.float64], top: int, count: int) -> float:
    """Share of the exact top of both signs among the best stored ones."""
    shares = []
    for sign in _SIGNS:
        best = np.argsort(-sign * exact, kind="stable")[:top]
        found = np.argsort(-sign * stored, kind="stable")[:count]
        shares.append(np.isin(best, found).mean())
    return float(np.mean(shares))


def _lists(
    answer: Answer, exact: NDArray[np.float64], top: int, places: dict[str, int]
) -> tuple[float, bool]:
    """How much of the exact top an answer's lists hold, and whether they are it, in order.

    Scores that differ by rounding alone are one score.
    """
    same = _SAME * float(np.abs(exact).max())
    held, equal = [], True
    for sign, hits in zip(_SIGNS, (answer.proponents, answer.opponents), strict=True):
        signed = sign * exact
        wanted = np.sort(signed[signed > same])[::-1][:top]
        listed = signed[[places[hit.doc_id] for hit in hits]][: len(wanted)]
        equal = equal and len(listed) == len(wanted) and bool((abs(listed - wanted) <= same).all())
        if len(wanted):
            held.append((listed >= wanted[-1] - same).sum() / len(wanted))
    return float(np.mean(held)) if held else 1.0, equal


def _claimed(answer: Answer) -> float:
    certificate = answer.certificate
    return 1.0 if certificate.recall is None else certificate.recall.estimate


def _notes(documents: int, k: Sequence[int], top: int, equal: ArrayLike) -> tuple[str, ...]:
    notes = [
        f"{count} of {documents} documents hold {count / documents:.0%} of any list by chance."
        for count in k
        if count > documents // 4
    ]
    different = int((np.asarray(equal) < 1.0).sum())
    if different:
        notes.append(
            f"{different} of {len(np.asarray(equal))} reranked answers differ from the exact top "
            f"{top}; ask with more candidates."
        )
    return tuple(notes)
