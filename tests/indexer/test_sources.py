"""Tensors as documents: what is refused, and what a target may be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from wherefrom.errors import CorpusError
from wherefrom.indexer.sources import TensorSource


def inputs() -> Tensor:
    return torch.arange(12.0).reshape(6, 2)


@pytest.mark.parametrize(
    "targets",
    [
        torch.arange(6),
        torch.rand(6),
        torch.rand(6, 3, dtype=torch.float64),
        torch.rand(6, 4, 5),
    ],
    ids=["classes", "numbers", "vectors", "conditions"],
)
def test_targets_of_any_shape_come_back_as_they_were(targets: Tensor) -> None:
    source = TensorSource((inputs(), targets))
    assert source.inputs is not None
    assert tuple(source.inputs.target_shape) == tuple(targets.shape[1:])
    found = [shard.examples.batch(np.arange(len(shard.documents))) for shard in source.shards(4)]
    assert torch.equal(torch.cat([batch.targets for batch in found]), targets)
    assert torch.equal(torch.cat([batch.inputs for batch in found]), inputs())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused_by_name(bad: float) -> None:
    x, y = inputs(), torch.rand(6, 3)
    broken = inputs()
    broken[4, 1] = bad
    with pytest.raises(CorpusError, match="the input of document '4' holds NaN or infinity"):
        TensorSource((broken, y))
    y[2, 0] = bad
    with pytest.raises(CorpusError, match="the target of document '2' holds NaN or infinity"):
        TensorSource((x, y))
