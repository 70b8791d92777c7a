"""Very many documents, and a very long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from faults.children import Nursery

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]


def test_a_million_tiny_documents(nursery: Nursery, tmp_path: Path) -> None:
    """Memory grows by what each document's id takes, and no more."""
    used = []
    for count in (100_000, 1_000_000):
        ended = nursery.run(
            "faults.work:build_many", path=str(tmp_path / f"{count}"), documents=count
        )
        assert ended.done, ended.traceback
        assert ended.result["documents"] == count
        used.append(ended.result["bytes"])
        print(f"{count} documents: {ended.seconds:.0f} s, {used[-1] / 2**20:.0f} MiB")
    assert used[1] - used[0] < 500 * 900_000


def test_one_document_of_fifty_megabytes(nursery: Nursery, tmp_path: Path) -> None:
    ended = nursery.run("faults.work:build_long", path=str(tmp_path / "i"), text_bytes=50 * 2**20)
    assert ended.done, ended.traceback
    assert ended.result["whole"]
    print(f"{ended.seconds:.0f} s, {ended.result['bytes'] / 2**20:.0f} MiB")
    assert ended.result["bytes"] < 5 * 2**30
