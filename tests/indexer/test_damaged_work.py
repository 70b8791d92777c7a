"""What an interrupted build left, damaged before it goes on: named, or of no consequence."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lancedb.table import LanceTable

import wherefrom as wf
from damage import damages
from small_models import mlp
from wherefrom.errors import IntegrityError, WherefromError

PHASES = (
    "fitting the curvature, pass 1",
    "fitting the curvature, pass 2",
    "choosing the encoder",
    "encoding the documents",
    "measuring the index",
    "writing the index",
)
DOCUMENTS, FLIPS = 60, 3


class Stop(BaseException):
    """As a kill: no handler of the build sees it coming."""


def tensors() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(DOCUMENTS, 5, dtype=torch.float64, generator=generator), torch.arange(
        DOCUMENTS
    ) % 3


def build(path: Path, **given: Any) -> wf.Index:
    return wf.build(mlp((5, 4, 3)), tensors(), path, encoder="sketch", bits=4, threads=1, **given)


def stop_at(phase: str) -> Callable[[str, int, int], None]:
    def progress(name: str, done: int, total: int) -> None:
        if name.startswith(phase) and (total != DOCUMENTS or done > total // 2):
            raise Stop

    return progress


def contents(index: wf.Index) -> tuple[Any, ...]:
    queries = (torch.ones(2, 5, dtype=torch.float64), torch.tensor([0, 1]))
    encoder = (index.path / "encoder.safetensors").read_bytes()
    return index.vectors().tobytes(), index.scores(queries).tobytes(), encoder, index.doc_ids()


@pytest.fixture
def shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wherefrom.indexer.planning.fit_shard_size", lambda documents: 12)
    monkeypatch.setattr("wherefrom.indexer.builder.encode_shard_size", lambda dimension: 12)


@pytest.mark.usefixtures("shards")
@pytest.mark.filterwarnings("ignore:scores correlate")
@pytest.mark.parametrize("phase", PHASES)
def test_damaged_work_is_named_or_changes_nothing(tmp_path: Path, phase: str) -> None:
    """Whatever file of it, whichever bit: never another index."""
    with build(tmp_path / "whole") as index:
        wanted = contents(index)
    left = tmp_path / "left"
    with pytest.raises(Stop):
        build(left, progress=stop_at(phase))
    errors = []
    for damage in damages(left, seed=PHASES.index(phase), flips=FLIPS):
        again = tmp_path / "again"
        shutil.copytree(left, again)
        damage.do(again)
        try:
            with build(again) as index:
                found = contents(index)
        except WherefromError as error:
            errors.append(str(error))
        else:
            assert found == wanted, damage
        shutil.rmtree(again)
    assert len(errors) >= 3
    assert not [error for error in errors if "\n" in error]


@pytest.mark.usefixtures("shards")
def test_rows_that_lance_no_longer_counts_are_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bit of its files, and a table ends earlier: no index without those documents."""
    left = tmp_path / "left"
    with pytest.raises(Stop):
        build(left, progress=stop_at("writing the index"))
    monkeypatch.setattr(LanceTable, "count_rows", lambda table, *_: DOCUMENTS - 4)
    with pytest.raises(IntegrityError, match=r"ends with row 55 where row 59 is due"):
        build(left)
    assert not (left / "manifest.json").exists()
