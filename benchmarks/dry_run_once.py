"""One build, or its estimate, in a process of its own, for the dry_run benchmark; prints JSON."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import wherefrom as wf
from benchmarks.environment import peak_memory
from benchmarks.workload import (
    SMALL,
    demo_passages,
    random_llama,
    small_texts,
    small_tokenizer,
)
from wherefrom.demo.model import train_tokenizer
from wherefrom.indexer.estimate import estimate
from wherefrom.indexer.options import BuildOptions
from wherefrom.records import Document

__all__ = ["WORKLOADS"]

Workload = tuple[nn.Module, Any, dict[str, Any]]
"""Model, documents, and what else a build is given."""


def short_texts(count: int) -> Workload:
    """Texts of 10 to 30 words under a small language model."""
    tokenizer = small_tokenizer()
    model = random_llama(len(tokenizer), SMALL)
    return model, small_texts(count), {"objective": wf.CausalLM(tokenizer)}


def long_texts(count: int) -> Workload:
    """Texts as long as the same model's context, of very different lengths, half of them cut."""
    tokenizer = small_tokenizer()
    texts = [document.text for document in small_texts(4 * count)]
    documents = [
        Document(f"long-{i}", " ".join(texts[4 * i : 4 * i + 1 + i % 4])) for i in range(count)
    ]
    model = random_llama(len(tokenizer), SMALL)
    return model, documents, {"objective": wf.CausalLM(tokenizer)}


def classifier(count: int) -> Workload:
    """Random images of 8 by 8 under a perceptron with wide layers."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 512), nn.Tanh(), nn.Linear(512, 128), nn.Tanh())
    model.append(nn.Linear(128, 10))
    return model, (torch.randn(count, 64), torch.arange(count) % 10), {}


def demo(count: int) -> Workload:
    """The demo's passages under an untrained model of its size."""
    documents = demo_passages(count)
    tokenizer = train_tokenizer(documents)
    return random_llama(len(tokenizer)), documents, {"objective": wf.CausalLM(tokenizer)}


WORKLOADS: dict[str, Callable[[int], Workload]] = {
    "short texts": short_texts,
    "long texts": long_texts,
    "classifier": classifier,
    "demo": demo,
}
"""What is built, by name."""


def main() -> None:
    """``python -m benchmarks.dry_run_once WORKLOAD DOCUMENTS SAMPLE PATH``; SAMPLE 0 builds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workload", choices=WORKLOADS)
    for name in ("documents", "sample"):
        parser.add_argument(name, type=int)
    parser.add_argument("path", type=Path)
    given = parser.parse_args()
    model, documents, settings = WORKLOADS[given.workload](given.documents)
    started = time.process_time()
    if given.sample:
        found = estimate(
            model,
            documents,
            given.path,
            BuildOptions(),
            sample=given.sample,
            clock=time.process_time,
            **settings,
        )
        taken = {"took": time.process_time() - started, **found.to_json()}
    else:
        laps: dict[str, float] = {}

        def told(phase: str, done: int, total: int) -> None:
            laps.setdefault(phase, time.process_time() - started)

        index = wf.build(model, documents, given.path, progress=told, **settings)
        taken = {
            "total_seconds": time.process_time() - started,
            "began": laps,
            "index_bytes": sum(f.stat().st_size for f in given.path.rglob("*") if f.is_file()),
            "peak_memory": peak_memory(),
            "documents": len(index),
            "tokens": index.manifest.corpus.tokens,
        }
    print(json.dumps(taken))


if __name__ == "__main__":
    main()
