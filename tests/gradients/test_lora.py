"""LoRA adapters of peft: on every kind of base, several at once, merged and not."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import dense
from pairs import gradients, pairs, require_equal, require_truth
from small_models import (
    CASES,
    SIDE,
    Case,
    bert,
    gpt2,
    image_case,
    llama,
    lm_case,
    mlp,
    with_lora,
)
from wherefrom.errors import ModelError
from wherefrom.gradients.batches import Batch, stack_examples
from wherefrom.gradients.extractor import GradientExtractor
from wherefrom.gradients.layers import select_layers
from wherefrom.gradients.objectives import Classification


class Reader(nn.Module):
    """Logits of a BERT classifier; token 0 is padding."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, ids: Tensor) -> Tensor:
        return self.inner(input_ids=ids, attention_mask=(ids != 0).long()).logits


def adapted_bert() -> nn.Module:
    """An adapter on attention and MLP, and a classifier of the adapter's own."""
    targets = ["query", "value", "output.dense"]
    model = with_lora(bert(), "default", target_modules=targets, modules_to_save=["classifier"])
    return Reader(model).eval()


def text_case(model: nn.Module, layers: str | tuple[str, ...] = "lora") -> Case:
    """Classified texts of different lengths."""
    lengths = [4, 6, 3, 5]
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(1, 11, (4, 6), generator=generator)

    def batch(rows: list[int]) -> Batch:
        width = max(lengths[row] for row in rows)
        attended = torch.arange(width) < torch.tensor([lengths[row] for row in rows])[:, None]
        inputs = ids[rows, :width] * attended
        plain = stack_examples(inputs, torch.tensor(rows) % 3, [f"d{row}" for row in rows])
        return replace(plain, attended=attended)

    return Case("bert", model, layers, Classification(), batch, 4)


def merged(case: Case, *adapters: str) -> Case:
    """The case with its adapters (or those named) merged, in a copy of the model."""
    model = copy.deepcopy(case.model)
    peft = next(m for m in model.modules() if hasattr(m, "merge_adapter"))
    peft.merge_adapter(list(adapters) or None)
    return replace(case, model=model)


