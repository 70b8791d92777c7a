"""Truth 3: DataInf is the mean of explicit inverses, in whichever form, of whichever sample."""

from __future__ import annotations

import pytest
import torch

from curvature import reference
from curvature.contract import Sides, close
from curvature.reference import Applied, LayerTruth, case_of, pairs, truth
from small_models import CASES
from wherefrom.curvature import datainf
from wherefrom.curvature.datainf import DataInf, FittedDataInf

FORMS = pytest.mark.parametrize("largest", [0, 2048], ids=["scanned", "whitened"])


def fitted(name: str, rows: list[int] | None = None, damping: float = 0.1) -> FittedDataInf:
    return DataInf(damping).fit(pairs(case_of(name), "empirical", rows=rows))


@FORMS
@pytest.mark.parametrize("name", ["mlp-bias", "lora-llama", "conv-groups"])
def test_is_the_mean_of_explicit_inverses(
    name: str, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a matrix: every weight in turn is solved."""
    monkeypatch.setattr(datainf, "LARGEST_WHITENED_BLOCK", largest)
    found = fitted(name)
    for i, layer in enumerate(truth(name, "empirical")):
        d_out, d_in = found.layers[i].shape
        units = torch.eye(d_out * d_in, dtype=torch.float64)
        basis = found.raw(i, units.reshape(-1, d_out, d_in)).flatten(1)  # rows: Q^T
        close(basis @ basis.T, units, 1e-10)
        solved = found.solve(i, basis.T.reshape(-1, d_out, d_in))  # Q^T (G + lambda)^-1
        dense_inverse = found.raw(i, solved).flatten(1)
        close(dense_inverse, reference.datainf_inverse(layer, 0.1), 1e-8)


@pytest.mark.parametrize("name", CASES)
def test_both_forms_are_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whitened = fitted(name)
    monkeypatch.setattr(datainf, "LARGEST_WHITENED_BLOCK", 0)
    scanned = fitted(name)
    case = case_of(name)
    one, other = Sides(case, whitened), Sides(case, scanned)
    close(other.scores(), one.scores(), 1e-9)
    more = whitened.with_damping(3.0), scanned.with_damping(3.0)
    close(other.scores(more[1]), one.scores(more[0]), 1e-9)
    for i, (known, raw) in enumerate(zip(one.known, other.known, strict=True)):
        assert (whitened.whitens(i), scanned.whitens(i)) == (True, False)
        assert whitened.mean_inverse(i) == pytest.approx(scanned.mean_inverse(i), rel=1e-12)
        close(scanned.energies(i, raw), whitened.energies(i, known), 1e-9)


def test_layers_of_one_model_may_have_either_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is on a layer's weights, bias included: 42, 42 and 21 here."""
    monkeypatch.setattr(datainf, "LARGEST_WHITENED_BLOCK", 21)
    found = fitted("mlp-bias")
    assert [layer.size for layer in found.layers] == [42, 48, 21]
    assert [found.whitens(i) for i in range(3)] == [False, False, True]
    twin = [
        Applied.of(reference.datainf_inverse(layer, 0.1), layer)
        for layer in truth("mlp-bias", "empirical")
    ]
    case = case_of("mlp-bias")
    close(Sides(case, found).scores(), sum(applied.scores for applied in twin), 1e-9)
    restored = FittedDataInf.from_state(
        found.layers, found.state(), documents=found.documents, damping=found.damping
    )
    assert [restored.whitens(i) for i in range(3)] == [False, False, True]
    assert torch.equal(Sides(case, restored).scores(), Sides(case, found).scores())


@FORMS
@pytest.mark.parametrize("name", ["mlp-bias", "llama-mlp"])
def test_a_sample_of_documents_makes_m(
    name: str, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damping is of the sample, too; N stays the number of documents that are scored."""
    monkeypatch.setattr(datainf, "LARGEST_WHITENED_BLOCK", largest)
    rows = [4, 1, 3]
    found = fitted(name, rows)
    assert found.documents == 3
    total = 0.0
    for layer in truth(name, "empirical"):
        part = LayerTruth(layer.pseudo, layer.documents[rows], layer.queries, layer.tokens)
        inverse = reference.datainf_inverse(part, 0.1)
        total = total + Applied.of(inverse, layer).scores
    close(Sides(case_of(name), found).scores(), total, 1e-9)


def test_tiny_damping_stays_positive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding must not make ``1 - mu`` zero or less where a gradient fills a direction."""
    for damping in (1e-13, 1e-17):
        found = fitted("mlp-bias", rows=[2], damping=damping)
        for i in range(len(found.layers)):
            scale = found.scale(i)
            assert bool(torch.isfinite(scale).all())
            assert bool((scale > 0).all())
