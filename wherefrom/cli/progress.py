"""Progress bars on stderr: one line a phase, none where nobody watches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich import progress as bars
from rich.console import Console

from wherefrom.records import Progress

__all__ = ["progress_bars"]


class _PhaseBars:
    """Draws the phase at hand; a phase that is done leaves its line.

    Nothing is live between phases, so what is printed then does not collide with a bar.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._drawn: bars.Progress | None = None
        self._task = bars.TaskID(0)
        self._phase = ""

    def __call__(self, phase: str, done: int, total: int) -> None:
        if self._drawn is None or phase != self._phase:
            if done >= total and phase == self._phase:
                return  # Told again of a phase whose line stands already.
            self._start(phase, total)
        if self._drawn is not None:
            self._drawn.update(self._task, completed=done, total=total)
        if done >= total:
            self.close()

    def _start(self, phase: str, total: int) -> None:
        self.close()
        self._phase = phase
        self._drawn = bars.Progress(
            bars.TextColumn("{task.description}", markup=False),
            bars.BarColumn(bar_width=None),
            bars.MofNCompleteColumn(),
            bars.TimeElapsedColumn(),
            bars.TimeRemainingColumn(elapsed_when_finished=False),
            console=self._console,
            expand=True,
        )
        self._task = self._drawn.add_task(phase, total=total)
        self._drawn.start()

    def close(self) -> None:
        """Stop drawing; what is drawn stays."""
        if self._drawn is not None:
            self._drawn.stop()
            self._drawn = None


@contextmanager
def progress_bars(*, quiet: bool = False, console: Console | None = None) -> Iterator[Progress]:
    """A ``progress(phase, done, total)`` that draws bars with elapsed and remaining time.

    Args:
        quiet: Draw nothing.
        console: Where to draw; stderr by default. Without a terminal behind it nothing is drawn.
    """
    console = console or Console(stderr=True)
    if quiet or not console.is_terminal:
        yield _ignore
        return
    drawn = _PhaseBars(console)
    try:
        yield drawn
    finally:
        drawn.close()


def _ignore(phase: str, done: int, total: int) -> None:
    """Progress that nobody watches."""
