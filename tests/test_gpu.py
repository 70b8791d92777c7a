"""The same index from a GPU, to float32's precision; skipped where there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import wherefrom as wf
from tiny_lm import text_documents, tiny_llama, tiny_tokenizer

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
            model=index._model().extractor.model,
            device=device,
            objective=wf.CausalLM(tiny_tokenizer()),
        )
        assert again.scores(question, tier="stored").tobytes() == scores[device][1].tobytes()
    exact = scores["cpu"][0]
    assert np.abs(scores["cuda"][0] - exact).max() <= 1e-3 * np.abs(exact).max()
