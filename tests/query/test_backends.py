"""One contract for all backends: the same documents with the same scores, to the last bit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import nn

import wherefrom as wf
from wherefrom.store.accelerators import AcceleratorKind

KINDS: tuple[AcceleratorKind, ...] = get_args(AcceleratorKind)
ENCODERS: dict[str, dict[str, Any]] = {
    "signs": {"encoder": "sketch", "bits": 1, "bytes_per_document": 64},
    "levels": {"encoder": "none", "bits": 4},
    "floats": {"encoder": "none"},
}
COUNT = 400


def subject() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(COUNT, 10, generator=generator) * torch.rand(COUNT, 1, generator=generator) * 4
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(10, 24), nn.Tanh(), nn.Linear(24, 3))
    return model, x, (x[:, :3].argmax(1))


@pytest.fixture(scope="module")
def indexes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, wf.Index]:
    pytest.importorskip("faiss")
    folder = tmp_path_factory.mktemp("backends")
    model, x, y = subject()
    made = {}
    for name, wanted in ENCODERS.items():
        index = wf.build(model, (x, y), folder / name, **wanted)
        for kind in KINDS:
            index.accelerate(kind)
        made[name] = wf.open(index.path, model=model)
    return made


def asked(seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(100 + seed)
    x = torch.randn(10, generator=generator)
    return {"inputs": x, "target": int(x[:3].argmax())}


def told(answer: wf.Answer) -> dict[str, Any]:
    """All of an answer but what may differ: who found the candidates, how many, and how fast."""
    fields = answer.to_dict()
    fields.pop("seconds")
    fields["options"].pop("backend")
    for name in ("backend", "candidates", "next_proponent", "next_opponent"):
        fields["certificate"].pop(name)
    return fields


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_the_same_to_the_bit(
    indexes: dict[str, wf.Index], kind: AcceleratorKind, encoder: str
) -> None:
    index = indexes[encoder]
    for seed in range(4):
        for k, sign in ((1, "both"), (7, "proponents"), (7, "opponents"), (2 * COUNT, "both")):
            options: dict[str, Any] = {**asked(seed), "k": k, "sign": sign, "rerank": "stored"}
            scanned = index.query(**options)
            found = index.query(**options, backend=kind)
            assert told(found) == told(scanned)
            assert found.certificate.certified
            assert found.certificate.backend == kind
    recomputed: dict[str, Any] = {"k": 3, "rerank": "recompute", "candidates": 9}
    exact = index.query(**asked(0), **recomputed)
    assert told(index.query(**asked(0), **recomputed, backend=kind)) == told(exact)


@pytest.mark.parametrize("kind", KINDS)
def test_answers_equal_brute_force(indexes: dict[str, wf.Index], kind: AcceleratorKind) -> None:
    index = indexes["signs"]
    question = asked(9)
    scores = index.scores(
        (question["inputs"][None], torch.tensor([question["target"]])), tier="stored"
    )[0]
    answer = index.query(**question, k=20, rerank="stored", backend=kind)
    ids = np.array(index.doc_ids())
    for hits, direction in ((answer.proponents, 1), (answer.opponents, -1)):
        order = np.lexsort((ids, -direction * scores))[:20]
        assert [hit.doc_id for hit in hits] == ids[order].tolist()
        assert [hit.score for hit in hits] == scores[order].tolist()


def test_a_backend_is_recorded_and_its_files_checked(
    tmp_path: Path, indexes: dict[str, wf.Index]
) -> None:
    model, _, _ = subject()
    place = shutil.copytree(indexes["floats"].path, tmp_path / "i")
    index = wf.open(place, model=model)
    assert {record.kind for record in index.manifest.accelerators} == set(KINDS)
    before = index.manifest.digest
    other = wf.open(place, model=model)
    index.accelerate("faiss-flat")
    other.accelerate("faiss-sq8")
    assert {record.kind for record in other.manifest.accelerators} == set(KINDS)
    assert other.manifest.digest == before, "what decides an answer did not change"
    index = wf.open(place, model=model)
    (file,) = (place / "faiss").glob("faiss-flat*")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(wf.WherefromError, match="SHA-256") as caught:
        index.query(**asked(0), backend="faiss-flat")
    assert "\n" not in str(caught.value)
    assert index.query(**asked(0), backend="faiss-sq8").proponents
    file.unlink()
    with pytest.raises(wf.WherefromError, match="missing"):
        wf.open(place, model=model).query(**asked(0), backend="faiss-flat")
    index.accelerate("faiss-flat")
    assert index.query(**asked(0), backend="faiss-flat").proponents
    forgotten = index.manifest.model_copy(update={"accelerators": ()})
    forgotten.write(place)
    with pytest.raises(wf.WherefromError, match="not in the manifest"):
        wf.open(place, model=model).query(**asked(0), backend="faiss-flat")
