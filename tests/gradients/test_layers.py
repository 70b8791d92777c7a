"""Which layers are selected, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from small_models import Shared, convolutions, gpt2, llama, mlp
from wherefrom.errors import ModelError
from wherefrom.gradients.layers import select_layers


def names(model: nn.Module, layers: str | list[str] | None = None) -> list[str]:
    return [layer.name for layer in select_layers(model, layers)]


def bert() -> nn.Module:
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=11,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=8,
    )
    return BertForMaskedLM(config)


class Standardised(nn.Conv2d):
    """A convolution that changes its weight before it uses it."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


class Doubled(nn.Conv2d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, 2 * weight, bias)


class Router(nn.Linear):
    """A linear layer that gives more than its product."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(-1)


class FalconLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T + self.bias


class TestGroups:
    def test_mlp_is_the_default_of_language_models(self) -> None:
        assert len(names(llama())) == 6
        assert all(".mlp." in name for name in names(llama()))

    def test_linear_leaves_the_head_out(self) -> None:
        assert len(names(llama(), "linear")) == 14
        assert "lm_head" not in names(llama(), "linear")

    def test_a_head_of_its_own_can_be_named(self) -> None:
        (layer,) = select_layers(llama(), "lm_head")
        assert layer.shape == (23, 12)

    def test_linear_is_the_default_of_others_and_has_convolutions(self) -> None:
        assert names(convolutions()) == ["0", "2", "5"]

    def test_both_halves_of_a_bert_layer_are_its_mlp(self) -> None:
        layer = "bert.encoder.layer.0"
        assert names(bert(), "mlp") == [f"{layer}.intermediate.dense", f"{layer}.output.dense"]
        assert names(bert(), "attention") == [
            *(f"{layer}.attention.self.{part}" for part in ("query", "key", "value")),
            f"{layer}.attention.output.dense",
        ]

    def test_the_innermost_part_of_a_name_decides(self) -> None:
        model = nn.ModuleDict({"attentions": nn.ModuleDict({"ff": mlp(), "attn1": mlp()})})
        assert names(model, "mlp") == [f"attentions.ff.{i}" for i in (0, 2, 4)]
        assert names(model, "attention") == [f"attentions.attn1.{i}" for i in (0, 2, 4)]

    def test_several_groups_and_patterns(self) -> None:
        chosen = names(llama(), ["lm_head", "attention", "*.0.mlp.*"])
        assert len(chosen) == 8 + 3 + 1
        assert chosen == [n for n in names(llama(), "*") if n in set(chosen)]

    def test_no_linear_layer(self) -> None:
        with pytest.raises(ModelError, match=r"no nn\.Linear, nn\.Conv2d or Conv1D"):
            select_layers(nn.Sequential(nn.Tanh()))

    def test_mlp_of_a_model_without_one(self) -> None:
        with pytest.raises(ModelError, match="layers='linear'"):
            select_layers(mlp(), "mlp")

    def test_lora_of_a_model_without_one(self) -> None:
        with pytest.raises(ModelError, match="holds no LoRA adapter"):
            select_layers(mlp(), "lora")

    def test_nothing_is_an_error(self) -> None:
        with pytest.raises(ModelError, match=r"layers=\[\] selects nothing"):
            select_layers(mlp(), [])


class TestShapes:
    def test_conv1d(self) -> None:
        shapes = {layer.name: layer.shape for layer in select_layers(gpt2(), "mlp")}
        assert shapes["transformer.h.0.mlp.c_fc"] == (48, 13)
        assert shapes["transformer.h.0.mlp.c_proj"] == (12, 49)

    def test_conv2d(self) -> None:
        model = nn.Sequential(nn.Conv2d(4, 6, (2, 3), groups=2), nn.Conv2d(6, 1, 1, bias=False))
        layers = select_layers(model)
        assert [layer.shape for layer in layers] == [(6, 13), (1, 6)]
        assert [layer.kind for layer in layers] == ["Conv2d", "Conv2d"]
        assert [layer.size for layer in layers] == [78, 6]

    def test_modules_that_share_a_weight_are_one_layer(self) -> None:
        layers = {layer.name: layer.modules for layer in select_layers(Shared())}
        assert layers["left"] == ("left", "right")
        assert "right" not in layers


class TestPatterns:
    def test_names(self) -> None:
        assert names(llama(), ["*.down_proj", "*.0.*.q_proj"]) == [
            "model.layers.0.self_attn.q_proj",
            "model.layers.0.mlp.down_proj",
            "model.layers.1.mlp.down_proj",
        ]

    def test_one_that_matches_nothing(self) -> None:
        with pytest.raises(ModelError, match=r"'\*\.fc9' matches no module"):
            select_layers(llama(), ["*.down_proj", "*.fc9"])

    def test_an_embedding_is_refused_with_the_reason(self) -> None:
        with pytest.raises(ModelError, match=r"an Embedding, .* one-hot: .* 23 x 23; supported"):
            select_layers(llama(), "model.embed_tokens")

    def test_a_head_tied_to_the_embedding_is_refused(self) -> None:
        with pytest.raises(ModelError, match="shares its weight"):
            select_layers(llama(tie_word_embeddings=True), "lm_head")

    @pytest.mark.parametrize(
        "module",
        [
            nn.Conv1d(2, 3, 2),
            nn.Conv3d(2, 3, 2),
            nn.ConvTranspose2d(2, 3, 2),
            nn.LayerNorm(3),
            nn.Bilinear(2, 3, 4),
            nn.MultiheadAttention(4, 2),
            nn.LSTM(2, 3),
            Standardised(2, 3, 2),
            Doubled(2, 3, 2),
            Router(2, 3),
        ],
    )
    def test_another_module_is_refused_by_name(self, module: nn.Module) -> None:
        model = nn.ModuleDict({"odd": module, "plain": nn.Linear(2, 2)})
        name = type(module).__name__
        with pytest.raises(
            ModelError, match=rf"'odd', a.* {name}.* nn\.Linear, nn\.Conv2d, .*LoRA"
        ):
            select_layers(model, "odd")
        assert names(model) == ["plain"]

    def test_the_projection_of_an_attention_is_refused(self) -> None:
        """It is never called, so that no hook would see it."""
        layer = nn.TransformerEncoderLayer(4, 2, 6)
        with pytest.raises(ModelError, match="without calling it"):
            select_layers(layer, "self_attn.out_proj")
        assert names(layer) == ["linear1", "linear2"]

    def test_a_parametrised_weight_is_refused(self) -> None:
        normed = torch.nn.utils.parametrizations.weight_norm(nn.Linear(2, 3))
        model = nn.ModuleDict({"odd": normed, "plain": nn.Linear(2, 2)})
        with pytest.raises(ModelError, match="a forward\\(\\) or a weight that is not the plain"):
            select_layers(model, "odd")

    def test_a_forward_known_to_be_the_same_map_is_not(self) -> None:
        assert names(nn.ModuleDict({"falcon": FalconLinear(2, 3)})) == ["falcon"]

    def test_a_weight_shared_without_its_bias_is_refused(self) -> None:
        model = nn.ModuleDict({"one": nn.Linear(2, 3), "two": nn.Linear(2, 3)})
        model["two"].weight = model["one"].weight
        with pytest.raises(ModelError, match="share a weight but not a bias"):
            select_layers(model)


def test_a_model_whose_experts_are_one_tensor_has_no_default() -> None:
    """Its attention alone would be taken for the whole."""
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=23,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=2,
    )
    model = MixtralForCausalLM(config)
    with pytest.raises(ModelError, match="experts may be held as one tensor"):
        select_layers(model)
    assert len(select_layers(model, "attention")) == 4
