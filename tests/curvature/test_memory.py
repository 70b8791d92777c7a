"""Fits whose factors may take only so much memory: more passes, files, and blocks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from curvature import reference
from curvature.contract import CurvatureContract, Sides
from curvature.reference import LayerTruth, case_of, extractor_of, fishers, pairs
from curvature.test_passes import assert_same_bits
from small_models import Case
from wherefrom.curvature import kronecker
from wherefrom.curvature import plan as planning
from wherefrom.curvature.bases import Eigenbasis
from wherefrom.curvature.block_diagonal import BlockDiagonal
from wherefrom.curvature.eigen import FittedEigen
from wherefrom.curvature.fitted import Curvature, FittedCurvature
from wherefrom.curvature.kinds import curvature_from_state, make_curvature
from wherefrom.curvature.memory import Room
from wherefrom.curvature.plan import block_width, plan
from wherefrom.errors import CurvatureError
from wherefrom.gradients.layers import Layer

BLOCKED = ["mlp-bias", "conv-groups", "llama-mlp"]
WIDTH = 5
"""Most coordinates of a block; no layer's width is a multiple of it."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.cls is None:
        return
    if {"name", "fisher"} <= set(metafunc.fixturenames):
        metafunc.parametrize(("name", "fisher"), [(n, fishers(n, "ekfac")[0]) for n in BLOCKED])
    elif "name" in metafunc.fixturenames:
        metafunc.parametrize("name", BLOCKED)


