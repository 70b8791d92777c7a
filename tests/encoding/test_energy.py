"""Which coordinates are kept, and that they are the whole vector's own."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from curvature.reference import case_of, shifted
from encoding.encoders import ask, encode, fit, sizes, whole
from wherefrom.curvature.fitted import FittedCurvature
from wherefrom.encoding.energy import Energy, top_coordinates
from wherefrom.encoding.factory import make_encoder
from wherefrom.encoding.reduction import Sketch
from wherefrom.encoding.stages import Stages

KNOWING = ["ekfac", "kfac", "diagonal", "exact"]


def energies(fitted: FittedCurvature) -> np.ndarray:
    """``Lambda / (Lambda + lambda)`` of all coordinates, from the scale."""
    found = []
    for i in range(len(fitted.layers)):
        damped = fitted.scale(i).double() ** -2
        lam = damped.mean() * fitted.damping / (1 + fitted.damping)
        found.append((1 - lam / damped).flatten())
    return torch.cat(found).numpy()


def chosen_of(fitted: FittedCurvature, count: int) -> np.ndarray:
    return np.sort(np.argsort(-energies(fitted).round(12), kind="stable")[:count])


@given(
    layers=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=12), min_size=1, max_size=5),
    data=st.data(),
)
def test_the_largest_are_taken_and_of_equal_ones_the_first(
    layers: list[list[int]], data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, sum(map(len, layers))))
    found = top_coordinates([torch.tensor(layer).double() for layer in layers], count)
    places = [(-value, i, j) for i, layer in enumerate(layers) for j, value in enumerate(layer)]
    expected = sorted((i, j) for _, i, j in sorted(places)[:count])
    assert [(i, j) for i, chosen in enumerate(found) for j in chosen.tolist()] == expected


@pytest.mark.parametrize("kind", KNOWING)
@pytest.mark.parametrize("name", ["mlp-bias", "llama-mlp", "conv-groups"])
@pytest.mark.parametrize("count", [1, 14, None])
def test_energy_keeps_the_whole_vectors_own_entries(
    name: str, kind: str, count: int | None
) -> None:
    """Through the rectangle, on both sides, whatever the query's damping; norms are of these."""
    case, fitted = case_of(name), fit(name, kind)
    count = sum(sizes(fitted)) if count is None else count
    encoder = make_encoder(fitted, Stages("energy", count, 32, rotate=False))
    kept = chosen_of(fitted, count)
    rows = list(range(case.count))
    expected = encode(case, whole(fitted), rows)[0][:, kept]
    vectors, norms = encode(case, encoder, rows)
    allowed = 1e-6 * np.abs(expected).max()
    np.testing.assert_allclose(vectors, expected, rtol=1e-6, atol=allowed)
    np.testing.assert_allclose(norms, np.linalg.norm(vectors, axis=1), rtol=1e-5)
    for damping in (None, 3.0):
        batch = shifted(case, rows)
        psi = ask(case, whole(fitted), batch, damping)[0][:, kept]
        found = ask(case, encoder, batch, damping)[0]
        np.testing.assert_allclose(found, psi, rtol=1e-9, atol=1e-10 * np.abs(psi).max())


def test_only_the_rectangle_of_what_is_chosen_is_read() -> None:
    chosen = [torch.tensor([1, 2, 9]), torch.tensor([], dtype=torch.int64), torch.tensor([0])]
    reduction = Energy([(3, 4), (2, 2), (1, 5)], chosen)
    assert reduction.dimension == 4
    rectangles = [[side.tolist() for side in rectangle] for rectangle in reduction.rectangles]
    assert rectangles == [[[0, 2], [1, 2]], [[], []], [[0], [0]]]
    whitening = torch.arange(1.0, 13.0).reshape(3, 4)
    assert reduction.scaling(0, whitening).tolist() == [[2.0, 3.0], [10.0, 0.0]]
    buffer = reduction.buffer(1, whitening)
    reduction.add(2, torch.tensor([[7.0]]), buffer)
    reduction.add(0, torch.tensor([[1.0, 2.0, 3.0, 4.0]]), buffer)
    assert reduction.finish(buffer).tolist() == [[1.0, 2.0, 3.0, 7.0]]


@pytest.mark.parametrize("count", [51, 97])
def test_a_sketch_of_some_coordinates_is_that_of_them_alone(count: int) -> None:
    case, fitted = case_of("llama-mlp"), fit("llama-mlp")
    encoder = make_encoder(fitted, Stages("sketch", 50, 4, sketched=count, rotate=False, seed=4))
    places = chosen_of(fitted, count)
    rows = list(range(case.count))
    documents = torch.from_numpy(encode(case, whole(fitted), rows)[0])
    vectors, norms = encode(case, encoder, rows)
    for damping in (None, 2.0):
        batch = shifted(case, rows)
        full = torch.from_numpy(ask(case, whole(fitted), batch, damping)[0])
        found = ask(case, encoder, batch, damping)[0]
        changed = full.clone()
        left_out = torch.ones(full.shape[1], dtype=torch.bool)
        left_out[places] = False
        changed[:, left_out] = 1e3
        sketch = Sketch(sizes(fitted), 50, 4, by_layer(fitted, places))
        torch.testing.assert_close(sketched_by(sketch, changed), torch.from_numpy(found))
    np.testing.assert_allclose(
        vectors, sketched_by(sketch, documents).numpy(), rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(norms, documents.norm(dim=1).numpy(), rtol=1e-5)


def by_layer(fitted: FittedCurvature, places: np.ndarray) -> list[Tensor]:
    starts = np.cumsum([0, *sizes(fitted)]).tolist()
    return [
        torch.from_numpy(places[(places >= start) & (places < end)] - start)
        for start, end in pairwise(starts)
    ]


def sketched_by(sketch: Sketch, vectors: Tensor) -> Tensor:
    buffer = sketch.buffer(len(vectors), vectors)
    for i, part in enumerate(torch.split(vectors, sketch.sizes, 1)):
        sketch.add(i, part * sketch.scaling(i, torch.ones_like(part[0])), buffer)
    return sketch.finish(buffer)


def test_a_sketch_of_some_coordinates_is_unbiased_for_them() -> None:
    """And has the spread of their norms alone."""
    generator = torch.Generator().manual_seed(8)
    x, y = torch.randn(2, 96, dtype=torch.float64, generator=generator)
    chosen = [torch.arange(0, 48, 2), torch.arange(0, 24)]
    places = torch.cat([chosen[0], chosen[1] + 48])
    products = []
    for seed in range(1500):
        sketch = Sketch((48, 48), 18, seed, chosen)
        one, other = sketched_by(sketch, torch.stack([x, y]))
        products.append(float(one @ other))
    a, b = x[places], y[places]
    bound = float((a @ a) * (b @ b) + (a @ b) ** 2) / 18
    found = torch.tensor(products)
    assert abs(float(found.mean()) - float(a @ b)) <= 4 * (bound / 1500) ** 0.5
    assert float(found.var()) <= 1.25 * bound
    assert bound < 0.5 * float((x @ x) * (y @ y)) / 18
