"""Where shards are searched: in this process, in others of this machine, or on a Ray cluster."""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch

from wherefrom.cluster import Cluster, first_line
from wherefrom.errors import ExecutionError, IntegrityError, WherefromError
from wherefrom.query.sharded import (
    Found,
    OpenScanCopy,
    Shard,
    ShardedScan,
    ShardRequest,
    ShardWorkers,
    ranges,
)

__all__ = ["SEARCH_EXECUTORS", "LocalShards", "ProcessShards", "RayShards", "sharded_scan"]

SEARCH_EXECUTORS = ("serial", "processes", "ray")
"""Where an index may be searched; ``serial`` is the plain scan, by the threads of this process."""

_DEATHS_ALLOWED = 3
_SECONDS_TO_START = 120.0


def sharded_scan(
    executor: str, opener: OpenScanCopy, rows: int, workers: int | None
) -> ShardedScan | None:
    """The scan of an index of so many rows by workers; ``None`` if this process is to do it alone.

    Args:
        executor: ``serial``, ``processes`` or ``ray``.
        opener: Maps the index's scan copy in each worker, and compares it with its digests: the
            files may be others than those that were opened here.
        rows: Of the index.
        workers: How many; by default one a thread of torch, or one a processor of the cluster.

    Raises:
        WherefromError: There is no such executor, or it has no such number of workers.
        MissingExtraError: Ray is not installed.
        ExecutionError: Ray cannot be reached.
    """
    if executor not in SEARCH_EXECUTORS:
        names = ", ".join(map(repr, SEARCH_EXECUTORS))
        raise WherefromError(f"executor={executor!r} is unknown; choose one of {names}")
    if workers is not None and workers < 1:
        raise WherefromError(f"workers={workers} is not allowed; give at least 1")
    if executor == "serial":
        if workers not in (None, 1):
            raise WherefromError(
                f"workers={workers} does not go with executor='serial'; choose 'processes' or 'ray'"
            )
        return None
    if executor == "processes":
        threads = torch.get_num_threads()
        count = workers or threads
        apart = ranges(rows, count)
        held: ShardWorkers = ProcessShards(opener, apart, max(1, threads // len(apart)))
    else:
        held = RayShards(opener, rows, workers)
    return ShardedScan(held)


class LocalShards:
    """Shards searched one after the other in this process: what the others are measured against.

    Args:
        opener: Maps the scan copy.
        shards: Their ranges.
    """

    def __init__(self, opener: OpenScanCopy, shards: Sequence[range]) -> None:
        self.shards = tuple(shards)
        self._held = [Shard(opener, rows) for rows in shards]

    def scan(self, requests: Mapping[int, ShardRequest]) -> dict[int, Found]:
        """What shards answer, by their places."""
        return {place: self._held[place].scan(request) for place, request in requests.items()}

    def close(self) -> None:
        """Nothing to let go."""


class ProcessShards:
    """A process for each shard, on this machine.

    Args:
        opener: Maps the scan copy.
        shards: Their ranges.
        threads: Of torch in each process.

    Raises:
        ExecutionError: A process died again and again.
        IntegrityError: The index's files are missing or differ from their digests.
    """

    def __init__(self, opener: OpenScanCopy, shards: Sequence[range], threads: int) -> None:
        self.shards = tuple(shards)
        self._opener = opener
        self._threads = threads
        self._pools: dict[int, ProcessPoolExecutor] = {}
        self._ask(dict.fromkeys(range(len(self.shards))))

    def scan(self, requests: Mapping[int, ShardRequest]) -> dict[int, Found]:
        """What shards answer, by their places; a process that dies is replaced.

        Raises:
            ExecutionError: Its process died again and again; or a shard's own error.
        """
        return self._ask(requests)

    def close(self) -> None:
        """End the processes."""
        while self._pools:
            self._pools.popitem()[1].shutdown(cancel_futures=True)

    def _ask(self, requests: Mapping[int, ShardRequest | None]) -> dict[int, Found]:
        found: dict[int, Found] = {}
        left = dict(requests)
        for _ in range(_DEATHS_ALLOWED):
            running = {place: self._submit(place, request) for place, request in left.items()}
            for place, future in running.items():
                try:
                    found[place] = future.result()
                    del left[place]
                except BrokenProcessPool:
                    self._pools.pop(place).shutdown()
                except WherefromError:
                    self.close()
                    raise
            if not left:
                return found
        self.close()
        raise ExecutionError(
            f"search processes died {_DEATHS_ALLOWED} times in a row, without a word (killed for "
            "lack of memory?); open the index with fewer workers, or with executor='serial'"
        )

    def _submit(self, place: int, request: ShardRequest | None) -> Future[Found]:
        given = (self._opener, self.shards[place], self._threads, request)
        try:
            return self._pool(place).submit(_scan, *given)
        except BrokenProcessPool:  # It died between two questions.
            self._pools.pop(place).shutdown()
            return self._pool(place).submit(_scan, *given)

    def _pool(self, place: int) -> ProcessPoolExecutor:
        if place not in self._pools:
            # Forking a process that has run torch deadlocks in OpenMP.
            self._pools[place] = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        return self._pools[place]


_shard: Shard | None = None


def _scan(opener: OpenScanCopy, rows: range, threads: int, request: ShardRequest | None) -> Found:
    """Ask this process's shard; without a question, only map its files."""
    global _shard
    if _shard is None:
        _shard = Shard(opener, rows, threads)
    _shard.open()
    return [] if request is None else _shard.scan(request)


class RayShards:
    """An actor for each shard, anywhere on a Ray cluster that sees the index's files.

    The cluster is the one this process is connected to, or that ``RAY_ADDRESS`` names, or one made
    of this machine. An actor whose node is lost is started again elsewhere.

    Args:
        opener: Maps the scan copy.
        rows: Of the index.
        workers: How many actors, of one thread each; by default as many as the cluster has
            processors.

    Raises:
        MissingExtraError: Ray is not installed.
        ExecutionError: The cluster cannot be reached, or has no room.
        IntegrityError: The index's files are missing or differ from their digests.
    """

    def __init__(self, opener: OpenScanCopy, rows: int, workers: int | None) -> None:
        self._cluster = Cluster(workers or 1)
        self._ray = ray = self._cluster.ray
        self.shards = ranges(rows, workers or max(1, int(ray.cluster_resources().get("CPU", 1))))
        restarts = _DEATHS_ALLOWED - 1
        kind: Any = ray.remote(Shard).options(
            max_restarts=restarts, max_task_retries=restarts, scheduling_strategy="SPREAD"
        )
        self._actors = [kind.remote(opener, shard, 1) for shard in self.shards]
        try:
            self._open()
        except WherefromError:
            self.close()
            raise

    def scan(self, requests: Mapping[int, ShardRequest]) -> dict[int, Found]:
        """What shards answer, by their places.

        Raises:
            ExecutionError: Its actor died again and again; or a shard's own error.
        """
        ray = self._ray
        # A question that several shards are asked is sent once.
        sent = {id(request): ray.put(request) for request in requests.values()}
        running = {
            place: self._actors[place].scan.remote(sent[id(request)])
            for place, request in requests.items()
        }
        return dict(zip(running, self._answers(list(running.values())), strict=True))

    def close(self) -> None:
        """Let the actors go, and the cluster if it was made for them."""
        actors, self._actors = self._actors, []
        for actor in actors if self._ray.is_initialized() else ():
            self._ray.kill(actor)
        self._cluster.close()

    def _open(self) -> None:
        starting = [actor.__ray_ready__.remote() for actor in self._actors]
        count = len(starting)
        ready, missing = self._ray.wait(starting, num_returns=count, timeout=_SECONDS_TO_START)
        if missing:
            raise ExecutionError(
                f"the Ray cluster has started {len(ready)} of {count} search actors in "
                f"{_SECONDS_TO_START:.0f} s; free processors or open the index with fewer workers"
            )
        self._answers([actor.open.remote() for actor in self._actors])

    def _answers(self, asked: list[Any]) -> list[Any]:
        ray = self._ray
        try:
            return list(ray.get(asked))
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, IntegrityError):
                raise IntegrityError(
                    f"{error.cause}; an index searched by Ray must lie where every node sees it"
                ) from error
            raise error.cause if isinstance(error.cause, WherefromError) else error from None
        except ray.exceptions.RayActorError as error:
            raise ExecutionError(
                f"a search actor died {_DEATHS_ALLOWED} times ({first_line(error)}); see that all "
                "nodes have memory for it, or open the index with more workers"
            ) from error
