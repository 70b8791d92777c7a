"""Deleting documents: hidden at once, and with a purge gone from every file of the index."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from wherefrom.errors import IntegrityError, QueryError
from wherefrom.maintenance.changes import (
    Change,
    Contents,
    Leaving,
    changed_corpus,
    content_digest,
    rows_at,
    sources_gone,
)
from wherefrom.maintenance.drift import without
from wherefrom.maintenance.rewriting import rewrite
from wherefrom.maintenance.writer import Writer
from wherefrom.query.background import is_current
from wherefrom.store import ChangeKind, CorpusRecord, DocumentTable, Manifest, Where

if TYPE_CHECKING:
    from wherefrom.query.asker import Asker

__all__ = ["compact", "delete", "named_documents"]

_KEEPING_GRADIENTS = ("datainf", "lissa")
"""Curvatures whose state is gradients, one by one; those of the other kinds are sums of them."""


def delete(
    folder: str | os.PathLike[str],
    doc_ids: Sequence[str] | None = None,
    *,
    where: Where | None = None,
    purge: bool = False,
    missing_ok: bool = False,
    opened: Manifest | None = None,
    asker: Asker | None = None,
) -> Change:
    """Delete documents of an index; see :meth:`wherefrom.Index.delete`, which does it.

    Raises:
        MismatchError: It was built anew since it was ``opened``.
    """
    if doc_ids is not None:
        _require_ids(doc_ids)
    if (doc_ids is None) == (where is None):
        raise QueryError("give doc_ids or where, one of the two, to say what to delete")
    if where is not None and not where:
        raise QueryError("an empty filter would delete everything; remove the folder instead")
    with Writer.of(folder, opened) as writer:
        swept = writer.sweep()
        table = DocumentTable.open(writer.folder, writer.manifest, write=True)
        notes = (*writer.left_beside(), *_kept_gradients(writer.manifest)) if purge else ()
        found, missing = _asked_for(table, doc_ids, where)
        if purge and swept and not len(found) and _was_purged(writer.manifest):
            ended = (
                "the index holds none of these documents; its last change was a purge, which seems "
                "to have been interrupted: the files that were left over have been removed now"
            )
            return Change(writer.manifest.generation, len(table), warnings=(ended, *notes))
        if not missing_ok:
            _require_found(found, missing, where)
        writer.require_some_left(len(found))
        if not len(found) and not purge:
            return Change(writer.manifest.generation, len(table), missing=missing)
        leaving = Leaving.read(table, found)
        removed, drift = leaving.contents, writer.manifest.drift
        if drift is not None:
            drift = without(drift, leaving.ordinals, leaving.norms, leaving.tokens)
        corpus = changed_corpus(
            writer.manifest.corpus, removed, Contents(), parents=-sources_gone(table, found)
        )
        if leaving.damaged:
            corpus, note = _recounted(table, found, corpus, leaving.damaged)
            notes = (*notes, note)
        table.delete(found)
        background = None
        if asker is None:
            notes = (*notes, *_unmeasured(writer.manifest, len(found)))
        else:
            from wherefrom.maintenance.remeasure import current_background  # Loads torch.

            background, told = current_background(
                writer.manifest.background, table, asker, writer.manifest.curvature.seed
            )
            notes = (*notes, *told)
        if purge:
            store, scan = rewrite(writer, table)
        else:
            store, scan = table.seal(), writer.manifest.scan
        left_behind = tuple(record.kind for record in writer.manifest.accelerators)
        kind: ChangeKind = "purge" if purge else "delete"
        writer.publish(
            kind,
            store,
            scan,
            corpus,
            removed=removed.documents,
            content_sha256=content_digest(removed, Contents()),
            baseline=drift,
            background=background,
            warnings=notes,
        )
        if purge:
            writer.sweep()
        return Change(
            writer.manifest.generation,
            store.rows,
            removed=removed.documents,
            missing=missing,
            accelerators=left_behind,
            warnings=notes,
        )


def _kept_gradients(manifest: Manifest) -> tuple[str, ...]:
    """What to say of a curvature that keeps documents apart, which no change takes out of it."""
    kind = manifest.curvature.kind
    if kind not in _KEEPING_GRADIENTS:
        return ()
    return (
        f"encoder.safetensors still holds the gradients of single documents, from which their "
        f"texts can be inferred: curvature {kind!r} is made of those that it was fitted on, and a "
        "purge does not change it; build again without the documents to be rid of them",
    )


def _unmeasured(manifest: Manifest, removed: int) -> tuple[str, ...]:
    """What to say where so many go that chance brings less to the top than was measured."""
    record, before = manifest.background, manifest.store.rows
    if record is None or not is_current(record, before) or is_current(record, before - removed):
        return ()
    return (
        f"whether hits stand out from chance was measured among {record.documents:,} documents and "
        f"{before - removed:,} are left: answers do not say it until an append measures it again",
    )


def compact(folder: str | os.PathLike[str], *, opened: Manifest | None = None) -> Change:
    """Write an index anew without what was deleted; see :meth:`wherefrom.Index.compact`.

    Raises:
        MismatchError: It was built anew since it was ``opened``.
    """
    with Writer.of(folder, opened) as writer:
        writer.sweep()
        manifest = writer.manifest
        store, scan = rewrite(writer, DocumentTable.open(folder, manifest))
        nothing = content_digest(Contents(), Contents())
        left_behind = tuple(record.kind for record in manifest.accelerators)
        writer.publish("compact", store, scan, manifest.corpus, content_sha256=nothing)
        return Change(writer.manifest.generation, store.rows, accelerators=left_behind)


def named_documents(
    table: DocumentTable, doc_ids: Sequence[str]
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Ordinals, ascending, of documents by their ids, and the ids that the index does not hold.

    A parent's id stands for its passages.
    """
    found = table.facts.find(doc_ids)
    passages = table.facts.passages(doc_ids)
    parents = set(table.facts.parents_of(passages))
    missing = [one for one in dict.fromkeys(doc_ids) if one not in found and one not in parents]
    ordinals = np.union1d(np.fromiter(found.values(), np.int64, len(found)), passages)
    return ordinals, tuple(missing)


