"""Stored vectors against what the model makes of the stored texts today.

Digests tell that a vector is the one that was written; that it is the vector of *this* text by
*this* model only the model can tell. A sample of documents is encoded again. The same machine and
libraries give the same bits as a rule; others round otherwise, which moves a vector by little and
can turn single entries of its code. So with x the vector as it is now, y the stored one and r the
norm of what was lost of it then, ``|‖x - y‖ - r| <= ‖x - x'‖`` for the vector x' of then: what is
on the left must be as small as rounding is, whatever the code. Another text or another model is
nearly orthogonal, which moves it by about ``‖x‖``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wherefrom.gradients.fingerprints import DType
from wherefrom.query.asker import Asker
from wherefrom.query.documents import document_batches
from wherefrom.records import Progress
from wherefrom.store import DocumentTable, StoredRows
from wherefrom.store.quantise import quantise, row_norms

__all__ = ["TOLERANCES", "Reencoded", "reencode"]

TOLERANCES: dict[DType, float] = {
    "float64": 1e-2,
    "float32": 1e-2,
    "bfloat16": 5e-2,
    "float16": 5e-2,
}
"""How far a vector may move, relative to its norm, by the precision of the model's weights."""


@dataclass(frozen=True, slots=True)
class Reencoded:
    """A sample of documents, encoded again.

    Attributes:
        documents: How many.
        equal: Of these, with the stored code and norms to the last bit.
        within: Of the others, within rounding.
        largest: The largest difference of all, relative to the vector's norm; 0 for none.
        differing: Ids of those that are further off.
    """

    documents: int
    equal: int
    within: int
    largest: float
    differing: tuple[str, ...]


def reencode(
    asker: Asker,
    table: DocumentTable,
    ordinals: NDArray[np.int64],
    *,
    tolerance: float,
    progress: Progress,
) -> Reencoded:
    """Encode documents from their texts or tensors, and compare with what is stored.

    Args:
        asker: The index's model and encoder.
        table: Its documents.
        ordinals: Which, positions in the index, [n].
        tolerance: See :data:`TOLERANCES`.
        progress: Told of each batch.

    Raises:
        ModelError: A log-likelihood is not finite, or memory does not suffice.
        IntegrityError: A row differs from its digest.
    """
    equal = done = 0
    moved: dict[str, float] = {}
    progress("encoding a sample again", 0, len(ordinals))
    with asker.extractor.session():
        for chosen, batch in document_batches(table, asker.extractor, ordinals):
            encoded = asker.encoder.encode(asker.extractor, batch)
            rows = table.rows(chosen)
            same, distance = _compared(rows, encoded.vectors, encoded.norms)
            equal += int(same.sum())
            for i in np.flatnonzero(~same):
                moved[rows.doc_ids[i]] = float(distance[i])
            done += len(rows)
            progress("encoding a sample again", done, len(ordinals))
    # Not "> tolerance", which lets a distance pass that is no number.
    differing = tuple(doc_id for doc_id, far in moved.items() if not far <= tolerance)
    return Reencoded(
        documents=done,
        equal=equal,
        within=len(moved) - len(differing),
        largest=max(moved.values(), default=0.0),
        differing=differing,
    )


def _compared(
    rows: StoredRows, vectors: NDArray[np.float32], norms: NDArray[np.float64]
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Which rows equal vectors [n, dimension] and norms [n] in bits; how far all are off."""
    stored, now = rows.stored, quantise(vectors, rows.layout.bits)
    same = (
        (stored.codes == now.codes).reshape(len(rows), -1).all(1)
        & (stored.scales == now.scales)
        & (stored.residual_norms == now.residual_norms)
        & (rows.norms == norms)
    )
    wide = vectors.astype(np.float64)
    apart = np.abs(row_norms(wide - rows.vectors) - stored.residual_norms)
    with np.errstate(divide="ignore", invalid="ignore"):
        off = np.maximum(apart / row_norms(wide), np.abs(norms - rows.norms) / norms)
    return same, off
