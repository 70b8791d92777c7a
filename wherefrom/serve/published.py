"""The published state of an index, followed while it is asked.

A change of an index replaces its manifest. What is open here is not touched by that: the new state
is opened beside it, with the same model, and asked from then on. So nothing changes under an answer
that is being made, however many threads ask.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from copy import copy
from typing import ClassVar, TypeVar

from wherefrom.errors import IntegrityError, MismatchError
from wherefrom.maintenance.index import Index
from wherefrom.serve.errors import ChangedError, ReplacedError
from wherefrom.store.directory import MANIFEST_FILE

__all__ = ["Published"]

T = TypeVar("T")


class Published:
    """An index as it is published at the moment. Any thread may ask.

    Args:
        index: As it was opened.

    Attributes:
        index: As it was when it was asked last.
        remote_seconds: How long what was found on object storage is taken for the present state; a
            directory is looked at before each question, for that costs next to nothing.
    """

    remote_seconds: ClassVar[float] = 1.0

    def __init__(self, index: Index) -> None:
        self.index = index
        self._lock = threading.Lock()
        self._seen: tuple[int, ...] | None = None
        self._looked = -self.remote_seconds

    def ask(self, work: Callable[[Index], T]) -> tuple[Index, T]:
        """Have the present state asked.

        Args:
            work: What to call with it; called again if a purge removed its files meanwhile.

        Returns:
            The state that was asked, for :meth:`go_on`, and what came of it.

        Raises:
            ReplacedError: Another index was built in its place.
            WherefromError: As ``work`` does, or the index cannot be read.
        """
        index = self._present()
        try:
            return index, work(index)
        except IntegrityError:
            newer = self._present(at_once=True)
            if newer is index:
                raise
            return newer, work(newer)

    def go_on(self, index: Index, work: Callable[[Index], T]) -> T:
        """Have the state asked that an answer was begun with.

        Args:
            index: That state.
            work: What to call with it.

        Raises:
            ChangedError: A purge removed its files meanwhile.
            WherefromError: As ``work`` does.
        """
        try:
            return work(index)
        except IntegrityError as error:
            if self._present(at_once=True) is index:
                raise
            raise ChangedError(
                "the index was changed while this was being answered; ask again"
            ) from error

    def _present(self, *, at_once: bool = False) -> Index:
        with self._lock:
            mark = self._mark()
            if mark is not None and mark == self._seen:
                return self.index
            recent = time.monotonic() - self._looked < self.remote_seconds
            if self.index.location.remote and recent and not at_once:
                return self.index
            newer = copy(self.index)
            try:
                changed = newer.refresh()
            except MismatchError as error:
                raise ReplacedError(
                    "another index was built in the place of the one that is served; restart the "
                    "service"
                ) from error
            if changed:
                self.index = newer
            self._seen, self._looked = mark, time.monotonic()
            return self.index

    def _mark(self) -> tuple[int, ...] | None:
        """What tells a manifest in a directory from the one after it, which is another file."""
        if self.index.location.remote:
            return None
        try:
            found = os.stat(self.index.location.directory / MANIFEST_FILE)
        except OSError:
            return None  # Reading it says what is wrong.
        return found.st_ino, found.st_size, found.st_mtime_ns
