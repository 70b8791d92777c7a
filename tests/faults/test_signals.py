"""Ctrl-C and SIGTERM: one line says what is left and how to go on, and the same command does."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from faults.attempts import look
from faults.children import Nursery
from faults.work import told
from tiny_lm import save_tiny_lm, text_documents

STATUS = {signal.SIGTERM: 143, signal.SIGINT: 130}


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """``wherefrom build``, but for the index."""
    folder = tmp_path_factory.mktemp("command")
    model = save_tiny_lm(folder / "model")
    corpus = folder / "corpus.csv"
    lines = [f"{document.doc_id},{document.text}" for document in text_documents(60)]
    corpus.write_text("\n".join(["doc_id,text", *lines]))
    return ["build", str(corpus), f"--model={model}", "--encoder=none", "--quiet"]


def ordered(folder: Path, command: list[str]) -> dict[str, Any]:
    (folder / "disk").mkdir(exist_ok=True)
    return {
        "work": "faults.work:command",
        "disk": {"root": str(folder / "disk"), "log": str(folder / "tasks.log")},
        "arguments": [*command, f"--index={folder / 'disk' / 'my.index'}"],
        "errors": str(folder / "errors"),
    }


@pytest.mark.parametrize("number", STATUS, ids=lambda number: number.name)
def test_a_signal_leaves_a_build_that_goes_on(
    nursery: Nursery, command: list[str], tmp_path: Path, number: signal.Signals
) -> None:
    log, errors = tmp_path / "tasks.log", tmp_path / "errors"
    child = nursery.start(**ordered(tmp_path, command))
    end = time.monotonic() + 30
    while len(told(str(log))) < 5 and time.monotonic() < end:
        time.sleep(0.002)
    child.kill(number)
    ended = child.wait()
    assert ended.status == STATUS[number], errors.read_text()
    (line,) = errors.read_text().splitlines()
    assert "the same command" in line
    before = told(str(log))
    ended = nursery.run(**ordered(tmp_path, command))
    assert ended.status == 0, errors.read_text()
    tasks = told(str(log))
    assert len(tasks) <= len(set(tasks)) + 1
    assert len(before) < len(tasks)
    other = tmp_path / "undisturbed"
    other.mkdir()
    assert nursery.run(**ordered(other, command)).status == 0
    index = Path("disk") / "my.index"
    assert look(nursery, tmp_path / index, "cli") == look(nursery, other / index, "cli")
