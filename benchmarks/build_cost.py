"""Build time as a multiple of one bare forward and backward pass over the same corpus.

The bare pass runs the very batches of the build's encoding pass through the same model and calls
``loss.backward()`` with the weights of the indexed layers trainable and all else frozen; its
gradients are dropped, and nothing is tokenised, stored or decomposed. The build is all of
``wf.build``, from documents in memory to an open index on disk. Bare passes and builds alternate;
each build is divided by the mean of the bare passes just before and after it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import wherefrom as wf
from benchmarks.figures import Figure, Report, command, expect
from benchmarks.workload import demo_passages, random_llama
from wherefrom.demo.model import train_tokenizer
from wherefrom.gradients.batches import Batch
from wherefrom.gradients.extractor import GradientExtractor, LayerPair
from wherefrom.gradients.fisher import true_gradients
from wherefrom.gradients.layers import Layer, select_layers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["measure"]

SAMPLE = 0.15
_IGNORED = -100


class RecordingLM(wf.CausalLM):
    """Causal language modelling that remembers the batches it was run on.

    Args:
        tokenizer: The model's.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Start with none."""
        super().__init__(tokenizer)
        self.batches: list[Batch] = []

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits, as always."""
        self.batches.append(batch)
        return super().outputs(model, batch)

    def first_pass(self, documents: int) -> list[Batch]:
        """The batches of the first pass, which hold ``documents`` documents.

        Before it one document tells what kind of Fisher suits the model.
        """
        end = 1
        while documents > 0 and end < len(self.batches):
            documents -= len(self.batches[end])
            end += 1
        return self.batches[1:end]


class BarePass:
    """The yardstick: one training-like forward and backward pass, without an optimiser.

    Args:
        model: The model.
        layers: The layers that the index is over.
        batches: What to run it on.
    """

    def __init__(self, model: nn.Module, layers: Sequence[Layer], batches: Sequence[Batch]) -> None:
        """Prepare labels, so that they cost nothing later."""
        self._model = model
        self._weights = [_weight(model, layer) for layer in layers]
        self._batches = [(batch, _labels(batch)) for batch in batches]

    def __call__(self) -> float:
        """Run it; the summed loss in nats."""
        total = 0.0
        for batch, labels in self._batches:
            total += self.backward(batch, labels)
            for weight in self._weights:
                weight.grad = None
        return total

    def backward(self, batch: Batch, labels: Tensor) -> float:
        """One batch; leaves the gradients of the layers' weights in ``grad``."""
        for parameter in self._model.parameters():
            parameter.requires_grad_(False)
        for weight in self._weights:
            weight.requires_grad_(True)
        mask = None if batch.attended is None else batch.attended.long()
        logits = self._model(input_ids=batch.inputs, attention_mask=mask, use_cache=False).logits
        loss = F.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), reduction="sum", ignore_index=_IGNORED
        )
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def worst_difference(self, extractor: GradientExtractor) -> float:
        """Largest relative difference from the sum of the documents' own gradients, one batch."""
        batch, labels = self._batches[0]
        sums: dict[int, Tensor] = {}

        def add(pair: LayerPair) -> None:
            sums[pair.layer] = torch.einsum("dto,dti->oi", pair.deltas, pair.activations)

        with extractor.session():
            true_gradients(extractor, batch, add)
        self.backward(batch, labels)
        worst = 0.0
        for i, weight in enumerate(self._weights):
            gradient = weight.grad
            expect(gradient is not None, f"layer {i} has a gradient")
            if gradient is not None:
                # The loss is minus the log-likelihood.
                worst = max(worst, float((gradient + sums[i]).norm() / gradient.norm()))
            weight.grad = None
        return worst


