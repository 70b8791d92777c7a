"""The estimate of a build: what it takes is measured, and nothing of it stays."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import wherefrom as wf
from tiny_lm import text_documents, tiny_llama, tiny_tokenizer
from wherefrom.cli.estimate import tell_estimate
from wherefrom.errors import IndexBusyError, IndexExistsError, ModelError
from wherefrom.indexer.estimate import Estimate, estimate
from wherefrom.indexer.options import BuildOptions
from wherefrom.indexer.rehearsal import Part, Stopwatch, size_of
from wherefrom.indexer.sources import TensorSource
from wherefrom.store.lock import writer_lock


def perceptron(hidden: int = 6) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, hidden), nn.Tanh(), nn.Linear(hidden, 3))


def examples(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(count, 5, generator=draw), torch.arange(count) % 3


class Clock:
    """Tells a second more each time it is asked."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def test_what_is_estimated_is_what_is_built(tmp_path: Path) -> None:
    """Bytes and tokens to a few percent from a third of the documents, and nothing is left."""
    model, options = tiny_llama().float(), BuildOptions(encoder="energy", bits=4)
    documents = text_documents(90)
    objective = wf.CausalLM(tiny_tokenizer())
    before = tmp_path / "at"
    before.mkdir()
    found = estimate(
        model, documents, before / "there" / "index", options, sample=30, objective=objective
    )
    assert list(before.iterdir()) == []
    index = wf.build(
        model,
        documents,
        tmp_path / "index",
        objective=objective,
        encoder="energy",
        bits=4,
    )
    assert (found.documents, found.sample) == (len(index), 30)
    assert found.tokens == pytest.approx(index.manifest.corpus.tokens, rel=0.1)
    for part, name in (("scan", "scan"), ("encoder", "encoder.safetensors")):
        assert found.disk[part] == pytest.approx(size_of(index.path / name), rel=0.1)
    assert found.index_bytes == pytest.approx(size_of(index.path), rel=0.25)
    assert list(found.seconds) == [
        "opening the model",
        "reading the corpus",
        "fitting the curvature, pass 1 of 2",
        "fitting the curvature, pass 2 of 2",
        "choosing the encoder",
        "encoding the documents",
        "measuring the index",
        "writing the index",
    ]
    assert min(found.seconds.values()) > 0
    assert found.memory["model"] == sum(p.numel() * 4 for p in model.parameters())


@pytest.mark.parametrize("curvature", ["ekfac", "identity", "datainf", "exact"])
def test_every_kind_of_curvature_is_rehearsed(curvature: str, tmp_path: Path) -> None:
    found = estimate(
        perceptron(), examples(300), tmp_path / "i", BuildOptions(curvature=curvature), sample=100
    )
    passes = [phase for phase in found.seconds if phase.startswith("fitting")]
    assert len(passes) == {"ekfac": 2, "identity": 0}.get(curvature, 1)
    if curvature == "datainf":
        weights = sum(p.numel() for p in perceptron().parameters())
        assert found.memory["curvature"] >= 300 * 4 * weights


def test_more_documents_take_more_of_what_they_take(tmp_path: Path) -> None:
    """By a clock that counts what happens: only documents make the difference."""
    few, many = (
        estimate(
            perceptron(), examples(count), tmp_path / "i", BuildOptions(), sample=64, clock=Clock()
        )
        for count in (256, 2560)
    )
    for phase in ("encoding the documents", "writing the index"):
        assert many.seconds[phase] == pytest.approx(10 * few.seconds[phase], rel=0.01)
    assert many.disk["scan"] == pytest.approx(10 * few.disk["scan"], rel=0.01)
    assert many.disk["encoder"] == few.disk["encoder"]
    assert many.seconds["opening the model"] == few.seconds["opening the model"]
    several = estimate(
        perceptron(),
        examples(2560),
        tmp_path / "i",
        BuildOptions(),
        sample=64,
        clock=Clock(),
        workers=4,
    )
    assert several.seconds["encoding the documents"] < many.seconds["encoding the documents"]
    assert several.seconds["writing the index"] == many.seconds["writing the index"]


