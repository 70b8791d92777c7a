"""What children do: small builds, and looking at what became of them."""

from __future__ import annotations

import datetime
import hashlib
import io
import itertools
import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import lancedb
import pyarrow as pa
import torch

import wherefrom as wf
import wherefrom.api  # Else each child would import it.
from small_models import mlp
from tiny_lm import text_documents, tiny_llama, tiny_tokenizer
from wherefrom.indexer import committing
from wherefrom.records import Query
from wherefrom.store import DocumentTable, Manifest

if TYPE_CHECKING:
    from lancedb.table import LanceTable

__all__ = [
    "JUMPS",
    "build_tensors",
    "build_text",
    "command",
    "look",
    "set_clock",
    "small_shards",
    "told",
]

QUESTIONS = [Query("gold", " silver trade"), Query("the union of states", " shall be preserved")]

_YEAR = 3.2e7
JUMPS: dict[str, Callable[[int], float]] = {
    "backwards by years": lambda looks: 50 * _YEAR - looks * _YEAR,
    "to and fro": lambda looks: 50 * _YEAR + (-1) ** looks * 20 * _YEAR,
    "to 1970 and beyond 2100": lambda looks: (looks % 2) * 140 * _YEAR,
}

# What differs between two builds of the same index: when and how they were made.
_PASSING = ("created", "seconds_per_document", "versions", "replay")


def build_text(path: str, *, documents: int = 60, clock: str | None = None, **options: Any) -> None:
    """Index texts."""
    set_clock(clock)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wf.build(
            tiny_llama(),
            text_documents(documents),
            path,
            objective=wf.CausalLM(tiny_tokenizer()),
            **{"encoder": "none", **options},
        )


def build_tensors(
    path: str, *, documents: int = 61, clock: str | None = None, **options: Any
) -> None:
    """Index rows of numbers."""
    set_clock(clock)
    x = torch.randn(documents, 5, generator=torch.Generator().manual_seed(1)).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wf.build(mlp(), (x, torch.arange(documents) % 3), path, **{"encoder": "none", **options})


def look(path: str, *, scores: bool = False) -> dict[str, Any]:
    """All that an index holds, as digests and numbers that are the same for the same index."""
    folder = Path(path)
    manifest = Manifest.read(folder)
    table = DocumentTable.open(folder, manifest)
    stream = io.BytesIO()
    batch = table.rows(range(len(table))).batch
    with pa.ipc.new_stream(stream, batch.schema) as out:
        out.write_batch(batch)
    recorded = json.loads(manifest.model_dump_json())
    for name in _PASSING:
        del recorded[name]
    # Lance names its files at random, and a build that was resumed has other versions.
    recorded["store"] = {"rows": recorded["store"]["rows"], "table": recorded["store"]["table"]}
    fragments = cast("LanceTable", lancedb.connect(path).open_table("documents")).stats()
    found: dict[str, Any] = {
        "manifest": recorded,
        "rows": hashlib.sha256(stream.getvalue()).hexdigest(),
        "doc_ids": table.facts.doc_ids(),
        "encoder": hashlib.sha256((folder / "encoder.safetensors").read_bytes()).hexdigest(),
        "names": sorted(name for name in os.listdir(folder) if name != "writer.lock"),
        "half-written": [str(p) for p in folder.rglob("*") if p.name.endswith(".tmp")],
        # Of a build that was never interrupted and of one that was, each fragment is one file.
        "orphans": len(os.listdir(folder / "documents.lance" / "data"))
        - fragments["fragment_stats"]["num_fragments"],
    }
    if scores:
        index = wf.open(folder, model=tiny_llama(), objective=wf.CausalLM(tiny_tokenizer()))
        found["scores"] = index.scores(QUESTIONS).tobytes().hex()
    return found


def command(arguments: list[str], errors: str) -> None:
    """Run the command line; what it says on stderr goes to a file."""
    from wherefrom.cli.main import main

    handle = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 2)
    sys.argv = ["wherefrom", *arguments]
    main()


def small_shards() -> None:
    """Make builds of a few dozen documents consist of many tasks, and of several commits."""
    committing._COMMIT_BYTES = 1 << 14
    for name, module in list(sys.modules.items()):
        if name.startswith("wherefrom.indexer"):
            for size in ("fit_shard_size", "encode_shard_size"):
                if hasattr(module, size):
                    setattr(module, size, lambda count: 8)


def set_clock(jumps: str | None) -> None:
    """Have the wall clock jump, a step at every look at it; for good, in this process."""
    if jumps is None:
        return
    looks = itertools.count()

    def now() -> float:
        return float(JUMPS[jumps](next(looks)))

    class Jumping(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Jumping:
            return cls.fromtimestamp(now(), tz)

    time.time = now
    for name, module in list(sys.modules.items()):
        if name.startswith("wherefrom.") and getattr(module, "datetime", None) is datetime.datetime:
            module.datetime = Jumping  # type: ignore[attr-defined]


def told(log: str) -> list[str]:
    """Lines of a log that children append to."""
    return Path(log).read_text().splitlines() if os.path.exists(log) else []