def _require_ids(given: object) -> None:
    """Refuse a single id, which is a sequence of its characters, and what is no text."""
    several = isinstance(given, Collection) and not isinstance(given, str)
    if not several or not all(isinstance(one, str) for one in cast("Collection[object]", given)):
        raise QueryError(f"doc_ids={given!r:.80} is not allowed; give a list of ids, as ['17']")


def _asked_for(
    table: DocumentTable, doc_ids: Sequence[str] | None, where: Where | None
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Ordinals of what is to be deleted, and ids that are not there."""
    if where is not None:
        return table.facts.where(where), ()
    return named_documents(table, doc_ids or ())


def _require_found(found: NDArray[np.int64], missing: tuple[str, ...], where: Where | None) -> None:
    """Refuse what names nothing, or something that is not there.

    Raises:
        QueryError: It does.
    """
    if where is not None and not len(found):
        raise QueryError(
            "no document passes the filter, so nothing would be deleted; ask with it what there "
            "is, or say --missing-ok (missing_ok=True)"
        )
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise QueryError(
            f"the index holds no document {missing[0]!r}{others}; give ids as hits show them, or "
            "say --missing-ok (missing_ok=True)"
        )


def _recounted(
    table: DocumentTable,
    leaving: NDArray[np.int64],
    corpus: CorpusRecord,
    damaged: tuple[str, ...],
) -> tuple[CorpusRecord, str]:
    """The record of the corpus with its tokens counted anew, and what to say of damaged rows."""
    note = f"the row of document {damaged[0]!r} was damaged ({len(damaged)} such in all)"
    remaining = np.setdiff1d(np.arange(len(table)), leaving)
    try:
        tokens = sum(int(rows.tokens.sum()) for rows in rows_at(table, remaining))
    except IntegrityError as error:
        return corpus, f"{note}; how many tokens are left could not be counted: {error}"
    corpus = corpus.model_copy(update={"tokens": tokens})
    return corpus, f"{note}; append it again from where it is whole"


def _was_purged(manifest: Manifest) -> bool:
    """Whether the last change was a purge."""
    return bool(manifest.history) and manifest.history[-1].kind == "purge"
