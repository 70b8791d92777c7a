"""Small indexes to test the store on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from wherefrom.records import Document
from wherefrom.store import (
    CorpusRecord,
    CurvatureRecord,
    DocumentTable,
    EncoderRecord,
    InputRecord,
    LayerRecord,
    Manifest,
    ModelRecord,
    ObjectiveRecord,
    ScanCopy,
    begin_build,
)

COLUMNS = {"year": "int64", "party": "string", "share": "float64", "war": "bool"}


def speeches(count: int) -> list[Document]:
    """Documents that between them use every field, missing values and empty ones included."""
    parties = ["Whig", "Democratic", None, "", "d'Or"]
    return [
        Document(
            f"speech {i}",
            f"Fellow citizens, {i} — 🗳 " * (i % 3),
            {
                "year": None if i % 7 == 3 else 1790 + i,
                "party": parties[i % 5],
                "share": None if i % 4 == 1 else i / 3,
                "war": [True, False, None][i % 3],
            },
            scored=[None, (), ((0, 3),), ((0, 1), (2, 3))][i % 4],
            special_tokens=i % 2 == 0,
            parent_id=None if i % 3 else f"parent {i}",
            char_start=i * 10,
        )
        for i in range(count)
    ]


@dataclass
class BuiltIndex:
    """A finished index and what went into it."""

    path: Path
    manifest: Manifest
    documents: list[Document]
    vectors: NDArray[np.float32]

    def open(self) -> DocumentTable:
        return DocumentTable.open(self.path, self.manifest)


def write_manifest(table: DocumentTable) -> Manifest:
    """Seal the table, make its scan copy and finish the index."""
    path, layout = table.path.parent, table.layout
    manifest = Manifest(
        created="2026-01-01T00:00:00+00:00",
        model=ModelRecord(
            kind="module",
            source=None,
            task=None,
            dtype="float32",
            weights_sha256="00",
            tokenizer_sha256=None,
            architecture="MLP",
            adapter=None,
        ),
        layers=(LayerRecord(name="0.fc", kind="linear", d_in=3, d_out=2, bias=True),),
        objective=ObjectiveRecord(kind="classification"),
        curvature=CurvatureRecord(
            kind="ekfac",
            damping=0.1,
            whitened=True,
            fisher="expected",
            fit_documents=len(table),
            seed=0,
        ),
        encoder=EncoderRecord(
            name="none",
            reduce="none",
            reduced=layout.dimension,
            rotate=False,
            bits=layout.bits,
            dimension=layout.dimension,
            seed=0,
            bytes_per_document=layout.format.bytes,
            file_sha256="00",
        ),
        corpus=CorpusRecord(
            documents=len(table), parents=len(table), tokens=1, content_sha256="00"
        ),
        scale=1 / max(len(table), 1),
        metadata=dict(layout.metadata),
        inputs=layout.inputs,
        store=table.seal(),
        scan=ScanCopy.build(table, path / "scan"),
        versions={"wherefrom": "0"},
        replay="wherefrom build",
    )
    manifest.write(path)
    return manifest


@pytest.fixture
def build_index(tmp_path: Path) -> Callable[..., BuiltIndex]:
    """Builds a finished index of ``count`` speeches, in shards of five."""

    def build(
        count: int = 12,
        *,
        dimension: int = 5,
        bits: Any = 16,
        examples: InputRecord | None = None,
        documents: list[Document] | None = None,
        columns: Any = COLUMNS,
        **tensors: NDArray[Any],
    ) -> BuiltIndex:
        path = tmp_path / "my.index"
        documents = speeches(count) if documents is None else documents
        rng = np.random.default_rng(1)
        vectors = rng.standard_normal((len(documents), dimension)).astype(np.float32)
        begin_build(path, {})
        table = DocumentTable.create(
            path, metadata=columns, dimension=dimension, bits=bits, inputs=examples
        )
        for start in range(0, len(documents), 5):
            rows = slice(start, start + 5)
            table.append(
                documents[rows],
                vectors[rows],
                norms=np.linalg.norm(vectors[rows].astype(np.float64), axis=1),
                tokens=np.arange(len(documents))[rows],
                **{name: values[rows] for name, values in tensors.items()},
            )
        return BuiltIndex(path, write_manifest(table), documents, vectors)

    return build
