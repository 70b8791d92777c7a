"""The faults that other libraries of this kind have, planted one by one and seen.

A *check* compares what the package gives through its public paths with dense float64 truth. It
passes as things are, and each fault makes the check named beside it fail.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import wherefrom as wf
from curvature import reference
from curvature.contract import close
from curvature.reference import Applied, case_of, extractor_of, pairs, shifted, truth
from small_models import Case, mlp
from test_index import assert_hits
from tiny_lm import text_documents, tiny_llama, tiny_tokenizer, token_log_likelihood
from wherefrom.curvature.bases import Eigenbasis, GradientRotation
from wherefrom.curvature.eigen import FittedEigen
from wherefrom.curvature.kinds import make_curvature
from wherefrom.encoding.encoder import Encoder
from wherefrom.encoding.reduction import NoReduction
from wherefrom.errors import MismatchError
from wherefrom.gradients.batches import Batch
from wherefrom.gradients.extractor import Forward, LayerPair
from wherefrom.gradients.layers import select_layers
from wherefrom.gradients.objectives import Categorical, Classification, TextObjective
from wherefrom.query import asker as asker_module
from wherefrom.query.respond import Responder
from wherefrom.query.scan import Candidates
from wherefrom.query.search import CertifiedSearch, Ranking
from wherefrom.records import Query

Check = Callable[[Path], None]
Plant = Callable[[pytest.MonkeyPatch], None]

_numbers = itertools.count()


# Checks.


@cache
def classifier() -> Case:
    """Layers with and without bias; eight documents."""
    x = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return reference.tensor_case("faults", mlp((True, False, True)), x, torch.arange(8) % 3)


@cache
def classifier_truth(damping: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Dense EK-FAC ``[query, document]``, and self-influence."""
    layers = reference.truth_of(classifier(), "expected")
    applied = [
        Applied.of(reference.damped_inverse(reference.ekfac_block(layer), damping), layer)
        for layer in layers
    ]
    return sum(a.scores for a in applied).numpy(), sum(a.energies for a in applied).numpy() / 8


def build(folder: Path, *arguments: Any, **options: Any) -> wf.Index:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # A fault may make the build itself suspicious.
        return wf.build(*arguments, folder / f"{next(_numbers)}", encoder="none", **options)


def near(found: NDArray[np.float64], expected: NDArray[np.float64]) -> None:
    largest = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0.0, atol=2e-6 * largest)


def classifier_index(folder: Path) -> None:
    """Both tiers, self-influence, and other dampings asked for in between."""
    case = classifier()
    documents, asked = case.batch(list(range(8))), shifted(case, range(8))
    for batch_size, damping in ((3, 0.1), (8, 10.0)):
        index = build(
            folder,
            case.model,
            (documents.inputs, documents.targets),
            damping=damping,
            batch_size=batch_size,
        )
        queries = (asked.inputs, asked.targets)
        expected, own = classifier_truth(damping)
        for tier in ("exact", "stored"):
            for other in (None, 2.0, 2.0, None):
                wanted = expected if other is None else classifier_truth(other)[0]
                near(index.scores(queries, tier=tier, damping=other), wanted)
        near(index.self_influence(), own)


def encoded_case(name: str) -> Check:
    """Documents and queries through the encoder, for one kind of model."""

    def check(folder: Path) -> None:
        case, fisher = case_of(name), reference.fishers(name)[0]
        fitted = make_curvature("ekfac").fit(pairs(case, fisher))
        encoder = Encoder(fitted, NoReduction(tuple(layer.size for layer in fitted.layers)))
        extractor = extractor_of(case)
        rows = list(range(case.count))
        with extractor.session():
            phi = encoder.encode(extractor, case.batch(rows)).vectors
            psi = encoder.encode_query(extractor, shifted(case, rows)).vectors
        applied = [
            Applied.of(reference.damped_inverse(reference.ekfac_block(layer), 0.1), layer)
            for layer in truth(name, fisher)
        ]
        expected = sum(a.scores for a in applied)
        close(torch.from_numpy(psi @ phi.T / case.count), expected, 2e-6)

    return check


QUESTIONS = [
    Query("the union of states", " shall be preserved"),
    Query("gold and silver", " trade ships or war"),
]
EARLY = {"year": ("<", 1900)}


@cache
def language_truth() -> NDArray[np.float64]:
    """Gradient dots of questions and documents, over N."""
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    layers = select_layers(model, "mlp")

    def gradient(ids: list[int], first: int) -> Tensor:
        score = token_log_likelihood(ids, range(first, len(ids)))
        return torch.cat(reference.weight_gradients(model, layers, score))

    documents = [gradient(tokenizer(d.text)["input_ids"], 1) for d in text_documents()]
    asked = []
    for query in QUESTIONS:
        first = len(tokenizer(query.prompt)["input_ids"])
        asked.append(gradient(tokenizer(query.prompt + query.completion)["input_ids"], first))
    return (torch.stack(asked) @ torch.stack(documents).T / len(documents)).numpy()


