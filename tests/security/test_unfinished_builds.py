"""Unfinished builds that someone else may have prepared: gone on with only if they make sense."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hostile import harmless

import wherefrom as wf
from tiny_lm import text_documents


@pytest.fixture(scope="module")
def begun(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build that was interrupted while it encoded."""
    path = tmp_path_factory.mktemp("begun") / "begun.index"

    def interrupt(phase: str, done: int, total: int) -> None:
        if phase.startswith("encoding"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        wf.build(str(model_path), text_documents(), path, seed=3, progress=interrupt)
    return path


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("work/plan.json", {"threads": 0}),
        ("work/plan.json", {"batch_size": -1}),
        ("work/plan.json", {"fit_shard": 0}),
        ("work/plan.json", {"first_row": -5}),
        ("work/plan.json", {"corpus": {"documents": "../x"}}),
        ("work/plan.json", {"identity": []}),
        ("work/plan.json", b"[" * 100_000),
        ("work/plan.json", b""),
        ("build.json", b"[]"),
        ("work/corpus.jsonl", b"[" * 100_000),
    ],
    ids=str,
)
def test_hostile_work_is_refused_or_done_anew(
    begun: Path, model_path: Path, tmp_path: Path, name: str, change: dict[str, Any] | bytes
) -> None:
    path = Path(shutil.copytree(begun, tmp_path / "some.index"))
    file = path / name
    if isinstance(change, dict):
        change = json.dumps(json.loads(file.read_bytes()) | change).encode()
    file.write_bytes(change)
    harmless(lambda: wf.build(str(model_path), text_documents(), path, seed=3))


def test_links_in_work_are_refused(begun: Path, model_path: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(begun, tmp_path / "some.index"))
    (tmp_path / "outside").mkdir()
    (path / "work" / "more").symlink_to(tmp_path / "outside")
    error = harmless(lambda: wf.build(str(model_path), text_documents(), path, seed=3))
    assert "is a link" in str(error)
