"""What a change of an index did, and what it makes of the record of its corpus."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from wherefrom.errors import IntegrityError, WherefromError
from wherefrom.maintenance.drift import Drift
from wherefrom.store import CorpusRecord, DocumentTable, StoredRows
from wherefrom.store.manifest_parts import MAX_SKIPPED_LISTED

__all__ = [
    "Change",
    "Contents",
    "Leaving",
    "Unreadable",
    "changed_corpus",
    "content_digest",
    "readable",
    "rows_at",
    "sources_gone",
]

_ROWS_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class Change:
    """What a change of an index did.

    Attributes:
        generation: The state of the index that it led to; the one before, if nothing was to do.
        documents: Documents of the index now (passages count one each).
        added: Documents that were appended.
        removed: Documents that were deleted or replaced.
        same: Documents that were given but are in the index already.
        skipped: Ids of documents given of which the model predicts nothing.
        missing: Ids that were to be deleted and that the index does not hold.
        drift: How the appended documents compare with those of the build.
        accelerators: Names of those that the change left behind: make them again.
        warnings: What to mind; the index's history keeps it.
    """

    generation: int
    documents: int
    added: int = 0
    removed: int = 0
    same: int = 0
    skipped: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    drift: Drift | None = None
    accelerators: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(slots=True)
class Contents:
    """Documents that come to an index or leave it, counted.

    Attributes:
        documents: How many.
        tokens: Scored tokens of them.
    """

    documents: int = 0
    tokens: int = 0
    _lines: list[bytes] = field(default_factory=list)

    def add(self, rows: StoredRows) -> None:
        """Take in some more."""
        self.documents += len(rows)
        self.tokens += int(rows.tokens.sum())
        pairs = zip(rows.doc_ids, rows.content_hashes, strict=True)
        self._lines += [
            hashlib.sha256(doc_id.encode()).digest() + digest for doc_id, digest in pairs
        ]

    def add_damaged(self, doc_id: str) -> None:
        """Take in a document of which no more than its id is known."""
        self.documents += 1
        self._lines.append(hashlib.sha256(doc_id.encode()).digest())

    @property
    def digest(self) -> bytes:
        """SHA-256 of ids and contents, whatever their order."""
        return hashlib.sha256(b"".join(sorted(self._lines))).digest()


def content_digest(removed: Contents, added: Contents) -> str:
    """SHA-256 of what a change took out and put in, in hexadecimal."""
    return hashlib.sha256(removed.digest + added.digest).hexdigest()


def changed_corpus(
    before: CorpusRecord,
    removed: Contents,
    added: Contents,
    *,
    parents: int,
    skipped: tuple[str, ...] = (),
    skipped_count: int = 0,
) -> CorpusRecord:
    """The record of the corpus after a change.

    Its digest is a chain: SHA-256 of the digest before and that of the change.

    Args:
        before: The record before.
        removed: What left.
        added: What came.
        parents: How many documents came, before they were cut into passages, less those that left.
        skipped: Ids of documents left out, the first of them.
        skipped_count: How many were left out.
    """
    change = content_digest(removed, added)
    # What is left out each time it is given is one document that was left out.
    new = tuple(one for one in skipped if one not in set(before.skipped))
    return before.model_copy(
        update={
            "documents": before.documents - removed.documents + added.documents,
            "parents": before.parents + parents,
            "tokens": before.tokens - removed.tokens + added.tokens,
            "skipped": (*before.skipped, *new)[:MAX_SKIPPED_LISTED],
            "skipped_count": before.skipped_count + skipped_count - (len(skipped) - len(new)),
            "content_sha256": hashlib.sha256(
                f"{before.content_sha256}{change}".encode()
            ).hexdigest(),
        }
    )


def rows_at(table: DocumentTable, ordinals: NDArray[np.int64]) -> Iterator[StoredRows]:
    """The documents at ``ordinals``, some at a time.

    Raises:
        IntegrityError: A row is missing, or differs from its digest.
        StorageError: The disk refuses.
    """
    for start in range(0, len(ordinals), _ROWS_AT_ONCE):
        yield table.rows(ordinals[start : start + _ROWS_AT_ONCE])


@dataclass(frozen=True, slots=True)
class Leaving:
    """Documents that are to be deleted.

    Attributes:
        contents: What they are.
        damaged: Ids of those whose rows are damaged, of which no more is known.
        ordinals: Where the others stand, [n].
        norms: Their norms, [n].
        tokens: Their scored tokens, [n].
    """

    contents: Contents
    damaged: tuple[str, ...]
    ordinals: NDArray[np.int64]
    norms: NDArray[np.float64]
    tokens: NDArray[np.int32]

    @classmethod
    def read(cls, table: DocumentTable, ordinals: NDArray[np.int64]) -> Leaving:
        """Look at documents of a table once more.

        Raises:
            StorageError: The disk refuses.
        """
        contents, damaged = Contents(), list[str]()
        found, norms, tokens = [np.empty(0, np.int64)], [np.empty(0)], [np.empty(0, np.int32)]
        for start in range(0, len(ordinals), _ROWS_AT_ONCE):
            some = ordinals[start : start + _ROWS_AT_ONCE]
            for one in readable(table, some):
                if isinstance(one, Unreadable):
                    (doc_id,) = table.facts.doc_ids([one.ordinal])
                    contents.add_damaged(doc_id)
                    damaged.append(doc_id)
                else:
                    contents.add(one)
                    found.append(one.ordinals)
                    norms.append(one.norms)
                    tokens.append(one.tokens)
        columns = (np.concatenate(found), np.concatenate(norms), np.concatenate(tokens))
        return cls(contents, tuple(damaged), *columns)


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A row that cannot be read, by the ordinal of its document, and why."""

    ordinal: int
    error: WherefromError


def readable(
    table: DocumentTable,
    ordinals: NDArray[np.int64],
    failing: type[WherefromError] = IntegrityError,
) -> Iterator[StoredRows | Unreadable]:
    """Documents in order, as many at once as there are between two that cannot be read.

    Args:
        table: The documents.
        ordinals: Which.
        failing: What is told of a row and not raised.
    """
    try:
        rows = table.rows(ordinals)
    except failing as error:
        if len(ordinals) == 1:
            yield Unreadable(int(ordinals[0]), error)
            return
        middle = len(ordinals) // 2
        yield from readable(table, ordinals[:middle], failing)
        yield from readable(table, ordinals[middle:], failing)
        return
    yield rows


def sources_gone(table: DocumentTable, removed: NDArray[np.int64]) -> int:
    """How many documents as they were given lose their last passage with rows ``removed``."""
    doc_ids, parent_ids = table.facts.doc_ids(removed), table.facts.parents_of(removed)
    parents = {parent for parent in parent_ids if parent is not None}
    sources = {parent or doc_id for doc_id, parent in zip(doc_ids, parent_ids, strict=True)}
    left = np.setdiff1d(table.facts.passages(sorted(parents)), removed)
    return len(sources) - len(set(table.facts.parents_of(left)))
