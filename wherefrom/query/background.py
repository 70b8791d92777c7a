"""Do hits stand out from chance? Their cosines against those of random document/query pairs.

The index keeps quantiles of the cosines between random documents, each once in the place of the
query. Two things can make a list of hits mean nothing: they are as near to the query as a random
document is to another; or they are what the noise of the encoder alone brings to the top among so
many documents, ``sigma sqrt(2 ln N)`` for the largest of N normal numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from wherefrom.records import Background, Hit, Tier
from wherefrom.store import Manifest

__all__ = ["STANDS_OUT", "judged", "percentile"]

STANDS_OUT = 99.0
"""Percentile of random pairs that the strongest hit has to pass."""


def percentile(manifest: Manifest, cosine: float) -> float | None:
    """Share of random pairs with a smaller cosine, in per cent."""
    record = manifest.background
    if record is None:
        return None
    return 100.0 * float(np.interp(cosine, record.quantiles, record.levels))


def judged(
    manifest: Manifest,
    tier: Tier,
    documents: int,
    proponents: Sequence[Hit],
    opponents: Sequence[Hit],
) -> Background | None:
    """Whether either list stands out.

    Args:
        manifest: The index's.
        tier: Of the scores.
        documents: How many were searched.
        proponents: Of the answer.
        opponents: Of the answer.
    """
    record, fidelity = manifest.background, manifest.encoder.fidelity
    if record is None:
        return None
    noise = None
    if tier == "stored" and fidelity is not None and fidelity.noise > 0.0:
        noise = fidelity.noise * math.sqrt(2.0 * math.log(max(documents, 2)))
    return Background(
        pairs=record.pairs,
        noise=noise,
        proponents=_stand_out(proponents, noise),
        opponents=_stand_out(opponents, noise),
    )


def _stand_out(hits: Sequence[Hit], noise: float | None) -> bool | None:
    """Whether the hit farthest out is beyond random pairs and beyond noise; ``None``: no hits."""
    if not hits:
        return None
    farthest = max(hits, key=lambda hit: abs(hit.cosine))
    at = farthest.percentile or 0.0
    beyond = max(at, 100.0 - at) >= STANDS_OUT
    return beyond and (noise is None or abs(farthest.cosine) > noise)
