"""Drift: documents of the same kind are not warned of, those of another kind are."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

import wherefrom as wf
from wherefrom.maintenance.delete import delete
from wherefrom.maintenance.drift import baseline, compare, followed, since_build
from wherefrom.store import Manifest

seeds = st.integers(0, 2**32 - 1)


def documents(
    rng: np.random.Generator, count: int, energy: float = 1.0
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Norms and lengths as documents have them: energy grows with length, but for a spread."""
    tokens = rng.integers(1, 200, count)
    logarithm = 3 + 1.3 * np.log(tokens) + rng.normal(0, 0.4, count) + np.log(energy)
    return np.exp(logarithm / 2), tokens


@given(seed=seeds)
def test_the_line_is_found_again(seed: int) -> None:
    record = baseline(*documents(np.random.default_rng(seed), 4000))
    assert record is not None
    assert record.slope == pytest.approx(1.3, abs=0.06)
    assert record.intercept == pytest.approx(3, abs=0.25)
    assert record.spread == pytest.approx(0.4, rel=0.1)


@given(seed=seeds, energy=st.floats(0.05, 20), count=st.integers(1, 60))
def test_energy_is_told_at_equal_lengths(seed: int, energy: float, count: int) -> None:
    rng = np.random.default_rng(seed)
    record = baseline(*documents(rng, 500))
    assert record is not None
    found = compare(record, *documents(rng, count, energy))
    assert found is not None
    assert np.log(found.energy / energy) == pytest.approx(0, abs=5 * 0.4 / np.sqrt(count) + 0.15)
    assert found.documents == count
    if found.warning:
        assert f"{found.energy:.2f} times" in found.warning
        assert not 1 / 1.5 <= found.energy <= 1.5


def test_splits_of_one_kind_are_hardly_ever_warned_of() -> None:
    rng = np.random.default_rng(0)
    warned = 0
    for _ in range(400):
        record = baseline(*documents(rng, 60))
        assert record is not None
        found = compare(record, *documents(rng, 12))
        warned += found is not None and found.warning is not None
    assert warned <= 0.05 * 400


def test_documents_without_energy_are_left_out() -> None:
    nothing, tokens = np.zeros(3), np.ones(3, np.int64)
    assert baseline(nothing, tokens) is None
    record = baseline(np.array([0.0, 2.0, 2.0]), tokens)
    assert record is not None
    assert (record.documents, record.spread, record.slope) == (2, 0.0, 0.0)
    assert compare(record, nothing, tokens) is None
    same = compare(record, np.full(9, 2.0), np.ones(9, np.int64))
    assert same is not None
    assert same.energy == pytest.approx(1)
    assert same.warning is None
    other = compare(record, np.full(9, 4.0), np.ones(9, np.int64))
    assert other is not None
    assert other.energy == pytest.approx(4)
    assert other.warning is not None


