"""Small builds in many shards, and what of an index must be the same however it was built."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import wherefrom as wf

FIT_SHARD, ENCODE_SHARD = 40, 16


class SlowPerceptron(nn.Module):
    """A perceptron whose every call takes so many seconds more."""

    def __init__(self, pause: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
        self.pause = pause

    def forward(self, inputs: Tensor) -> Tensor:
        time.sleep(self.pause)
        out: Tensor = self.body(inputs)
        return out


def examples(count: int = 150) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, 6, generator=generator)
    return inputs, torch.randint(3, (count,), generator=generator)


def many_shards(patch: pytest.MonkeyPatch) -> None:
    """Have the driver divide small corpora, too."""
    patch.setattr("wherefrom.indexer.planning.fit_shard_size", lambda documents: FIT_SHARD)
    patch.setattr("wherefrom.indexer.builder.encode_shard_size", lambda dimension: ENCODE_SHARD)


def require_same(built: Path, serial: Path, queries: Any, **model: Any) -> None:
    """Two indexes are one but for where and when they were built."""
    encoders = [(path / "encoder.safetensors").read_bytes() for path in (built, serial)]
    assert encoders[0] == encoders[1]
    rows = [lance.dataset(path / "documents.lance").to_table() for path in (built, serial)]
    assert rows[0].equals(rows[1])
    assert not (built / "work").exists()
    with wf.open(built, **model) as index, wf.open(serial, **model) as expected:
        assert index.doc_ids() == expected.doc_ids()
        np.testing.assert_array_equal(index.vectors(), expected.vectors())
        np.testing.assert_array_equal(index.scores(queries), expected.scores(queries))
        ours, theirs = index.manifest, expected.manifest
        for part in ("curvature", "encoder", "corpus", "background", "warnings", "scale"):
            assert getattr(ours, part) == getattr(theirs, part), part
