"""The plan of a build: what is built, and how its documents are divided among tasks.

It is written before the first task, so that an interrupted build goes on with the same shards,
threads and batches, and ends with the same bits; unless it is told to take others.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from wherefrom.gradients.fisher import Fisher
from wherefrom.indexer.executors.base import Task
from wherefrom.store.manifest_parts import ColumnType, Count, Record, Size

__all__ = [
    "BLOCK",
    "PLAN",
    "CorpusPlan",
    "Plan",
    "Tree",
    "blocks",
    "difference",
    "encode_shard_size",
    "fit_shard_size",
]

PLAN = "plan.json"

BLOCK = 1024
"""Most documents that are held at once."""

_MOST_FIT_SHARDS = 64
_SHARD_BYTES = 1 << 26
_SMALLEST_SHARD = 16


class CorpusPlan(Record):
    """The documents, as they were read.

    Attributes:
        documents: How many (passages count one each).
        parents: Documents before they were cut into passages.
        metadata: Columns and their types.
        content_sha256: Digest of what is indexed.
        read_sha256: Digest of the documents as they were given.
        skipped: Ids of documents left out, the first of them.
        skipped_count: How many were left out.
    """

    documents: Count
    parents: Count
    metadata: dict[str, ColumnType]
    content_sha256: str
    read_sha256: str
    skipped: tuple[str, ...] = ()
    skipped_count: Count = 0


class Plan(Record):
    """How a build goes.

    Attributes:
        identity: All that decides what the index will be, as plain values.
        corpus: The documents.
        first_row: Number of the first document in the table.
        fisher: Where the curvature's labels come from.
        damping: Of the curvature, as asked for.
        curvature: Its kind.
        fit_documents: How many or which share it is fitted on; ``None`` for all.
        factor_memory: Bytes that its factors may take.
        seed: Of everything random.
        batch_size: Most documents that run together.
        threads: Of torch in each worker.
        fit_shard: Documents of a shard of the fit.
        tensors: Whether the documents are tensors.
        staging: How encoded shards wait for their commit; see
            :class:`~wherefrom.indexer.executors.base.Executor`.
    """

    identity: dict[str, Any]
    corpus: CorpusPlan
    first_row: Count = 0
    fisher: Fisher | None
    curvature: str
    damping: float | None
    fit_documents: int | float | None
    factor_memory: int | None
    seed: int
    batch_size: Size
    threads: Size
    fit_shard: Size
    tensors: bool
    staging: Literal["files", "fragments"] = "files"

    @property
    def documents(self) -> int:
        """Number of documents."""
        return self.corpus.documents


class Tree:
    """The fixed order in which statistics of shards are added up: a binary tree over the shards.

    Node ``i`` of level ``l`` stands for nodes ``2 i`` and ``2 i + 1`` of the level below; a node
    without a sibling stands for itself. Floating-point sums depend on their order, this on the
    number of shards only.

    Args:
        shards: How many, at least 1.
        step: Pass of the fit.
    """

    def __init__(self, shards: int, step: int) -> None:
        self._widths = [shards]
        self._step = step
        while self._widths[-1] > 1:
            self._widths.append(-(-self._widths[-1] // 2))

    @property
    def top(self) -> Task:
        """The task that leaves the statistics of all shards."""
        return self.node(len(self._widths) - 1, 0)

    def node(self, level: int, index: int) -> Task:
        """The task that leaves the statistics of a node."""
        while level > 0 and 2 * index + 1 >= self._widths[level - 1]:
            level, index = level - 1, 2 * index
        if level == 0:
            return Task("fit", index, self._step)
        return Task("merge", index, self._step, level)

    def children(self, task: Task) -> tuple[Task, Task]:
        """What a merge is of, in order."""
        below = task.level - 1
        return self.node(below, 2 * task.index), self.node(below, 2 * task.index + 1)

    def levels(self) -> Iterator[list[Task]]:
        """All merges, level by level from the lowest."""
        for level in range(1, len(self._widths)):
            yield [
                Task("merge", index, self._step, level)
                for index in range(self._widths[level - 1] // 2)
            ]

    def shards_under(self, task: Task) -> Iterator[Task]:
        """The shards whose statistics a task's are the sum of."""
        first = task.index << task.level
        for index in range(first, min(first + (1 << task.level), self._widths[0])):
            yield Task("fit", index, self._step)

    def shards(self) -> Iterator[Task]:
        """All shards."""
        for index in range(self._widths[0]):
            yield Task("fit", index, self._step)


def fit_shard_size(documents: int) -> int:
    """Documents of a shard of the fit: few shards, for the statistics of each are written."""
    return max(BLOCK, -(-documents // _MOST_FIT_SHARDS))


def encode_shard_size(dimension: int) -> int:
    """Documents of a shard of encoded rows, whose float32 vectors are held at once."""
    return max(_SMALLEST_SHARD, min(BLOCK, _SHARD_BYTES // (4 * dimension)))


def blocks(positions: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """``positions``, so many at a time as are held at once."""
    for start in range(0, len(positions), BLOCK):
        yield positions[start : start + BLOCK]


def difference(begun: dict[str, Any], asked: dict[str, Any]) -> str | None:
    """Where two identities differ, in words; ``None`` if they do not."""
    for name in sorted(begun.keys() | asked.keys()):
        was, now = begun.get(name), asked.get(name)
        if isinstance(was, dict) and isinstance(now, dict):
            inner = difference(was, now)
            if inner is not None:
                return f"{name}: {inner}"
        elif was != now:
            return f"{name} was {_short(was)} and is {_short(now)} now"
    return None


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
