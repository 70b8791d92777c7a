"""The rows of a stream that could be among the k largest, by bounds on their values.

Of a set of rows, the *threshold* is the k-th largest lower bound (or more than nothing), and the
candidates are the rows whose upper bounds reach it. Both follow from the candidates of any parts of
the set: the threshold of a part is at most that of the whole, and the k rows that set the latter
are candidates of their parts. So candidates of parts can be merged in any order and any grouping,
and what comes out is that of one stream of all rows, bit for bit.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Candidates", "Selection", "merged", "threshold"]

_SMALLEST = float(np.nextafter(0.0, 1.0))
_HELD = 1 << 12
_BYTES_OF_REST = 8


@dataclass(frozen=True, slots=True)
class Candidates:
    """What a scan knows of the documents that could be among the best in one direction.

    Attributes:
        ordinals: int64 ``[m]``, ascending.
        estimate: float64 ``[m]``, of ``direction * value``: larger is better.
        error: float64 ``[m]``: ``direction * value`` lies within ``estimate +- error``.
        rest: Upper bound of ``direction * value`` of all other documents searched; ``-inf`` if
            there are none.
    """

    ordinals: NDArray[np.int64]
    estimate: NDArray[np.float64]
    error: NDArray[np.float64]
    rest: float

    def __len__(self) -> int:
        return len(self.ordinals)

    @property
    def lower(self) -> NDArray[np.float64]:
        """Lower bounds, [m]."""
        return self.estimate - self.error

    @property
    def upper(self) -> NDArray[np.float64]:
        """Upper bounds, [m]."""
        return self.estimate + self.error

    @property
    def nbytes(self) -> int:
        """What there is to send of them."""
        arrays = (self.ordinals, self.estimate, self.error)
        return sum(array.nbytes for array in arrays) + _BYTES_OF_REST

    def only(self, kept: NDArray[np.bool_]) -> Candidates:
        """Those of a mask [m]; the others are bounded by ``rest``."""
        rest = max(self.rest, float(self.upper[~kept].max(initial=-np.inf)))
        return Candidates(self.ordinals[kept], self.estimate[kept], self.error[kept], rest)

    def at_least(self, floor: float) -> Candidates:
        """Those whose upper bounds reach ``floor``."""
        return self.only(self.upper >= floor)


def threshold(parts: Sequence[Candidates], k: int) -> float:
    """What a document's upper bound must reach to be among the k best of all parts, or more.

    It is the threshold of all parts' documents if every part holds its k largest lower bounds.
    """
    lower = np.concatenate([part.lower for part in parts])
    return max(_SMALLEST, float(_largest(lower, k))) if len(lower) >= k else _SMALLEST


def merged(parts: Sequence[Candidates], k: int) -> Candidates:
    """The candidates for the k best of all documents, of those for the k best of parts.

    Args:
        parts: At least one; no document is in two of them.
        k: Positive.
    """
    ordinals = np.concatenate([part.ordinals for part in parts])
    order = np.argsort(ordinals)
    together = Candidates(
        ordinals[order],
        np.concatenate([part.estimate for part in parts])[order],
        np.concatenate([part.error for part in parts])[order],
        max(part.rest for part in parts),
    )
    return together.at_least(threshold(parts, k))


def _largest(values: NDArray[np.float64], k: int) -> np.float64:
    """The k-th largest of at least k values."""
    place = len(values) - k
    return np.float64(np.partition(values, place)[place])


@dataclass(frozen=True, slots=True)
class _Entries:
    """Rows kept so far, each for one query: arrays of one length."""

    query: NDArray[np.int64]
    ordinal: NDArray[np.int64]
    estimate: NDArray[np.float64]
    error: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.query)

    def at(self, places: NDArray[np.intp]) -> _Entries:
        return _Entries(
            self.query[places], self.ordinal[places], self.estimate[places], self.error[places]
        )

    @staticmethod
    def joined(parts: list[_Entries]) -> _Entries:
        return _Entries(
            np.concatenate([part.query for part in parts]),
            np.concatenate([part.ordinal for part in parts]),
            np.concatenate([part.estimate for part in parts]),
            np.concatenate([part.error for part in parts]),
        )


class Selection:
    """Candidates of several queries in one direction, while rows are offered by any thread.

    A row is kept while its upper bound reaches its query's threshold: the k-th largest lower bound
    of the rows offered so far, or more than nothing.

    Args:
        unit: [query], what bounds are multiples of: powers of two.
        k: How many best rows are wanted of each query.
        direction: 1 or -1.
        floors: [query], what thresholds start from, in the units of values.
    """

    def __init__(
        self,
        unit: NDArray[np.float64],
        k: int,
        direction: int,
        floors: NDArray[np.float64] | None = None,
    ) -> None:
        """Start without rows."""
        self._unit = unit
        self._k = k
        self._direction = direction
        self._threshold = np.full(len(unit), _SMALLEST)
        if floors is not None:
            np.maximum(self._threshold, floors / unit, out=self._threshold)
        self._rest = np.full(len(unit), -np.inf)
        nothing = np.empty(0, np.int64)
        self._parts = [_Entries(nothing, nothing, np.empty(0), np.empty(0))]
        self._held = 0
        self._room = _HELD
        self._lock = threading.Lock()

    def offer(self, ordinals: NDArray[np.int64], estimate: Tensor, error: Tensor) -> None:
        """Take in rows.

        Args:
            ordinals: [row].
            estimate: float64 [row, query] of the value, in either direction; contiguous.
            error: Likewise.
        """
        upper = torch.add(error, estimate, alpha=self._direction)
        flat = upper.numpy().reshape(-1)
        reached = np.flatnonzero(upper.numpy() >= self._threshold)
        flat[reached] = -np.inf
        rest = upper.amax(dim=0).numpy()
        row, query = np.divmod(reached, len(self._unit))
        entries = _Entries(
            query,
            ordinals[row],
            self._direction * estimate.numpy().reshape(-1)[reached],
            error.numpy().reshape(-1)[reached],
        )
        with self._lock:
            np.maximum(self._rest, rest, out=self._rest)
            self._parts.append(entries)
            self._held += len(entries)
            if self._held > self._room:
                self._tighten()

    def candidates(self) -> list[Candidates]:
        """What is left, by query."""
        with self._lock:
            self._tighten()
            entries = self._parts[0]
        ordered = entries.at(np.lexsort((entries.ordinal, entries.query)))
        starts = np.searchsorted(ordered.query, np.arange(len(self._threshold) + 1))
        return [
            Candidates(
                ordered.ordinal[start:stop],
                ordered.estimate[start:stop] * unit,
                ordered.error[start:stop] * unit,
                float(rest * unit),
            )
            for start, stop, rest, unit in zip(
                starts[:-1], starts[1:], self._rest, self._unit, strict=True
            )
        ]

    def _tighten(self) -> None:
        """Raise the thresholds to what the rows held imply, and drop those that fall below."""
        entries = _Entries.joined(self._parts)
        order = np.argsort(entries.query, kind="stable")
        starts = np.searchsorted(entries.query[order], np.arange(len(self._threshold) + 1))
        lower, upper = entries.estimate - entries.error, entries.estimate + entries.error
        threshold, kept = self._threshold.copy(), []
        for query in range(len(threshold)):
            own = order[starts[query] : starts[query + 1]]
            if len(own) >= self._k:
                threshold[query] = max(threshold[query], _largest(lower[own], self._k))
            stays = upper[own] >= threshold[query]
            kept.append(own[stays])
            self._rest[query] = max(self._rest[query], upper[own[~stays]].max(initial=-np.inf))
        self._threshold = threshold
        self._parts = [entries.at(np.concatenate(kept))]
        self._held = len(self._parts[0])
        self._room = 2 * self._held + _HELD
