"""Rewriting: the documents that live, and nothing else, in a new table and one scan segment.

What was deleted stays in the files of the table until then, hidden: Lance never changes a file. The
rows get new numbers, without gaps, and digests for those; their order stays.
"""

from __future__ import annotations

import pyarrow as pa

from wherefrom.maintenance.writer import Writer
from wherefrom.store import DocumentTable, ScanCopy, ScanRecord, StoreRecord
from wherefrom.store.directory import TABLE_NAME

__all__ = ["rewrite"]

_ROWS_AT_ONCE = 256
_COMMIT_BYTES = 1 << 28


def rewrite(writer: Writer, table: DocumentTable) -> tuple[StoreRecord, ScanRecord]:
    """Write the documents of ``table`` anew, in memory that does not grow with them.

    Returns:
        The new table and scan copy, durable, to be published.

    Raises:
        IntegrityError: A row differs from its digest.
        StorageError: The disk refuses.
    """
    layout = table.layout
    new = DocumentTable.create(
        writer.folder,
        metadata=layout.metadata,
        dimension=layout.dimension,
        bits=layout.bits,
        inputs=layout.inputs,
        name=f"{TABLE_NAME}-{writer.generation}",
    )
    waiting: list[pa.RecordBatch] = []
    for rows in table.batches(_ROWS_AT_ONCE):
        waiting.append(layout.numbered(rows.batch, int(rows.ordinals[0])))
        if sum(batch.nbytes for batch in waiting) >= _COMMIT_BYTES:
            new.add(waiting)
            waiting = []
    if waiting:
        new.add(waiting)
    store = new.seal()
    return store, ScanCopy.build(new, writer.scan_folder, number=writer.generation)
