"""SECURITY.md names tests that there are."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "SECURITY.md").read_text(encoding="utf-8")


def test_the_tests_it_names_exist() -> None:
    here = {path.name for path in ROOT.glob("tests/*/test_*.py")}
    defined = set()
    for path in Path(__file__).parent.glob("test_*.py"):
        defined |= set(re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.M))
    named = re.findall(r"`((?:tests/)?[\w/]*test_\w+(?:\.py)?)`", PAGE)
    assert len(named) > 15
    for name in named:
        assert (ROOT / name).is_file() or name in here or name in defined, name


def test_the_folders_it_names_exist() -> None:
    for name in re.findall(r"`(tests/\w+/)`", PAGE):
        assert (ROOT / name).is_dir(), name
