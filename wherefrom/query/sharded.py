"""The scan fanned out over shards, with a merge that is certified as the scan itself is.

A shard is a range of an index's rows, searched by a worker that maps the index's files itself. Only
bounds travel. In the first round each shard sends its candidates, or, if they are many, those of
its k best lower bounds and an upper bound on all others. The first set the threshold of the whole,
the k-th best lower bound over all shards. Shards whose other rows might reach it are asked for
those in a second round. See :mod:`wherefrom.query.selection` for why the merged candidates are
those of one scan, bit for bit.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from wherefrom.errors import QueryError
from wherefrom.query.scan import Candidates, scan
from wherefrom.query.selection import merged, threshold
from wherefrom.store import ScanCopy

__all__ = [
    "Found",
    "OpenScanCopy",
    "Shard",
    "ShardRequest",
    "ShardWorkers",
    "ShardedScan",
    "ranges",
]

OpenScanCopy = Callable[..., ScanCopy]
"""Maps an index's scan copy, or what holds the rows ``within=`` a range; can be pickled."""

Found = list[list[Candidates]]
"""``[query][direction]``"""

_SLACK = 1.0
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class ShardRequest:
    """What a shard is asked; see :func:`wherefrom.query.scan.scan`.

    Attributes:
        number: Of the question; the same in both rounds.
        queries: float32 ``[query, dimension]``.
        k: How many of the best are wanted.
        directions: Of 1 and -1.
        ordinals: Rows of the shard to search; all by default.
        normalised: Whether values are divided by norms.
        slack: How far vectors may lie off.
        most: How many candidates of a query and direction are sent, at least k; of more than that,
            those of the k best lower bounds are.
        floors: ``[query, direction]``, in the second round: what upper bounds must reach; then all
            candidates are sent.
    """

    number: int
    queries: NDArray[np.float32]
    k: int
    directions: tuple[int, ...]
    ordinals: NDArray[np.int64] | None
    normalised: bool
    slack: float | None
    most: int
    floors: NDArray[np.float64] | None = None


class Shard:
    """A range of an index's rows, and what was last found in it.

    Args:
        opener: Maps the index's scan copy.
        rows: The range.
        threads: Of torch, where this is the process's only work.
    """

    def __init__(self, opener: OpenScanCopy, rows: range, threads: int | None = None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self._opener = opener
        self._rows = rows
        self._last: tuple[int, Found] = (-1, [])

    @cached_property
    def _copy(self) -> ScanCopy:
        return self._opener(within=self._rows)

    def open(self) -> None:
        """Map the files now, while they are there.

        Raises:
            IntegrityError: They are missing or differ from their digests.
        """
        _ = self._copy

    def scan(self, request: ShardRequest) -> Found:
        """Candidates to send; the ``rest`` of each bounds whatever is not sent.

        A second round is answered from what the first one found, or, if that was in another process
        that is no more, by searching again.

        Raises:
            IntegrityError: The index's files are missing or differ from their digests.
        """
        number, found = self._last
        self._last = (-1, [])
        if number != request.number:
            found = scan(
                self._copy,
                request.queries,
                request.k,
                request.directions,
                ordinals=self._rows if request.ordinals is None else request.ordinals,
                normalised=request.normalised,
                slack=request.slack,
                floors=request.floors,
            )
        if request.floors is not None:
            return [
                [one.at_least(floor) for one, floor in zip(ends, floors, strict=True)]
                for ends, floors in zip(found, request.floors.tolist(), strict=True)
            ]
        most = request.most
        if any(len(one) > most for ends in found for one in ends):
            self._last = (request.number, found)
        return [[_sent(one, request.k, most) for one in ends] for ends in found]


def _sent(found: Candidates, k: int, most: int) -> Candidates:
    """All candidates, or if these are too many, those of the k best lower bounds."""
    if len(found) <= most:
        return found
    kept = np.zeros(len(found), bool)
    kept[np.argpartition(found.lower, -k)[-k:]] = True
    return found.only(kept)


class ShardWorkers(Protocol):
    """Shards of one index, each held by a worker."""

    @property
    def shards(self) -> tuple[range, ...]:
        """Their ranges, which follow one another."""
        ...

    def scan(self, requests: Mapping[int, ShardRequest]) -> dict[int, Found]:
        """What shards answer, by their places; a worker that dies is replaced.

        Raises:
            ExecutionError: A worker died again and again; or a shard's own error.
        """
        ...

    def close(self) -> None:
        """Let the workers go. Safe to call twice."""
        ...


def ranges(rows: int, shards: int) -> tuple[range, ...]:
    """At most so many ranges of about one size that make up ``rows``; one at least."""
    edges = np.linspace(0, rows, max(1, min(rows, shards)) + 1).astype(int).tolist()
    return tuple(itertools.starmap(range, itertools.pairwise(edges)))


class ShardedScan:
    """:func:`~wherefrom.query.scan.scan` of an index whose shards are searched by workers.

    Args:
        workers: They hold the shards.
        slack: A shard sends all its candidates in the first round if they are at most ``1 + slack``
            times as many as are wanted.
    """

    def __init__(self, workers: ShardWorkers, slack: float = _SLACK) -> None:
        self._workers = workers
        self._slack = slack

    def __call__(
        self,
        queries: NDArray[np.float32],
        k: int,
        directions: Sequence[int],
        *,
        ordinals: NDArray[np.int64] | None = None,
        normalised: bool = False,
        slack: float | None = None,
    ) -> Found:
        """All documents that could be among the k best; see :func:`~wherefrom.query.scan.scan`.

        Raises:
            QueryError: A query vector is not finite.
            ExecutionError: Workers died again and again.
        """
        if not np.isfinite(queries).all():
            raise QueryError("the query's gradient holds NaN or infinity; check the completion")
        whole = ShardRequest(
            number=next(_numbers),
            queries=queries,
            k=k,
            directions=tuple(directions),
            ordinals=None,
            normalised=normalised,
            slack=slack,
            most=k + int(self._slack * k),
        )
        requests = dict.fromkeys(range(len(self._workers.shards)), whole)
        if ordinals is not None:
            requests = {
                place: replace(whole, ordinals=own)
                for place, rows in enumerate(self._workers.shards)
                if len(own := ordinals[(ordinals >= rows.start) & (ordinals < rows.stop)])
            }
        if not requests:
            return [[_NOTHING for _ in directions] for _ in queries]
        found = self._workers.scan(requests)
        found |= self._workers.scan(_second_round(requests, found, k))
        return [[merged(parts, k) for parts in ends] for ends in _by_question(found)]

    def close(self) -> None:
        """Let the workers go."""
        self._workers.close()


def _second_round(
    requests: Mapping[int, ShardRequest], found: Mapping[int, Found], k: int
) -> dict[int, ShardRequest]:
    """For the shards that kept back what may matter: the same from the thresholds on."""
    floors = np.array([[threshold(parts, k) for parts in ends] for ends in _by_question(found)])
    rests = {
        place: np.array([[one.rest for one in ends] for ends in shard])
        for place, shard in found.items()
    }
    return {
        place: replace(requests[place], floors=floors)
        for place, rest in rests.items()
        if (rest >= floors).any()
    }


def _by_question(found: Mapping[int, Found]) -> list[list[list[Candidates]]]:
    """What was found, ``[query][direction][shard]``."""
    return [
        [list(parts) for parts in zip(*ends, strict=True)]
        for ends in zip(*found.values(), strict=True)
    ]


_NOTHING = Candidates(np.empty(0, np.int64), np.empty(0), np.empty(0), -np.inf)
