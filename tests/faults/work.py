"""What children do: small builds, and looking at what became of them."""

from __future__ import annotations

import datetime
import hashlib
import io
import itertools
import json
import os
import resource
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import lancedb
import pyarrow as pa
import torch

import wherefrom as wf
import wherefrom.api  # Else each child would import it.
from small_models import mlp
from tiny_lm import WORDS, text_documents, tiny_llama, tiny_tokenizer
from wherefrom.indexer import committing
from wherefrom.records import Query
from wherefrom.store import DocumentTable, Manifest

if TYPE_CHECKING:
    from lancedb.table import LanceTable

__all__ = [
    "JUMPS",
    "build_long",
    "build_many",
    "build_tensors",
    "build_text",
    "command",
    "large_shards",
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


def build_many(path: str, *, documents: int) -> dict[str, int]:
    """Index very many texts of a few words; how many, and the most memory that it took."""
    large_shards()
    stream = (
        wf.Document(f"{i}", f"{WORDS[i % 30]} {WORDS[i % 29]} union", {"number": i})
        for i in range(documents)
    )
    index = _sketched(path, stream)
    return {"documents": len(index), "bytes": _peak()}


def build_long(path: str, *, text_bytes: int) -> dict[str, int | bool]:
    """Index one very long text; whether its passages are all of it, and the most memory."""
    large_shards()
    words = itertools.cycle([*WORDS, "and so\n\non."])
    text = " ".join(itertools.islice(words, text_bytes // 5))[:text_bytes]
    index = _sketched(path, [wf.Document("long", text)])
    table = DocumentTable.open(Path(path), index.manifest)
    passages = (passage for rows in table.batches(1024) for passage in rows.texts)
    return {"whole": "".join(passages) == text, "bytes": _peak()}


def _sketched(path: str, documents: Iterable[wf.Document]) -> wf.Index:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return wf.build(
            tiny_llama().float(),
            documents,
            path,
            objective=wf.CausalLM(tiny_tokenizer()),
            curvature="identity",
            encoder="sketch",
            bits=1,
            bytes_per_document=64,
            batch_size=256,
        )


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


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


def large_shards() -> None:
    """Undo :func:`small_shards`: sizes as they are for users."""
    committing._COMMIT_BYTES = 1 << 28
    for module in list(sys.modules.values()):
        for size in ("fit_shard_size", "encode_shard_size"):
            if module.__name__.startswith("wherefrom.indexer") and hasattr(module, size):
                setattr(module, size, lambda count: 1024)


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
