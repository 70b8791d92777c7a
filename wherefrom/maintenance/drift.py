"""Drift: whether appended documents are such as the curvature was fitted on.

A document's squared whitened norm is its gradient's energy in units of what the curvature expects:
where the factors know the documents, it depends on their length alone. Its logarithm is fitted
to that of the scored tokens, over the documents of the build; documents appended later are compared
with the line. A mean that lies off tells that the index whitens them by factors that do not know
them: scores among them come out too large (energy above 1) or too small, and it is time to build
again. Documents of the build are in the curvature and others are not, which alone lifts the energy
of others a little where documents are few; so only what is both certain and large is warned of.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wherefrom.store import DriftRecord

__all__ = ["LARGEST", "Drift", "baseline", "compare", "followed", "since_build", "without"]

LARGEST = 1.5
"""Energy, or its inverse, from which on appended documents are warned of."""

_CERTAIN = 4.0  # standard errors
_FEWEST = 8


@dataclass(frozen=True, slots=True)
class Drift:
    """How appended documents compare with those of the build.

    Attributes:
        energy: Geometric mean of their squared whitened norms, as a multiple of what documents of
            the build have at the same lengths.
        documents: How many were compared.
        certainty: Distance of its logarithm from 0 in standard errors.
    """

    energy: float
    documents: int
    certainty: float

    @property
    def warning(self) -> str | None:
        """What to tell the user, if anything."""
        large = max(self.energy, 1 / self.energy) > LARGEST
        if not large or self.certainty < _CERTAIN or self.documents < _FEWEST:
            return None
        return (
            f"{self.documents} appended documents have {self.energy:.2f} times the whitened energy "
            "of those that the curvature was fitted on: they are of another kind, and their scores "
            "are off by about as much; build the index again with them"
        )


def baseline(norms: NDArray[np.float64], tokens: NDArray[np.integer[Any]]) -> DriftRecord | None:
    """The line that whitened energy follows; ``None`` if the documents have none.

    Args:
        norms: Whitened norms of documents, [n].
        tokens: Their scored tokens, [n].
    """
    known = norms > 0
    if not known.any():
        return None
    energy = 2 * np.log(norms[known])
    length = np.log(np.maximum(tokens[known], 1).astype(np.float64))
    centred = length - length.mean()
    varying = float(centred @ centred)
    slope = float(centred @ energy) / varying if varying > 0 else 0.0
    intercept = float(energy.mean() - slope * length.mean())
    remains = energy - intercept - slope * length
    return DriftRecord(
        documents=int(known.sum()),
        intercept=intercept,
        slope=slope,
        spread=math.sqrt(float(np.mean(remains**2))),
        built=len(norms),
    )


def compare(
    record: DriftRecord, norms: NDArray[np.float64], tokens: NDArray[np.integer[Any]]
) -> Drift | None:
    """Documents against the line; ``None`` if they have no energy.

    Args:
        record: Of :func:`baseline`.
        norms: Whitened norms of documents, [n].
        tokens: Their scored tokens, [n].
    """
    off = _distances(record, norms, tokens)
    return _drift(record, float(np.mean(off)), len(off)) if len(off) else None


def followed(record: DriftRecord, drift: Drift | None) -> DriftRecord:
    """The record after an append: a few documents at a time tell nothing, all of them may."""
    if drift is None:
        return record
    appended = record.appended + drift.documents
    total = record.appended * record.offset + drift.documents * math.log(drift.energy)
    return record.model_copy(update={"appended": appended, "offset": total / appended})


def without(
    record: DriftRecord,
    ordinals: NDArray[np.int64],
    norms: NDArray[np.float64],
    tokens: NDArray[np.integer[Any]],
) -> DriftRecord:
    """The record after documents are deleted: what is gone is warned of no more.

    Args:
        record: Before.
        ordinals: Where the documents stood, [n].
        norms: Their whitened norms, [n].
        tokens: Their scored tokens, [n].
    """
    later = ordinals >= record.built
    gone = _distances(record, norms[later], tokens[later])
    left = max(0, record.appended - len(gone))
    total = record.appended * record.offset - float(gone.sum())
    built = record.built - int((~later).sum())
    offset = total / left if left else 0.0
    return record.model_copy(update={"built": built, "appended": left, "offset": offset})


def since_build(record: DriftRecord) -> Drift | None:
    """All that was appended since the build, against the line; ``None`` for nothing."""
    return _drift(record, record.offset, record.appended) if record.appended else None


def _distances(
    record: DriftRecord, norms: NDArray[np.float64], tokens: NDArray[np.integer[Any]]
) -> NDArray[np.float64]:
    """Of the logarithms of energies from the line, for documents that have any."""
    known = norms > 0
    length = np.log(np.maximum(tokens[known], 1).astype(np.float64))
    off: NDArray[np.float64] = 2 * np.log(norms[known]) - record.intercept - record.slope * length
    return off


def _drift(record: DriftRecord, off: float, count: int) -> Drift:
    error = record.spread * math.sqrt(1 / count + 1 / record.documents)
    return Drift(math.exp(off), count, abs(off) / error if error > 0 else math.inf)
