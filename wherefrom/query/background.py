"""Do hits stand out from chance? Their cosines against those of random document/query pairs.

The index keeps quantiles of the cosines between random documents, each once in the place of the
query, and of the cosines of each such query's strongest hits. Two things can make a list of hits
mean little: random queries find hits as near; or they are what the noise of the encoder alone
brings to the top among so many documents, ``sigma sqrt(2 ln N)`` for the largest of N normal
numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from wherefrom.records import Background, Hit, Tier
from wherefrom.store import BackgroundRecord, Manifest

__all__ = ["STANDS_OUT", "is_current", "judged", "percentile"]

STANDS_OUT = 95.0
"""Share of random queries, in per cent, whose strongest hit has to be less near."""

_GROWN = 1.25


def is_current(record: BackgroundRecord, documents: int) -> bool:
    """Whether the strongest hits among so many documents are as those that were measured.

    The strongest of more documents is nearer, by chance alone; a quarter more does little.
    """
    return record.documents / _GROWN <= documents <= record.documents * _GROWN


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
    """Whether either list stands out; ``None`` where that is not known.

    That is where nothing was measured, or among many more documents than there are now.

    Args:
        manifest: The index's.
        tier: Of the scores.
        documents: How many were searched.
        proponents: Of the answer, ranked by score.
        opponents: Likewise.
    """
    record, fidelity = manifest.background, manifest.encoder.fidelity
    if record is None or not is_current(record, manifest.store.rows):
        return None
    noise = None
    if tier == "stored" and fidelity is not None and fidelity.noise > 0.0:
        noise = fidelity.noise * math.sqrt(2.0 * math.log(max(documents, 2)))
    ahead = _beyond(proponents, record.highest, 1)
    behind = _beyond(opponents, record.lowest, -1)
    return Background(
        pairs=record.pairs,
        queries=record.queries,
        noise=noise,
        proponents=_stand_out(proponents, ahead, noise),
        opponents=_stand_out(opponents, behind, noise),
        proponents_beyond=ahead,
        opponents_beyond=behind,
    )


def _beyond(hits: Sequence[Hit], others: Sequence[float], sign: int) -> float | None:
    """Per cent of random queries whose strongest hit is less near; ``None``: no hits."""
    if not hits:
        return None
    return 100.0 * float(np.mean(sign * np.array(others) < sign * hits[0].cosine))


def _stand_out(hits: Sequence[Hit], beyond: float | None, noise: float | None) -> bool | None:
    if beyond is None:
        return None
    return beyond >= STANDS_OUT and (noise is None or abs(hits[0].cosine) > noise)
