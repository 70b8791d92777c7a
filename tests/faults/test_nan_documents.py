"""A document whose gradient is not finite, met only when it is encoded."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import wherefrom as wf
from wherefrom.errors import ModelError


class Logarithm(nn.Module):
    """NaN for documents with a negative input."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(5, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.log(x))


def tensors() -> tuple[Tensor, Tensor]:
    x = torch.rand(40, 5, generator=torch.Generator().manual_seed(1)).double() + 0.1
    return x, torch.arange(40) % 3


def build(path: Path, bad: int | None, **options: object) -> wf.Index:
    x, y = tensors()
    if bad is not None:
        x[bad, 2] = -1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return wf.build(
            Logarithm(), (x, y), path, encoder="none", fit_documents=8, batch_size=4, **options
        )


@pytest.mark.parametrize("bad", [3, 17, 39])
def test_a_document_found_late_is_named_and_costs_no_index(tmp_path: Path, bad: int) -> None:
    path = tmp_path / "i"
    before = build(path, None).vectors().tobytes()
    with pytest.raises(ModelError, match=f"document '{bad:02}'") as caught:
        build(path, bad, overwrite=True)
    assert "\n" not in str(caught.value)
    assert wf.open(path, model=Logarithm()).vectors().tobytes() == before
    with pytest.raises(ModelError, match=f"document '{bad:02}'"):
        build(tmp_path / "new", bad)
    assert build(tmp_path / "new", None).vectors().tobytes() == before
