"""Saved LoRA adapters: put on their base, or refused with the first thing that does not fit."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BertConfig, BertForSequenceClassification, BertModel

import wherefrom as wf
from tiny_lm import save_tiny_lm, text_documents, tiny_llama, tiny_tokenizer
from wherefrom.errors import MismatchError, MissingExtraError, ModelError
from wherefrom.gradients.fingerprints import fingerprint, tokenizer_sha256, weights_sha256
from wherefrom.gradients.models import load_model, load_recorded

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

TOKENS = torch.tensor([[5, 9, 17, 40]])


def settled(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every trainable weight drawn anew, so that the adapter does something."""
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


def bert_config(**options: object) -> BertConfig:
    sizes = {"vocab_size": 330, "hidden_size": 12, "intermediate_size": 10, "num_hidden_layers": 2}
    return BertConfig(**sizes, num_attention_heads=3, **options)


def save_adapter(
    base: nn.Module, folder: Path, names: Path | str | None, seed: int = 0, **options: object
) -> nn.Module:
    """Save an adapter on a base, with what it is to name as its base."""
    options = {"r": 2, "target_modules": ["q_proj", "down_proj"]} | options
    model = settled(get_peft_model(base, LoraConfig(**options)), seed)
    model.peft_config["default"].base_model_name_or_path = None if names is None else str(names)
    model.save_pretrained(folder, save_embedding_layers=False)
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``base`` and ``lora`` of a language model; ``encoder`` and ``head`` of a classifier of 3."""
    root = tmp_path_factory.mktemp("adapters")
    save_tiny_lm(root / "base")
    save_adapter(
        tiny_llama().float(), root / "lora", root / "base", task_type="CAUSAL_LM", lora_dropout=0.5
    )
    torch.manual_seed(4)
    encoder = BertModel(bert_config())
    encoder.save_pretrained(root / "encoder")
    tiny_tokenizer().save_pretrained(root / "encoder")
    classifier = BertForSequenceClassification(bert_config(num_labels=3))
    classifier.bert = encoder
    save_adapter(
        classifier, root / "head", root / "encoder", task_type="SEQ_CLS", target_modules=["query"]
    )
    return root


@pytest.fixture
def copied(folders: Path, tmp_path: Path) -> Path:
    """Copies of the folders, to be changed; the adapters name bases beside them."""
    shutil.copytree(folders, tmp_path / "copy")
    for name, base in (("lora", "../base"), ("head", "../encoder")):
        edit(tmp_path / "copy" / name, base_model_name_or_path=base)
    return tmp_path / "copy"


def edit(adapter: Path, **options: object) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | options))


def edit_weights(adapter: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    change(weights)
    save_file(weights, adapter / "adapter_model.safetensors")


def test_a_path_gives_the_adapter_on_its_base(folders: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(folders / "base", dtype=torch.float32)
    in_memory = PeftModel.from_pretrained(base, folders / "lora", adapter_name="mine")
    loaded = load_model(folders / "lora")
    assert torch.equal(logits(loaded.module), logits(in_memory))
    assert not torch.allclose(logits(loaded.module), logits(load_model(folders / "base").module))
    assert not loaded.module.training
    assert (loaded.kind, loaded.task) == ("adapter", "causal_lm")
    assert loaded.source == str(folders / "base")
    assert loaded.adapter_source == str(folders / "lora")
    assert tokenizer_sha256(loaded.tokenizer) == tokenizer_sha256(tiny_tokenizer())
    assert fingerprint(loaded.module, None) == fingerprint(in_memory, None)
    handed_over = load_model(in_memory)
    assert handed_over.module is in_memory
    assert (handed_over.kind, handed_over.task) == ("module", "causal_lm")
    assert (handed_over.source, handed_over.adapter_source) == (None, None)


def test_an_adapter_and_its_base_name_the_same_base(folders: Path) -> None:
    plain = load_model(folders / "base").module
    assert weights_sha256(load_model(folders / "lora").module) == weights_sha256(plain)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_a_base_is_loaded_in_the_precision_asked_for(folders: Path, dtype: str) -> None:
    loaded = load_model(folders / "lora", dtype=dtype)
    assert fingerprint(loaded.module, None).dtype == dtype
    assert torch.isfinite(logits(loaded.module)).all()


def test_the_head_of_a_classifier_comes_from_the_adapter(folders: Path) -> None:
    """The encoder has no head, so what transformers puts there is random and takes no part."""
    torch.manual_seed(1)
    one = load_model(folders / "head")
    torch.manual_seed(2)
    two = load_model(folders / "head")
    assert one.task == "sequence_classification"
    assert one.module.config.num_labels == 3
    assert logits(one.module).shape == (1, 3)
    assert torch.equal(logits(one.module), logits(two.module))
    assert fingerprint(one.module, None) == fingerprint(two.module, None)
    saved = load_file(folders / "head" / "adapter_model.safetensors")
    in_use = one.module.base_model.model.classifier.modules_to_save["default"].weight
    assert torch.equal(in_use, saved["base_model.model.classifier.weight"])


def test_the_adapters_number_of_labels_goes_before_the_bases(tmp_path: Path) -> None:
    for labels, name in ((2, "two"), (5, "five")):
        torch.manual_seed(labels)
        BertForSequenceClassification(bert_config(num_labels=labels)).save_pretrained(
            tmp_path / name
        )
        tiny_tokenizer().save_pretrained(tmp_path / name)
    base = BertForSequenceClassification.from_pretrained(tmp_path / "five")
    options = {"task_type": "SEQ_CLS", "target_modules": ["query"]}
    save_adapter(base, tmp_path / "lora", "../two", **options)
    assert logits(load_model(tmp_path / "lora").module).shape == (1, 5)


def test_an_adapter_without_a_task_leaves_the_base_its_own(tmp_path: Path) -> None:
    base = BertForSequenceClassification(bert_config(num_labels=4))
    base.save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    model = save_adapter(base, tmp_path / "lora", tmp_path / "base", target_modules=["query"])
    loaded = load_model(tmp_path / "lora")
    assert loaded.task == "sequence_classification"
    assert torch.equal(logits(loaded.module), logits(model))
    assert fingerprint(loaded.module, None) == fingerprint(model, None)


def test_an_adapters_tokenizer_goes_before_the_bases(copied: Path) -> None:
    other = tiny_tokenizer()
    other.add_tokens(["wherefrom"])
    other.save_pretrained(copied / "lora")
    loaded = load_model(copied / "lora")
    assert tokenizer_sha256(loaded.tokenizer) == tokenizer_sha256(other)
    base = load_model(copied / "base").module
    on_a_module = load_model(copied / "lora", base=base)
    assert tokenizer_sha256(on_a_module.tokenizer) == tokenizer_sha256(other)


def test_bases_are_found_beside_the_adapter_here_or_where_told(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = fingerprint(load_model(copied / "lora").module, None)
    shutil.move(copied / "base", copied / "elsewhere")
    with pytest.raises(ModelError, match=r"'\.\./base', which the adapter .*base_model=") as caught:
        load_model(copied / "lora")
    assert "\n" not in str(caught.value)
    edit(copied / "lora", base_model_name_or_path="elsewhere")
    monkeypatch.chdir(copied)
    for base in (None, "elsewhere", copied / "elsewhere"):
        loaded = load_model("lora", base=base)
        assert loaded.source == str(copied / "elsewhere")
        assert loaded.adapter_source == str(copied / "lora")
        assert fingerprint(loaded.module, None) == expected


def test_a_base_in_memory_is_copied(folders: Path) -> None:
    base = load_model(folders / "base").module
    before = logits(base)
    loaded = load_model(folders / "lora", base=base)
    assert torch.equal(logits(base), before)
    assert torch.equal(logits(loaded.module), logits(load_model(folders / "lora").module))
    assert (loaded.kind, loaded.source, loaded.tokenizer) == ("adapter", None, None)
    assert loaded.task == "causal_lm"
    with pytest.raises(ModelError, match="already holds an adapter"):
        load_model(folders / "lora", base=loaded.module)


def other_kind(root: Path) -> None:
    edit(root / "lora", peft_type="IA3")


def other_task(root: Path) -> None:
    edit(root / "lora", task_type="TOKEN_CLS")


def moved_tokens(root: Path) -> None:
    edit(root / "lora", trainable_token_indices=[1])


def own_module(root: Path) -> None:
    edit(root / "lora", megatron_config={"a": 1}, megatron_core="antigravity")


def rewriting_start(root: Path) -> None:
    edit(root / "lora", init_lora_weights="pissa_niter_2")


def pickled(root: Path) -> None:
    weights = load_file(root / "lora" / "adapter_model.safetensors")
    (root / "lora" / "adapter_model.safetensors").unlink()
    torch.save(weights, root / "lora" / "adapter_model.bin")


def cut_short(root: Path) -> None:
    file = root / "lora" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:300])


def broken_config(root: Path) -> None:
    (root / "lora" / "adapter_config.json").write_text("{")


def list_config(root: Path) -> None:
    (root / "lora" / "adapter_config.json").write_text("[]")


def other_rank(root: Path) -> None:
    edit(root / "lora", r=4)


def wider_base(root: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_pretrained(root / "base", intermediate_size=14)
    LlamaForCausalLM(config).save_pretrained(root / "base")


def shallower_base(root: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_pretrained(root / "base", num_hidden_layers=1)
    LlamaForCausalLM(config).save_pretrained(root / "base")


def absent_targets(root: Path) -> None:
    edit(root / "lora", target_modules=["query"])


def one_weight_less(root: Path) -> None:
    key = "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"
    edit_weights(root / "lora", lambda weights: weights.pop(key))


def fewer_targets(root: Path) -> None:
    edit(root / "lora", target_modules=["q_proj"])


def named_by_nobody(root: Path) -> None:
    edit(root / "lora", base_model_name_or_path=None)


def on_an_adapter(root: Path) -> None:
    edit(root / "lora", base_model_name_or_path="../head")


def not_cached(root: Path) -> None:
    edit(root / "lora", base_model_name_or_path="no-such-org/no-such-model")


REFUSALS: list[tuple[Callable[[Path], None], str]] = [
    (other_kind, r"of type IA3; only LORA"),
    (other_task, r"trained for TOKEN_CLS; supported are CAUSAL_LM, SEQ_CLS"),
    (moved_tokens, r"uses trainable_token_indices"),
    (own_module, r"uses megatron_config"),
    (rewriting_start, r"init_lora_weights='pissa_niter_2'"),
    (pickled, r"no adapter_model\.safetensors; pickles"),
    (cut_short, r"adapter_model\.safetensors cannot be read"),
    (broken_config, r"adapter_config\.json cannot be read"),
    (list_config, r"not a JSON object"),
    (
        other_rank,
        r"lora does not fit its base .*base: model\.layers\.0\.mlp\.down_proj\.lora_A\.weight has "
        r"the shape \(2, 10\), the base takes \(4, 10\); .*base_model=",
    ),
    (wider_base, r"down_proj\.lora_A\.weight has the shape \(2, 10\), the base takes \(2, 14\)"),
    (shallower_base, r"no place for model\.layers\.1\.mlp\.down_proj\.lora_A\.weight"),
    (absent_targets, r"Target modules \{'query'\} not found in the base model; give the base"),
    (one_weight_less, r"layers\.1\.mlp\.down_proj\.lora_B\.weight is not among its weights"),
    (fewer_targets, r"no place for model\.layers\.0\.mlp\.down_proj\.lora_A\.weight"),
    (named_by_nobody, r"names no base; give .*base_model="),
    (on_an_adapter, r"is an adapter itself; merge"),
    (not_cached, r"'no-such-org/no-such-model', which the adapter .* no id in the local cache"),
]


@pytest.mark.parametrize(("damage", "message"), REFUSALS)
def test_an_adapter_that_cannot_be_used_gets_one_line(
    copied: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(copied)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(copied / "lora")
    assert "\n" not in str(caught.value)
    assert "lora" in str(caught.value)


def without_head(weights: dict[str, Tensor]) -> None:
    del weights["base_model.model.classifier.weight"]
    del weights["base_model.model.classifier.bias"]


def without_bias(weights: dict[str, Tensor]) -> None:
    del weights["base_model.model.classifier.bias"]


@pytest.mark.parametrize(
    ("change", "first"),
    [(without_head, "classifier.weight"), (without_bias, "classifier.bias")],
)
def test_a_head_that_nobody_brings_is_refused(
    copied: Path, change: Callable[[dict[str, Tensor]], object], first: str
) -> None:
    edit_weights(copied / "head", change)
    with pytest.raises(ModelError, match=r"classifier\.bias .*random numbers") as caught:
        load_model(copied / "head")
    assert "\n" not in str(caught.value)
    classifier = BertForSequenceClassification(bert_config(num_labels=3))
    with pytest.raises(ModelError, match=rf"does not fit its base .*{first} is not among"):
        load_model(copied / "head", base=classifier)


def test_a_base_is_for_adapters_only(folders: Path) -> None:
    with pytest.raises(ModelError, match=r"base_model is for adapters.*leave base_model out"):
        load_model(folders / "base", base=folders / "base")
    with pytest.raises(ModelError, match=r"path of an adapter.*leave base_model out"):
        load_model(tiny_llama(), base=folders / "base")
    with pytest.raises(ModelError, match="base_model is a int"):
        load_model(folders / "lora", base=7)
    with pytest.raises(ModelError, match=r"the base 'nowhere' is no folder.*base_model="):
        load_model(folders / "lora", base="nowhere")


def test_without_peft_the_pip_line_is_shown(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    assert load_model(folders / "base").kind == "huggingface"
    with pytest.raises(MissingExtraError, match=r"pip install 'wherefrom\[peft\]'"):
        load_model(folders / "lora")


def test_what_an_index_recorded_is_loaded_again(copied: Path) -> None:
    adapter = load_model(copied / "lora", dtype="bfloat16")
    recorded = {
        "source": adapter.source,
        "adapter_source": adapter.adapter_source,
        "dtype": "bfloat16",
    }
    expected = fingerprint(adapter.module, None)
    assert fingerprint(load_recorded(**recorded).module, None) == expected
    assert load_recorded(**recorded, model=adapter.module).module is adapter.module

    shutil.move(copied / "base", copied / "base now")
    with pytest.raises(ModelError, match=r"base, which is not there.*wf\.open\(path, base_model="):
        load_recorded(**recorded)
    now = {"base": copied / "base now"}
    assert fingerprint(load_recorded(**recorded, **now).module, None) == expected

    shutil.move(copied / "lora", copied / "lora now")
    with pytest.raises(ModelError, match=r"lora, which is not there.*wf\.open\(path, model="):
        load_recorded(**recorded, **now)
    loaded = load_recorded(**recorded, model=copied / "lora now", **now)
    assert fingerprint(loaded.module, None) == expected
    assert loaded.kind == "adapter"


def test_a_recorded_base_goes_before_the_one_that_the_adapter_names(copied: Path) -> None:
    edit(copied / "lora", base_model_name_or_path="somewhere/else")
    recorded = {"source": str(copied / "base"), "adapter_source": str(copied / "lora")}
    assert load_recorded(**recorded, dtype="float32").source == recorded["source"]


def test_what_was_handed_over_has_to_be_given_again(folders: Path) -> None:
    with pytest.raises(ModelError, match=r"wf\.open\(path, model=your_model\)"):
        load_recorded(source=None, adapter_source=None, dtype="float32")
    on_a_module = {"source": None, "adapter_source": str(folders / "lora"), "dtype": "float32"}
    with pytest.raises(ModelError, match=r"wf\.open\(path, base_model=your_base\)"):
        load_recorded(**on_a_module)
    base = load_model(folders / "base").module
    assert load_recorded(**on_a_module, base=base).kind == "adapter"
    plain = load_recorded(source=str(folders / "base"), adapter_source=None, dtype="float64")
    assert (plain.kind, plain.module.dtype) == ("huggingface", torch.float64)


QUESTIONS = [wf.Query("gold", " silver trade")]


def test_an_index_over_an_adapter_opens_with_both_and_nothing_else(
    copied: Path, tmp_path: Path
) -> None:
    built = wf.build(copied / "lora", text_documents(), tmp_path / "i", encoder="none")
    record = built.manifest.model
    assert (record.kind, record.source) == ("adapter", str(copied / "base"))
    assert record.adapter is not None
    assert record.adapter.source == str(copied / "lora")
    plain = fingerprint(load_model(copied / "base").module, None)
    assert record.weights_sha256 == plain.weights_sha256
    assert all("lora_" in layer.name for layer in built.manifest.layers)
    expected = built.scores(QUESTIONS, tier="stored").tobytes()
    assert wf.open(tmp_path / "i").scores(QUESTIONS, tier="stored").tobytes() == expected

    with pytest.raises(MismatchError, match="built with a LoRA adapter"):
        wf.open(tmp_path / "i", model=copied / "base")
    shutil.copytree(copied / "lora", copied / "other lora")
    edit(copied / "other lora", lora_alpha=3)
    with pytest.raises(MismatchError, match=r"the adapter \(SHA-256"):
        wf.open(tmp_path / "i", model=copied / "other lora")
    save_tiny_lm(copied / "other base", seed=3)
    with pytest.raises(MismatchError, match=r"base model's weights \(SHA-256"):
        wf.open(tmp_path / "i", base_model=copied / "other base")

    for name in ("base", "lora"):
        shutil.move(copied / name, copied / f"{name} now")
    moved = wf.open(tmp_path / "i", model=copied / "lora now", base_model=copied / "base now")
    assert moved.scores(QUESTIONS, tier="stored").tobytes() == expected