def measure(*, quick: bool) -> Report:
    """Time builds against bare passes."""
    documents = demo_passages(96 if quick else 1500)
    rounds = 1 if quick else 3
    tokenizer = train_tokenizer(documents)
    model = random_llama(len(tokenizer))
    layers = select_layers(model)
    with tempfile.TemporaryDirectory() as folder:
        recorder = RecordingLM(tokenizer)
        index = wf.build(model, documents, Path(folder) / "warm.index", objective=recorder)
        batches = recorder.first_pass(len(documents))
        indexed = sorted(doc_id for batch in batches for doc_id in batch.doc_ids)
        checks = [
            expect(
                indexed == sorted(index.doc_ids()),
                "the bare pass runs the documents that the build encodes, each once",
            )
        ]
        bare = BarePass(model, layers, batches)
        extractor = GradientExtractor(model, wf.CausalLM(tokenizer), layers)
        checks.append(
            expect(
                bare.worst_difference(extractor) < 1e-4,
                "the bare pass's weight gradients equal the sum of the documents' gradients "
                "within 1e-4",
            )
        )
        paths = (Path(folder) / f"{number}.index" for number in count())

        def build(share: float | None) -> None:
            objective = wf.CausalLM(tokenizer)
            built = wf.build(
                model, documents, next(paths), objective=objective, fit_documents=share
            )
            expect(len(built) == len(documents), "every document is indexed")

        figures = _alternate(bare, build, rounds)
    positions = sum(batch.inputs.numel() for batch in batches)
    run = sum(batch.inputs.numel() for batch in recorder.batches)
    return Report(
        figures,
        tuple(checks),
        {
            "documents": len(documents),
            "batches": len(batches),
            "padded_positions": positions,
            "positions_of_a_full_build_per_bare_position": run / positions,
            "weights_of_indexed_layers": sum(layer.size for layer in layers),
            "parameters": sum(p.numel() for p in model.parameters()),
            "bytes_per_document": index.manifest.encoder.bytes_per_document,
            "threads": torch.get_num_threads(),
            "rounds": rounds,
        },
    )


def _alternate(
    bare: BarePass, build: Callable[[float | None], None], rounds: int
) -> tuple[Figure, ...]:
    """Bare, build, bare, build on a sample, ...; ratios to the neighbouring bare passes."""
    passes = [_timed(bare)]
    builds: dict[float | None, list[tuple[float, float]]] = {None: [], SAMPLE: []}
    ratios: dict[float | None, list[tuple[float, float]]] = {None: [], SAMPLE: []}
    for _ in range(rounds):
        for share in (None, SAMPLE):
            taken = _timed(partial(build, share))
            passes.append(_timed(bare))
            builds[share].append(taken)
            around = [(a + b) / 2 for a, b in zip(passes[-2], passes[-1], strict=True)]
            ratios[share].append((taken[0] / around[0], taken[1] / around[1]))
    full, sampled = "build, three full passes", f"build, curvature of {SAMPLE:.0%} of the documents"
    return (
        Figure(f"{full} / bare pass", "×", _column(ratios[None], 0), at_most=4.0),
        Figure(f"{sampled} / bare pass", "×", _column(ratios[SAMPLE], 0), at_most=2.0),
        Figure(f"{full} / bare pass (CPU time)", "×", _column(ratios[None], 1)),
        Figure(f"{sampled} / bare pass (CPU time)", "×", _column(ratios[SAMPLE], 1)),
        Figure("bare pass", "s", _column(passes, 0)),
        Figure(full, "s", _column(builds[None], 0)),
        Figure(sampled, "s", _column(builds[SAMPLE], 0)),
    )


def _column(pairs: Sequence[tuple[float, float]], which: int) -> tuple[float, ...]:
    return tuple(pair[which] for pair in pairs)


def _timed(run: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def _labels(batch: Batch) -> Tensor:
    if batch.scored is None:
        return batch.targets
    return batch.targets.masked_fill(~batch.scored, _IGNORED)


def _weight(model: nn.Module, layer: Layer) -> nn.Parameter:
    return model.get_parameter(f"{layer.name}.weight")


if __name__ == "__main__":
    command(measure)()
