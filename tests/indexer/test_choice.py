"""The builder's choice of encoder: what is tried, how it is measured, what is taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import wherefrom as wf
from wherefrom.indexer.candidates import EncoderWish, budgets, candidates, lossless
from wherefrom.indexer.sources import TensorSource, disjoint_samples

SIZES = (6000, 300, 44)
WHOLE = sum(SIZES)
ANYTHING = EncoderWish("auto", None, None, 0)


def trained() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A classifier that learned something, so that gradients have structure."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(500, 12, generator=generator)
    y = (x[:, :4] + 0.5 * torch.randn(500, 4, generator=generator)).argmax(1)
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(12, 40), nn.Tanh(), nn.Linear(40, 4))
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    return model, x, y


@given(
    budget=st.integers(64, 30_000),
    reduce=st.sampled_from(["auto", "sketch", "energy", "random", "none"]),
    bits=st.sampled_from([None, 1, 2, 4, 8, 16, 32]),
    energies=st.booleans(),
)
def test_candidates_keep_to_the_budget_and_to_the_wish(
    budget: int, reduce: str, bits: Any, energies: bool
) -> None:
    wish = EncoderWish(reduce, bits, None, 0)
    fits = reduce != "none" or WHOLE * (bits or 1) <= 8 * budget
    if not fits:
        with pytest.raises(wf.WherefromError, match="needs"):
            candidates(SIZES, wish, budget, energies=energies, documents=1000)
        return
    found = candidates(SIZES, wish, budget, energies=energies, documents=1000)
    assert found
    assert len(set(found)) == len(found)
    for stages in found:
        assert stages.code_bytes <= budget
        assert reduce in ("auto", stages.reduce)
        assert bits in (None, stages.bits)
        assert stages.reduced <= WHOLE
        assert stages.reduce != "none" or stages.reduced == WHOLE
        assert energies or reduce == "energy" or stages.reduce != "energy"


def test_what_fits_whole_is_not_shortened() -> None:
    assert lossless(SIZES, ANYTHING, 4 * WHOLE) is not None
    assert lossless(SIZES, ANYTHING, 4 * WHOLE - 1) is None
    assert lossless(SIZES, EncoderWish("sketch", None, None, 0), 10 * WHOLE) is None
    assert lossless(SIZES, EncoderWish("none", None, None, 0), None) is not None
    assert lossless(SIZES, EncoderWish("none", 8, None, 0), None) is None
    assert list(budgets(SIZES, 100)) == [100]
    assert list(budgets(SIZES, 700)) == [256, 512, 700]
    steps = list(budgets(SIZES, None))
    assert steps[0] == 256
    assert steps[-1] == 4 * WHOLE
    assert steps == sorted(steps)


@given(
    count=st.integers(1, 60),
    sizes=st.lists(st.integers(0, 70), min_size=1, max_size=3),
    seed=st.integers(0, 5),
)
def test_samples_are_disjoint_while_there_are_enough(
    count: int, sizes: list[int], seed: int
) -> None:
    source = TensorSource((torch.zeros(count, 2), torch.zeros(count, dtype=torch.long)))
    masks = disjoint_samples(source, sizes, seed)
    assert [int(mask.sum()) for mask in masks] == [min(size, count) for size in sizes]
    if sum(sizes) <= count:
        assert int(np.sum(masks, 0).max()) <= 1
    again = disjoint_samples(source, sizes, seed)
    assert all((a == b).all() for a, b in zip(masks, again, strict=True))


@pytest.mark.parametrize(
    ("budget", "kinds"), [(64, {"sketch", "energy"}), (200, {"none", "energy"})]
)
def test_the_best_of_what_was_tried_is_taken(tmp_path: Path, budget: int, kinds: set[str]) -> None:
    model, x, y = trained()
    index = wf.build(model, (x, y), tmp_path / "i", bytes_per_document=budget)
    record = index.manifest.encoder
    assert record.choice is not None
    assert record.fidelity is not None
    tried = record.choice.tried
    assert {one.encoder.split()[0] for one in tried} == kinds
    assert all(one.bytes_per_document <= budget for one in tried)
    (taken,) = [one for one in tried if one.chosen]
    assert taken.encoder == record.name
    most = max(one.recall * one.correlation for one in tried)
    assert taken.recall * taken.correlation >= most - 0.005
    assert (record.fidelity.recall, record.fidelity.correlation) == (
        taken.recall,
        taken.correlation,
    )
    assert record.choice.bytes_per_document == budget
    assert (record.fidelity.documents, record.fidelity.queries) == (128, 16)


def test_what_is_measured_is_what_the_index_then_does(tmp_path: Path) -> None:
    """Correlation and noise of the finished index's scores with exact ones, on other queries."""
    model, x, y = trained()
    index = wf.build(model, (x, y), tmp_path / "i", encoder="sketch", bits=1, bytes_per_document=64)
    fidelity = index.manifest.encoder.fidelity
    assert fidelity is not None
    asked = (x[:40], y[:40])
    exact, stored = index.scores(asked), index.scores(asked, tier="stored")
    correlation = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(exact, stored, strict=True)])
    assert fidelity.correlation == pytest.approx(correlation, abs=0.12)
    norms = np.sqrt(index.self_influence() * len(index))
    vectors = np.linalg.norm(index.encode(asked).astype(float), axis=1)
    errors = (stored - exact) * len(index) / (norms[None] * vectors[:, None])
    assert fidelity.noise == pytest.approx(np.sqrt(np.mean(errors**2)), rel=0.2)
    assert 0.01 < fidelity.noise < 0.2


