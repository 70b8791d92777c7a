"""Truth 1: per-example gradients equal single backward passes, for every layer kind."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import dense
from small_models import CASES, Case, llama, lm_case, mlp
from wherefrom.errors import ModelError
from wherefrom.gradients.extractor import GradientExtractor, LayerPair
from wherefrom.gradients.fisher import true_gradients
from wherefrom.gradients.layers import select_layers
from wherefrom.gradients.objectives import Classification


def gradients(case: Case, rows: list[int]) -> dict[str, Tensor]:
    """The package's per-document gradients ``[doc, d_out, d_in]`` by layer name."""
    extractor = GradientExtractor(
        case.model, case.objective, select_layers(case.model, case.layers)
    )
    found: dict[str, Tensor] = {}

    def keep(pair: LayerPair) -> None:
        name = extractor.layers[pair.layer].name
        assert name not in found
        found[name] = torch.einsum("bto,bti->boi", pair.deltas, pair.activations)

    with extractor.session():
        true_gradients(extractor, case.batch(rows), keep)
    return found


@pytest.mark.parametrize("kind", CASES)
def test_equal_single_backward_passes(kind: str) -> None:
    case = CASES[kind]()
    rows = list(range(case.count))
    found = gradients(case, rows)
    layers = select_layers(case.model, case.layers)
    assert set(found) == {layer.name for layer in layers}
    for layer in layers:
        for row in rows:
            expected = dense.weight_gradient(case.model, layer.name, case.score(row))
            assert expected.abs().max() > 1e-6
            torch.testing.assert_close(found[layer.name][row], expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", ["llama-mlp", "gpt2-linear", "shared"])
def test_do_not_depend_on_the_batch(kind: str) -> None:
    case = CASES[kind]()
    together = gradients(case, list(range(case.count)))
    for row in range(case.count):
        for name, value in gradients(case, [row]).items():
            torch.testing.assert_close(together[name][row], value[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("layers", ["mlp", "linear"])
def test_gradient_checkpointing_changes_nothing(layers: str) -> None:
    plain = gradients(lm_case("plain", llama(), layers), [0, 1, 2])
    model = llama()
    model.activation_checkpointing_enable({"use_reentrant": False})
    model.train()  # transformers checkpoints in training mode only
    case = lm_case("checkpointed", model, layers)
    calls = []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    extractor = GradientExtractor(model, case.objective, select_layers(model, layers))
    found: dict[str, Tensor] = {}

    def keep(pair: LayerPair) -> None:
        name = extractor.layers[pair.layer].name
        assert name not in found
        found[name] = torch.einsum("bto,bti->boi", pair.deltas, pair.activations)

    with extractor.session():
        model.train()
        true_gradients(extractor, case.batch([0, 1, 2]), keep)
    assert len(calls) == 2, "the block was not recomputed: the test proves nothing"
    for name, value in plain.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12)


def test_attention_kernels_agree() -> None:
    """To float32: the eager kernel takes its softmax in that precision whatever the model's."""
    eager = gradients(lm_case("eager", llama(attn_implementation="eager"), "linear"), [0, 1, 2])
    sdpa = gradients(lm_case("sdpa", llama(attn_implementation="sdpa"), "linear"), [0, 1, 2])
    for name, value in eager.items():
        torch.testing.assert_close(sdpa[name], value, rtol=1e-4, atol=2e-6)


def test_weight_gradients_are_not_formed_and_the_model_is_left_alone() -> None:
    case = CASES["mlp-bias"]()
    case.model.train()
    case.model[0].weight.requires_grad_(False)
    before = [(p.requires_grad, p.clone()) for p in case.model.parameters()]
    gradients(case, [0, 1])
    assert case.model.training
    assert not case.model[0]._forward_hooks
    for (wanted, value), parameter in zip(before, case.model.parameters(), strict=True):
        assert parameter.grad is None
        assert parameter.requires_grad == wanted
        assert torch.equal(parameter, value)


def test_layers_that_share_an_input_share_the_tensor() -> None:
    case = CASES["llama-mlp"]()
    extractor = GradientExtractor(case.model, case.objective, select_layers(case.model, "mlp"))
    seen: dict[str, LayerPair] = {}
    with extractor.session():
        true_gradients(
            extractor,
            case.batch([0, 1]),
            lambda p: seen.update({extractor.layers[p.layer].name: p}),
        )
    gate, up = (seen[f"model.layers.0.mlp.{n}_proj"] for n in ("gate", "up"))
    assert gate.activations is up.activations
    assert gate.input_of == up.input_of
    assert seen["model.layers.0.mlp.down_proj"].input_of != gate.input_of


def test_nan_loss_names_the_document() -> None:
    case = CASES["mlp-bias"]()
    batch = case.batch([0, 1, 2])
    batch.inputs[1, 0] = float("nan")
    extractor = GradientExtractor(case.model, Classification(), select_layers(case.model))
    with extractor.session(), pytest.raises(ModelError, match="'d1'"):
        true_gradients(extractor, batch, lambda pair: None)


class TestSelection:
    def test_mlp_is_the_default_of_transformers(self) -> None:
        names = [layer.name for layer in select_layers(llama())]
        assert len(names) == 6
        assert all(".mlp." in name for name in names)

    def test_linear_leaves_the_head_out(self) -> None:
        names = [layer.name for layer in select_layers(llama(), "linear")]
        assert len(names) == 14
        assert "lm_head" not in names

    def test_conv1d_dimensions(self) -> None:
        from small_models import gpt2

        shapes = {layer.name: layer.shape for layer in select_layers(gpt2(), "mlp")}
        assert shapes["transformer.h.0.mlp.c_fc"] == (48, 13)
        assert shapes["transformer.h.0.mlp.c_proj"] == (12, 49)

    def test_patterns(self) -> None:
        names = [layer.name for layer in select_layers(llama(), ["*.down_proj", "*.0.*.q_proj"])]
        assert names == [
            "model.layers.0.self_attn.q_proj",
            "model.layers.0.mlp.down_proj",
            "model.layers.1.mlp.down_proj",
        ]

    def test_a_pattern_that_matches_nothing_is_an_error(self) -> None:
        with pytest.raises(ModelError, match=r"'\*\.fc9' matches no module"):
            select_layers(llama(), ["*.down_proj", "*.fc9"])

    def test_an_unsupported_module_is_named(self) -> None:
        with pytest.raises(ModelError, match="Embedding"):
            select_layers(llama(), "model.embed_tokens")

    def test_a_head_tied_to_the_embedding_is_refused(self) -> None:
        with pytest.raises(ModelError, match="shares its weight"):
            select_layers(llama(tie_word_embeddings=True), "lm_head")

    def test_no_linear_layer(self) -> None:
        with pytest.raises(ModelError, match=r"no nn\.Linear"):
            select_layers(nn.Sequential(nn.Tanh()))

    def test_mlp_of_a_model_without_one(self) -> None:
        with pytest.raises(ModelError, match="layers='linear'"):
            select_layers(mlp(), "mlp")
