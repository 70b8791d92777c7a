"""Arrivals: which of the documents that are given to an index it does not hold yet.

Text is known by its id, a tensor example, which has none, by its content. A document that the index
holds with the same content and metadata is passed over, so appending twice is appending once.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wherefrom.errors import CorpusError
from wherefrom.gradients.objectives import TextObjective
from wherefrom.indexer.corpus import Corpus
from wherefrom.indexer.ledger import Work
from wherefrom.indexer.prepare import Skipped, cut_documents
from wherefrom.indexer.sources import Source, TensorSource, TextSource
from wherefrom.indexer.workshop import CORPUS_FILE
from wherefrom.maintenance.changes import rows_at
from wherefrom.records import Document, MetadataValue
from wherefrom.store import DocumentTable, StoredRows, content_hash
from wherefrom.store.columns import fit_value

__all__ = ["Arrivals", "examples", "texts"]

_AT_ONCE = 256
_Held = tuple[str, bytes, str | None, int, tuple[tuple[str, MetadataValue], ...]]
"""What has to be equal for a passage to be the same."""


@dataclass(slots=True)
class Arrivals:
    """What is to be appended, and what that replaces.

    Attributes:
        source: The documents to append; ``None`` if there are none.
        replaced: Ordinals of documents that they replace.
        parents: How many were given that are new, before they were cut into passages, without those
            that were skipped.
        same: Passages given that the index holds already.
        skipped: Documents given of which the model predicts nothing.
    """

    source: Source | None = None
    replaced: set[int] = field(default_factory=set)
    parents: int = 0
    same: int = 0
    skipped: Skipped = field(default_factory=Skipped)


def texts(
    documents: str | os.PathLike[str] | Iterable[Document],
    table: DocumentTable,
    objective: TextObjective,
    work: Work,
    *,
    replace: bool,
    metadata_columns: Collection[str] | None,
) -> Arrivals:
    """Read documents of text, and write what is new of them to the work folder.

    Args:
        documents: A path or documents.
        table: The index's.
        objective: Bound to its model.
        work: The work folder.
        replace: Whether a document may take the place of one of its id that differs.
        metadata_columns: For a path, the columns to keep.

    Raises:
        CorpusError: The documents cannot be read or indexed, have columns or types that the index
            has not, or differ from documents of the same id and may not replace them.
        StorageError: The disk refuses.
    """
    found = Arrivals()
    cut = cut_documents(
        documents,
        objective,
        found.skipped,
        metadata_columns=metadata_columns,
        text_columns=[name for name, kind in table.layout.metadata.items() if kind == "string"],
    )
    fresh = _new_passages(cut, table, found, replace)
    first = next(fresh, None)
    if first is not None:
        corpus = Corpus.spool(chain([first], fresh), work.file(CORPUS_FILE))
        found.source = TextSource(corpus, objective)
    return found


def examples(documents: tuple[Tensor, ...], table: DocumentTable) -> Arrivals:
    """Those of some tensor examples that the index does not hold, named by their content.

    Raises:
        CorpusError: They are not such tensors as the index holds.
    """
    given = TensorSource(documents)
    if given.inputs != table.layout.inputs:
        raise CorpusError(
            f"the tensors are {given.inputs}, the index holds {table.layout.inputs}; give examples "
            "of the same types and shapes"
        )
    shard = given.part(np.arange(len(given)))
    parts = [part for part in (shard.inputs, shard.targets) if part is not None]
    hashes = [
        content_hash(Document(""), *(row.tobytes() for row in rows))
        for rows in zip(*(_little(part) for part in parts), strict=True)
    ]
    held = {digest for rows in table.batches(_AT_ONCE) for digest in rows.content_hashes}
    new = [i for i, digest in enumerate(hashes) if digest not in held]
    found = Arrivals(parents=len(new), same=len(hashes) - len(new))
    if new:
        kept = torch.tensor(new)
        names = _names([hashes[i].hex() for i in new])
        found.source = TensorSource(tuple(part[kept.to(part.device)] for part in documents), names)
    return found


def _new_passages(
    cut: Iterator[tuple[Document, list[Document]]],
    table: DocumentTable,
    found: Arrivals,
    replace: bool,
) -> Iterator[Document]:
    """Passages of documents that the index does not hold; the rest is noted in ``found``."""
    columns = table.layout.metadata
    while some := list(islice(cut, _AT_ONCE)):
        holdings = _Holdings.of(some, table)
        for document, passages in some:
            held = holdings.of_document(document, passages)
            given = {_signature(passage, columns) for passage in passages}
            if held.keys() == given:
                found.same += len(given)
                continue
            if held and not replace:
                raise CorpusError(
                    f"the index holds another document {document.doc_id!r}; give this one an id of "
                    "its own (documents without one are named after their file and line), or say "
                    "--replace (replace=True) to put it in the other's place"
                )
            found.replaced.update(held.values())
            found.parents += bool(passages)
            yield from passages


class _Holdings:
    """What an index holds of some documents."""

    def __init__(self, rows: Iterable[StoredRows]) -> None:
        self._by_id: dict[str, tuple[_Held, int]] = {}
        self._by_parent: dict[str, list[str]] = {}
        for some in rows:
            fields = zip(
                some.doc_ids,
                some.content_hashes,
                some.parent_ids,
                some.char_starts.tolist(),
                some.metadata,
                some.ordinals.tolist(),
                strict=True,
            )
            for doc_id, digest, parent, start, metadata, ordinal in fields:
                held = (doc_id, digest, parent, start, tuple(metadata.items()))
                self._by_id[doc_id] = held, ordinal
                if parent is not None:
                    self._by_parent.setdefault(parent, []).append(doc_id)

    @classmethod
    def of(
        cls, given: Sequence[tuple[Document, list[Document]]], table: DocumentTable
    ) -> _Holdings:
        sources = [document.doc_id for document, _ in given]
        ids = {passage.doc_id for _, passages in given for passage in passages}
        direct = list(table.facts.find(sorted(ids.union(sources))).values())
        ordinals = np.union1d(np.array(direct, np.int64), table.facts.passages(sources))
        return cls(rows_at(table, ordinals))

    def of_document(self, document: Document, passages: list[Document]) -> dict[_Held, int]:
        """Rows that a document has, or whose ids its passages have, and their ordinals."""
        ids = {document.doc_id, *(passage.doc_id for passage in passages)}
        ids.update(self._by_parent.get(document.doc_id, ()))
        return dict(self._by_id[one] for one in sorted(ids) if one in self._by_id)


def _signature(passage: Document, columns: Mapping[str, Any]) -> _Held:
    """What an index would hold of a passage.

    Raises:
        CorpusError: Its metadata do not fit the index's columns.
    """
    unknown = sorted(passage.metadata.keys() - columns.keys())
    if unknown:
        raise CorpusError(
            f"document {passage.doc_id!r} has metadata {unknown}; the index has the columns "
            f"{list(columns)}: leave others out (--metadata, metadata_columns=)"
        )
    metadata = []
    for name, kind in columns.items():
        value = passage.metadata.get(name)
        fitting = None if value is None else fit_value(kind, value)
        if fitting is None and value is not None:
            raise CorpusError(
                f"document {passage.doc_id!r} has {name!r} = {value!r}; the index's column holds "
                f"{kind} (None where the value is missing)"
            )
        metadata.append((name, fitting))
    return (
        passage.doc_id,
        content_hash(passage),
        passage.parent_id,
        passage.char_start,
        tuple(metadata),
    )


def _names(digests: Sequence[str]) -> list[str]:
    """Ids of examples by their contents; copies of one are numbered."""
    copies: Counter[str] = Counter()
    names = []
    for digest in digests:
        copies[digest] += 1
        names.append(digest if copies[digest] == 1 else f"{digest}-{copies[digest]}")
    return names


def _little(values: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
