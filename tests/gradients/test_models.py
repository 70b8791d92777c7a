"""Models and their fingerprints: only the model an index was built with may answer for it."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertLMHeadModel,
    BertModel,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

import wherefrom as wf
from small_models import gpt2, mlp
from tiny_lm import save_tiny_lm, text_documents, tiny_llama, tiny_tokenizer
from wherefrom.errors import MismatchError, ModelError
from wherefrom.gradients.fingerprints import tokenizer_sha256, weights_sha256
from wherefrom.gradients.models import load_model, resolve_device

QUESTIONS = [wf.Query("gold", " silver trade")]


@pytest.fixture(scope="module")
def lm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_lm(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def index_path(lm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("indexes") / "i"
    wf.build(lm_folder, text_documents(), path, encoder="none")
    return path


@pytest.fixture
def copied(lm_folder: Path, tmp_path: Path) -> Path:
    """A copy of the model's folder, to be changed."""
    return Path(shutil.copytree(lm_folder, tmp_path / "copy"))


def test_a_folder_gives_model_tokenizer_and_source(lm_folder: Path) -> None:
    loaded = load_model(lm_folder)
    assert next(loaded.module.parameters()).dtype == torch.float32
    assert loaded.source == str(lm_folder.resolve())
    assert loaded.tokenizer is not None
    assert tokenizer_sha256(loaded.tokenizer) == tokenizer_sha256(tiny_tokenizer())
    assert (loaded.kind, loaded.task, loaded.adapter_source) == ("huggingface", "causal_lm", None)
    assert load_model(str(lm_folder)).source == loaded.source


def test_a_module_is_taken_as_it_is() -> None:
    model = mlp()
    loaded = load_model(model, dtype="bfloat16")
    assert loaded.module is model
    assert model[0].weight.dtype == torch.float64
    assert (loaded.tokenizer, loaded.source) == (None, None)
    assert (loaded.kind, loaded.task, loaded.adapter_source) == ("module", None, None)
    assert load_model(gpt2()).task == "causal_lm"


TASKS = [
    (BertLMHeadModel, "causal_lm"),
    (BertForSequenceClassification, "sequence_classification"),
    (BertForMaskedLM, "masked_lm"),
]


def save_bert(kind: type[PreTrainedModel], folder: Path) -> PreTrainedModel:
    torch.manual_seed(5)
    sizes = {"vocab_size": 330, "hidden_size": 12, "intermediate_size": 10, "num_hidden_layers": 1}
    config = BertConfig(
        **sizes, num_attention_heads=3, num_labels=4, is_decoder=kind is BertLMHeadModel
    )
    model = kind(config).eval()
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return model


@pytest.mark.parametrize(("kind", "task"), TASKS)
def test_a_folder_is_opened_as_what_its_configuration_names(
    kind: type[PreTrainedModel], task: str, tmp_path: Path
) -> None:
    saved = save_bert(kind, tmp_path)
    loaded = load_model(tmp_path)
    assert type(loaded.module) is kind
    assert loaded.task == task
    tokens = torch.tensor([[3, 4, 5]])
    assert torch.equal(loaded.module(tokens).logits, saved(tokens).logits)
    assert load_model(saved).task == task


def test_a_folder_of_another_kind_of_model_is_refused_by_name(tmp_path: Path) -> None:
    save_bert(BertModel, tmp_path)
    with pytest.raises(ModelError, match=r"holds a BertModel; supported .*ForMaskedLM") as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)
    name_architecture(tmp_path, None)
    with pytest.raises(ModelError, match="a model of no named architecture; supported"):
        load_model(tmp_path)


def name_architecture(folder: Path, name: str | None) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = None if name is None else [name]
    (folder / "config.json").write_text(json.dumps(config))


def drop_weight(folder: Path, key: str) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights[key]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_weights_that_are_not_there_are_never_drawn_at_random(
    tmp_path: Path, lm_folder: Path, copied: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("transformers").addHandler(caplog.handler)
    save_bert(BertModel, tmp_path)
    name_architecture(tmp_path, "BertForSequenceClassification")
    with pytest.raises(
        ModelError,
        match=r"do not make a BertForSequenceClassification: classifier\.bias \(and 1 more\) is "
        r"not there .*random numbers",
    ) as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)
    drop_weight(copied, "model.layers.1.mlp.up_proj.weight")
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj\.weight is not there and"):
        load_model(copied)
    wider = LlamaConfig.from_pretrained(lm_folder, intermediate_size=14)
    wider.save_pretrained(copied)
    with pytest.raises(ModelError, match=r"more\) has the shape \(12, 10\) for \(12, 14\) and"):
        load_model(copied)
    logging.getLogger("transformers").removeHandler(caplog.handler)
    assert caplog.records == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_weights_are_loaded_in_the_precision_asked_for(lm_folder: Path, dtype: str) -> None:
    module = load_model(lm_folder, dtype=dtype).module
    assert {p.dtype for p in module.parameters()} == {getattr(torch, dtype)}
    assert load_model(module).source == str(lm_folder)


