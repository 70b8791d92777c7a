"""An index: asked as a :class:`~wherefrom.query.searcher.Searcher`, and kept over time."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence

from wherefrom.gradients.models import ModelSource
from wherefrom.indexer.job import ModelChoice
from wherefrom.indexer.planning import Documents
from wherefrom.maintenance import delete as deleting
from wherefrom.maintenance.append import Appending
from wherefrom.maintenance.changes import Change
from wherefrom.maintenance.verification import Verification, verify_open
from wherefrom.maintenance.writer import Writer
from wherefrom.query.searcher import Searcher
from wherefrom.records import Progress
from wherefrom.store import Where

__all__ = ["Index"]


class Index(Searcher):
    """A finished index on disk.

    Made by :func:`wherefrom.open` and :func:`wherefrom.build`. What others change of it meanwhile
    stays out of sight until :meth:`refresh`; what is changed through it shows at once.

    Attributes:
        path: Its directory.
        manifest: What it was built from and with.
    """

    def append(
        self,
        documents: Documents,
        *,
        replace: bool = False,
        metadata_columns: Collection[str] | None = None,
        executor: str | None = None,
        workers: int | None = None,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> Change:
        """Add documents to the index, without fitting the curvature or the encoder again.

        They are encoded as the build encoded its own. Documents that the index holds already, with
        the same id, content and metadata, are passed over, so appending twice is appending once. An
        append that was interrupted goes on where it stopped when it is called again. Scores are per
        copy among all documents: the index's scale becomes 1 over the new number of them.

        Args:
            documents: As for :func:`wherefrom.build`. Tensor examples are known by their content.
            replace: Whether a document takes the place of one of the same id that differs, with all
                its passages; otherwise that is an error.
            metadata_columns: For a path, the columns to keep as metadata; all by default.
            executor: What carries out the work: ``serial``, the default, ``processes`` or ``ray``.
            workers: How many tasks at once.
            threads: Of torch in each worker; those it began with, for an append that goes on.
            progress: Called as ``progress(phase, done, total)``.

        Returns:
            What was done. Its ``drift`` tells whether the new documents are of the kind that the
            curvature knows; if not, there is a warning, too.

        Raises:
            CorpusError: The documents cannot be read or indexed, or one differs from the index's.
            ModelError: The index was opened without its model, or a document has no finite
                gradient.
            WherefromError: There is no such executor for this.
            MismatchError: Another index was built in its place.
            IndexBusyError: Another writer is at work.
            StorageError: The disk refuses; the index is as it was.
        """
        appending = Appending(
            asker=self.asker,
            choice=self._choice(),
            replace=replace,
            metadata_columns=metadata_columns,
            executor=executor,
            workers=workers,
            threads=threads,
            progress=progress or (lambda phase, done, total: None),
        )
        with Writer.of(self.location.directory, self.manifest) as writer:
            change = appending.run(writer, documents)
        self.refresh()
        return change

    def delete(
        self,
        doc_ids: Sequence[str] | None = None,
        *,
        where: Where | None = None,
        purge: bool = False,
        missing_ok: bool = False,
    ) -> Change:
        """Delete documents from the index.

        They are gone from all answers at once; the curvature and the encoder stay as they were
        fitted. Their texts and codes stay in files, hidden, until the index is purged or compacted.

        Args:
            doc_ids: Their ids; that of a document that was cut into passages stands for all of
                them.
            where: Or a filter on metadata, as in :meth:`query`.
            purge: Write the index anew without them, so that no file of it holds their texts or
                codes. Whoever has the index open must open it again.
            missing_ok: Whether ids that the index does not hold are passed over, and a filter that
                no document passes.

        Returns:
            What was done. There is a warning, too, where a purge left an interrupted build beside
            the index, which may hold the same documents; and, without the model, where so few are
            left that answers no longer say whether hits stand out from chance.

        Raises:
            QueryError: ``doc_ids`` is no list of ids, there is no such document, or none would be
                left.
            FilterError: The filter is not well formed.
            MismatchError: Another index was built in its place.
            IndexBusyError: Another writer is at work.
            StorageError: The disk refuses; the index is as it was.
        """
        change = deleting.delete(
            self.location.directory,
            doc_ids,
            where=where,
            purge=purge,
            missing_ok=missing_ok,
            opened=self.manifest,
            asker=self._asker,
        )
        self.refresh()
        for note in change.warnings:
            warnings.warn(note, stacklevel=2)
        return change

    def compact(self) -> Change:
        """Write the index anew as one piece, without what was deleted.

        After many changes, for speed and room. Whoever has the index open keeps it until the next
        change, and must open it again then.

        Raises:
            MismatchError: Another index was built in its place.
            IndexBusyError: Another writer is at work.
            IntegrityError: A stored row differs from its digest.
            StorageError: The disk refuses; the index is as it was.
        """
        change = deleting.compact(self.location.directory, opened=self.manifest)
        self.refresh()
        return change

    def verify(
        self, *, sample: int = 64, seed: int = 0, progress: Progress | None = None
    ) -> Verification:
        """Check everything in the index as it is on disk: files, rows, copies, and a sample anew.

        For an index that cannot be opened, or to repair one, there is :func:`wherefrom.verify`.

        Args:
            sample: How many documents to encode again and compare with what is stored.
            seed: Of their choice.
            progress: Called as ``progress(phase, done, total)``.

        Returns:
            What was found.

        Raises:
            QueryError: The sample is negative.
            StorageError: The disk refuses, or the index is on object storage.
        """
        folder = self.location.directory
        return verify_open(folder, self._asker, sample=sample, seed=seed, progress=progress)

    def _choice(self) -> ModelChoice:
        """How other processes load the model."""
        record, extractor = self.manifest.model, self.asker.extractor
        adapter = record.adapter
        source: ModelSource = extractor.model
        base = None
        if adapter is not None and adapter.source is not None:
            source, base = adapter.source, record.source
        elif record.source is not None:
            source = record.source
        return ModelChoice(
            model=source,
            base_model=base,
            dtype=record.dtype,
            device=self._device,
            objective=extractor.objective,
            layers=[layer.name for layer in self.manifest.layers],
            tensors=self.manifest.inputs is not None,
        )
