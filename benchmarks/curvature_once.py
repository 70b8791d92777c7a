"""Fits curvatures on one model, one after the other, and asks them, for the curvatures benchmark.

Prints JSON, one object a curvature: times, memory, sizes, and the scores of all documents. The
memory is right for the first one only: the peak of a process never falls.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.curvature_subjects import Subject, open_subject
from benchmarks.fitting import drop, measured_fit, seconds, stored_bytes
from wherefrom.curvature.fitted import Curvature, FittedCurvature
from wherefrom.curvature.kinds import make_curvature
from wherefrom.curvature.lissa import LiSSA
from wherefrom.encoding.encoder import EncodedQuery, Encoder
from wherefrom.encoding.reduction import NoReduction
from wherefrom.errors import CurvatureError
from wherefrom.gradients.batches import Batch
from wherefrom.gradients.fisher import Fisher, PseudoGradients, default_fisher
from wherefrom.query.exact import exact_products, preconditioned
from wherefrom.query.questions import Question

__all__: list[str] = []

_LISSA_STEPS = 500
"""Of 10,000 that it takes at most by itself: a query would take minutes."""


def measured(kind: str, subject: Subject) -> dict[str, Any]:
    """Fit one curvature and use it; or the message with which it refused."""
    recipe: Curvature = make_curvature(kind)
    if kind == "lissa":
        recipe = LiSSA(most_iterations=_LISSA_STEPS)
    fisher: Fisher = "empirical"
    if recipe.labels == "model":
        fisher = default_fisher(subject.extractor, subject.queries[0])
    try:
        fit = measured_fit(recipe, subject.extractor, subject.batches, fisher)
    except CurvatureError as error:
        return {"kind": kind, "refused": str(error)}
    curvature = fit.curvature
    source = PseudoGradients(subject.extractor, lambda: subject.batches, fisher)
    sizes = tuple(layer.size for layer in curvature.layers)
    encoder = Encoder(curvature, NoReduction(sizes))
    exact = _exact(subject, curvature)
    encoding, vectors = _encoded(subject, encoder)
    asking, residual, products = _asked(subject, encoder, vectors)
    stored = products / subject.documents
    differences = np.abs(stored - exact[:, : len(vectors)]).max(1) / np.abs(exact).max(1)
    return {
        "kind": kind,
        "refused": None,
        "fisher": fisher if recipe.labels != "none" else None,
        "fit_wall": fit.wall,
        "fit_cpu": fit.cpu,
        "pass_cpu": seconds(partial(source.run, drop))[1],
        "peak_bytes": fit.peak_bytes,
        "stored_bytes": stored_bytes(curvature),
        "query_wall": [wall for wall, _ in asking],
        "query_cpu": [cpu for _, cpu in asking],
        "document_cpu": encoding / len(vectors),
        "worst_difference": float(differences.max()),
        "query_residual": residual,
        "report": dict(curvature.report),
        "scores": exact.tolist(),
        "blocks": list(sizes),
        "documents": subject.documents,
        "tokens": sum(_tokens(batch) for batch in subject.batches),
    }


def _exact(subject: Subject, curvature: FittedCurvature) -> NDArray[np.float64]:
    """Uncompressed scores ``[query, document]``, documents in the order of the batches."""
    asked = [Question(None, ((1.0, batch),)) for batch in subject.queries]
    solved = preconditioned(subject.extractor, curvature, asked)
    ends = np.cumsum([len(batch) for batch in subject.batches])
    places = [
        (np.arange(end - len(batch), end), batch)
        for end, batch in zip(ends, subject.batches, strict=True)
    ]
    products = exact_products(subject.extractor, solved, places, subject.documents)
    return products / subject.documents


def _encoded(subject: Subject, encoder: Encoder) -> tuple[float, NDArray[np.float32]]:
    """CPU seconds that the first batch of documents takes, and its vectors."""
    vectors: list[NDArray[np.float32]] = []
    with subject.extractor.session():
        _, cpu = seconds(
            lambda: vectors.append(encoder.encode(subject.extractor, subject.batches[0]).vectors)
        )
    return cpu, vectors[0]


def _asked(
    subject: Subject, encoder: Encoder, vectors: NDArray[np.float32]
) -> tuple[list[tuple[float, float]], float | None, NDArray[np.float64]]:
    """Wall and CPU seconds of each query, the largest residual, and products with vectors."""
    times: list[tuple[float, float]] = []
    encoded: list[EncodedQuery] = []
    with subject.extractor.session():
        encoder.encode_query(subject.extractor, subject.queries[0])
        for batch in subject.queries:
            times.append(seconds(partial(_ask, subject, encoder, batch, encoded)))
    # As an index does: vectors are float32, their products are summed in float64.
    asked = np.stack([query.vectors[0].astype(np.float32) for query in encoded])
    residuals = [query.residual for query in encoded if query.residual is not None]
    products = asked.astype(np.float64) @ vectors.astype(np.float64).T
    return times, max(residuals, default=None), products


def _ask(subject: Subject, encoder: Encoder, batch: Batch, into: list[EncodedQuery]) -> None:
    into.append(encoder.encode_query(subject.extractor, batch))


def _tokens(batch: Batch) -> int:
    return batch.inputs.numel() if batch.attended is None else int(batch.attended.sum())


def main() -> None:
    """``python -m benchmarks.curvature_once FOLDER KIND...``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("kinds", nargs="+")
    given = parser.parse_args()
    subject = open_subject(given.folder)
    print(json.dumps([measured(kind, subject) for kind in given.kinds]))


if __name__ == "__main__":
    main()
