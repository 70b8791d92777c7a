"""Hostile files beside an index: encoders, models, questions, logs and bundles."""

from __future__ import annotations

import json
import random
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import harmless
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tiny_lm import tiny_llama
from wherefrom.audit import log_size
from wherefrom.audit.contents import read_contents
from wherefrom.cli.query_file import read_batch, read_queries
from wherefrom.encoding.persistence import load_encoder
from wherefrom.encoding.stages import Stages
from wherefrom.errors import IntegrityError, ModelError
from wherefrom.gradients.layers import select_layers
from wherefrom.gradients.models import load_model

LAYERS = select_layers(tiny_llama(), "mlp")
SLOW_FIXTURES = [HealthCheck.function_scoped_fixture]


def load(path: Path) -> None:
    load_encoder(
        path,
        LAYERS,
        kind="ekfac",
        damping=0.1,
        documents=20,
        report={},
        stages=Stages("none", sum(layer.size for layer in LAYERS), 32, rotate=False, seed=3),
        device=torch.device("cpu"),
    )


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file, and the rest."""
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def joined(header: dict[str, Any], body: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def test_the_encoder_is_one_that_loads(built: Path) -> None:
    load(built / "encoder.safetensors")


@settings(max_examples=150, suppress_health_check=SLOW_FIXTURES)
@given(seed=st.integers(0, 2**32))
def test_damaged_encoders_are_refused_or_read(built: Path, tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    data = bytearray((built / "encoder.safetensors").read_bytes())
    header = int.from_bytes(data[:8], "little") + 8
    for _ in range(chance.randint(1, 6)):
        data[chance.randrange(header if chance.random() < 0.8 else len(data))] = chance.randrange(
            256
        )
    if chance.random() < 0.2:
        del data[chance.randrange(len(data)) :]
    (tmp_path / "e.safetensors").write_bytes(data)
    harmless(lambda: load(tmp_path / "e.safetensors"))


@pytest.mark.parametrize("dtype", ["F16", "I64", "U8", "BOOL", "F8_E4M3", "C64", "U64", "none"])
def test_encoders_of_other_numbers_are_refused(built: Path, tmp_path: Path, dtype: str) -> None:
    sizes = {"F16": 2, "U8": 1, "BOOL": 1, "F8_E4M3": 1}
    header, body = split((built / "encoder.safetensors").read_bytes())
    header.pop("__metadata__", None)
    (name,) = [name for name in header if name.endswith("0.eigenvalues")]
    made: dict[str, Any] = {}
    rest = b""
    for other, entry in header.items():
        start, end = entry["data_offsets"]
        part = body[start:end]
        if other == name:
            part = b"\1" * (len(part) // 8 * sizes.get(dtype, 8))
            entry = {**entry, "dtype": dtype}
        made[other] = {**entry, "data_offsets": [len(rest), len(rest) + len(part)]}
        rest += part
    (tmp_path / "e.safetensors").write_bytes(joined(made, rest))
    assert isinstance(harmless(lambda: load(tmp_path / "e.safetensors")), IntegrityError)


@pytest.mark.parametrize("data", [b"", b"\xff" * 8, (1 << 40).to_bytes(8, "little"), b"PK\x03\x04"])
def test_files_that_are_no_encoder_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "e.safetensors").write_bytes(data)
    assert isinstance(harmless(lambda: load(tmp_path / "e.safetensors")), IntegrityError)


CONFIGS: dict[str, dict[str, Any]] = {
    "kernel": {"attn_implementation": "evil/kernel"},
    "kernel inside": {"text_config": {"_attn_implementation": {"a": "evil/kernel"}}},
    "experts": {"experts_implementation": "evil/kernel"},
    "quantised": {"quantization_config": {"quant_method": "mxfp4"}},
    "code": {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C"}},
    "code elsewhere": {"model_type": "evil", "auto_map": {"AutoConfig": "evil/repo--evil.C"}},
    "dtype": {"dtype": "evil"},
    "negative": {"hidden_size": -5},
    "type": {"hidden_size": ["x"]},
    "activation": {"hidden_act": "__import__"},
}


@pytest.mark.parametrize("change", CONFIGS.values(), ids=CONFIGS)
def test_models_that_bring_code_or_nonsense_are_refused(
    model_path: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    folder = Path(shutil.copytree(model_path, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_bytes()) | change
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('run')")
    assert isinstance(harmless(lambda: load_model(str(folder))), ModelError)


def test_pickled_weights_are_refused(model_path: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_path, tmp_path / "model"))
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04cos\n_exit\n(I3\ntR.")
    assert isinstance(harmless(lambda: load_model(str(folder))), ModelError)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"completion": ' + '{"a":' * 5000,
        '{"completion": "\\ud800"}',
        '{"completion": "x", "completion": "y"}',
        '{"completion": NaN}',
        '{"id": 1e400, "completion": "x"}',
        '{"id": ' + "9" * 5000 + ', "completion": "x"}',
        '{"prompt": ["x"], "completion": "y"}',
        "\0",
    ],
    ids=range(9),
)
def test_hostile_questions_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "q.jsonl").write_text(text)
    for read in (read_queries, read_batch):
        assert harmless(lambda read=read: read(tmp_path / "q.jsonl")) is not None


@settings(max_examples=200, suppress_health_check=SLOW_FIXTURES)
@given(data=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_file_of_questions_is_refused_or_read(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "q.jsonl").write_bytes(data)
    harmless(lambda: read_batch(tmp_path / "q.jsonl"))


def bomb(path: Path, name: str = "a.json", claimed: int | None = None) -> Path:
    """A zip file of 3 MB of zeros; ``claimed`` is what its directory says they are."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, b"\0" * 3_000_000)
    if claimed is not None:
        honest, said = (size.to_bytes(4, "little") for size in (3_000_000, claimed))
        path.write_bytes(path.read_bytes().replace(honest, said))
    return path


@pytest.mark.parametrize("claimed", [None, 10])
def test_logs_that_unpack_without_end_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, claimed: int | None
) -> None:
    path = bomb(tmp_path / "x.eval", claimed=claimed)
    log_size.require_size(path)
    monkeypatch.setattr(log_size, "LARGEST_LOG", 1 << 20)
    with pytest.raises(ValueError, match="holds more than 1 MiB"):
        log_size.require_size(path)


@pytest.mark.parametrize("name", ["../answers.jsonl", "/etc/passwd", "..\\x", "a/../../b", ".."])
def test_bundles_that_lead_out_are_told_and_not_followed(tmp_path: Path, name: str) -> None:
    contents = read_contents(bomb(tmp_path / "b.zip", name))
    assert not contents.files
    assert "leads out of the bundle" in contents.oddities[0].what
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.zip"]


def test_bundles_that_unpack_without_end_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wherefrom.audit.contents.LARGEST", 1 << 20)
    for claimed in (None, 10):
        path = bomb(tmp_path / f"{claimed}.zip", claimed=claimed)
        assert isinstance(harmless(lambda path=path: read_contents(path)), IntegrityError)


def test_links_in_bundles_are_told_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "answers.jsonl").symlink_to(tmp_path / "secret")
    assert not read_contents(tmp_path / "bundle").files
