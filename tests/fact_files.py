"""Files of facts, made without a table."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wherefrom.records import Document
from wherefrom.store import (
    SCAN_DIRECTORY,
    DocumentTable,
    ScanCopy,
    StoredRows,
    file_sha256,
)
from wherefrom.store.facts import FACTS_FILE, FactsWriter
from wherefrom.store.layout import TableLayout
from wherefrom.store.quantise import quantise


def stored(documents: list[Document], layout: TableLayout) -> StoredRows:
    """Rows of documents as the table would give them back."""
    count = len(documents)
    vectors = quantise(np.ones((count, layout.dimension), np.float32), layout.bits)
    ones = np.ones(count)
    batch = layout.encode(0, documents, vectors, ones, ones.astype(int), {})
    return StoredRows(batch, layout, np.arange(count))


def written(folder: Path, layout: TableLayout, *shards: list[Document]) -> dict[Path, str]:
    """A file of facts for each of ``shards``, written five documents at a time; their digests."""
    files = {}
    for number, shard in enumerate(shards):
        path = folder / f"{number}.arrow"
        with FactsWriter(path, layout) as writer:
            for start in range(0, len(shard), 5):
                writer.write(stored(shard[start : start + 5], layout).batch)
            assert not path.exists()
            digest = writer.finish()
            writer.publish()
        assert digest == file_sha256(path)
        files[path] = digest
    return files


def published(table: DocumentTable, folder: Path) -> DocumentTable:
    """A table that was filled by hand in ``folder``, with the facts that a build would add."""
    record = ScanCopy.build(table, folder / SCAN_DIRECTORY)
    (segment,) = record.segments
    path = folder / SCAN_DIRECTORY / str(segment.number) / FACTS_FILE
    table._facts = {path: segment.files[FACTS_FILE]}
    table._published = table.live
    return table
