"""The model runs out of memory: batches are halved, and the build goes on."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import wherefrom as wf
from small_models import mlp
from tiny_lm import text_documents, tiny_llama, tiny_tokenizer
from wherefrom.errors import ModelError
from wherefrom.gradients.memory import out_of_memory

Error = Callable[[], BaseException]
LACKS: dict[str, Error] = {
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "cpu": lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 1099511627776 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "mps": lambda: RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GiB)"),
    "cublas": lambda: RuntimeError(
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
    ),
    "numpy": lambda: MemoryError("Unable to allocate 8.00 GiB for an array"),
}


class _Raising(torch.autograd.Function):
    """Runs out of memory on its way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, error: Error) -> Tensor:
        ctx.error = error
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise ctx.error()


class Small(nn.Module):
    """A model on a machine that holds so many documents of it."""

    def __init__(self, inner: nn.Module, holds: int, error: Error, *, backward: bool) -> None:
        super().__init__()
        self.inner = inner
        self.holds = holds
        self.error = error
        self.backward = backward
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        if len(x) <= self.holds:
            return self.inner(x)
        if not self.backward:
            raise self.error()
        return _Raising.apply(self.inner(x), self.error)


def tensors(count: int = 41) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, 5, generator=torch.Generator().manual_seed(1)).double()
    return x, torch.arange(count) % 3


def build(folder: Path, model: nn.Module, **options: Any) -> tuple[wf.Index, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        index = wf.build(model, tensors(), folder, encoder="none", **options)
    return index, [str(warning.message) for warning in caught]


@pytest.mark.parametrize(
    ("kind", "backward"), [("cuda", False), ("cuda", True), ("cpu", True), ("numpy", False)]
)
def test_batches_are_halved_until_they_fit(tmp_path: Path, kind: str, backward: bool) -> None:
    model = Small(mlp(), 5, LACKS[kind], backward=backward)
    found, told = build(tmp_path / "small", model, batch_size=32, fisher="empirical")
    small = Small(mlp(), 4, LACKS[kind], backward=backward)
    wanted, _ = build(tmp_path / "wanted", small, batch_size=4, fisher="empirical")
    expected = wanted.vectors()
    np.testing.assert_allclose(found.vectors(), expected, atol=1e-6 * np.abs(expected).max())
    assert {n for n in model.seen if n > 5} <= {32, 16, 8, 9, 41, 48}
    notes = [note for note in found.manifest.warnings if "memory" in note]
    assert len(notes) == len(set(notes)) >= 1
    assert "32" in notes[-1]
    assert "4" in notes[-1]
    assert set(notes) <= set(told), (notes, told)


def test_a_document_by_itself_that_is_too_much_is_an_error(tmp_path: Path) -> None:
    model = Small(mlp(), 0, LACKS["cuda"], backward=False)
    with pytest.raises(ModelError, match="memory ran out") as caught:
        build(tmp_path / "i", model)
    assert "\n" not in str(caught.value)


@pytest.fixture
def narrow() -> Iterator[nn.Module]:
    """A language model, one of whose layers holds at most 40 positions."""
    model = tiny_llama()

    def refuse(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].shape[0] * inputs[0].shape[1] > 40:
            raise LACKS["cpu"]()

    handle = model.get_submodule("model.layers.1.mlp").register_forward_pre_hook(refuse)
    yield model
    handle.remove()


def test_texts_are_halved_too(tmp_path: Path, narrow: nn.Module) -> None:
    options: dict[str, Any] = {
        "objective": wf.CausalLM(tiny_tokenizer()),
        "encoder": "none",
    }
    with pytest.warns(UserWarning, match="memory ran out"):
        found = wf.build(narrow, text_documents(24), tmp_path / "i", **options)
    wanted = wf.build(tiny_llama(), text_documents(24), tmp_path / "j", **options)
    assert abs(found.vectors() - wanted.vectors()).max() < 1e-5 * abs(wanted.vectors()).max()


def test_a_question_that_does_not_fit_is_an_error_of_one_line(tmp_path: Path) -> None:
    model = Small(mlp(), 64, LACKS["cuda"], backward=True)
    index, _ = build(tmp_path / "i", model)
    model.holds = 0
    with pytest.raises(ModelError, match="memory") as caught:
        index.scores((tensors()[0][:1], tensors()[1][:1]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", LACKS)
def test_a_lack_of_memory_is_told_from_other_errors(kind: str) -> None:
    error = LACKS[kind]()
    assert out_of_memory(error)
    wrapped = ModelError("cannot run")
    wrapped.__cause__ = error
    assert out_of_memory(wrapped)
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not out_of_memory(ModelError("memory of an elephant"))
