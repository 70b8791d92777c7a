"""Every row of the table of faults names a test that is there, and every test here is named."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def test_the_table_names_tests_that_exist() -> None:
    rows = [
        line
        for line in (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| ") and not line.startswith("| fault ")
    ]
    assert len(rows) > 25
    for row in rows:
        found = NAMED.findall(row)
        assert found, row
        for file, name in found:
            assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), row
