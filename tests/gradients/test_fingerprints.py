"""Fingerprints of weights, adapters and tokenizers, and what is said when they differ."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedTokenizerFast

from small_models import mlp
from tiny_lm import tiny_llama, tiny_tokenizer
from wherefrom.errors import MismatchError, ModelError
from wherefrom.gradients.fingerprints import (
    Fingerprint,
    adapter_sha256,
    check_fingerprint,
    fingerprint,
    tokenizer_sha256,
    weights_dtype,
    weights_sha256,
)

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


def flip_last_bit(model: nn.Module) -> None:
    weight = next(model.parameters()).data.view(-1)
    weight[0] = torch.nextafter(weight[0], weight.new_tensor(9.0))


def test_every_weight_counts_for_the_fingerprint() -> None:
    digest = weights_sha256(mlp())
    assert weights_sha256(mlp()) == digest
    changed = mlp()
    flip_last_bit(changed)
    renamed = nn.Sequential(*mlp().children(), nn.Identity())
    buffered = mlp()
    buffered.register_buffer("mean", torch.zeros(()))
    transposed = mlp()
    transposed[0].weight.data = transposed[0].weight.data.T.contiguous().reshape(7, 5)
    others = [changed, buffered, transposed, mlp().float(), nn.Sequential(mlp())]
    assert len({digest, *map(weights_sha256, others)}) == 6
    assert weights_sha256(renamed) == digest
    assert weights_sha256(mlp().train()) == digest


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int8, torch.bool])
def test_weights_of_any_type_have_a_fingerprint(dtype: torch.dtype) -> None:
    module = nn.Module()
    module.register_buffer("table", torch.zeros(3, 2, dtype=dtype))
    module.register_buffer("nothing", torch.zeros(0, dtype=dtype))
    before = weights_sha256(module)
    module.table[1, 1] = 1
    assert weights_sha256(module) != before


def with_template(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = "{{ messages }}"


def with_token(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.add_tokens(["wherefrom"])


def test_the_tokenizers_fingerprint_is_of_what_decides_tokens() -> None:
    digest = tokenizer_sha256(tiny_tokenizer())
    used = tiny_tokenizer()
    used.padding_side = "left"
    used(["a", "gold and silver"], padding=True, truncation=True, max_length=2)
    assert tokenizer_sha256(used) == digest
    for change in (with_template, with_token):
        other = tiny_tokenizer()
        change(other)
        assert tokenizer_sha256(other) != digest
    lower = json.loads(tiny_tokenizer().backend_tokenizer.to_str())
    lower["normalizer"] = {"type": "Lowercase"}
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(lower)))
    assert tokenizer_sha256(other) != digest
    with pytest.raises(ModelError, match="fast tokenizer"):
        tokenizer_sha256(object())


def adapted(
    name: str = "default", seed: int = 0, model: nn.Module | None = None, **options: object
):
    """A tiny model with a LoRA adapter that does something."""
    options = {"r": 2, "target_modules": ["q_proj", "down_proj"]} | options
    config = LoraConfig(task_type="CAUSAL_LM", **options)
    torch.manual_seed(seed)
    peft_model = get_peft_model(tiny_llama() if model is None else model, config, name)
    settle(peft_model, seed)
    return peft_model.eval()


def settle(model: nn.Module, seed: int) -> None:
    torch.manual_seed(seed)
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            nn.init.normal_(parameter)


def with_two_adapters(order: list[str], names: tuple[str, str] = ("one", "two")) -> nn.Module:
    model = adapted(names[0], seed=1)
    model.add_adapter(names[1], LoraConfig(r=3, target_modules=["up_proj"]))
    for key, parameter in model.named_parameters():
        if f"lora_B.{names[1]}" in key:
            nn.init.constant_(parameter, 0.25)
        elif f"lora_A.{names[1]}" in key:
            nn.init.constant_(parameter, 0.5)
    model.base_model.set_adapter(order)
    return model


def test_the_base_of_an_adapter_has_the_fingerprint_of_the_plain_model() -> None:
    plain, model = fingerprint(tiny_llama(), None), fingerprint(adapted(), None)
    assert plain.adapter_sha256 is None
    assert model.adapter_sha256 is not None
    assert replace(model, adapter_sha256=None) == plain
    assert plain.architecture == "LlamaForCausalLM"
    assert plain.dtype == "float64"
    injected = tiny_llama()
    injected.add_adapter(LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    settle(injected, 0)
    assert weights_sha256(injected) == plain.weights_sha256
    assert adapter_sha256(injected) is not None


def test_what_an_adapter_is_called_does_not_count() -> None:
    assert adapter_sha256(adapted("default")) == adapter_sha256(adapted("lora_A"))
    two = with_two_adapters(["one", "two"])
    others = (
        with_two_adapters(["two", "one"]),
        with_two_adapters(["x", "y"], names=("y", "x")),
    )
    assert {adapter_sha256(other) for other in others} == {adapter_sha256(two)}


def one_bit(model: nn.Module) -> None:
    weight = dict(model.named_parameters())[
        "base_model.model.model.layers.1.mlp.down_proj.lora_A.default.weight"
    ].data
    weight[0, 0] = torch.nextafter(weight[0, 0], weight.new_tensor(9.0))


def scaled(model: nn.Module) -> None:
    model.base_model.model.model.layers[0].self_attn.q_proj.scaling["default"] *= 2


def merged(model: nn.Module) -> None:
    model.merge_adapter()


def switched(model: nn.Module) -> None:
    model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    model.set_adapter("other")


@pytest.mark.parametrize("change", [one_bit, scaled, merged, switched])
def test_everything_an_adapter_does_counts(change: Callable[[nn.Module], None]) -> None:
    model = adapted()
    before, base = adapter_sha256(model), weights_sha256(model)
    change(model)
    assert adapter_sha256(model) not in (before, None)
    # A merged adapter stands in the base's weights, which are taken as they are.
    assert (weights_sha256(model) == base) == (change is not merged)


@pytest.mark.parametrize(
    "options", [{"lora_alpha": 9}, {"use_rslora": True}, {"use_dora": True}, {"r": 3}]
)
def test_options_of_an_adapter_count(options: dict[str, object]) -> None:
    assert adapter_sha256(adapted(**options)) != adapter_sha256(adapted())
    assert weights_sha256(adapted(**options)) == weights_sha256(tiny_llama())


def test_an_adapter_out_of_use_does_not_count() -> None:
    model = adapted()
    before = adapter_sha256(model)
    model.add_adapter("idle", LoraConfig(r=2, target_modules=["q_proj"]))
    assert adapter_sha256(model) == before
    with model.disable_adapter():
        assert adapter_sha256(model) is None
        assert weights_sha256(model) == weights_sha256(tiny_llama())
    assert adapter_sha256(model) == before


def test_a_module_trained_in_full_counts_as_the_adapters() -> None:
    plain, model = tiny_llama(), adapted(modules_to_save=["norm"])
    digest, base = adapter_sha256(model), weights_sha256(model)
    assert base != weights_sha256(plain)
    wrapper = model.base_model.model.model.norm
    wrapper.original_module.weight.data += 1
    assert (adapter_sha256(model), weights_sha256(model)) == (digest, base)
    wrapper.modules_to_save["default"].weight.data += 1
    assert adapter_sha256(model) != digest
    assert weights_sha256(model) == base


def test_adapters_of_other_kinds_are_refused_by_name() -> None:
    from peft import IA3Config, PromptTuningConfig

    prompt = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    injected = tiny_llama()
    injected.add_adapter(IA3Config(target_modules=["k_proj"], feedforward_modules=[]))
    ia3 = IA3Config(target_modules=["k_proj"], feedforward_modules=[])
    tokens = LoraConfig(target_modules=["q_proj"], trainable_token_indices=[1])
    for model, named in (
        (get_peft_model(tiny_llama(), prompt), "PROMPT_TUNING"),
        (get_peft_model(tiny_llama(), ia3), "IA3"),
        (injected, "'model.layers.0.self_attn.k_proj' is a Linear"),
        (get_peft_model(tiny_llama(), tokens), "TrainableTokensWrapper"),
    ):
        with pytest.raises(ModelError, match=named) as caught:
            fingerprint(model, None)
        assert "\n" not in str(caught.value)


def test_precision_is_that_of_most_weights() -> None:
    model = mlp().to(torch.bfloat16)
    assert weights_dtype(model) == "bfloat16"
    model[4].float()
    assert weights_dtype(model) == "bfloat16"
    assert weights_dtype(adapted(model=tiny_llama().half())) == "float16"
    for strange, named in (
        (nn.Identity(), "no floating-point type"),
        (mlp().to(torch.float8_e4m3fn), "float8_e4m3fn"),
    ):
        with pytest.raises(ModelError, match=f"{named}; give a model in float32"):
            weights_dtype(strange)


RECORDED = Fingerprint("LlamaForCausalLM", "float32", "ab" * 32, "cd" * 32, "ef" * 32)
DIFFERENCES: list[tuple[dict[str, str | None], str]] = [
    ({"architecture": "GPT2LMHeadModel"}, r"a LlamaForCausalLM, this model is a GPT2LMHeadModel"),
    ({"dtype": "bfloat16"}, r"in float32, this model is in bfloat16.*torch\.float32"),
    ({"weights_sha256": "00" * 32}, r"base model's weights \(SHA-256 000000000000\.\.\.\)"),
    ({"adapter_sha256": "00" * 32}, r"adapter \(SHA-256 0{12}\.\.\.\).*\(cdcdcdcdcdcd\.\.\.\)"),
    ({"adapter_sha256": None}, r"with a LoRA adapter \(SHA-256 cd.*none in use"),
    ({"tokenizer_sha256": "00" * 32}, r"tokenizer \(SHA-256 000000000000\.\.\.\)"),
    ({"tokenizer_sha256": None}, r"objective=wf\.CausalLM\(tokenizer\)"),
]


@pytest.mark.parametrize(("difference", "message"), DIFFERENCES)
def test_a_mismatch_says_what_differs(difference: dict[str, str | None], message: str) -> None:
    check_fingerprint("i", RECORDED, copy.copy(RECORDED))
    with pytest.raises(MismatchError, match=message) as caught:
        check_fingerprint("i", RECORDED, replace(RECORDED, **difference))
    assert "\n" not in str(caught.value)


def test_a_plain_model_is_no_model_with_an_adapter() -> None:
    plain = replace(RECORDED, adapter_sha256=None)
    with pytest.raises(MismatchError, match="without an adapter, this model has one in use"):
        check_fingerprint("i", plain, RECORDED)
    with pytest.raises(MismatchError, match=r"the model's weights \(SHA-256"):
        check_fingerprint("i", plain, replace(plain, weights_sha256="00" * 32))
    without = replace(plain, tokenizer_sha256=None)
    check_fingerprint("i", without, plain)
