"""An interrupted build: gone on with where it is the same, left or replaced where it is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import wherefrom as wf
from small_models import mlp
from tiny_lm import text_documents, tiny_llama, tiny_tokenizer
from wherefrom.errors import CorpusError, IndexExistsError, IntegrityError
from wherefrom.indexer import workplace
from wherefrom.indexer.executors.processes import ProcessExecutor
from wherefrom.indexer.job import ModelChoice
from wherefrom.store import state


def tensors(seed: int = 0, count: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 5, dtype=torch.float64, generator=generator)
    return x, torch.arange(count) % 3


def build(path: Path, documents: Any = None, **given: Any) -> wf.Index:
    model = mlp((5, 4, 3)).double()
    return wf.build(model, documents or tensors(), path, encoder="none", **given)


class Stop(BaseException):
    """As a kill: no handler of the build sees it coming."""


def stop_at(phase: str) -> Callable[[str, int, int], None]:
    def progress(name: str, done: int, total: int) -> None:
        if name.startswith(phase):
            raise Stop

    return progress


def build_text(path: Path, documents: Any, model: Any = None, **given: Any) -> wf.Index:
    objective = wf.CausalLM(tiny_tokenizer())
    return wf.build(
        model or tiny_llama(), documents, path, objective=objective, encoder="none", **given
    )


def killed_before_its_swap(path: Path, documents: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replacement that is ready, and no more."""

    def killed(*_: object) -> None:
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(workplace, "_put_in_place", killed)
        with pytest.raises(Stop):
            build(path, documents, overwrite=True)


@pytest.mark.parametrize("damage", ["", "{}", '{"identity": 1}', "\0"])
def test_a_plan_that_cannot_be_read_is_left_by_beginning_anew(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "my.index"
    with pytest.raises(Stop):
        build(path, progress=stop_at("encoding"))
    (path / "work" / "plan.json").write_text(damage)
    with pytest.raises(IntegrityError, match="--no-resume"):
        build(path)
    assert len(build(path, resume=False)) == 24


def test_a_corpus_that_was_damaged_meanwhile_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "my.index"
    with pytest.raises(Stop):
        build_text(path, text_documents(8), progress=stop_at("encoding"))
    corpus = path / "work" / "corpus.jsonl"
    corpus.write_text(corpus.read_text().replace("year", "yeer", 1))
    with pytest.raises(IntegrityError, match=r"SHA-256.*--no-resume"):
        build_text(path, text_documents(8))
    assert len(build_text(path, text_documents(8), resume=False)) == 8


def test_an_iterator_of_other_documents_is_not_lost_silently(tmp_path: Path) -> None:
    path = tmp_path / "i"
    with pytest.raises(Stop):
        build_text(path, text_documents(8), progress=stop_at("encoding"))
    with pytest.raises(CorpusError, match="iterator"):
        build_text(path, iter(text_documents(9)))
    assert len(build_text(path, iter(text_documents(8)))) == 8


@pytest.mark.parametrize("phase", ["fitting the curvature, pass 2", "encoding"])
def test_a_build_does_not_go_on_with_another_checkpoint(tmp_path: Path, phase: str) -> None:
    """Of the same class and shapes: statistics of one model would whiten gradients of another."""
    path, other = tmp_path / "i", tiny_llama()
    with torch.no_grad():
        next(other.parameters()).mul_(1.001)
    with pytest.raises(Stop):
        build_text(path, text_documents(8), progress=stop_at(phase))
    with pytest.raises(IndexExistsError, match="model: weights_sha256 was"):
        build_text(path, text_documents(8), model=other)
    index = build_text(path, text_documents(8), model=other, overwrite=True)
    alone = build_text(tmp_path / "alone", text_documents(8), model=other)
    assert index.vectors().tobytes() == alone.vectors().tobytes()


def test_a_build_does_not_go_on_with_other_layers_or_another_objective(tmp_path: Path) -> None:
    path = tmp_path / "i"
    with pytest.raises(Stop):
        build_text(path, text_documents(8), progress=stop_at("encoding"))
    with pytest.raises(IndexExistsError, match="layers was"):
        build_text(path, text_documents(8), layers="attention")
    with pytest.raises(IndexExistsError, match="objective: context was"):
        build_text(path, text_documents(8), context=7)
    assert len(build_text(path, text_documents(8))) == 8


def test_a_replacement_that_was_ready_does_not_become_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the swap; then other documents are asked for."""
    path = tmp_path / "my.index"
    build(path)
    killed_before_its_swap(path, tensors(1, 30), monkeypatch)
    assert len(wf.open(path, model=mlp((5, 4, 3)).double())) == 24
    index = build(path, tensors(2, 40), overwrite=True)
    assert len(index) == 40
    assert [entry.name for entry in tmp_path.iterdir()] == ["my.index"]


def test_a_replacement_that_was_ready_is_put_in_place_without_building_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "my.index"
    build(path)
    killed_before_its_swap(path, tensors(1, 30), monkeypatch)
    phases: list[str] = []
    index = build(
        path,
        tensors(1, 30),
        overwrite=True,
        progress=lambda phase, done, total: phases.append(phase),
    )
    assert len(index) == 30
    assert phases == []
    assert [entry.name for entry in tmp_path.iterdir()] == ["my.index"]


def test_a_finished_index_is_not_taken_for_an_interrupted_build(tmp_path: Path) -> None:
    path = tmp_path / "my.index"
    build(path)
    with pytest.raises(IndexExistsError, match="finished index"):
        build(path)
    assert state(path) == "finished"


def test_processes_load_the_model_once_each_and_give_the_same_bits(tmp_path: Path) -> None:
    torch_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        serial = build(tmp_path / "serial")
        several = build(tmp_path / "several", executor="processes", workers=2)
    finally:
        torch.set_num_threads(torch_threads)
    assert serial.vectors().tobytes() == several.vectors().tobytes()
    assert serial.doc_ids() == several.doc_ids()
    first, second = (i.path / "encoder.safetensors" for i in (serial, several))
    assert first.read_bytes() == second.read_bytes()
    assert np.array_equal(serial.self_influence(), several.self_influence())


def test_a_job_is_sent_once_to_each_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules equal themselves only, so a job that came along with each task is never known."""
    from wherefrom.indexer.executors import processes

    opened: list[object] = []
    monkeypatch.setattr(processes, "_workshop", None)

    class FakeJob:
        def open(self, worker: int) -> Any:
            opened.append(self)
            return self

        def perform(self, task: object) -> object:
            return task

    monkeypatch.setattr(processes, "_job", FakeJob(), raising=False)
    for task in "abc":
        assert processes._perform(task) == task  # type: ignore[arg-type]
    assert len(opened) == 1
    assert ProcessExecutor(2, 1).remote
    assert ModelChoice(mlp((5, 4, 3))) != ModelChoice(mlp((5, 4, 3)))