class Images(nn.Module):
    """A convolution with what a merged adapter has to heed, then a linear layer."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.spread = nn.Conv2d(1, 3, 1)
        self.conv = nn.Conv2d(3, 4, (3, 2), padding=1, **options)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.conv(torch.sin(self.spread(x)))).flatten(2).mean(2))


def bases() -> dict[str, Case]:
    """Adapters on every kind of base layer; all of them active, none merged."""
    attention = {"target_modules": ["q_proj", "v_proj"]}
    both = {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}
    images = {"target_modules": ["spread", "conv", "head"]}
    return {
        "linear": lm_case("linear", with_lora(llama(), "default", **attention), "lora"),
        "conv1d": lm_case("conv1d", with_lora(gpt2(), "default", **both), "lora"),
        "conv2d": image_case("conv2d", with_lora(Images().double(), "default", **images), "lora"),
        "bert": text_case(adapted_bert()),
        "two adapters": lm_case("two", with_lora(llama(), "one", "two", **attention), "lora"),
        "rslora": lm_case(
            "rs", with_lora(llama(), "default", use_rslora=True, lora_alpha=3, **attention), "lora"
        ),
        "with bias": image_case(
            "bias",
            with_lora(Images().double(), "one", "two", lora_bias=True, **images),
            "lora",
        ),
    }


@pytest.fixture(scope="module")
def cases() -> dict[str, Case]:
    return bases()


NAMES = ("linear", "conv1d", "conv2d", "bert", "two adapters", "rslora", "with bias")


@pytest.mark.parametrize("name", NAMES)
def test_equal_single_backward_passes(name: str, cases: dict[str, Case]) -> None:
    require_truth(cases[name])


@pytest.mark.parametrize("name", NAMES)
def test_merged_adapters_have_the_same_gradients(name: str, cases: dict[str, Case]) -> None:
    case = merged(cases[name])
    rows = list(range(case.count))
    before = {n: p.clone() for n, p in case.model.named_parameters()}
    found = gradients(case, rows)
    require_equal(found, gradients(cases[name], rows), 1e-9)
    assert [layer.shape for layer in select_layers(case.model, "lora")] == [
        layer.shape for layer in select_layers(cases[name].model, "lora")
    ]
    for parameter_name, parameter in case.model.named_parameters():
        assert torch.equal(parameter, before[parameter_name]), "a weight was changed"


@pytest.mark.parametrize("name", ["linear", "conv2d", "with bias"])
def test_merged_adapters_do_not_depend_on_the_batch(name: str, cases: dict[str, Case]) -> None:
    case = merged(cases[name])
    together = gradients(case, list(range(case.count)))
    for row in range(case.count):
        for layer, value in gradients(case, [row]).items():
            torch.testing.assert_close(together[layer][row], value[0], rtol=1e-9, atol=1e-12)


def test_a_merged_convolution_pads_as_its_base_does() -> None:
    """The adapter's own convolution pads with zeros; the merged weight is the base's."""
    model = Images(padding_mode="circular").double()
    case = image_case("circular", with_lora(model, "default", target_modules=["conv"]), "lora")
    case = merged(case)
    conv = case.model.base_model.model.conv
    found = gradients(case, [0])
    weights = [conv.lora_A.default.weight, conv.lora_B.default.weight]

    def score(a: Tensor, b: Tensor) -> Tensor:
        product = torch.einsum("or,rikl->oikl", b[:, :, 0, 0], a) * conv.scaling["default"]
        change = product - product.detach()
        name = "base_model.model.conv.base_layer.weight"
        call = dense._Functional(case.model, {name: conv.base_layer.weight.detach() + change})
        return case.score(0)(call)

    expected = torch.func.grad(score, (0, 1))(*(weight.detach() for weight in weights))
    for side, value in zip("AB", expected, strict=True):
        layer = f"base_model.model.conv.lora_{side}.default"
        torch.testing.assert_close(found[layer][0], value.flatten(1), rtol=1e-9, atol=1e-12)


def test_only_the_merged_of_two_adapters_takes_part(cases: dict[str, Case]) -> None:
    """Once one is merged, peft runs the base alone, whatever is active."""
    case = merged(cases["two adapters"], "two")
    alone = copy.deepcopy(cases["two adapters"].model)
    alone.base_model.set_adapter("two")
    expected = gradients(replace(case, model=alone), [0, 1, 2])
    assert all(name.endswith(".two") for name in expected)
    require_equal(gradients(case, [0, 1, 2]), expected, 1e-9)


def test_merged_after_selection(cases: dict[str, Case]) -> None:
    """Layers selected before a merge are found after it."""
    case = cases["linear"]
    after = merged(case)
    before = select_layers(case.model, "lora")
    assert select_layers(after.model, "lora") == before
    assert select_layers(after.model, [layer.name for layer in before]) == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_merged_in_half_precision(dtype: torch.dtype) -> None:
    """Adapters in float32 on a base in half precision: pairs are in the finer of the two."""
    case = image_case("half", with_lora(Images(), "default", target_modules=["conv"]), "lora")
    float32 = lambda rows: replace(  # noqa: E731
        case.batch(rows), inputs=case.batch(rows).inputs.float()
    )
    expected = gradients(replace(case, batch=float32), [0, 1, 2])
    half = merged(replace(case, model=copy.deepcopy(case.model)))
    for name, parameter in half.model.named_parameters():
        if "lora_" not in name:
            parameter.data = parameter.data.to(dtype)
    low = lambda rows: replace(  # noqa: E731
        case.batch(rows), inputs=case.batch(rows).inputs.to(dtype)
    )
    found = pairs(replace(half, batch=low), [0, 1, 2])
    by_side = {name[-9]: pair for name, pair in found.items()}
    assert by_side["A"].deltas.dtype == by_side["B"].activations.dtype == torch.float32
    assert by_side["A"].activations.dtype == by_side["B"].deltas.dtype == dtype
    require_equal(gradients(replace(half, batch=low), [0, 1, 2]), expected, 2e-2)


class TestSelection:
    def test_the_adapters_are_the_default(self, cases: dict[str, Case]) -> None:
        names = [layer.name for layer in select_layers(cases["linear"].model)]
        assert len(names) == 8
        assert all(name.endswith((".lora_A.default", ".lora_B.default")) for name in names)

    def test_every_active_adapter(self, cases: dict[str, Case]) -> None:
        model = copy.deepcopy(cases["two adapters"].model)
        assert len(select_layers(model, "lora")) == 16
        model.base_model.set_adapter("one")
        assert {layer.name[-3:] for layer in select_layers(model, "lora")} == {"one"}

    @pytest.mark.parametrize("merge", [False, True])
    @pytest.mark.parametrize("group", ["mlp", "attention", "linear"])
    def test_other_groups_have_no_part_of_it(
        self, group: str, merge: bool, cases: dict[str, Case]
    ) -> None:
        case = cases["two adapters"]
        case = merged(case) if merge else case
        layers = select_layers(case.model, group)
        expected = select_layers(llama(), group)
        assert [layer.shape for layer in layers] == [layer.shape for layer in expected]
        assert not any("lora_" in layer.name for layer in layers)
        assert gradients(replace(case, layers=group), [0, 1]).keys() == {x.name for x in layers}

    def test_base_and_adapter_together(self, cases: dict[str, Case]) -> None:
        layers = ("*.q_proj.base_layer", "*.q_proj.lora_?.default")
        case = replace(cases["linear"], layers=layers)
        together = gradients(case, [0, 1, 2])
        assert len(together) == 6
        require_truth(case)
        require_equal(gradients(merged(case), [0, 1, 2]), together, 1e-9)

    def test_copies_that_do_not_run_are_left_out(self, cases: dict[str, Case]) -> None:
        model = cases["bert"].model
        names = [layer.name for layer in select_layers(model, "linear")]
        kept = [name for name in names if "classifier" in name]
        assert kept == ["inner.base_model.model.classifier.modules_to_save.default"]
        require_truth(text_case(model, "linear"))
        disabled = copy.deepcopy(model)
        disabled.inner.base_model.disable_adapter_layers()
        disabled.inner.base_model.model.classifier.enable_adapters(False)
        names = [layer.name for layer in select_layers(disabled, "linear")]
        assert "inner.base_model.model.classifier.original_module" in names

    def test_an_inactive_adapter_is_refused_by_name(self, cases: dict[str, Case]) -> None:
        model = copy.deepcopy(cases["two adapters"].model)
        model.base_model.set_adapter("one")
        with pytest.raises(ModelError, match=r"takes no part .* model\.set_adapter\('two'\)"):
            select_layers(model, "*.lora_A.two")

    def test_disabled_adapters_are_refused(self, cases: dict[str, Case]) -> None:
        model = copy.deepcopy(cases["linear"].model)
        model.base_model.disable_adapter_layers()
        with pytest.raises(ModelError, match=r"no LoRA adapter .* is active"):
            select_layers(model)

    def test_an_adapted_head_is_no_hidden_layer(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = with_lora(llama(), "default", target_modules=["lm_head", "q_proj"])
        assert not any("lm_head" in layer.name for layer in select_layers(model, "linear"))
        names = [layer.name for layer in select_layers(model, "lora")]
        assert "base_model.model.lm_head.lora_A.default" in names


class TestRefusals:
    def test_a_variant(self) -> None:
        model = with_lora(llama(), "default", target_modules=["q_proj"], use_dora=True)
        with pytest.raises(ModelError, match=r"'default' of .*0.*q_proj.* DoraLinearVariant; "):
            select_layers(model)
        with pytest.raises(ModelError, match="DoraLinearVariant"):
            select_layers(model, "*.lora_A.default")
        assert len(select_layers(model, "mlp")) == 6

    def test_an_embedding(self) -> None:
        model = with_lora(llama(), "default", target_modules=["embed_tokens", "q_proj"])
        with pytest.raises(ModelError, match=r"embed_tokens.* of type Embedding over Embedding; "):
            select_layers(model)
        assert len(select_layers(model, "*.q_proj.lora_*")) == 4

    def test_another_convolution(self) -> None:
        base = nn.Sequential(nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(2 * (SIDE - 2), 3))
        model = with_lora(base, "default", target_modules=["0", "2"])
        with pytest.raises(ModelError, match="of type Conv1d over Conv1d"):
            select_layers(model)

    def test_an_attention_that_is_never_called(self) -> None:
        model = with_lora(
            nn.TransformerEncoderLayer(4, 2, 6), "default", target_modules=["self_attn"]
        )
        with pytest.raises(ModelError, match="MultiheadAttention runs it by changing"):
            select_layers(model)

    def test_a_merge_into_an_unknown_module(self) -> None:
        class Scaled(nn.Linear):
            def forward(self, x: Tensor) -> Tensor:
                return 2 * super().forward(x)

        model = with_lora(nn.Sequential(Scaled(2, 3)), "default", target_modules=["0"])
        assert len(select_layers(model)) == 2
        model.merge_adapter()
        with pytest.raises(ModelError, match="merged into a module of type Scaled"):
            select_layers(model)

    def test_another_tuner(self) -> None:
        from peft import AdaLoraConfig, get_peft_model

        config = AdaLoraConfig(target_modules=["0"], total_step=10)
        model = get_peft_model(mlp().float(), config)
        with pytest.raises(ModelError, match="of type SVDLinear over Linear"):
            select_layers(model)

    def test_an_adapter_that_takes_no_part_any_more(self, cases: dict[str, Case]) -> None:
        case = replace(cases["two adapters"], model=copy.deepcopy(cases["two adapters"].model))
        extractor = GradientExtractor(case.model, case.objective, select_layers(case.model))
        case.model.merge_adapter(["two"])
        with pytest.raises(ModelError, match=r"'one' .* no part .* any more; "):
            extractor.session().__enter__()

    def test_a_merge_between_sessions_is_followed(self) -> None:
        case = CASES["lora-llama"]()
        extractor = GradientExtractor(case.model, case.objective, select_layers(case.model))
        expected = gradients(case, [0, 1])
        case.model.merge_adapter()
        with extractor.session():
            hooked = [n for n, m in case.model.named_modules() if m._forward_hooks]
        assert len(hooked) == 4
        assert all(name.endswith("base_layer") for name in hooked)
        require_equal(gradients(case, [0, 1]), expected, 1e-9)
