"""What a build measured of its documents, measured again when there are many more of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wherefrom.errors import IntegrityError, ModelError
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
) -> tuple[BackgroundRecord | None, tuple[str, ...]]:
    """The background of an index as it is now: what is recorded, while it holds, or a new one.

    A new one takes a pass over all stored vectors. As it is due when there are a quarter more
    documents, all passes together read a few times what the index holds in the end. No change fails
    for it: where it cannot be measured, answers do not say whether hits stand out.

    Args:
        record: What was measured last.
        table: The documents.
        asker: The index's model and encoder.
        seed: Of the sample.

    Returns:
        The background, and what to warn of.
    """
    if record is not None and is_current(record, len(table)):
        return record, ()

    def encode(asked: NDArray[np.bool_]) -> NDArray[np.float64]:
        examples = examples_of(asker.extractor, table.rows(np.flatnonzero(asked)))
        shortened = examples.shortened(QUERY_POSITIONS)
        batches = (shortened.batch(np.array([i])) for i in range(int(asked.sum())))
        return encoded_queries(asker.extractor, asker.encoder, batches)

    try:
        return background(_Numbered(len(table)), encode, table, seed), ()
    except (IntegrityError, ModelError) as error:
        note = (
            f"whether hits stand out from chance could not be measured again ({error}); answers "
            "do not say it until an append can"
        )
        return record, (note,)