def language_index(folder: Path) -> None:
    """Scores, both lists with and without a filter, and another checkpoint."""
    documents, expected = text_documents(), language_truth()
    objective = wf.CausalLM(tiny_tokenizer())
    index = build(folder, tiny_llama(), documents, curvature="identity", objective=objective)
    assert index.doc_ids() == [d.doc_id for d in documents]
    for tier in ("exact", "stored"):
        near(index.scores(QUESTIONS, tier=tier), expected)
    texts = {d.doc_id: d.text for d in documents}
    early = [i for i, d in enumerate(documents) if (d.metadata["year"] or 9999) < 1900]
    assert 0 < len(early) < len(documents)
    for query, scores in zip(QUESTIONS, expected, strict=True):
        for where, rows in ((None, range(len(documents))), (EARLY, early)):
            for k in (2, 30):
                answer = index.query(
                    prompt=query.prompt, completion=query.completion, k=k, where=where
                )
                assert all(h.text == texts[h.doc_id] for h in answer.proponents + answer.opponents)
                chosen = scores[list(rows)]
                ids = [documents[i].doc_id for i in rows]
                sizes = np.full(len(ids), np.abs(expected).max())
                assert_hits(answer, chosen, ids, k, "both", sizes)
    other = tiny_llama(seed=7)
    try:
        reopened = wf.open(index.path, model=other, objective=objective)
    except MismatchError:
        return
    near(reopened.scores(QUESTIONS), expected)


CHECKS: dict[str, Check] = {
    "classifier index": classifier_index,
    "language index": language_index,
    "mlp without bias": encoded_case("mlp-no-bias"),
    "shared modules": encoded_case("shared"),
    "language model": encoded_case("llama-mlp"),
    "biased language model": encoded_case("gpt2-linear"),
}


# Plants.


def full_preconditioning_on_both_sides(patch: pytest.MonkeyPatch) -> None:
    def scale(self: FittedEigen, layer: int) -> Tensor:
        return self.damped(layer).reciprocal()

    patch.setattr(FittedEigen, "scale", scale)


def multiplication_by_the_curvature(patch: pytest.MonkeyPatch) -> None:
    def scale(self: FittedEigen, layer: int) -> Tensor:
        values = self.eigenvalues[layer]
        return (values + self.stored_damping * values.mean()).sqrt()

    def solve(self: FittedEigen, layer: int, coordinates: Tensor) -> Tensor:
        return coordinates.double() * self.damped(layer)

    patch.setattr(FittedEigen, "scale", scale)
    patch.setattr(FittedEigen, "solve", solve)


def _rotated(
    patch: pytest.MonkeyPatch, change: Callable[[LayerPair, Eigenbasis], tuple[LayerPair, Any]]
) -> None:
    original = GradientRotation._rotated_sides

    def rotated_sides(self: GradientRotation, pair: LayerPair, basis: Eigenbasis) -> Any:
        return original(self, *change(pair, basis))

    patch.setattr(GradientRotation, "_rotated_sides", rotated_sides)


def rotation_by_the_transpose(patch: pytest.MonkeyPatch) -> None:
    # Layers that share an input share its eigenvectors. The originals are kept as well: the id of
    # one that is gone may come back for another.
    transposed: dict[int, tuple[Tensor, Tensor]] = {}

    def change(pair: LayerPair, basis: Eigenbasis) -> tuple[LayerPair, Eigenbasis]:
        kept = transposed.setdefault(id(basis.q_in), (basis.q_in, basis.q_in.T.contiguous()))
        return pair, Eigenbasis(kept[1], basis.q_out.T.contiguous())

    _rotated(patch, change)


def rotation_of_outputs_by_the_transpose(patch: pytest.MonkeyPatch) -> None:
    _rotated(patch, lambda pair, basis: (pair, Eigenbasis(basis.q_in, basis.q_out.T)))


def bias_in_the_wrong_column(patch: pytest.MonkeyPatch) -> None:
    def change(pair: LayerPair, basis: Eigenbasis) -> tuple[LayerPair, Eigenbasis]:
        biased = bool((pair.activations[:, :1, -1] == 1).all())
        rolled = pair.activations.roll(1, -1) if biased else pair.activations
        return replace(pair, activations=rolled), basis

    _rotated(patch, change)