def test_a_fidelity_takes_the_fewest_bytes_that_reach_it(tmp_path: Path) -> None:
    model, x, y = trained()
    sizes = []
    for wanted in (0.8, 0.95, 0.999):
        index = wf.build(model, (x, y), tmp_path / str(wanted), fidelity=wanted)
        record = index.manifest.encoder
        assert record.choice is not None
        reached = [
            one.bytes_per_document
            for one in record.choice.tried
            if min(one.recall, one.correlation) >= wanted
        ]
        assert record.fidelity is not None
        assert min(record.fidelity.recall, record.fidelity.correlation) >= wanted
        assert record.bytes_per_document == min(reached)
        sizes.append(record.bytes_per_document)
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]


def test_a_fidelity_out_of_reach_is_said_to_be(tmp_path: Path) -> None:
    model, x, y = trained()
    with pytest.warns(UserWarning, match=r"no encoder tried reaches fidelity 0\.999") as caught:
        index = wf.build(
            model, (x, y), tmp_path / "i", encoder="sketch", fidelity=0.999, bytes_per_document=256
        )
    assert str(caught[0].message) in index.manifest.warnings
    whole = wf.build(model, (x, y), tmp_path / "whole", fidelity=1.0)
    np.testing.assert_allclose(
        whole.scores((x[:3], y[:3])), whole.scores((x[:3], y[:3]), tier="stored"), rtol=1e-3
    )


def test_a_basis_counts_in_the_bytes(tmp_path: Path) -> None:
    model, x, y = trained()
    index = wf.build(
        model, (x, y), tmp_path / "i", encoder="sketch", pca=20, bits=8, bytes_per_document=70
    )
    record = index.manifest.encoder
    assert (record.pca, record.dimension) == (20, 20)
    assert record.bytes_per_document == 20 + 4 * 20 * record.reduced / 500
    assert record.bytes_per_document <= 70
    reopened = wf.open(index.path, model=model)
    asked = (x[:2], y[:2])
    assert reopened.encode(asked).tobytes() == index.encode(asked).tobytes()
    with pytest.raises(wf.WherefromError, match="does not hold"):
        wf.build(model, (x, y), tmp_path / "j", encoder="none", pca=64, bytes_per_document=70)


@pytest.mark.parametrize("curvature", ["identity", "datainf", "lissa", "exact", "kfac", "diagonal"])
@pytest.mark.filterwarnings("ignore:scores correlate")
def test_every_curvature_gets_an_encoder(tmp_path: Path, curvature: str) -> None:
    model, x, y = trained()
    x, y = x[:150], y[:150]
    index = wf.build(model, (x, y), tmp_path / "i", curvature=curvature, bytes_per_document=100)
    assert index.manifest.encoder.fidelity is not None
    answer = index.query(inputs=x[0], target=y[0], rerank="recompute", candidates=150)
    exact = index.scores((x[:1], y[:1]))[0]
    assert answer.proponents[0].score == pytest.approx(exact.max(), rel=1e-4)


def test_very_few_documents_can_be_indexed(tmp_path: Path) -> None:
    model, x, y = trained()
    for count in (1, 2, 3):
        index = wf.build(
            model, (x[:count], y[:count]), tmp_path / str(count), bytes_per_document=64
        )
        answer = index.query(inputs=x[0], target=y[0])
        assert len(answer.proponents) + len(answer.opponents) == count
        assert answer.certificate.documents == count


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"bytes_per_document": 63}, "at least 64"),
        ({"encoder": "zip"}, "encoder='zip' is unknown"),
        ({"bits": 3}, "bits=3"),
        ({"pca": 0}, "pca=0"),
        ({"bytes_per_document": 100.5}, "whole number"),
        ({"bits": True}, "whole number"),
        ({"fidelity": 0.0}, r"fidelity=0\.0"),
        ({"fidelity": 1.1}, r"fidelity=1\.1"),
        ({"encoder": "none", "bits": 1, "bytes_per_document": 64}, "needs"),
        ({"encoder": "energy", "curvature": "identity", "bytes_per_document": 64}, "energ|eigenv"),
    ],
)
def test_bad_wishes_get_one_line(tmp_path: Path, wanted: dict[str, Any], message: str) -> None:
    model, x, y = trained()
    with pytest.raises(wf.WherefromError, match=message) as caught:
        wf.build(model, (x, y), tmp_path / "i", **wanted)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "i").exists()


def test_a_fidelity_within_a_small_budget(tmp_path: Path) -> None:
    model, x, y = trained()
    small = wf.build(model, (x, y), tmp_path / "small", fidelity=0.5, bytes_per_document=100)
    assert small.manifest.encoder.bytes_per_document <= 100
    whole = wf.build(model, (x, y), tmp_path / "whole", fidelity=0.9, encoder="none", bits=8)
    assert (whole.manifest.encoder.reduce, whole.manifest.encoder.bits) == ("none", 8)
