"""One fit of EK-FAC in a process of its own, for the fit_memory benchmark; prints JSON."""

from __future__ import annotations

import argparse
import json

import torch

import wherefrom as wf
from benchmarks.fitting import measured_fit, stored_bytes
from benchmarks.workload import random_llama, small_texts, small_tokenizer
from wherefrom.curvature.bases import gradients_of
from wherefrom.curvature.eigen import FittedEigen
from wherefrom.curvature.ekfac import EKFAC
from wherefrom.demo.model import Recipe
from wherefrom.gradients.batches import Batch
from wherefrom.gradients.examples import TextExamples, batches
from wherefrom.gradients.extractor import GradientExtractor, LayerPair
from wherefrom.gradients.fisher import Fisher, PseudoGradients
from wherefrom.gradients.layers import select_layers

__all__: list[str] = []

_FISHER: Fisher = "sampled"


def worst_trace(
    curvature: FittedEigen, extractor: GradientExtractor, documents: list[Batch]
) -> float:
    """Largest relative difference of a layer's sum of eigenvalues from ``E |DW|^2``."""
    squares = torch.zeros(len(extractor.layers), dtype=torch.float64)

    def add(pair: LayerPair) -> None:
        squares[pair.layer] += gradients_of(pair).double().square().sum()

    seen = PseudoGradients(extractor, lambda: documents, _FISHER).run(add)
    traces = torch.stack([values.sum() for values in curvature.eigenvalues])
    return float(((traces - squares / seen) / (squares / seen)).abs().max())


def main() -> None:
    """``python -m benchmarks.fit_memory_once WIDTH FEED_FORWARD LAYERS DOCUMENTS``."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("width", "feed_forward", "layers", "documents"):
        parser.add_argument(name, type=int)
    given = parser.parse_args()
    tokenizer = small_tokenizer()
    recipe = Recipe(
        vocabulary=600,
        context=96,
        width=given.width,
        feed_forward=given.feed_forward,
        layers=given.layers,
        heads=8,
    )
    model = random_llama(len(tokenizer), recipe)
    objective = wf.CausalLM(tokenizer, context=recipe.context).bind(model, tokenizer)
    examples = TextExamples.of(list(small_texts(given.documents)), objective)
    documents = [b for _, b in batches(examples, max_documents=32, max_positions=2048)]
    extractor = GradientExtractor(model, objective, select_layers(model))
    fit = measured_fit(EKFAC(), extractor, documents, _FISHER)
    if not isinstance(fit.curvature, FittedEigen):
        raise TypeError(f"EK-FAC gave a {type(fit.curvature).__name__}")
    taken = {
        "peak_bytes": fit.peak_bytes,
        "factor_bytes": stored_bytes(fit.curvature),
        "fit_cpu": fit.cpu,
        "documents": fit.curvature.documents,
        "batches": len(documents),
        "worst_trace": worst_trace(fit.curvature, extractor, documents),
    }
    print(json.dumps(taken))


if __name__ == "__main__":
    main()
