"""How a build begins: a plan for it, or that of the build that was interrupted there."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeGuard, cast

import numpy as np
import torch
from torch import Tensor

from wherefrom.curvature.kinds import make_curvature
from wherefrom.errors import CorpusError, IndexExistsError, IntegrityError, ModelError
from wherefrom.gradients.examples import documents_at_once
from wherefrom.gradients.extractor import GradientExtractor
from wherefrom.gradients.fisher import Fisher, default_fisher
from wherefrom.gradients.objectives import Objective, TextObjective
from wherefrom.indexer.corpus import Corpus, canonical_line, read_corpus
from wherefrom.indexer.ledger import Work
from wherefrom.indexer.options import BuildOptions
from wherefrom.indexer.plan import PLAN, CorpusPlan, Plan, difference, fit_shard_size
from wherefrom.indexer.prepare import Skipped, columns_to_read, passages
from wherefrom.indexer.provenance import versions
from wherefrom.indexer.sources import Source, TensorSource, sample_size, stamp
from wherefrom.indexer.workplace import Workplace
from wherefrom.indexer.workshop import CORPUS_FILE, Workshop, open_source
from wherefrom.records import Document, Progress
from wherefrom.store import ModelRecord
from wherefrom.store.boundary import require_own_files

__all__ = ["Documents", "Planner", "are_tensors"]

Documents = str | os.PathLike[str] | Iterable[Document] | tuple[Tensor, Tensor]

_NOT_IDENTITY = ("batch_size",)
"""Options that an interrupted build may go on with changed: they decide on rounding only."""


@dataclass(frozen=True)
class Planner:
    """What is to be built; :meth:`begin` finds out where to begin.

    Attributes:
        extractor: Model, objective and layers.
        model: What a manifest says of the model.
        documents: What to index.
        options: How to build.
        metadata_columns: For a corpus from a path, the columns to keep.
        overwrite: Whether a build of something else may be replaced.
        resume: Whether an interrupted build is gone on with.
        threads: Of torch in each worker; as many as here by default.
        factor_memory: Bytes that the curvature's factors may take.
        staging: How encoded shards wait for their commit.
        progress: Told how far the work is.
    """

    extractor: GradientExtractor
    model: ModelRecord
    documents: Documents
    options: BuildOptions
    metadata_columns: Collection[str] | None
    overwrite: bool
    resume: bool
    threads: int | None
    factor_memory: int | None
    staging: Literal["files", "fragments"]
    progress: Progress

    @property
    def objective(self) -> Objective:
        """What the model's outputs mean."""
        return self.extractor.objective

    def begin(self, place: Workplace) -> Workshop:
        """The build that was interrupted there, if it is this one, or a new one.

        Raises:
            CorpusError: The documents cannot be read or indexed.
            IndexExistsError: There is a build of something else.
            StorageError: The disk refuses.
        """
        work = Work(place.folder)
        identity = self._identity()
        plan = None if place.began else self._plan_to_go_on_with(work, identity, place.folder)
        if plan is None:
            if not place.began:
                place.begin_anew()
            work.make()
            plan = self._make_plan(work, identity)
        else:
            work.make()
            plan = self._adjusted(work, plan)
        source = self._source(work, plan)
        return Workshop(place.folder, self.extractor, source, plan)

    def _identity(self) -> dict[str, Any]:
        """All that decides what the index will be but the documents, as plain values."""
        options = {
            name: value for name, value in asdict(self.options).items() if name not in _NOT_IDENTITY
        }
        columns = self.metadata_columns
        found = {
            "of": "build",
            "model": self.model.model_dump(mode="json", exclude={"source"}),
            "layers": [layer.name for layer in self.extractor.layers],
            "objective": {"kind": self.objective.kind, **self.objective.options()},
            "options": options,
            "metadata_columns": None if columns is None else sorted(columns),
            "factor_memory": self.factor_memory,
            "device": self.extractor.device.type,
            "versions": versions(),
        }
        return cast("dict[str, Any]", json.loads(json.dumps(found)))

    def is_this(self, work: Work) -> bool:
        """Whether the work that lies in a finished index is what this build left there.

        Raises:
            CorpusError: The documents cannot be read.
        """
        try:
            plan = work.read(PLAN, Plan)
        except IntegrityError:  # The index is finished: what is left of its work does not matter.
            return False
        if plan is None or difference(plan.identity, self._identity()) is not None:
            return False
        return self._has_documents_of(plan, work.path.parent)

    def _plan_to_go_on_with(
        self, work: Work, identity: dict[str, Any], folder: Path
    ) -> Plan | None:
        """The plan of the build in ``folder``; ``None`` if another one is to be begun in its place.

        Raises:
            IndexExistsError: It is a build of something else, which may not be replaced.
            IntegrityError: The folder holds links.
        """
        plan = work.read(PLAN, Plan) if self.resume else None
        if plan is None:
            return None
        require_own_files(folder)
        differs = difference(plan.identity, identity)
        if differs is None and not self._has_documents_of(plan, folder):
            differs = f"the documents are not the {plan.corpus.parents:,} that it began with"
        if differs is None:
            return plan
        if not self.overwrite:
            raise IndexExistsError(
                f"{folder} holds an unfinished build of something else ({differs}); give its own "
                "command again to go on with it, or say --overwrite (overwrite=True) to begin anew"
            )
        return None

    def _has_documents_of(self, plan: Plan, folder: Path) -> bool:
        """Whether a build began with these documents."""
        if self._digest_of_documents() == plan.corpus.read_sha256:
            return True
        if isinstance(self.documents, Iterator):
            raise CorpusError(
                f"{folder} holds a build of other documents; these come from an iterator that "
                "has been read now: give them anew, with resume=False"
            )
        return False

    def _digest_of_documents(self) -> str:
        if are_tensors(self.documents):
            return TensorSource(self.documents).content_sha256
        digest = hashlib.sha256()
        documents = read_corpus(
            cast("str | os.PathLike[str] | Iterable[Document]", self.documents),
            metadata_columns=columns_to_read(self.metadata_columns, self._text_objective),
        )
        for document in documents:
            digest.update(canonical_line(document))
        return digest.hexdigest()

    @property
    def _text_objective(self) -> TextObjective:
        objective = self.objective
        if not isinstance(objective, TextObjective):
            raise ModelError(f"{objective.kind} reads tensors, the documents are text")
        return objective

    def _make_plan(self, work: Work, identity: dict[str, Any]) -> Plan:
        """Read the corpus, and divide the work."""
        corpus = self._read_corpus(work)
        options = self.options
        draft = Plan(
            identity=identity,
            corpus=corpus,
            fisher=None,
            curvature=options.curvature,
            damping=options.damping,
            fit_documents=options.fit_documents,
            factor_memory=self.factor_memory,
            seed=options.seed,
            batch_size=1,
            threads=self.threads or torch.get_num_threads(),
            fit_shard=fit_shard_size(sample_size(corpus.documents, options.fit_documents)),
            tensors=are_tensors(self.documents),
            staging=self.staging,
        )
        source = self._source(work, draft)
        plan = draft.model_copy(
            update={"fisher": self._fisher(source), "batch_size": self._batch_size(source)}
        )
        work.write(PLAN, plan)
        return plan

    def _adjusted(self, work: Work, plan: Plan) -> Plan:
        """A plan to go on with, with what may be chosen anew."""
        update: dict[str, Any] = {}
        if self.threads is not None:
            update["threads"] = self.threads
        if self.options.batch_size is not None:
            update["batch_size"] = self.options.batch_size
        adjusted = plan.model_copy(update=update)
        if adjusted != plan:
            work.write(PLAN, adjusted)
        return adjusted

    def _read_corpus(self, work: Work) -> CorpusPlan:
        self.progress("reading the corpus", 0, 1)
        if are_tensors(self.documents):
            source = TensorSource(self.documents)
            source.save(work.path)
            found = CorpusPlan(
                documents=len(source),
                parents=len(source),
                metadata={},
                content_sha256=source.content_sha256,
                read_sha256=source.content_sha256,
            )
        else:
            found = self._spool(work)
        self.progress("reading the corpus", 1, 1)
        return found

    def _spool(self, work: Work) -> CorpusPlan:
        documents = cast("str | os.PathLike[str] | Iterable[Document]", self.documents)
        skipped, digest = Skipped(), hashlib.sha256()
        before = stamp(documents)
        stream = passages(
            documents,
            self._text_objective,
            skipped,
            metadata_columns=self.metadata_columns,
            read=lambda document: digest.update(canonical_line(document)),
        )
        try:
            corpus = Corpus.spool(stream, work.file(CORPUS_FILE))
        except CorpusError as error:
            _require_unchanged(documents, before, error)
            raise
        _require_unchanged(documents, before)
        return CorpusPlan(
            documents=len(corpus),
            parents=skipped.parents,
            metadata=dict(corpus.metadata),
            content_sha256=corpus.content_sha256,
            read_sha256=digest.hexdigest(),
            skipped=tuple(skipped.doc_ids),
            skipped_count=skipped.count,
        )

    def _source(self, work: Work, plan: Plan) -> Source:
        if are_tensors(self.documents):
            return TensorSource(self.documents)
        return open_source(work, plan, self.objective)

    def _fisher(self, source: Source) -> Fisher | None:
        """Where labels come from: what was asked for, or what suits the objective."""
        recipe = make_curvature(self.options.curvature, self.options.damping)
        if recipe.labels != "model":
            return "empirical" if recipe.labels == "own" else None
        if self.options.fisher is not None:
            return self.options.fisher
        first = source.part(np.array([0])).examples.batch(np.array([0]))
        return default_fisher(self.extractor, first)

    def _batch_size(self, source: Source) -> int:
        """Most documents that run together."""
        wanted = 32 if source.inputs is None else 256
        at_once = documents_at_once(wanted, self.extractor.layers, self.objective.copies)
        return self.options.batch_size or at_once


def _require_unchanged(
    documents: object, before: tuple[object, ...], error: CorpusError | None = None
) -> None:
    """Say so if the corpus changed while it was read, which explains whatever went wrong."""
    if stamp(documents) != before:
        raise CorpusError(
            f"{documents} changed while it was read; build again once nothing writes to it"
        ) from error


def are_tensors(documents: Documents) -> TypeGuard[tuple[Tensor, ...]]:
    """A tuple is a pair of tensors, unless it holds documents."""
    return isinstance(documents, tuple) and not any(isinstance(d, Document) for d in documents)
