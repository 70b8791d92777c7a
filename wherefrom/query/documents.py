"""Stored documents on their way back into the model: read in blocks, made ready, in batches."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from wherefrom.errors import ModelError
from wherefrom.gradients.batches import Batch
from wherefrom.gradients.examples import (
    Examples,
    TensorExamples,
    TextExamples,
    batches,
    documents_at_once,
)
from wherefrom.gradients.extractor import GradientExtractor
from wherefrom.gradients.objectives import TextObjective
from wherefrom.store import DocumentTable, StoredRows

__all__ = ["document_batches", "examples_of", "row_blocks"]

_ROWS_PER_READ = 1024
_ENTRIES_PER_READ = 1 << 25
_AT_ONCE = 32


def row_blocks(
    table: DocumentTable, ordinals: NDArray[np.int64] | None = None
) -> Iterator[tuple[NDArray[np.int64], StoredRows]]:
    """Rows with their positions in the index, as many at a time as memory should hold.

    Args:
        table: The documents.
        ordinals: Which; all by default.
    """
    size = max(1, min(_ROWS_PER_READ, _ENTRIES_PER_READ // table.layout.dimension))
    if ordinals is None:
        start = 0
        for rows in table.batches(size):
            yield np.arange(start, start + len(rows)), rows
            start += len(rows)
        return
    for start in range(0, len(ordinals), size):
        chosen = ordinals[start : start + size]
        yield chosen, table.rows(chosen)


def examples_of(extractor: GradientExtractor, rows: StoredRows) -> Examples:
    """Stored documents, ready for the model.

    Raises:
        ModelError: The objective reads tensors and the index holds text.
    """
    if rows.inputs is not None and rows.targets is not None:
        return TensorExamples(rows.inputs, rows.targets, rows.doc_ids)
    objective = extractor.objective
    if not isinstance(objective, TextObjective):
        raise ModelError(f"{objective.kind} reads tensors, but this index holds text")
    return TextExamples.of(rows.documents(), objective)


def document_batches(
    table: DocumentTable,
    extractor: GradientExtractor,
    ordinals: NDArray[np.int64] | None = None,
) -> Iterator[tuple[NDArray[np.int64], Batch]]:
    """Documents in batches for the model, with their positions in the index.

    Args:
        table: The documents.
        extractor: Whose objective reads them.
        ordinals: Which; all by default.
    """
    at_once = documents_at_once(_AT_ONCE, extractor.layers, extractor.objective.copies)
    for positions, rows in row_blocks(table, ordinals):
        for chosen, batch in batches(examples_of(extractor, rows), max_documents=at_once):
            yield positions[chosen], batch
