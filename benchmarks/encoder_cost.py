"""What each encoder costs a token, beside a bare forward and backward pass.

A model of the demo's dimensions, trained for one epoch so that its gradients have a trained model's
spectrum, and EK-FAC on the same passages. Every encoder encodes a batch before the next one comes,
so that whatever else uses the machine slows all alike. Beside them:

* the bare pass: ``loss.backward()`` with the weights of the indexed layers trainable and all else
  frozen, as in ``build_cost``;
* the pairs: the forward and backward pass with its taps, which is what encoding starts from.

All times are CPU time. Codes are not in it: the store quantises.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial

import numpy as np
import torch

import wherefrom as wf
from benchmarks.build_cost import BarePass
from benchmarks.figures import Figure, Report, command, expect
from benchmarks.workload import demo_passages, random_llama
from wherefrom.curvature.ekfac import EKFAC
from wherefrom.demo.model import RECIPE, train_model, train_tokenizer
from wherefrom.encoding.encoder import Encoder
from wherefrom.encoding.factory import make_encoder
from wherefrom.encoding.stages import Stages
from wherefrom.gradients.batches import Batch
from wherefrom.gradients.examples import TextExamples, batches
from wherefrom.gradients.extractor import GradientExtractor, LayerPair
from wherefrom.gradients.fisher import PseudoGradients, true_gradients
from wherefrom.gradients.layers import select_layers

__all__ = ["measure"]

_BATCH = 16
_TIMED = 4
_ROUNDS = 3
_BARE = "bare forward and backward pass"
_PAIRS = "pairs"

_KEPT = 16384


def measure(*, quick: bool) -> Report:
    """Time every reduction over the same batches."""
    documents = demo_passages(48 if quick else 400)
    tokenizer = train_tokenizer(documents)
    model = random_llama(len(tokenizer))
    if not quick:
        recipe = replace(RECIPE, epochs=1)
        model = train_model(documents, tokenizer, seed=0, progress=_quiet, recipe=recipe)
        model.zero_grad(set_to_none=True)
    layers = select_layers(model)
    objective = wf.CausalLM().bind(model, tokenizer)
    extractor = GradientExtractor(model, objective, layers)
    examples = TextExamples.of(documents, objective)
    everything = [batch for _, batch in batches(examples, max_documents=_BATCH)]
    fitted = EKFAC().fit(PseudoGradients(extractor, lambda: everything, "sampled"))
    weights = sum(layer.size for layer in layers)
    encoders = {s.describe(): make_encoder(fitted, s) for s in _stages(weights)}
    timed = everything[:: max(1, len(everything) // _TIMED)]
    bare = [BarePass(model, layers, [batch]) for batch in timed]
    checks = (
        _same_entries(list(encoders.values()), extractor, timed[0]),
        expect(
            bare[0].worst_difference(extractor) < 1e-4,
            "the bare pass's weight gradients equal the sum of the documents' within 1e-4",
        ),
    )
    costs: dict[str, list[float]] = {}
    for _ in range(1 if quick else _ROUNDS):
        for name, seconds in _round(extractor, bare, encoders, timed).items():
            costs.setdefault(name, []).append(seconds)
    tokens = sum(_tokens(batch) for batch in timed)
    return Report(
        _figures(costs, tokens),
        checks,
        {
            "documents": sum(len(batch) for batch in timed),
            "tokens": tokens,
            "batch": _BATCH,
            "trained": not quick,
            "weights_of_indexed_layers": weights,
            "layers": [list(layer.shape) for layer in layers],
            "rows_and_columns_read": {
                name: [list(map(len, rectangle)) for rectangle in encoder.reduction.rectangles]
                for name, encoder in encoders.items()
                if encoder.reduction.rectangles is not None
            },
            "threads": torch.get_num_threads(),
        },
    )


def _quiet(phase: str, done: int, total: int) -> None:
    pass


def _stages(weights: int) -> Sequence[Stages]:
    """The whole vector first."""
    return [
        Stages("none", weights, 32, rotate=False),
        Stages("sketch", 16384, 1, rotate=False),
        Stages("sketch", 16384, 1),
        Stages("sketch", 65536, 1),
        Stages("sketch", 32768, 1, sketched=weights // 4),
        Stages("energy", 1024, 1, rotate=False),
        Stages("energy", _KEPT, 1, rotate=False),
        Stages("energy", 65536, 1, rotate=False),
        Stages("random", 1024, 16, rotate=False),
        Stages("random", 16384, 16, rotate=False),
    ]


def _round(
    extractor: GradientExtractor,
    bare: Sequence[BarePass],
    encoders: dict[str, Encoder],
    timed: Sequence[Batch],
) -> dict[str, float]:
    """CPU seconds of everything over all batches, batch by batch."""
    seconds = dict.fromkeys([_BARE, _PAIRS, *encoders], 0.0)
    for batch, backward in zip(timed, bare, strict=True):
        seconds[_BARE] += _timed(backward)
        session = extractor.session
        seconds[_PAIRS] += _timed(partial(true_gradients, extractor, batch, _drop), session)
        for name, encoder in encoders.items():
            seconds[name] += _timed(partial(encoder.encode, extractor, batch), session)
    return seconds


def _timed(
    run: Callable[[], object],
    within: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> float:
    start = time.process_time()
    with within():
        run()
    return time.process_time() - start


def _drop(pair: LayerPair) -> None:
    pass


def _tokens(batch: Batch) -> int:
    """Padding left out."""
    return batch.inputs.numel() if batch.attended is None else int(batch.attended.sum())


def _figures(costs: dict[str, list[float]], tokens: int) -> tuple[Figure, ...]:
    bare = costs[_BARE]
    figures = []
    for name, seconds in costs.items():
        per_token = tuple(1e6 * value / tokens for value in seconds)
        figures.append(Figure(f"{name}: a token", "µs", per_token))
        if name != _BARE:
            ratios = tuple(a / b for a, b in zip(seconds, bare, strict=True))
            figures.append(Figure(f"{name} / {_BARE}", "×", ratios))
    return tuple(figures)


def _same_entries(encoders: Sequence[Encoder], extractor: GradientExtractor, batch: Batch) -> str:
    """Entries of the largest expected energy, through their rectangle and picked from all."""
    whole, through = (
        encoders[0],
        next(e for e in encoders if e.reduction.kind == "energy" and e.dimension == _KEPT),
    )
    energies = [whole.curvature.expected_energy(i) for i in range(len(whole.curvature.layers))]
    flat = np.concatenate([e.flatten().numpy() for e in energies if e is not None])
    chosen = np.sort(np.argsort(-flat, kind="stable")[:_KEPT])
    with extractor.session():
        expected = whole.encode(extractor, batch).vectors[:, chosen]
        found = through.encode(extractor, batch).vectors
    return expect(
        float(np.abs(found - expected).max()) <= 1e-4 * float(np.abs(expected).max()),
        "coordinates computed through their rectangle equal those picked from all within 1e-4 of "
        "the largest",
    )


if __name__ == "__main__":
    command(measure)()