def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """A classifier that knows its data, which vary in three directions of eight."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    x = torch.randn(700, 3, generator=generator) @ torch.randn(3, 8, generator=generator)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    model = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 3))
    optimiser = torch.optim.Adam(model.parameters(), 0.03)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    return model.eval(), x, y


def test_only_documents_of_another_kind_are_warned_of(tmp_path: Path) -> None:
    model, x, y = trained()
    index = wf.build(model, (x[:300], y[:300]), tmp_path / "i", encoder="none", device="cpu")
    change = index.append((x[300:420], y[300:420]))
    assert change.drift is not None
    assert change.warnings == ()
    record = index.manifest.drift
    assert record is not None
    assert record.documents == 300
    held_out = index.table.rows(range(300, 420))
    rng = np.random.default_rng(0)
    warned = 0
    for _ in range(200):
        some = rng.choice(120, 30, replace=False)
        found = compare(record, held_out.norms[some], held_out.tokens[some])
        warned += found is not None and found.warning is not None
    assert warned <= 0.05 * 200

    others = torch.randn(40, 8, generator=torch.Generator().manual_seed(3)) * 4
    with pytest.warns(UserWarning, match="of another kind"):
        change = index.append((others, torch.arange(40) % 3))
    assert change.drift is not None
    assert change.drift.energy > 1.5
    assert index.manifest.drift is not None
    assert (
        index.manifest.drift.model_copy(update={"appended": 120, "offset": record.offset}) == record
    )
    assert index.manifest.drift.appended == 160
    published = Manifest.read(tmp_path / "i").history
    assert [one.drift is not None for one in published] == [True, True]
    assert published[1].warnings == change.warnings
    assert json.loads(index.manifest.to_bytes())["history"][1]["drift"] == change.drift.energy


def test_documents_that_come_one_by_one_are_warned_of_as_those_that_come_at_once() -> None:
    rng = np.random.default_rng(1)
    record = baseline(*documents(rng, 300))
    assert record is not None
    norms, tokens = documents(rng, 40, 4.0)
    at_once = compare(record, norms, tokens)
    for i in range(40):
        one = compare(record, norms[i : i + 1], tokens[i : i + 1])
        assert one is not None
        assert one.warning is None
        record = followed(record, one)
    found = since_build(record)
    assert found is not None
    assert at_once is not None
    assert found.energy == pytest.approx(at_once.energy)
    assert (found.documents, found.warning) == (40, at_once.warning)
    assert found.warning is not None


def test_appends_of_a_few_documents_are_warned_of_in_the_end(tmp_path: Path) -> None:
    model, x, y = trained()
    index = wf.build(model, (x[:300], y[:300]), tmp_path / "i", encoder="none", device="cpu")
    others = torch.randn(12, 8, generator=torch.Generator().manual_seed(3)) * 8
    told = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i in range(12):
            told.append(index.append((others[i : i + 1], y[i : i + 1])).warnings)
    assert told[0] == ()
    assert "12 appended documents have" in told[-1][0]


@pytest.mark.parametrize("kind", ["identity", "lissa"])
def test_nothing_is_said_of_a_curvature_that_whitens_nothing(tmp_path: Path, kind: str) -> None:
    """Its norms tell nothing of what it was fitted on: built over all, scores are the same."""
    model, x, y = trained()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        index = wf.build(
            model, (x[:60], y[:60]), tmp_path / "i", encoder="none", device="cpu", curvature=kind
        )
    change = index.append((x[60:100] * 8, y[60:100]))
    assert (change.drift, change.warnings) == (None, ())


def test_the_background_grows_with_the_index(tmp_path: Path) -> None:
    """The strongest of more documents is nearer: as if the index had been built with all."""
    generator = torch.Generator().manual_seed(0)
    model, x = nn.Linear(60, 2), torch.randn(700, 60, generator=generator)
    y = torch.arange(700) % 2
    options = {"encoder": "none", "device": "cpu", "curvature": "identity"}
    index = wf.build(model, (x[:60], y[:60]), tmp_path / "grown", **options)
    few = index.manifest.background
    assert few is not None
    index.append((x[60:70], y[60:70]))
    assert index.manifest.background == few
    index.append((x[70:], y[70:]))
    grown = index.manifest.background
    whole = wf.build(model, (x, y), tmp_path / "whole", **options).manifest.background
    assert grown is not None
    assert whole is not None
    assert (few.documents, grown.documents, whole.documents) == (60, 700, 700)
    assert (grown.queries, grown.pairs) == (whole.queries, pytest.approx(whole.pairs, abs=40))
    assert np.median(grown.highest) == pytest.approx(np.median(whole.highest), abs=0.02)
    assert np.median(few.highest) < np.median(whole.highest) - 0.01


def test_where_many_are_gone_the_background_is_measured_again_or_not_told(tmp_path: Path) -> None:
    model, x, y = trained()
    path = tmp_path / "i"
    index = wf.build(model, (x[:200], y[:200]), path, encoder="none", device="cpu")
    question = {"inputs": x[0], "target": y[0]}
    assert index.query(**question).certificate.background is not None
    gone = index.doc_ids()[:100]
    assert index.delete(gone).warnings == ()
    record = index.manifest.background
    assert record is not None
    assert record.documents == 100
    change = delete(path, index.doc_ids()[:50])  # As on the command line, without the model.
    assert "do not say it until an append" in change.warnings[0]
    with wf.open(path, model=model) as again:
        assert again.query(**question).certificate.background is None
        again.append((x[300:310], y[300:310]))
        assert again.query(**question).certificate.background is not None


def test_what_was_deleted_is_warned_of_no_more(tmp_path: Path) -> None:
    model, x, y = trained()
    index = wf.build(model, (x[:200], y[:200]), tmp_path / "i", encoder="none", device="cpu")
    others = torch.randn(40, 8, generator=torch.Generator().manual_seed(3)) * 8
    with pytest.warns(UserWarning, match="of another kind"):
        index.append((others, torch.arange(40) % 3))
    index.delete(index.doc_ids()[:5])
    record = index.manifest.drift
    assert record is not None
    assert (record.built, record.appended) == (195, 40)
    index.delete(index.doc_ids()[195:])
    record = index.manifest.drift
    assert record is not None
    assert (record.built, record.appended, record.offset) == (195, 0, 0.0)
    assert index.append((x[300:310], y[300:310])).warnings == ()
