"""A small index over text that is changed, here and in children."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path
from typing import Any

import wherefrom as wf
import wherefrom.api  # Else each child would import it.
from tiny_lm import WORDS, text_documents, tiny_llama, tiny_tokenizer
from wherefrom.indexer import committing
from wherefrom.maintenance import append as appending
from wherefrom.maintenance.delete import compact as compact_index
from wherefrom.maintenance.delete import delete as delete_documents
from wherefrom.query.opened import OpenIndex
from wherefrom.store import DocumentTable, Manifest, ScanCopy

__all__ = [
    "BUILT",
    "LONG",
    "POOL",
    "QUESTIONS",
    "append",
    "build",
    "compact",
    "contents",
    "delete",
    "opened",
]

POOL = text_documents(36)
BUILT = 14
QUESTIONS = [wf.Query("gold", " silver trade ships"), wf.Query("", "war or peace")]
LONG = wf.Document("a long one", " ".join(itertools.islice(itertools.cycle(WORDS), 150)))

_MODEL = tiny_llama().float()
_OBJECTIVE = wf.CausalLM(tiny_tokenizer())


def build(path: Path, **options: Any) -> None:
    """An index over the first documents of the pool and a long one, in passages."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wf.build(
            _MODEL,
            [*POOL[:BUILT], LONG],
            path,
            objective=_OBJECTIVE,
            device="cpu",
            **{"encoder": "none", **options},
        )


def opened(path: str | Path) -> wf.Index:
    """The index, with its model."""
    return wf.open(path, model=_MODEL, objective=_OBJECTIVE, device="cpu")


def append(path: str, *, start: int, stop: int, replace: bool = False) -> None:
    """Append documents of the pool, their texts changed if they are to replace others."""
    appending.encode_shard_size = lambda dimension: 3
    committing._COMMIT_BYTES = 1
    documents = [
        wf.Document(d.doc_id, d.text + " peace" * replace, d.metadata) for d in POOL[start:stop]
    ]
    opened(path).append(documents, replace=replace)


def delete(path: str, *, doc_ids: list[str], purge: bool = False) -> None:
    """Delete documents that are there still."""
    delete_documents(path, doc_ids, purge=purge, missing_ok=True)


def compact(path: str) -> None:
    """Write the index anew."""
    compact_index(path)


def contents(index: OpenIndex | Path | str) -> dict[str, Any]:
    """All that answers are made of, in order, to the bit; all rows are compared with digests."""
    if isinstance(index, OpenIndex):
        table, copy = index.table, index._scan
    else:
        manifest = Manifest.read(index)
        table = DocumentTable.open(index, manifest)
        copy = ScanCopy.open(Path(index) / "scan", manifest.scan, table.live)
    rows = table.rows(range(len(table)))
    chunks = list(copy.chunks(5))
    return {
        "doc_ids": table.facts.doc_ids(),
        "read": rows.doc_ids,
        "texts": rows.texts,
        "metadata": rows.metadata,
        "vectors": [row.tobytes() for row in rows.vectors],
        "norms": rows.norms.tolist(),
        "codes": [row.tobytes() for chunk in chunks for row in chunk.codes],
        "ordinals": [int(one) for chunk in chunks for one in chunk.ordinals],
        "whole": copy.whole.tolist(),
    }
