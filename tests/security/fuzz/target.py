"""One fuzz target: ``python target.py NAME CORPUS_FOLDER [libFuzzer's options]``."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
TESTS = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(TESTS.parent), str(TESTS), str(TESTS / "security")]

import atheris  # noqa: E402

with atheris.instrument_imports(include=["wherefrom"]):
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch
    from hostile import ask, fields_of, publish
    from mutations import mutated

    import wherefrom as wf
    from tiny_lm import save_tiny_lm, text_documents, tiny_llama
    from wherefrom.audit.contents import read_contents
    from wherefrom.cli.query_file import read_batch
    from wherefrom.encoding.persistence import load_encoder
    from wherefrom.encoding.stages import Stages
    from wherefrom.errors import WherefromError
    from wherefrom.gradients.layers import select_layers
    from wherefrom.gradients.models import load_model
    from wherefrom.gradients.pretrained import config_of
    from wherefrom.indexer.corpus import read_corpus
    from wherefrom.query import asker
    from wherefrom.store import Manifest
    from wherefrom.store.boundary import require_no_bases
    from wherefrom.store.filters import comparisons, parse_where
    from wherefrom.store.live_rows import LiveRows
    from wherefrom.store.state_parts import DeletedRecord, StoreRecord

LAYERS = select_layers(tiny_llama(), "mlp")
COLUMNS = {"year": "int64", "party": "string", "war": "bool", "share": "float64"}
SCRATCH = Path(tempfile.mkdtemp(prefix="fuzz-"))


def written(name: str, data: bytes) -> Path:
    path = SCRATCH / name
    path.write_bytes(data)
    return path


def manifest(data: bytes) -> None:
    Manifest.parse(data, "manifest.json")


class Forged:
    """An index whose manifest is changed by what the fuzzer says, sealed anew, opened and asked."""

    def __init__(self) -> None:
        model = save_tiny_lm(SCRATCH / "model")
        self.path = SCRATCH / "index"
        wf.build(str(model), text_documents(), self.path, seed=3)
        self.fields = fields_of(self.path)
        loaded = load_model(str(model))
        asker.load_recorded = lambda **_: loaded

    def __call__(self, data: bytes) -> None:
        publish(self.path, mutated(self.fields, random.Random(data)))
        ask(self.path)


def encoder(data: bytes) -> None:
    size = sum(layer.size for layer in LAYERS)
    load_encoder(
        written("e.safetensors", data),
        LAYERS,
        kind="ekfac",
        damping=0.1,
        documents=20,
        report={},
        stages=Stages("none", size, 32, rotate=False, seed=3),
        device=torch.device("cpu"),
    )


def filters(data: bytes) -> None:
    try:
        where = json.loads(data)
    except (ValueError, RecursionError):
        return
    if isinstance(where, dict):
        comparisons(where, COLUMNS)


def clauses(data: bytes) -> None:
    parse_where(data.decode(errors="surrogateescape"), COLUMNS)


def corpus(name: str) -> Callable[[bytes], None]:
    def read(data: bytes) -> None:
        for _ in read_corpus(written(name, data)):
            pass

    return read


def questions(data: bytes) -> None:
    read_batch(written("q.jsonl", data))


def bundle(data: bytes) -> None:
    read_contents(written("b.zip", data))


def lance(data: bytes) -> None:
    require_no_bases(data, "version")


def deleted(data: bytes) -> None:
    digest = hashlib.sha256(data).hexdigest()
    record = DeletedRecord(file=f"deleted-{digest[:16]}.npy", sha256=digest, rows=3)
    path = written(record.file, data)
    try:
        LiveRows.read(SCRATCH, StoreRecord(table_version=1, rows=17, next_row=20, deleted=record))
    finally:
        path.unlink()


def config(data: bytes) -> None:
    written("config.json", data)
    config_of(SCRATCH)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "manifest": manifest,
    "encoder": encoder,
    "filters": filters,
    "clauses": clauses,
    "jsonl": corpus("c.jsonl"),
    "csv": corpus("c.csv"),
    "parquet": corpus("c.parquet"),
    "questions": questions,
    "bundle": bundle,
    "lance": lance,
    "deleted": deleted,
    "config": config,
}

SEEDS: dict[str, list[bytes]] = {
    "manifest": [b'{"format": "wherefrom-index", "format_version": 1, "layers": [], "scale": 1.0}'],
    "filters": [b'{"year": ["<", 1900], "party": ["in", ["Whig"]], "war": true}'],
    "clauses": [b"year < 1900", b'party not in "a, b", c', b"war is missing"],
    "jsonl": [b'{"text": "a", "year": 1}\n{"prompt": "a", "completion": "b"}\n'],
    "csv": [b'text,year\n"a, b",1\n'],
    "questions": [b'{"prompt": "a", "completion": "b", "id": "x", "tag": 1}\n'],
    "config": [b'{"model_type": "llama", "hidden_size": 8, "text_config": {}}'],
    "deleted": [b"\x93NUMPY\x01\x00v\x00{'descr': '<i8', 'fortran_order': False, 'shape': (3,), }"],
}


def made_seed(name: str) -> bytes | None:
    """A sound file of the kinds that cannot be written down."""
    made = io.BytesIO()
    if name == "encoder":
        return (Forged().path / "encoder.safetensors").read_bytes()
    if name == "bundle":
        with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("answers.jsonl", "{}")
    elif name == "parquet":
        pq.write_table(pa.table({"text": ["a", "b"], "year": [1, 2]}), made)
    elif name == "lance":
        message = b"\x12\x01a\x18\x01"
        made.write(len(message).to_bytes(4, "little") + message + b"\0" * 8 + b"\2\0\2\0LANC")
    return made.getvalue() or None


def run(name: str, options: list[str]) -> None:
    target = Forged() if name == "index" else TARGETS[name]

    def once(data: bytes) -> None:
        try:
            target(data)
        except WherefromError as error:
            if len(str(error).splitlines()) > 1 or len(str(error)) > 10_000:
                raise AssertionError(f"not one line: {error!r:.300}") from error

    atheris.Setup([sys.argv[0], *options], once)
    atheris.Fuzz()


if __name__ == "__main__":
    for number, seed in enumerate(SEEDS.get(sys.argv[1], [])):
        Path(sys.argv[2], f"seed-{number}").write_bytes(seed)
    sound = made_seed(sys.argv[1])
    if sound is not None:
        Path(sys.argv[2], "sound").write_bytes(sound)
    run(sys.argv[1], sys.argv[2:])