def inputs_scrambled_without_bias(patch: pytest.MonkeyPatch) -> None:
    def change(pair: LayerPair, basis: Eigenbasis) -> tuple[LayerPair, Eigenbasis]:
        biased = bool((pair.activations[:, :1, -1] == 1).all())
        rolled = pair.activations if biased else pair.activations.roll(1, -1)
        return replace(pair, activations=rolled), basis

    _rotated(patch, change)


def one_damping_for_all_layers(patch: pytest.MonkeyPatch) -> None:
    def lam(self: FittedEigen) -> Tensor:
        return sum(values.mean() for values in self.eigenvalues) / len(self.eigenvalues)

    def damped(self: FittedEigen, layer: int) -> Tensor:
        return self.eigenvalues[layer] + self.damping * lam(self)

    def scale(self: FittedEigen, layer: int) -> Tensor:
        return (self.eigenvalues[layer] + self.stored_damping * lam(self)).rsqrt()

    patch.setattr(FittedEigen, "damped", damped)
    patch.setattr(FittedEigen, "scale", scale)


def damping_that_accumulates(patch: pytest.MonkeyPatch) -> None:
    original = FittedEigen.with_damping

    def with_damping(self: FittedEigen, damping: float) -> FittedEigen:
        asked = original(self, damping)
        for values in asked.eigenvalues if damping != self.stored_damping else ():
            values.add_(damping * values.mean())
        return replace(asked, damping=0.0) if damping != self.stored_damping else asked

    patch.setattr(FittedEigen, "with_damping", with_damping)


def solutions_cached_without_damping(patch: pytest.MonkeyPatch) -> None:
    kept: dict[int, Tensor] = {}

    def damped(self: FittedEigen, layer: int) -> Tensor:
        values = self.eigenvalues[layer]
        return kept.setdefault(layer, values + self.damping * values.mean())

    patch.setattr(FittedEigen, "damped", damped)


def scalings_cached_without_curvature(patch: pytest.MonkeyPatch) -> None:
    original = Encoder.scaling
    kept: dict[tuple[int, torch.dtype], Tensor] = {}

    def scaling(self: Encoder, layer: int, like: Tensor) -> Tensor:
        key = layer, like.dtype
        if key not in kept:
            kept[key] = original(self, layer, like)
        return kept[key]

    patch.setattr(Encoder, "scaling", scaling)


def losses_averaged_over_the_batch(patch: pytest.MonkeyPatch) -> None:
    original = Classification.differentiate

    def differentiate(
        self: Classification, outputs: Tensor, targets: Tensor, batch: Batch
    ) -> tuple[Tensor, Tensor]:
        nats, gradient = original(self, outputs, targets, batch)
        return nats, gradient / len(batch)

    patch.setattr(Classification, "differentiate", differentiate)


def padding_in_the_activations(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Forward, "_mask", lambda self, *arguments, **named: None)


def only_the_last_call_of_a_shared_module(patch: pytest.MonkeyPatch) -> None:
    original = Forward._pair

    def pair(self: Forward, index: int, calls: Any, **named: Any) -> LayerPair:
        return original(self, index, calls[-1:], **named)

    patch.setattr(Forward, "_pair", pair)


def pseudo_losses_on_prompts_and_padding(patch: pytest.MonkeyPatch) -> None:
    original = Categorical.sampled_gradient

    def sampled_gradient(self: Categorical, outputs: Tensor, batch: Batch, key: Any) -> Tensor:
        return original(self, outputs, replace(batch, scored=None), key)

    patch.setattr(Categorical, "sampled_gradient", sampled_gradient)


def no_curvature_but_its_mean(patch: pytest.MonkeyPatch) -> None:
    original = FittedEigen.fitted.__func__

    def fitted(cls: type[FittedEigen], kind: Any, layers: Any, bases: Any, values: Any, *rest: Any):
        flat = tuple(torch.full_like(v, float(v.mean())) for v in values)
        return original(cls, kind, layers, bases, flat, *rest)

    patch.setattr(FittedEigen, "fitted", classmethod(fitted))


def _scanned(patch: pytest.MonkeyPatch, change: Callable[..., list[Candidates]]) -> None:
    """Change what the scan finds for each query, a filter's ordinals being told."""
    original = CertifiedSearch.__init__

    def init(self: CertifiedSearch, table: Any, scan: Any, *rest: Any) -> None:
        def changed(*arguments: Any, **named: Any) -> list[list[Candidates]]:
            found = scan(*arguments, **named)
            return [change(one, named.get("ordinals")) for one in found]

        original(self, table, changed, *rest)

    patch.setattr(CertifiedSearch, "__init__", init)


def opponents_are_proponents_backwards(patch: pytest.MonkeyPatch) -> None:
    original = Responder._answer

    def answer(self: Responder, question: Any, encoded: Any, outcome: Any, *rest: Any) -> wf.Answer:
        made = original(self, question, encoded, outcome, *rest)
        return replace(made, opponents=made.proponents[::-1])

    patch.setattr(Responder, "_answer", answer)