class TestBlocks(CurvatureContract):
    """EK-FAC whose factors are decomposed in blocks equals its dense twin, too."""

    kind = "ekfac"

    def recipe(self, damping: float) -> Curvature:
        return make_curvature("ekfac", damping)

    def fit(self, source: object, damping: float | None = None) -> FittedCurvature:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kronecker, "block_width", lambda layer, memory: WIDTH)
            fitted = super().fit(source, damping)
        assert isinstance(fitted, FittedEigen)
        for layer, basis in zip(fitted.layers, fitted.bases, strict=True):
            assert isinstance(basis, Eigenbasis)
            for width, q in zip(layer.shape, (basis.q_out, basis.q_in), strict=True):
                assert isinstance(q, BlockDiagonal) == (width > WIDTH)
        widest = max(max(layer.shape) for layer in fitted.layers)
        assert fitted.report == ({"blocks": -(-widest // WIDTH)} if widest > WIDTH else {})
        return fitted

    @staticmethod
    def inverse(layer: LayerTruth, damping: float) -> Tensor:
        cut = [factor * _mask(len(factor)) for factor in layer.factors[:2]]
        q_in, q_out = (torch.linalg.eigh(factor).eigenvectors for factor in cut)
        basis = torch.kron(q_out, q_in)
        squares = sum((g @ basis).square().sum(0) for g in layer.pseudo) / len(layer.pseudo)
        return reference.damped_inverse(basis @ torch.diag(squares) @ basis.T, damping)


def _mask(size: int) -> Tensor:
    block = torch.arange(size) // WIDTH
    return (block[:, None] == block).double()


# Plans.


def layer(number: int, d_out: int, d_in: int) -> Layer:
    name = f"layer {number}"
    return Layer(name, (name,), "Linear", d_in, d_out, bias=False)


shapes = st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), min_size=1, max_size=8)


@given(shapes, st.integers(1 << 10, 1 << 24))
def test_every_layer_has_its_turn_within_the_bound(
    chosen: list[tuple[int, int]], memory: int
) -> None:
    layers = [layer(i, *shape) for i, shape in enumerate(chosen)]
    room = Room(memory=memory, folder=Path())
    try:
        steps = plan(layers, ["factors", "squares"], room)
    except CurvatureError:
        assert any(
            sum(planning._factor_bytes(i, 1)) > memory or sum(planning._square_costs(i)) > memory
            for i in layers
        )
        return
    kinds = [step.gathers for step in steps]
    assert kinds == sorted(kinds)
    for kind in ("factors", "squares"):
        turns = [step.layers for step in steps if step.gathers == kind]
        assert [i for turn in turns for i in turn] == list(range(len(layers)))
        costs = planning._factor_costs(memory) if kind == "factors" else planning._square_costs
        for turn in turns:
            during, after = zip(*(costs(layers[i]) for i in turn), strict=True)
            assert sum(during) + max(after) <= memory


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1 << 10, 1 << 24))
def test_blocks_are_the_fewest_that_fit(d_out: int, d_in: int, memory: int) -> None:
    this, widest = layer(0, d_out, d_in), max(d_out, d_in)
    assert block_width(this, None) == widest
    try:
        width = block_width(this, memory)
    except CurvatureError:
        return
    assert sum(planning._factor_bytes(this, width)) <= memory
    blocks = -(-widest // width)
    if blocks > 1:
        wider = -(-widest // (blocks - 1))
        assert sum(planning._factor_bytes(this, wider)) > memory


def test_a_bound_needs_a_folder_and_room_for_one_layer(tmp_path: Path) -> None:
    layers = extractor_of(case_of("mlp-bias")).layers
    recipe = make_curvature("ekfac")
    with pytest.raises(CurvatureError, match="a bound on memory needs a folder"):
        recipe.begin(layers, memory=1 << 20)
    with pytest.raises(CurvatureError, match=r"layer '.' .* needs at least [1-9].* memory, more"):
        recipe.begin(layers, memory=100, folder=tmp_path)


# Fits.


def frugal(kind: str, case: Case, memory: int, folder: Path) -> tuple[FittedCurvature, int]:
    """A fit that is resumed, through files, after each pass; and the number of passes."""
    recipe, layers = make_curvature(kind), extractor_of(case).layers
    fit = recipe.begin(layers, memory=memory, folder=folder)
    source = pairs(case, fishers(case.name, kind)[0])
    while fit.done < fit.passes:
        statistics = fit.statistics()
        statistics.documents += source.run(statistics.add)
        fit.finish_pass(fit.load(load(save(statistics.state()))))
        if fit.done < fit.passes:
            fit = recipe.resume(layers, load(save(fit.state())), memory=memory, folder=folder)
    return fit.result(), fit.passes


@pytest.mark.parametrize("kind", ["ekfac", "kfac", "diagonal"])
@pytest.mark.parametrize("name", ["mlp-bias", "llama-mlp", "lora-llama"])
def test_more_passes_give_the_same_bits(kind: str, name: str, tmp_path: Path) -> None:
    """Inputs that layers share are still decomposed once, and in the pass of the first."""
    case = case_of(name)
    expected = make_curvature(kind).fit(pairs(case, fishers(name, kind)[0]))
    layers = extractor_of(case).layers
    memory = max(sum(planning._square_costs(i)) for i in layers)
    if kind != "diagonal":
        memory = max(sum(planning._factor_bytes(i, max(i.shape))) for i in layers)
    found, passes = frugal(kind, case, memory, tmp_path)
    assert passes > (1 if kind == "diagonal" else 2)
    assert_same_bits(found.state(), expected.state())
    assert found.report == {}
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors"}
    source = pairs(case, fishers(name, kind)[0])
    at_once = make_curvature(kind).fit(source, memory=memory, folder=tmp_path)
    assert_same_bits(at_once.state(), expected.state())


@pytest.mark.parametrize("kind", ["ekfac", "kfac"])
def test_blocks_are_stored_and_read(kind: str, tmp_path: Path) -> None:
    case = case_of("llama-mlp")
    layers = extractor_of(case).layers
    widest = max(layers, key=lambda i: max(i.shape))
    memory = sum(planning._factor_bytes(widest, -(-max(widest.shape) // 3)))
    fitted, _ = frugal(kind, case, memory, tmp_path)
    assert fitted.report == {"blocks": 3.0}
    state = fitted.state()
    read = curvature_from_state(
        kind, layers, state, documents=fitted.documents, damping=0.1, report=fitted.report
    )
    assert_same_bits(read.state(), state)
    assert torch.equal(Sides(case, read).scores(), Sides(case, fitted).scores())
    blocked = next(name for name, tensor in state.items() if ".q_" in name and tensor.ndim == 3)
    for wrong in (state[blocked][1:], state[blocked][:, 1:], state[blocked][..., 1:]):
        with pytest.raises(CurvatureError, match="has another shape than the layer"):
            curvature_from_state(
                kind, layers, state | {blocked: wrong}, documents=8, damping=0.1, report={}
            )


@pytest.mark.parametrize("kind", ["exact", "datainf", "lissa"])
def test_what_is_not_gathered_in_parts_keeps_to_the_bound_too(kind: str, tmp_path: Path) -> None:
    case = case_of("mlp-bias")
    source = pairs(case, "empirical")
    with pytest.raises(
        CurvatureError,
        match=r"[1-9].* of memory, more than the 1000 bytes allowed",
    ):
        make_curvature(kind).fit(source, documents=8, memory=1000, folder=tmp_path)
    fitted = make_curvature(kind).fit(source, documents=8, memory=1 << 24, folder=tmp_path)
    assert_same_bits(fitted.state(), make_curvature(kind).fit(source).state())


def test_blocks_cost_little(tmp_path: Path) -> None:
    """Scores of EK-FAC in blocks are far nearer to those of EK-FAC than gradient dots are."""
    case = case_of("llama-attention")
    layers = extractor_of(case).layers
    scores = []
    widest = max(layers, key=lambda i: max(i.shape))
    for parts in (1, 2, 4):
        memory = sum(planning._factor_bytes(widest, -(-max(widest.shape) // parts)))
        fitted, _ = frugal("ekfac", case, memory, tmp_path)
        scores.append(Sides(case, fitted).scores().flatten())
    identity = make_curvature("identity").fit(pairs(case, fishers(case.name, "ekfac")[0]))
    scores.append(Sides(case, identity).scores().flatten())
    _, halves, quarters, dots = np.corrcoef(torch.stack(scores))[0]
    assert min(halves, quarters) > 0.9 > dots


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_fit_keeps_to_its_bound(tmp_path: Path) -> None:
    """Whole layers at 18 MB, blocks at 8; beside it, the gradient of the document at hand."""
    width, bounds = 512, (18_000_000, 8_000_000)
    spare = 3 * 4 * width * width
    folders = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
    environment = {
        **os.environ,
        "MALLOC_MMAP_THRESHOLD_": str(1 << 18),  # What is freed goes back to the system at once.
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(folders),
    }
    command = [sys.executable, "-m", "curvature.peak", str(width), "6", str(tmp_path)]
    ran = subprocess.run(
        [*command, *map(str, bounds)], env=environment, capture_output=True, text=True, check=True
    )
    whole, blocks, unbounded = map(int, ran.stdout.split())
    assert blocks <= bounds[1] + spare
    assert whole <= bounds[0] + spare
    assert unbounded > bounds[0] + spare
