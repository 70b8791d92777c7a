"""Encoding: rows of shards, made in any order, committed to the documents table in order.

The table takes the shards strictly one after the other, several in one commit; a commit counts once
it is durable and the ledger says so, and what a writer that is no more added beyond that is taken
back. So a shard is never in the table twice, however often it was encoded.
"""

from __future__ import annotations

from pathlib import Path

from wherefrom.errors import IntegrityError
from wherefrom.indexer.counting import Counter
from wherefrom.indexer.executors.base import Executor, Outcome, Task
from wherefrom.indexer.job import Job
from wherefrom.indexer.ledger import COMMITTED, Committed, Work
from wherefrom.indexer.workshop import Workshop
from wherefrom.records import Progress
from wherefrom.store import DocumentTable
from wherefrom.store.staging import read_staged

__all__ = ["encode_documents"]

_COMMIT_BYTES = 1 << 28
_COMMIT_SHARDS = 1024


def encode_documents(
    executor: Executor,
    job: Job,
    workshop: Workshop,
    table: DocumentTable,
    progress: Progress,
) -> tuple[str, ...]:
    """Encode all documents of a build into its table, from wherever the ledger says that it is.

    Args:
        executor: Carries out the tasks.
        job: For its workers.
        workshop: Of this process.
        table: Open to be written, at the version that the ledger calls durable.
        progress: Told how far it is.

    Returns:
        What to warn of.

    Raises:
        IntegrityError: The table does not hold what the ledger says.
        WherefromError: A document cannot be encoded, or the disk refuses.
    """
    work, total = workshop.work, len(workshop.source)
    found = work.read(COMMITTED, Committed)
    committed = 0 if found is None else found.rows
    first = workshop.plan.first_row
    _require_rows(table, first + committed)
    commits = _Commits(workshop, table, committed)
    tasks = [Task("encode", i) for i in range(-(-total // workshop.encoder_plan.shard))]
    left = tasks[commits.next :]
    counter = Counter(progress, "encoding the documents", total)
    staged = [task for task in left if work.is_done(task)]
    missing = [task for task in left if not work.is_done(task)]
    counter.begin(committed + sum(len(workshop.shard_of(task)) for task in staged))
    workshop.told = counter.ahead
    commits.offer(staged)

    def done(outcome: Outcome) -> None:
        counter.done(outcome)
        commits.offer([outcome.task])

    executor.run(job, missing, done)
    commits.commit()
    _require_rows(table, first + total)
    return counter.notes


def _require_rows(table: DocumentTable, due: int) -> None:
    """Lance's own files carry no checksum either: one bit in them, and rows are not there."""
    if table.live.total != due:
        raise IntegrityError(
            f"{table.path} ends with row {table.live.total - 1} where row {due - 1} is due; begin "
            "a build anew with --no-resume (resume=False), fetch a finished index from its backup"
        )


class _Commits:
    """Shards waiting for those before them, and those waiting to be worth a commit."""

    def __init__(self, workshop: Workshop, table: DocumentTable, rows: int) -> None:
        self.next = -(-rows // workshop.encoder_plan.shard)
        self._rows = rows
        self._workshop = workshop
        self._work: Work = workshop.work
        self._table = table
        self._waiting: set[int] = set()
        self._group: list[Task] = []
        self._bytes = 0

    def offer(self, tasks: list[Task]) -> None:
        """Take in shards that are encoded."""
        self._waiting.update(task.index for task in tasks)
        while self.next in self._waiting:
            task = Task("encode", self.next)
            self._waiting.remove(self.next)
            self.next += 1
            self._group.append(task)
            self._bytes += self._work.task_file(task).stat().st_size
            if self._bytes >= _COMMIT_BYTES or len(self._group) >= _COMMIT_SHARDS:
                self.commit()

    def commit(self) -> None:
        """Commit the shards whose turn it is; they are needed no more then."""
        if not self._group:
            return
        paths = [self._work.task_file(task) for task in self._group]
        self._rows += self._add(paths)
        # Durable first: what is staged goes, and this is then all there is of the rows.
        version = self._table.sync()
        self._work.write(COMMITTED, Committed(table_version=version, rows=self._rows))
        for path in paths:
            path.unlink()
        self._group, self._bytes = [], 0

    def _add(self, paths: list[Path]) -> int:
        before = len(self._table)
        if self._workshop.plan.staging == "fragments":
            from wherefrom.store.fragments import commit_fragments

            first = self._workshop.plan.first_row + self._rows
            self._table.adopt(commit_fragments(self._table.path, paths, first_row=first))
        else:
            self._table.add(list(read_staged(paths, self._workshop.layout)))
        return len(self._table) - before
