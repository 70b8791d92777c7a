"""Fits in passes: statistics of shards merge into those of all, and nothing is lost on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from curvature.contract import SMALL
from curvature.reference import case_of, extractor_of, fishers, pairs
from small_models import Case
from wherefrom.curvature.fitted import Fit, FittedCurvature, Statistics
from wherefrom.curvature.kinds import CURVATURE_KINDS, make_curvature
from wherefrom.errors import CurvatureError
from wherefrom.gradients.fisher import Fisher

FITTED = [kind for kind in CURVATURE_KINDS if kind != "identity"]
PASSES = {kind: {"ekfac": 2, "identity": 0}.get(kind, 1) for kind in CURVATURE_KINDS}

State = Mapping[str, Tensor]
Carry = Callable[[State], State]


def kept(state: State) -> State:
    """As it is."""
    return state


def stored(state: State) -> State:
    """Through the bytes of a file."""
    return load(save(dict(state)))


def begin(kind: str, case: Case) -> Fit[Any]:
    return make_curvature(kind, 0.5).begin(extractor_of(case).layers, documents=case.count)


def gathered(fit: Fit[Any], case: Case, fisher: Fisher, rows: list[int]) -> Statistics:
    """Statistics of some documents in one pass over them."""
    statistics = fit.statistics()
    statistics.documents += pairs(case, fisher, rows=rows, size=2).run(statistics.add)
    return statistics


def merged(fit: Fit[Any], states: list[State], carry: Carry) -> State:
    """Over a binary tree of neighbours."""
    while len(states) > 1:
        joined = []
        for start in range(0, len(states) - 1, 2):
            statistics = fit.load(carry(states[start]))
            statistics.merge(fit.load(carry(states[start + 1])))
            joined.append(statistics.state())
        states = joined + states[len(states) - len(states) % 2 :]
    return states[0]


def mapped(fit: Fit[Any], case: Case, fisher: Fisher, carry: Carry = kept) -> State:
    """A pass over three shards of whole batches: gradients kept come batch by batch."""
    shards = [[0, 1], [2, 3, 4, 5], list(range(6, case.count))]
    return merged(fit, [gathered(fit, case, fisher, rows).state() for rows in shards], carry)


def carried(kind: str, case: Case, fisher: Fisher, carry: Carry) -> FittedCurvature:
    """A fit over shards, of which everything is carried, and the fit itself between its passes."""
    fit = begin(kind, case)
    while fit.done < fit.passes:
        fit.finish_pass(fit.load(carry(mapped(fit, case, fisher, carry))))
        if fit.done < fit.passes:
            recipe = make_curvature(kind, 0.5)
            fit = recipe.resume(extractor_of(case).layers, carry(fit.state()))
    return fit.result()


def assert_same_bits(one: State, other: State) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype, name
        assert torch.equal(tensor, other[name]), name


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "fisher" in metafunc.fixturenames:
        metafunc.parametrize(
            ("kind", "name", "fisher"),
            [(k, name, fisher) for k in FITTED for name in SMALL for fisher in fishers(name, k)],
        )


def test_merged_shards_are_one_pass(kind: str, name: str, fisher: Fisher) -> None:
    """In every pass, to rounding in float64."""
    case = case_of(name)
    fit = begin(kind, case)
    assert (fit.done, fit.passes) == (0, PASSES[kind])
    for done in range(1, fit.passes + 1):
        whole = gathered(fit, case, fisher, list(range(case.count)))
        expected, found = whole.state(), mapped(fit, case, fisher)
        assert found.keys() == expected.keys()
        for key, tensor in found.items():
            largest = float(expected[key].abs().max())
            torch.testing.assert_close(tensor, expected[key], rtol=0, atol=1e-12 * largest)
        assert int(found["documents"]) == case.count
        fit.finish_pass(whole)
        assert fit.done == done


def test_the_same_shards_give_the_same_bits(kind: str, name: str, fisher: Fisher) -> None:
    """Kept in memory or carried through files, in one fit or resumed between its passes."""
    case = case_of(name)
    one, other = carried(kind, case, fisher, kept), carried(kind, case, fisher, stored)
    assert one.documents == other.documents == case.count
    assert one.report == other.report
    assert_same_bits(one.state(), other.state())


def test_one_shard_is_the_fit(kind: str, name: str, fisher: Fisher) -> None:
    """Statistics that are carried once, not merged, lose no bit."""
    case = case_of(name)
    fit = begin(kind, case)
    while fit.done < fit.passes:
        state = gathered(fit, case, fisher, list(range(case.count))).state()
        assert all(tensor.device.type == "cpu" for tensor in state.values())
        fit.finish_pass(fit.load(stored(state)))
    expected = make_curvature(kind, 0.5).fit(pairs(case, fisher, size=2))
    assert_same_bits(fit.result().state(), expected.state())


@pytest.mark.parametrize("kind", FITTED)
def test_statistics_of_no_documents_change_nothing(kind: str) -> None:
    case = case_of("mlp-bias")
    fit = begin(kind, case)
    whole = gathered(fit, case, "empirical", list(range(case.count)))
    expected = stored(whole.state())
    empty = fit.statistics()
    empty.merge(whole)
    empty.merge(fit.load(stored(fit.statistics().state())))
    assert_same_bits(empty.state(), expected)


@pytest.mark.parametrize("kind", FITTED)
def test_a_layer_that_no_shard_reached_is_named(kind: str) -> None:
    fit = begin(kind, case_of("mlp-bias"))
    with pytest.raises(CurvatureError, match="layer '0' takes no part in the model's output"):
        fit.finish_pass(fit.load(stored(fit.statistics().state())))


@pytest.mark.parametrize("kind", CURVATURE_KINDS)
def test_results_come_after_the_last_pass_and_passes_not_after_it(kind: str) -> None:
    fit = begin(kind, case_of("mlp-bias"))
    if kind == "identity":
        assert fit.result().kind == "identity"
        for call in (fit.statistics, lambda: fit.load({}), lambda: fit.finish_pass(fit)):
            with pytest.raises(CurvatureError, match="is fitted: it needs no more passes"):
                call()
        assert make_curvature(kind).resume(fit.result().layers, fit.state()).result().kind == kind
        return
    with pytest.raises(CurvatureError, match="is not fitted yet: passes over the documents"):
        fit.result()


@pytest.mark.parametrize("kind", FITTED)
def test_damaged_statistics_are_refused(kind: str) -> None:
    case = case_of("mlp-bias")
    fit = begin(kind, case)
    state = gathered(fit, case, "empirical", [0, 1, 2]).state()
    for name in [name for name, tensor in state.items() if tensor.ndim]:
        longer = state | {name: torch.cat([state[name], state[name]], -1)}
        with pytest.raises(CurvatureError, match="has another shape than the layer"):
            fit.load(longer)
    with pytest.raises(CurvatureError, match="lacks 'documents'"):
        fit.load({name: tensor for name, tensor in state.items() if name != "documents"})


def test_a_fit_resumes_only_from_a_state_of_its_layers() -> None:
    fit = begin("ekfac", case_of("mlp-bias"))
    fit.finish_pass(gathered(fit, case_of("mlp-bias"), "empirical", [0, 1, 2]))
    layers = extractor_of(case_of("conv-groups")).layers
    with pytest.raises(CurvatureError, match="has another shape than the layer"):
        make_curvature("ekfac").resume(layers, fit.state())
    with pytest.raises(CurvatureError, match="lacks 'done'"):
        make_curvature("ekfac").resume(layers, {})
