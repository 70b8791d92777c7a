"""Progress bars: one line a phase, with times, and silence where nobody watches."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from wherefrom.cli.progress import progress_bars


def watched() -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, force_terminal=True, width=100, color_system=None), stream


def lines(stream: io.StringIO) -> list[str]:
    """What stands on the screen in the end: a line erased or returned to is overwritten."""
    text = stream.getvalue()
    kept = [line.split("\r")[-1] for line in text.split("\n")]
    return [
        plain for line in kept if (plain := re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", line).strip())
    ]


def test_each_phase_leaves_one_line() -> None:
    console, stream = watched()
    with progress_bars(console=console) as progress:
        for phase, total in (("fit", 3), ("encode [red]", 5)):
            for done in range(total + 1):
                progress(phase, done, total)
            progress(phase, total, total)
    first, second = lines(stream)
    assert first.startswith("fit")
    assert re.search(r"3/3 +0:00:00 0:00:00$", first)
    assert second.startswith("encode [red]")
    assert "5/5" in second


def test_nothing_is_drawn_over_what_is_printed_between_phases() -> None:
    console, stream = watched()
    with progress_bars(console=console) as progress:
        progress("fit", 0, 1)
        progress("fit", 1, 1)
        before = stream.getvalue()
        console.print("a table")
        assert stream.getvalue() == before + "a table\n"
        progress("ask", 1, 2)
    assert [line.split()[0] for line in lines(stream)] == ["fit", "a", "ask"]


def test_bars_end_with_the_work_even_if_it_fails() -> None:
    console, stream = watched()

    def work() -> None:
        with progress_bars(console=console) as progress:
            progress("fit", 1, 3)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert stream.getvalue().count("\x1b[?25l") == stream.getvalue().count("\x1b[?25h") == 1


@pytest.mark.parametrize(("quiet", "is_terminal"), [(True, True), (False, False)])
def test_nobody_watches(quiet: bool, is_terminal: bool) -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=is_terminal)
    with progress_bars(quiet=quiet, console=console) as progress:
        progress("fit", 0, 1)
        progress("fit", 1, 1)
    assert stream.getvalue() == ""