def test_a_sample_may_be_all_there_is(tmp_path: Path) -> None:
    found = estimate(perceptron(), examples(40), tmp_path / "i", BuildOptions())
    assert found.sample == found.documents == 40


def test_what_a_build_would_refuse_is_refused(tmp_path: Path) -> None:
    wf.build(perceptron(), examples(40), tmp_path / "index")
    with pytest.raises(IndexExistsError, match="holds a finished index"):
        estimate(perceptron(), examples(40), tmp_path / "index", BuildOptions())
    found = estimate(perceptron(), examples(40), tmp_path / "index", BuildOptions(), overwrite=True)
    assert found.documents == 40
    with pytest.raises(ModelError):
        estimate(perceptron(), examples(40), tmp_path / "i", BuildOptions(layers=["no.such"]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index"]


def test_what_a_killed_estimate_left_is_removed(tmp_path: Path) -> None:
    """And what is under way, or somebody else's, is left alone."""
    left = tmp_path / ".i.estimate"
    before = wf.build(perceptron(), examples(40), left / "index").path
    estimate(perceptron(), examples(40), tmp_path / "i", BuildOptions())
    assert list(tmp_path.iterdir()) == []
    before.mkdir(parents=True)
    with (
        writer_lock(left),
        pytest.raises(IndexBusyError, match=r"\.i\.estimate is being written by process"),
    ):
        estimate(perceptron(), examples(40), tmp_path / "i", BuildOptions())
    (before / "letter.txt").write_text("mine")
    with pytest.raises(IndexExistsError, match=r"\.i\.estimate is in the way and is no estimate's"):
        estimate(perceptron(), examples(40), tmp_path / "i", BuildOptions())
    assert (before / "letter.txt").read_text() == "mine"


def test_an_interrupted_replacement_is_left_as_it_is(tmp_path: Path) -> None:
    """An estimate looks, and mends nothing."""
    wf.build(perceptron(), examples(40), tmp_path / ".i.replaced")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    estimate(perceptron(), examples(40), tmp_path / "i", BuildOptions(), overwrite=True)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_a_part_of_a_source_is_a_source() -> None:
    whole = TensorSource(examples(30))
    part = Part(whole, np.array([2, 5, 7, 29]))
    assert list(part.doc_ids()) == ["02", "05", "07", "29"]
    assert len(part) == 4
    assert [d.doc_id for d in part.part(np.array([1, 3])).documents] == ["05", "29"]
    mask = np.array([True, False, True, True])
    shards = [[d.doc_id for d in shard.documents] for shard in part.shards(2, mask)]
    assert shards == [["02", "07"], ["29"]]


def test_a_stopwatch_knows_what_was_counted_and_what_came_after() -> None:
    watch = Stopwatch(Clock())
    for event in (("a", 0, 4), ("a", 2, 4), ("a", 4, 4), ("a", 4, 4), ("b", 0, 1), ("b", 1, 1)):
        watch(*event)
    watch.stop()
    lap = watch.laps["a"]
    assert (lap.began, lap.counted, lap.told, watch.end("a")) == (1.0, 3.0, 4.0, 5.0)
    assert watch.end("b") == 7.0


FOUND = Estimate(
    documents=1000,
    tokens=250_000,
    sample=100,
    workers=2,
    seconds={"reading the corpus": 1.25, "encoding the documents": 7200.0},
    disk={"documents": 5_000_000, "encoder": 999, "work": 7_000_000_000},
    memory={"model": 1_500_000, "curvature": 500_000},
)


def test_an_estimate_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    tell_estimate(tmp_path / "i", FOUND, as_json=True, quiet=True)
    told = json.loads(capsys.readouterr().out)
    assert told["schema"] == "wherefrom-estimate/1"
    assert told["total_seconds"] == 7201.25
    assert told["index_bytes"] == 5_000_999
    assert told["peak_memory"] == 2_000_000
    tell_estimate(tmp_path / "i", FOUND, as_json=False, quiet=True)
    assert capsys.readouterr().out == ""
    tell_estimate(tmp_path / "i", FOUND, as_json=False, quiet=False)
    shown = capsys.readouterr().out
    for words in ("1,000 of about 250,000", "2.0 h, 2 at once", "5.0 MB", "999 bytes", "7.0 GB"):
        assert words in shown