@pytest.mark.parametrize("dtype", ["int8", "torch.float32", "", "fp32"])
def test_other_precisions_are_refused(lm_folder: Path, dtype: str) -> None:
    with pytest.raises(ModelError, match=f"dtype is '{dtype}'; give one of float32, bfloat16"):
        load_model(lm_folder, dtype=dtype)


def test_a_module_remembers_a_folder_only_if_it_can_be_loaded_from_there(lm_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(lm_folder, dtype=torch.float32)
    assert load_model(model).source == str(lm_folder)
    model.model.layers[0].double()
    assert load_model(model).source is None
    other = LlamaForSequenceClassification(model.config)
    other.name_or_path = str(lm_folder)
    assert load_model(other).source is None


def nothing_at(folder: Path) -> object:
    return folder / "nowhere"


def no_config(folder: Path) -> object:
    (folder / "config.json").unlink()
    return folder


def a_file(folder: Path) -> object:
    return folder / "config.json"


def no_weights(folder: Path) -> object:
    (folder / "model.safetensors").unlink()
    return folder


def only_a_pickle(folder: Path) -> object:
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder


def no_tokenizer(folder: Path) -> object:
    for file in folder.glob("tokenizer*"):
        file.unlink()
    return folder


def broken_weights(folder: Path) -> object:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:200])
    return folder


def broken_config(folder: Path) -> object:
    (folder / "config.json").write_text("{")
    return folder


def wrong_type(folder: Path) -> object:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": "wide"}))
    return folder


def remote_code(folder: Path) -> object:
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "own"
    config["auto_map"] = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text("raise SystemExit('code of the model ran')")
    return folder


