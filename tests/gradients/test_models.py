"""Models and their fingerprints: only the model an index was built with may answer for it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import wherefrom as wf
from small_models import gpt2, mlp
from tiny_lm import save_tiny_lm, text_documents, tiny_llama, tiny_tokenizer
from wherefrom.errors import MismatchError, ModelError
from wherefrom.gradients.models import (
    load_model,
    resolve_device,
    tokenizer_sha256,
    weights_sha256,
)

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
    assert loaded.context == 96
    assert load_model(str(lm_folder)).source == loaded.source


def test_a_module_is_taken_as_it_is() -> None:
    model = mlp()
    loaded = load_model(model)
    assert loaded.module is model
    assert (loaded.tokenizer, loaded.source, loaded.context) == (None, None, 1024)


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
    (broken_config, "cannot load"),
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
