"""What a build measured of its documents, measured again when there are many more of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wherefrom.indexer.background import background, encoded_queries
from wherefrom.indexer.choice import QUERY_POSITIONS
from wherefrom.query.asker import Asker
from wherefrom.query.background import is_current
from wherefrom.query.documents import examples_of
from wherefrom.store import BackgroundRecord, DocumentTable

__all__ = ["current_background"]


class _Numbered:
    """Documents drawn by their places: reading the ids of all would read all rows once more."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def doc_ids(self) -> list[str]:
        return [str(place) for place in range(self._count)]


def current_background(
    record: BackgroundRecord | None, table: DocumentTable, asker: Asker, seed: int
) -> BackgroundRecord | None:
    """The background of an index as it is now: what is recorded, while it holds, or a new one.

    A new one takes a pass over all stored vectors. As it is due when there are a quarter more
    documents, all passes together read a few times what the index holds in the end.

    Args:
        record: What was measured last.
        table: The documents.
        asker: The index's model and encoder.
        seed: Of the sample.

    Raises:
        ModelError: The model fails on a document.
        IntegrityError: A row differs from its digest.
    """
    if record is not None and is_current(record, len(table)):
        return record

    def encode(asked: NDArray[np.bool_]) -> NDArray[np.float64]:
        examples = examples_of(asker.extractor, table.rows(np.flatnonzero(asked)))
        shortened = examples.shortened(QUERY_POSITIONS)
        batches = (shortened.batch(np.array([i])) for i in range(int(asked.sum())))
        return encoded_queries(asker.extractor, asker.encoder, batches)

    return background(_Numbered(len(table)), encode, table, seed)
