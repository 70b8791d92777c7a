"""Appending documents: encoded as the build encoded its own, by its tasks, without a new fit.

The work folder of an interrupted append is gone on with when the same documents are appended to the
same state of the index; another change discards it.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from wherefrom.errors import CorpusError, IntegrityError, WherefromError
from wherefrom.gradients.examples import documents_at_once
from wherefrom.gradients.objectives import TextObjective
from wherefrom.indexer.committing import encode_documents
from wherefrom.indexer.executors import make_executor
from wherefrom.indexer.job import Job, ModelChoice
from wherefrom.indexer.ledger import COMMITTED, ENCODER, Committed, EncoderPlan, Work
from wherefrom.indexer.plan import PLAN, CorpusPlan, Plan, encode_shard_size
from wherefrom.indexer.planning import Documents, are_tensors
from wherefrom.indexer.provenance import versions
from wherefrom.indexer.sources import EXAMPLES_FILE, Source, TensorSource
from wherefrom.indexer.workshop import Workshop, torch_threads
from wherefrom.maintenance.arrivals import Arrivals, examples, texts
from wherefrom.maintenance.changes import (
    Change,
    Contents,
    Leaving,
    Unreadable,
    changed_corpus,
    content_digest,
    readable,
    rows_at,
    sources_gone,
)
from wherefrom.maintenance.drift import baseline, compare, followed, since_build, without
from wherefrom.maintenance.remeasure import current_background
from wherefrom.maintenance.writer import Writer
from wherefrom.query.asker import Asker
from wherefrom.records import Progress
from wherefrom.store import DocumentTable, DriftRecord, Manifest, ScanCopy

__all__ = ["Appending"]

_EXECUTORS = ("serial", "processes", "ray")
"""Not ``torchrun``: each of its ranks would open the index and write to it."""

_ROWS_AT_ONCE = 1024
_BATCH_OF_TEXTS, _BATCH_OF_TENSORS = 32, 256
_PARTS = ("encode", COMMITTED, ENCODER, EXAMPLES_FILE)


@dataclass(frozen=True)
class Appending:
    """How documents are appended; :meth:`run` does all of it.

    Attributes:
        asker: The index's model and encoder.
        choice: How workers load them.
        replace: Whether a document may take the place of one of its id.
        metadata_columns: For a corpus from a path, the columns to keep.
        executor: Name of what carries out the tasks: ``serial``, the default, ``processes`` or
            ``ray``.
        workers: How many at once.
        threads: Of torch in each worker; as many as here by default, or as the append began with.
        progress: Told how far the work is.

    Raises:
        WherefromError: There is no such executor for this.
    """

    asker: Asker
    choice: ModelChoice
    replace: bool
    metadata_columns: Collection[str] | None
    executor: str | None
    workers: int | None
    threads: int | None
    progress: Progress

    def __post_init__(self) -> None:
        if self.executor not in (None, *_EXECUTORS):
            names = ", ".join(map(repr, _EXECUTORS))
            raise WherefromError(
                f"executor={self.executor!r} does not append documents; choose one of {names}"
            )

    def run(self, writer: Writer, documents: Documents) -> Change:
        """Append documents.

        Raises:
            CorpusError: They cannot be read or indexed, or differ from documents of the same id.
            ModelError: One has no finite gradient.
            StorageError: The disk refuses.
        """
        writer.sweep(keep_work=True)
        manifest, work = writer.manifest, Work(writer.folder)
        work.make()
        published = DocumentTable.open(writer.folder, manifest)
        self.progress("reading the documents", 0, 1)
        arrivals = self._arrivals(documents, published, work)
        self.progress("reading the documents", 1, 1)
        replaced = np.array(sorted(arrivals.replaced), np.int64)
        if arrivals.source is None and not len(replaced):
            work.remove()
            return self._unchanged(writer, arrivals)
        leaving = Leaving.read(published, replaced)
        removed, gone = leaving.contents, sources_gone(published, replaced)
        if arrivals.source is None:
            writer.require_some_left(len(replaced))
        goes_on = _left_plan(work) is not None
        try:
            table, new = self._appended(writer, work, arrivals)
        except IntegrityError:
            if not goes_on:
                raise
            # What the interrupted append left is damaged, and nothing but time is lost with it.
            _forget(work)
            table, new = self._appended(writer, work, arrivals)
        table.delete(replaced)
        added, notes = new.contents, new.notes
        record, drift = manifest.drift, None
        if manifest.curvature.whitened and manifest.curvature.kind != "identity":
            record = record or _baseline(published)
        if record is not None:
            record = without(record, leaving.ordinals, leaving.norms, leaving.tokens)
            drift = compare(record, new.norms, new.tokens)
            record = followed(record, drift)
            told = [one.warning for one in (drift, since_build(record)) if one and one.warning]
            notes = (*notes, *told[:1])
        background, unmeasured = current_background(
            manifest.background, table, self.asker, manifest.curvature.seed
        )
        notes = (*notes, *unmeasured)
        scan = manifest.scan
        if added.documents:
            scan = ScanCopy.extend(scan, table, writer.scan_folder, number=writer.generation)
        accelerators = tuple(one.kind for one in manifest.accelerators)
        writer.publish(
            "append",
            table.seal(),
            scan,
            changed_corpus(
                manifest.corpus,
                removed,
                added,
                parents=arrivals.parents - gone,
                skipped=tuple(arrivals.skipped.doc_ids),
                skipped_count=arrivals.skipped.count,
            ),
            added=added.documents,
            removed=removed.documents,
            content_sha256=content_digest(removed, added),
            baseline=record,
            drift=drift.energy if drift else None,
            background=background,
            warnings=notes,
        )
        work.remove()
        for note in notes:
            warnings.warn(note, stacklevel=4)
        return Change(
            writer.manifest.generation,
            len(table),
            added=added.documents,
            removed=removed.documents,
            same=arrivals.same,
            skipped=tuple(arrivals.skipped.doc_ids),
            drift=drift,
            accelerators=accelerators,
            warnings=notes,
        )

    def _unchanged(self, writer: Writer, arrivals: Arrivals) -> Change:
        return Change(
            writer.manifest.generation,
            writer.manifest.store.rows,
            same=arrivals.same,
            skipped=tuple(arrivals.skipped.doc_ids),
        )

    def _arrivals(self, documents: Documents, table: DocumentTable, work: Work) -> Arrivals:
        objective = self.asker.extractor.objective
        if are_tensors(documents):
            if isinstance(objective, TextObjective):
                raise CorpusError("the index is over text, the documents are tensors; give text")
            return examples(documents, table)
        if not isinstance(objective, TextObjective):
            raise CorpusError(
                "the index is over tensors, the documents are text; give (inputs, targets)"
            )
        return texts(
            cast("Any", documents),
            table,
            objective,
            work,
            replace=self.replace,
            metadata_columns=self.metadata_columns,
        )

    def _appended(
        self, writer: Writer, work: Work, arrivals: Arrivals
    ) -> tuple[DocumentTable, _New]:
        """The table with the rows of all new documents, each of which is read once more.

        Raises:
            IntegrityError: Work that an interrupted append left is damaged.
        """
        held, notes, arrived = writer.manifest.store.rows, tuple[str, ...](), 0
        if arrivals.source is None:
            table = DocumentTable.open(writer.folder, writer.manifest, write=True)
        else:
            arrived = len(arrivals.source)
            table, notes = self._encode(writer, work, arrivals, arrivals.source)
        if len(table) != held + arrived:
            raise IntegrityError(
                f"{table.path} holds {len(table):,} rows, not {held:,} and {arrived:,} new ones; "
                "give the same command again"
            )
        contents, norms, tokens = Contents(), [np.empty(0)], [np.empty(0, np.int32)]
        for rows in rows_at(table, np.arange(held, len(table))):
            contents.add(rows)
            norms.append(rows.norms)
            tokens.append(rows.tokens)
        return table, _New(contents, np.concatenate(norms), np.concatenate(tokens), notes)

    def _encode(
        self, writer: Writer, work: Work, arrivals: Arrivals, source: Source
    ) -> tuple[DocumentTable, tuple[str, ...]]:
        """Append the rows of all documents, from wherever the ledger says that the work is."""
        manifest = writer.manifest
        plan = self._plan(work, manifest, arrivals, source)
        executor = make_executor(
            self.executor or "serial", workers=self.workers, threads=plan.threads
        )
        begun = work.read(COMMITTED, Committed)
        table = DocumentTable.open(
            writer.folder,
            manifest,
            write=True,
            version=None if begun is None else begun.table_version,
        )
        workshop = Workshop(writer.folder, self.asker.extractor, source, plan)
        job = Job(writer.folder, self.choice, here=workshop)
        failed = True
        try:
            with torch_threads(plan.threads):
                notes = encode_documents(executor, job, workshop, table, self.progress)
            failed = False
        finally:
            executor.close(failed=failed)
        return table, notes

    def _plan(self, work: Work, manifest: Manifest, arrivals: Arrivals, source: Source) -> Plan:
        """The plan of the same append that was interrupted, or a new one in its place."""
        extractor = self.asker.extractor
        tensors = source.inputs is not None
        identity = {
            "of": "append",
            "to": manifest.digest,
            "documents": source.content_sha256,
            "replaced": sorted(arrivals.replaced),
            "device": extractor.device.type,
            "versions": versions(),
        }
        identity = json.loads(json.dumps(identity))
        plan = _left_plan(work)
        if plan is not None and plan.identity == identity:
            if self.threads not in (None, plan.threads):
                plan = plan.model_copy(update={"threads": self.threads})
                work.write(PLAN, plan)
            return plan
        _forget(work)
        wanted = _BATCH_OF_TENSORS if tensors else _BATCH_OF_TEXTS
        plan = Plan(
            identity=identity,
            corpus=CorpusPlan(
                documents=len(source),
                parents=arrivals.parents,
                metadata=source.metadata,
                content_sha256=source.content_sha256,
                read_sha256=source.content_sha256,
            ),
            first_row=manifest.store.next_row,
            fisher=None,
            curvature=manifest.curvature.kind,
            damping=manifest.curvature.damping,
            fit_documents=None,
            factor_memory=None,
            seed=manifest.curvature.seed,
            batch_size=documents_at_once(wanted, extractor.layers, extractor.objective.copies),
            threads=self.threads or torch.get_num_threads(),
            fit_shard=1,
            tensors=tensors,
        )
        if isinstance(source, TensorSource):
            source.save(work.path)
        work.write(
            ENCODER,
            EncoderPlan(
                encoder=manifest.encoder,
                curvature=manifest.curvature,
                metadata=manifest.metadata,
                shard=encode_shard_size(manifest.encoder.dimension),
            ),
        )
        work.write(PLAN, plan)
        return plan


@dataclass(frozen=True, slots=True)
class _New:
    """The new rows: what they are, their norms and scored tokens, and what to warn of."""

    contents: Contents
    norms: NDArray[np.float64]
    tokens: NDArray[np.int32]
    notes: tuple[str, ...]


def _forget(work: Work) -> None:
    """Remove what an append made, but not the documents that it read."""
    for name in (PLAN, *_PARTS):
        work.forget(name)


def _left_plan(work: Work) -> Plan | None:
    """The plan that an interrupted append left; work that cannot be read is not gone on with."""
    try:
        work.read(COMMITTED, Committed)
        work.read(ENCODER, EncoderPlan)
        return work.read(PLAN, Plan)
    except IntegrityError:
        return None


def _baseline(table: DocumentTable) -> DriftRecord | None:
    """What documents are compared with: those of the build, for the first that are appended."""
    norms, tokens = [np.empty(0)], [np.empty(0, np.int32)]
    for start in range(0, len(table), _ROWS_AT_ONCE):
        some = np.arange(start, min(start + _ROWS_AT_ONCE, len(table)))
        for rows in readable(table, some):
            if not isinstance(rows, Unreadable):  # A damaged row, which others have no need of.
                norms.append(rows.norms)
                tokens.append(rows.tokens)
    record = baseline(np.concatenate(norms), np.concatenate(tokens))
    return None if record is None else record.model_copy(update={"built": len(table)})
