"""How commands fail: one line on stderr, and never a traceback for a mistake of the user."""

from __future__ import annotations

import errno
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import click

from wherefrom.errors import WherefromError
from wherefrom.query.printable import printable

__all__ = [
    "Failed",
    "Interrupted",
    "Terminated",
    "one_line_failures",
    "one_line_warnings",
    "terminable",
    "warn",
]

_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class Failed(click.ClickException):
    """The command could not do its work; exit status 1."""

    exit_code = 1

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the one line."""
        click.echo(f"wherefrom: error: {printable(self.message)}", file, err=True)


class Terminated(KeyboardInterrupt):
    """The process was asked to end (SIGTERM)."""


class Interrupted(click.ClickException):
    """The user pressed Ctrl-C, or the process was asked to end; exit status 130 or 143.

    Args:
        message: What was left.
        interrupt: How it was interrupted.
    """

    def __init__(self, message: str, interrupt: KeyboardInterrupt) -> None:
        super().__init__(message)
        self._terminated = isinstance(interrupt, Terminated)

    @property
    def exit_code(self) -> int:  # type: ignore[override]  # click only reads it
        """130 after Ctrl-C, 143 when the process was asked to end."""
        return 128 + (signal.SIGTERM if self._terminated else signal.SIGINT)

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the one line."""
        click.echo(f"wherefrom: interrupted: {printable(self.message)}", file, err=True)


@contextmanager
def one_line_failures() -> Iterator[None]:
    """Turn the package's errors and interruptions into what click shows and exits with.

    Raises:
        Failed: For any :class:`~wherefrom.errors.WherefromError`, and where standard output cannot
            be written.
        Interrupted: For Ctrl-C.
    """
    try:
        yield
    except WherefromError as error:
        raise Failed(str(error)) from error
    except OSError as error:
        if error.filename is not None or error.errno not in _UNWRITABLE:
            raise
        _drop_output()
        raise Failed(
            f"what was to be printed could not be written ({error.strerror}); make room, or send "
            "standard output elsewhere"
        ) from error
    except KeyboardInterrupt as interrupt:
        raise Interrupted("nothing was changed", interrupt) from interrupt


@contextmanager
def terminable() -> Iterator[None]:
    """End the block as Ctrl-C does when the process is asked to end, so that nothing is lost.

    Raises:
        Terminated: On SIGTERM.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _drop_output() -> None:
    """Let the interpreter, which writes what is left at its end, not fail over it again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def warn(message: str) -> None:
    """Print a warning as one line on stderr."""
    click.echo(f"wherefrom: warning: {printable(message)}", err=True)


@contextmanager
def one_line_warnings() -> Iterator[None]:
    """Tell what a user is to know as it happens, and nothing of what developers are."""

    def tell(message: Warning | str, *_: object, **__: object) -> None:
        warn(str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = tell
        yield
