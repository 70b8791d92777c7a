"""How far a build is, told the same way whether tasks run here or elsewhere."""

from __future__ import annotations

from wherefrom.indexer.executors.base import Outcome
from wherefrom.records import Progress

__all__ = ["Counter"]


class Counter:
    """Counts documents.

    Args:
        progress: Told of them.
        phase: What is being done.
        total: How many there are.

    Attributes:
        notes: What tasks warned of, each once.
    """

    def __init__(self, progress: Progress, phase: str, total: int) -> None:
        self.notes: tuple[str, ...] = ()
        self._progress = progress
        self._phase = phase
        self._total = total
        self._done = 0

    def begin(self, done: int) -> None:
        """So many were done before."""
        self._done = done
        self._progress(self._phase, done, self._total)

    def ahead(self, documents: int) -> None:
        """The task that is being carried out here is done with so many."""
        self._progress(self._phase, self._done + documents, self._total)

    def done(self, outcome: Outcome) -> None:
        """A task is done."""
        self._done += outcome.documents
        self.notes += tuple(note for note in outcome.notes if note not in self.notes)
        self._progress(self._phase, self._done, self._total)
