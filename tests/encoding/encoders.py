"""Encoders over fitted curvatures of small models, and what they make of documents and queries."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from curvature.reference import case_of, extractor_of, pairs
from small_models import Case
from wherefrom.curvature import datainf
from wherefrom.curvature.fitted import FittedCurvature
from wherefrom.curvature.kinds import make_curvature
from wherefrom.encoding.encoder import Encoder
from wherefrom.encoding.factory import make_encoder
from wherefrom.encoding.stages import Stages
from wherefrom.gradients.batches import Batch

CASES = ["mlp-bias", "mlp-no-bias", "shared", "conv-groups", "llama-mlp", "gpt2-linear"]
KINDS = ["ekfac", "kfac", "diagonal", "identity", "datainf", "datainf-scanned", "lissa", "exact"]
WHITENING = [kind for kind in KINDS if kind not in ("datainf-scanned", "lissa")]
DAMPINGS = {"identity": 0.0, "lissa": 20.0}


@cache
def fit(name: str, kind: str = "ekfac") -> FittedCurvature:
    recipe = make_curvature(kind.removesuffix("-scanned"), DAMPINGS.get(kind))
    with pytest.MonkeyPatch.context() as patch:
        if kind.endswith("-scanned"):
            patch.setattr(datainf, "LARGEST_WHITENED_BLOCK", 0)
        return recipe.fit(pairs(case_of(name), "empirical"))


def sizes(fitted: FittedCurvature) -> tuple[int, ...]:
    return tuple(layer.size for layer in fitted.layers)


def whole(fitted: FittedCurvature) -> Encoder:
    return make_encoder(fitted, Stages("none", sum(sizes(fitted)), 32, rotate=False))


SKETCHED = Stages("sketch", 24, 8, rotate=False, seed=5)


def sketched(fitted: FittedCurvature) -> Encoder:
    return make_encoder(fitted, SKETCHED)


def encode(case: Case, encoder: Encoder, rows: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Vectors and norms of documents."""
    extractor = extractor_of(case)
    with extractor.session():
        encoded = encoder.encode(extractor, case.batch(rows))
    return encoded.vectors, encoded.norms


def ask(
    case: Case, encoder: Encoder, batch: Batch, damping: float | None = None
) -> tuple[np.ndarray, float | None]:
    """Vectors of queries, and the residual of their solution."""
    extractor = extractor_of(case)
    with extractor.session():
        encoded = encoder.encode_query(extractor, batch, damping=damping)
    return encoded.vectors, encoded.residual
