"""requirements-ci.txt is constraints.txt with hashes, but for CUDA's libraries."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = re.compile(r"(nvidia-|cuda-|triton==)")
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def entries(name: str) -> list[str]:
    """The logical lines: comments dropped, continued lines joined."""
    text = (ROOT / name).read_text(encoding="utf-8")
    kept = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    return [line for line in re.sub(r" *\\\n *", " ", kept).splitlines() if line]


@pytest.fixture(scope="module")
def hashed() -> dict[str, list[str]]:
    """The options of each entry, by its name, version and marker."""
    parted = [entry.partition(" --") for entry in entries("requirements-ci.txt")]
    assert len({requirement for requirement, *_ in parted}) == len(parted)
    return {
        requirement: (separator + options).split() for requirement, separator, options in parted
    }


def test_versions_are_those_of_the_constraints(hashed: dict[str, list[str]]) -> None:
    pinned = [entry for entry in entries("constraints.txt") if not LEFT_OUT.match(entry)]
    assert list(hashed) == pinned


def test_every_entry_has_hashes_and_nothing_else(hashed: dict[str, list[str]]) -> None:
    bad = [
        requirement
        for requirement, options in hashed.items()
        if not options or not all(HASH.fullmatch(option) for option in options)
    ]
    assert bad == []