def opponents_among_the_proponents_candidates(patch: pytest.MonkeyPatch) -> None:
    _scanned(patch, lambda found, _: [replace(found[0], rest=-np.inf)] * len(found))


def the_list_filled_up_with_the_other_sign(patch: pytest.MonkeyPatch) -> None:
    """As padding ids are when there are fewer than k."""

    original = Ranking.add

    def add(self: Ranking, scored: Any) -> None:
        original(self, scored)
        for one in scored[: self.k - len(self._best)]:
            self._best.append((self.value(one), one.doc_id, one.alone()))

    patch.setattr(Ranking, "add", add)


def filtered_rows_by_position(patch: pytest.MonkeyPatch) -> None:
    def change(found: list[Candidates], ordinals: Any) -> list[Candidates]:
        if ordinals is None:
            return found
        return [replace(c, ordinals=np.searchsorted(ordinals, c.ordinals)) for c in found]

    _scanned(patch, change)


def only_the_prompt_is_tokenised(patch: pytest.MonkeyPatch) -> None:
    original = TextObjective.query_batch

    def query_batch(self: TextObjective, query: Query) -> Batch:
        return original(self, Query("", query.prompt))

    patch.setattr(TextObjective, "query_batch", query_batch)


def any_checkpoint_will_do(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(asker_module, "check_fingerprint", lambda *arguments: None)


@dataclass(frozen=True)
class Fault:
    """A fault of the list, as planted here, and the check that has to see it."""

    number: int
    plant: Plant
    check: str


FAULTS = [
    Fault(1, full_preconditioning_on_both_sides, "classifier index"),
    Fault(2, rotation_by_the_transpose, "classifier index"),
    Fault(2, rotation_of_outputs_by_the_transpose, "language model"),
    Fault(2, bias_in_the_wrong_column, "biased language model"),
    Fault(2, inputs_scrambled_without_bias, "mlp without bias"),
    Fault(3, multiplication_by_the_curvature, "classifier index"),
    Fault(4, one_damping_for_all_layers, "classifier index"),
    Fault(4, damping_that_accumulates, "classifier index"),
    Fault(5, solutions_cached_without_damping, "classifier index"),
    Fault(5, scalings_cached_without_curvature, "classifier index"),
    Fault(6, losses_averaged_over_the_batch, "classifier index"),
    Fault(6, padding_in_the_activations, "language model"),
    Fault(7, only_the_last_call_of_a_shared_module, "shared modules"),
    Fault(8, pseudo_losses_on_prompts_and_padding, "language model"),
    Fault(9, no_curvature_but_its_mean, "classifier index"),
    Fault(10, opponents_are_proponents_backwards, "language index"),
    Fault(10, opponents_among_the_proponents_candidates, "language index"),
    Fault(10, the_list_filled_up_with_the_other_sign, "language index"),
    Fault(11, filtered_rows_by_position, "language index"),
    Fault(12, only_the_prompt_is_tokenised, "language index"),
    Fault(13, any_checkpoint_will_do, "language index"),
]


@pytest.mark.parametrize("name", CHECKS)
def test_checks_pass_as_things_are(name: str, tmp_path: Path) -> None:
    CHECKS[name](tmp_path)


@pytest.mark.parametrize(
    "fault", FAULTS, ids=lambda fault: f"{fault.number}-{fault.plant.__name__}"
)
def test_a_planted_fault_is_seen(
    fault: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault.plant(monkeypatch)
    with pytest.raises(AssertionError):
        CHECKS[fault.check](tmp_path)


def test_every_fault_of_the_list_is_planted() -> None:
    assert {fault.number for fault in FAULTS} == set(range(1, 14))
    assert {fault.check for fault in FAULTS} == set(CHECKS)


def test_at_huge_damping_a_missing_curvature_would_not_be_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Why truth is checked at the default: fault 9 is in tests, and this is what it hides."""
    case = classifier()
    layers = reference.truth_of(case, "expected")
    no_curvature_but_its_mean(monkeypatch)
    fitted = make_curvature("ekfac").fit(pairs(case, "expected"))
    for damping, seen in ((0.1, True), (1e3, False)):
        inverses = [reference.damped_inverse(reference.ekfac_block(g), damping) for g in layers]
        expected = sum(Applied.of(i, g).scores for i, g in zip(inverses, layers, strict=True))
        asked = fitted.with_damping(damping)
        found = sum(
            g.queries @ g.documents.T / case.count * asked.mean_inverse(i)
            for i, g in enumerate(layers)
        )
        correlation = np.corrcoef(found.flatten(), expected.flatten())[0, 1]
        assert bool(correlation < 0.98) is seen
