"""What the package's extractor gives for a case, by layer name, and the comparison with truth."""

from __future__ import annotations

import torch
from torch import Tensor

import dense
from small_models import Case
from wherefrom.gradients.extractor import GradientExtractor, LayerPair
from wherefrom.gradients.fisher import true_gradients
from wherefrom.gradients.layers import select_layers


def pairs(case: Case, rows: list[int], *, training: bool = False) -> dict[str, LayerPair]:
    """Each layer's pair of one batch; ``training``: in the model's training mode."""
    layers = select_layers(case.model, case.layers)
    extractor = GradientExtractor(case.model, case.objective, layers)
    found: dict[str, LayerPair] = {}

    def keep(pair: LayerPair) -> None:
        name = layers[pair.layer].name
        assert name not in found
        found[name] = pair

    with extractor.session():
        case.model.train(training)
        true_gradients(extractor, case.batch(rows), keep)
    return found


def gradients(case: Case, rows: list[int], *, training: bool = False) -> dict[str, Tensor]:
    """The per-document gradients ``[doc, d_out, d_in]`` of one batch, at least float32."""
    found = pairs(case, rows, training=training)
    return {name: gradient(pair) for name, pair in found.items()}


def gradient(pair: LayerPair) -> Tensor:
    """``sum_t delta_t a_t^T`` of each document, at least float32."""
    dtype = torch.promote_types(torch.float32, pair.deltas.dtype)
    dtype = torch.promote_types(dtype, pair.activations.dtype)
    return torch.einsum("bto,bti->boi", pair.deltas.to(dtype), pair.activations.to(dtype))


def require_truth(case: Case, *, rtol: float = 1e-9, atol: float = 1e-11) -> None:
    """Every layer's per-document gradients equal single backward passes."""
    rows = list(range(case.count))
    found = gradients(case, rows)
    layers = select_layers(case.model, case.layers)
    assert set(found) == {layer.name for layer in layers}
    for layer in layers:
        assert found[layer.name].shape[1:] == layer.shape
        for row in rows:
            expected = dense.weight_gradient(case.model, layer.name, case.score(row))
            assert expected.abs().max() > 1e-6
            torch.testing.assert_close(found[layer.name][row], expected, rtol=rtol, atol=atol)


def require_equal(found: dict[str, Tensor], expected: dict[str, Tensor], rtol: float) -> None:
    """Two sets of gradients agree, each layer's to ``rtol`` of its norm."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        error = (found[name].double() - value.double()).norm()
        assert value.norm() > 0
        assert error <= rtol * value.double().norm(), name
