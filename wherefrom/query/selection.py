"""The rows of a stream that could be among the k largest, by bounds on their values."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Candidates", "Selection"]

_SMALLEST = float(np.nextafter(0.0, 1.0))
_HELD = 1 << 12


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
        queries: How many.
        k: How many best rows are wanted of each.
    """

    def __init__(self, queries: int, k: int) -> None:
        """Start without rows."""
        self._k = k
        self._threshold = np.full(queries, _SMALLEST)
        self._rest = np.full(queries, -np.inf)
        nothing = np.empty(0, np.int64)
        self._parts = [_Entries(nothing, nothing, np.empty(0), np.empty(0))]
        self._held = 0
        self._room = _HELD + 2 * queries * k
        self._lock = threading.Lock()

    def offer(
        self,
        ordinals: NDArray[np.int64],
        estimate: NDArray[np.float64],
        error: NDArray[np.float64],
    ) -> None:
        """Take in rows.

        Args:
            ordinals: [row].
            estimate: [row, query].
            error: [row, query].
        """
        upper = estimate + error
        rest = upper.max(axis=0)
        threshold = self._threshold
        reached = np.flatnonzero(rest >= threshold)
        if len(reached):
            some = upper[:, reached]
            row, which = np.nonzero(some >= threshold[reached])
            some[row, which] = -np.inf
            rest[reached] = some.max(axis=0)
            query = reached[which]
            kept = _Entries(query, ordinals[row], estimate[row, query], error[row, query])
        with self._lock:
            np.maximum(self._rest, rest, out=self._rest)
            if len(reached):
                self._parts.append(kept)
                self._held += len(kept)
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
                ordered.estimate[start:stop],
                ordered.error[start:stop],
                float(rest),
            )
            for start, stop, rest in zip(starts[:-1], starts[1:], self._rest, strict=True)
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
                best = np.partition(lower[own], len(own) - self._k)[len(own) - self._k]
                threshold[query] = max(threshold[query], best)
            stays = upper[own] >= threshold[query]
            kept.append(own[stays])
            self._rest[query] = max(self._rest[query], upper[own[~stays]].max(initial=-np.inf))
        self._threshold = threshold
        self._parts = [entries.at(np.concatenate(kept))]
        self._held = len(self._parts[0])
        self._room = 2 * self._held + _HELD