DAMAGES: list[tuple[Callable[[Path], object], str]] = [
    (nothing_at, "nowhere"),
    (lambda folder: "no-such-org/no-such-model", "nothing is downloaded"),
    (no_config, "holds no config.json"),
    (a_file, "is a file"),
    (no_weights, "cannot load"),
    (only_a_pickle, "safetensors"),
    (no_tokenizer, "cannot load"),
    (broken_weights, "cannot load"),
    (broken_config, "cannot be read"),
    (wrong_type, "cannot load .*hidden_size"),
    (remote_code, "cannot load"),
    (lambda folder: 7, "torch.nn.Module or the path"),
    (lambda folder: None, "torch.nn.Module or the path"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_what_cannot_be_loaded_gets_one_line(
    copied: Path, damage: Callable[[Path], Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        load_model(damage(copied))
    assert "\n" not in str(caught.value)


def test_devices() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in ("cpu", "cuda")
    for device in ("tpu9", "", "cuda:77"):
        with pytest.raises(ModelError, match="'auto', 'cpu' or 'cuda'"):
            resolve_device(device)


def flip_last_bit(model: nn.Module) -> None:
    weight = next(model.parameters()).data.view(-1)
    weight[0] = torch.nextafter(weight[0], weight.new_tensor(9.0))


def with_token(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.add_tokens(["wherefrom"])


def test_an_index_opens_its_own_model_again(index_path: Path, lm_folder: Path) -> None:
    index = wf.open(index_path)
    assert index.manifest.model.source == str(lm_folder.resolve())
    assert index.manifest.model.kind == "huggingface"
    in_memory = AutoModelForCausalLM.from_pretrained(lm_folder, dtype=torch.float32)
    others = [
        wf.open(index_path, model=lm_folder),
        wf.open(index_path, model=str(lm_folder)),
        wf.open(index_path, model=in_memory),
        wf.open(index_path, model=in_memory, objective=wf.CausalLM(tiny_tokenizer())),
    ]
    expected = index.scores(QUESTIONS, tier="stored")
    for other in others:
        assert other.scores(QUESTIONS, tier="stored").tobytes() == expected.tobytes()


def test_other_weights_are_refused(index_path: Path, copied: Path) -> None:
    """The very same folder name and configuration, one weight a single bit away."""
    model = AutoModelForCausalLM.from_pretrained(copied, dtype=torch.float32)
    flip_last_bit(model)
    model.save_pretrained(copied)
    for given in (copied, model):
        with pytest.raises(MismatchError, match=r"weights \(SHA-256") as caught:
            wf.open(index_path, model=given)
        assert "\n" not in str(caught.value)
        assert weights_sha256(model)[:12] in str(caught.value)


def test_the_folder_of_an_index_may_not_change_behind_it(copied: Path, tmp_path: Path) -> None:
    wf.build(copied, text_documents(), tmp_path / "i", encoder="none")
    save_tiny_lm(copied, seed=3)
    with pytest.raises(MismatchError, match="weights"):
        wf.open(tmp_path / "i")
    shutil.rmtree(copied)
    with pytest.raises(ModelError, match="copy"):
        wf.open(tmp_path / "i")


def test_another_precision_is_refused_and_the_recorded_one_loaded(
    index_path: Path, lm_folder: Path, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(lm_folder, dtype=torch.bfloat16)
    with pytest.raises(MismatchError, match="built in float32, this model is in bfloat16"):
        wf.open(index_path, model=model)
    built = wf.build(lm_folder, text_documents(), tmp_path / "i", encoder="none", dtype="bfloat16")
    assert built.manifest.model.dtype == "bfloat16"
    expected = built.scores(QUESTIONS, tier="stored").tobytes()
    for given in (None, lm_folder, model):
        index = wf.open(tmp_path / "i", model=given)
        assert index.scores(QUESTIONS, tier="stored").tobytes() == expected


def test_another_tokenizer_is_refused(index_path: Path, copied: Path, lm_folder: Path) -> None:
    changed = AutoTokenizer.from_pretrained(copied)
    with_token(changed)
    changed.save_pretrained(copied)
    model = AutoModelForCausalLM.from_pretrained(lm_folder, dtype=torch.float32)
    for given, objective in ((copied, None), (model, wf.CausalLM(changed))):
        with pytest.raises(MismatchError, match=r"tokenizer \(SHA-256") as caught:
            wf.open(index_path, model=given, objective=objective)
        assert "weights" not in str(caught.value)


def test_another_architecture_or_objective_is_refused(index_path: Path) -> None:
    with pytest.raises(MismatchError, match=r"LlamaForCausalLM.*GPT2LMHeadModel"):
        wf.open(index_path, model=gpt2(), objective=wf.CausalLM(tiny_tokenizer()))
    with pytest.raises(MismatchError, match="'causal_lm', not 'classification'"):
        wf.open(index_path, objective=wf.Classification())


def test_an_index_over_a_module_opens_without_it_and_says_what_to_do(tmp_path: Path) -> None:
    x, y = torch.randn(9, 5, dtype=torch.float64), torch.arange(9) % 3
    built = wf.build(mlp(), (x, y), tmp_path / "i", encoder="none")
    index = wf.open(tmp_path / "i")
    assert len(index) == 9
    assert index.vectors().tobytes() == built.vectors().tobytes()
    assert index.self_influence().tobytes() == built.self_influence().tobytes()
    for ask in (
        lambda: index.query(inputs=x[0], target=0),
        lambda: index.scores((x, y)),
        lambda: index.scores((x, y), tier="stored"),
        lambda: index.encode((x, y)),
        lambda: index.curvature,
    ):
        with pytest.raises(ModelError, match=r"wf\.open\(path, model=your_model\)") as caught:
            ask()
        assert "\n" not in str(caught.value)
    opened = wf.open(tmp_path / "i", model=mlp())
    assert opened.scores((x, y)).tobytes() == built.scores((x, y)).tobytes()
    other = mlp()
    flip_last_bit(other)
    with pytest.raises(MismatchError, match="weights"):
        wf.open(tmp_path / "i", model=other)


def test_a_model_in_memory_without_its_tokenizer_is_told_to_bring_it(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    wf.build(tiny_llama(), text_documents(), tmp_path / "i", objective=wf.CausalLM(tokenizer))
    with pytest.raises(wf.WherefromError, match=r"objective=wf\.CausalLM\(tokenizer\)") as caught:
        wf.open(tmp_path / "i", model=tiny_llama())
    assert "None" not in str(caught.value)
