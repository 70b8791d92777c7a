"""The rows of a stream that could be among the k largest, by bounds on their values."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
        unit: [query], what bounds are multiples of: powers of two.
        k: How many best rows are wanted of each query.
        direction: 1 or -1.
    """

    def __init__(self, unit: NDArray[np.float64], k: int, direction: int) -> None:
        """Start without rows."""
        self._unit = unit
        self._k = k
        self._direction = direction
        self._threshold = np.full(len(unit), _SMALLEST)
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
                best = np.partition(lower[own], len(own) - self._k)[len(own) - self._k]
                threshold[query] = max(threshold[query], best)
            stays = upper[own] >= threshold[query]
            kept.append(own[stays])
            self._rest[query] = max(self._rest[query], upper[own[~stays]].max(initial=-np.inf))
        self._threshold = threshold
        self._parts = [entries.at(np.concatenate(kept))]
        self._held = len(self._parts[0])
        self._room = 2 * self._held + _HELD
