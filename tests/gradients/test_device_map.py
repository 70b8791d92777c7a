"""Large models: half precision, and weights spread by ``device_map``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import wherefrom as wf
from tiny_lm import save_tiny_lm, text_documents, tiny_tokenizer
from wherefrom.errors import ModelError
from wherefrom.gradients.models import load_model

pytest.importorskip("accelerate")

QUESTIONS = [wf.Query("gold and", " silver trade"), wf.Query("the war", " of ships")]
PARTS = ["embed_tokens", "layers.0", "layers.1", "norm", "rotary_emb"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_lm(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def scores(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Those of the model loaded whole, in either precision."""
    found = {}
    for dtype in ("float32", "bfloat16"):
        path = tmp_path_factory.mktemp("indexes") / dtype
        index = wf.build(
            folder, text_documents(), path, encoder="none", fisher="empirical", dtype=dtype
        )
        found[dtype] = index.scores(QUESTIONS)
    return found


def placed() -> dict[str, str]:
    """Every part of the model by name, on the processor."""
    return {f"model.{part}": "cpu" for part in PARTS} | {"lm_head": "cpu"}


@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}, placed()])
def test_a_device_map_changes_nothing(
    device_map: Any, folder: Path, scores: dict[str, np.ndarray], tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, device_map=device_map
    )
    index = wf.build(
        model,
        text_documents(),
        tmp_path / "index",
        objective=wf.CausalLM(tiny_tokenizer()),
        encoder="none",
        fisher="empirical",
    )
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    np.testing.assert_array_equal(index.scores(QUESTIONS), scores["bfloat16"])


def test_half_precision_gives_the_scores_to_its_precision(scores: dict[str, np.ndarray]) -> None:
    """The labels of the curvature are the true ones: drawn, they would differ now and then."""
    for found, wanted in zip(scores["bfloat16"], scores["float32"], strict=True):
        assert np.corrcoef(found, wanted)[0, 1] > 0.95
        assert 0.9 < np.linalg.norm(found) / np.linalg.norm(wanted) < 1.1


def test_weights_on_the_disk_are_refused(folder: Path, tmp_path: Path) -> None:
    on_disk = {part: "disk" for part in placed() if part.endswith("layers.1")}
    model = AutoModelForCausalLM.from_pretrained(
        folder, device_map=placed() | on_disk, offload_folder=tmp_path
    )
    with pytest.raises(ModelError, match=r"not in memory: device_map left them on the disk.*cpu"):
        load_model(model)


def test_weights_that_were_never_loaded_are_refused(folder: Path) -> None:
    config = AutoModelForCausalLM.from_pretrained(folder).config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ModelError, match=r"not in memory: .* or they were never loaded"):
        wf.build(model, text_documents(), folder / "i", objective=wf.CausalLM(tiny_tokenizer()))
