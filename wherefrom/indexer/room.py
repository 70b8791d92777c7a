"""Batches that fit into memory: halved when the model runs out of it."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

from wherefrom.errors import ExecutionError
from wherefrom.gradients.examples import MOST_POSITIONS
from wherefrom.gradients.memory import out_of_memory

__all__ = ["Room"]

_Result = TypeVar("_Result")


class Room:
    """How much runs together.

    Attributes:
        documents: Most documents of a batch.
        positions: Most padded positions of a batch.
    """

    def __init__(self, documents: int) -> None:
        self.documents = documents
        self.positions = MOST_POSITIONS
        self._first = documents

    @property
    def note(self) -> tuple[str, ...]:
        """What to warn of, if there was not room enough."""
        if self.documents == self._first:
            return ()
        return (
            f"memory ran out on batches of {self._first} documents, and went on with "
            f"{self.documents}; --batch-size {self.documents} does so from the start",
        )

    def fitting(self, documents: int) -> int:
        """So many documents at once, or fewer if memory ran out before."""
        return documents if self.documents == self._first else min(documents, self.documents)

    def run(self, work: Callable[[], _Result], what: str) -> _Result:
        """Do some work, again from its beginning with half as much room whenever memory runs out.

        Args:
            work: It must look at this room anew each time, and leave nothing when it fails.
            what: It is, for a message.

        Raises:
            ExecutionError: A document by itself is too much.
        """
        while True:
            try:
                return work()
            except Exception as error:
                if not out_of_memory(error):
                    raise
                if self.documents == 1:
                    raise ExecutionError(
                        f"memory ran out while {what}, on one document at a time; give a smaller "
                        "context, fewer layers or a larger machine"
                    ) from error
            # Outside of the handler, for the traceback holds what filled the memory.
            self.documents //= 2
            self.positions = max(1, self.positions // 2)
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
