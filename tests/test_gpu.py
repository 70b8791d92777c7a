"""The same index from a GPU, to float32's precision; skipped where there is none."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import wherefrom as wf
from small_models import mlp
from tiny_lm import text_documents, tiny_llama, tiny_tokenizer
from wherefrom.curvature.kinds import CURVATURE_KINDS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("encoder", ["none", "sketch"])
def test_a_gpu_builds_and_answers_as_a_cpu_does(tmp_path: Path, encoder: str) -> None:
    question = [wf.Query("The war", " and the peace")]
    scores = {}
    for device in ("cpu", "cuda"):
        index = wf.build(
            tiny_llama().float(),
            text_documents(),
            tmp_path / device,
            objective=wf.CausalLM(tiny_tokenizer()),
            encoder=encoder,
            device=device,
        )
        scores[device] = [index.scores(question, tier=tier) for tier in ("exact", "stored")]
        again = wf.open(
            tmp_path / device,
            model=index.asker.extractor.model,
            device=device,
            objective=wf.CausalLM(tiny_tokenizer()),
        )
        assert again.scores(question, tier="stored").tobytes() == scores[device][1].tobytes()
    exact = scores["cpu"][0]
    assert np.abs(scores["cuda"][0] - exact).max() <= 1e-3 * np.abs(exact).max()


@pytest.mark.parametrize("kind", CURVATURE_KINDS)
def test_every_curvature_is_the_same_on_a_gpu(tmp_path: Path, kind: str) -> None:
    """To float32's precision, with another damping too, and when opened again."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(40, 5, generator=generator)
    y = torch.randint(0, 3, (40,), generator=generator)
    asked = (x[:3], torch.tensor([0, 1, 2]))
    scores = {}
    for device in ("cpu", "cuda"):
        with warnings.catch_warnings():
            if kind == "datainf":
                warnings.simplefilter("ignore")  # On few documents it is next to the gradient dot.
            index = wf.build(
                mlp().float(), (x, y), tmp_path / device, curvature=kind, device=device
            )
        again = wf.open(tmp_path / device, model=mlp().float(), device=device)
        scores[device] = [
            opened.scores(asked, tier=tier, damping=damping)
            for opened in (index, again)
            for tier in ("exact", "stored")
            for damping in (None, 1.0)
        ]
    for on_cpu, on_gpu in zip(scores["cpu"], scores["cuda"], strict=True):
        assert np.abs(on_gpu - on_cpu).max() <= 1e-2 * np.abs(on_cpu).max()
