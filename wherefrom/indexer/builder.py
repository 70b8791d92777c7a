"""The build: corpus -> curvature -> encoder -> rows of shards -> scan copy -> manifest.

The index directory is marked as a build in progress before anything else is written and becomes an
index when its manifest is, last of all. Every step leaves what it made in the ledger
(:mod:`wherefrom.indexer.ledger`), and what is there already is not made again: a build that was
interrupted anywhere goes on when the same command is given again, and ends with the same bits as
one that was not. With ``overwrite`` the new index is built beside the old one, which is replaced
only when the new one is complete.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Collection
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import nn

from wherefrom.curvature.fitted import FittedCurvature
from wherefrom.encoding.persistence import ENCODER_FILE, save_encoder
from wherefrom.errors import IntegrityError, WherefromError
from wherefrom.gradients.models import ModelSource
from wherefrom.gradients.objectives import Objective
from wherefrom.indexer.background import background, encoded_queries, seconds_per_document
from wherefrom.indexer.choice import Chosen, EncoderChoice, query_batches
from wherefrom.indexer.committing import encode_documents
from wherefrom.indexer.executors import Executor, make_executor
from wherefrom.indexer.fitting import fit_curvature
from wherefrom.indexer.job import Job, ModelChoice
from wherefrom.indexer.ledger import (
    COMMITTED,
    CURVATURE,
    CURVATURE_FILE,
    ENCODER,
    MEASURED,
    Committed,
    EncoderPlan,
    Measured,
)
from wherefrom.indexer.options import BuildOptions
from wherefrom.indexer.plan import (
    BLOCK,
    encode_shard_size,
)
from wherefrom.indexer.planning import Documents, Planner, are_tensors
from wherefrom.indexer.provenance import encoder_record, layer_records, model_record, now, versions
from wherefrom.indexer.vacuity import vacuity_note
from wherefrom.indexer.workplace import refuse_taken_path, workplace
from wherefrom.indexer.workshop import Workshop, torch_threads
from wherefrom.records import Progress
from wherefrom.store import (
    SCAN_DIRECTORY,
    CorpusRecord,
    CurvatureRecord,
    DocumentTable,
    Manifest,
    ModelRecord,
    ObjectiveRecord,
    ScanCopy,
    file_sha256,
    state,
    write_atomically,
)
from wherefrom.store.directory import TABLE_DIRECTORY, TABLE_NAME
from wherefrom.store.lance import drop_table, take_back
from wherefrom.store.location import Database

__all__ = ["IndexBuilder"]


class IndexBuilder:
    """Builds one index; :meth:`run` does all of it.

    Args:
        model: A module, or the path or cached id of a Hugging Face model or LoRA adapter.
        documents: What to index.
        path: Where the index is to stand.
        options: How to build.
        objective: What the model's outputs mean; by default what the model was trained for, and
            classification for tensors.
        context: Longest text in tokens, where the objective names none.
        base_model: The model that an adapter is for, if not the one it names.
        dtype: Precision of weights that are loaded.
        device: Where to run.
        overwrite: Whether an index at ``path`` may be replaced, or a build of something else.
        resume: Whether an interrupted build at ``path`` is gone on with.
        metadata_columns: For a corpus from a path, the columns to keep.
        executor: What carries out the work, or its name; ``torchrun`` by default where torchrun
            started this process, else ``serial``.
        workers: How many tasks run at once.
        threads: Of torch in each worker.
        factor_memory: Bytes that the curvature's factors may take.
        progress: Told how far the work is.
        replay: The command that builds the index again, for the manifest.

    Raises:
        WherefromError: The path is taken, or model, layers and documents do not go together;
            nothing has been written then.
    """

    def __init__(
        self,
        model: ModelSource,
        documents: Documents,
        path: str | os.PathLike[str],
        options: BuildOptions,
        *,
        objective: Objective | None = None,
        context: int | None = None,
        base_model: ModelSource | None = None,
        dtype: str = "float32",
        device: str = "auto",
        overwrite: bool = False,
        resume: bool = True,
        metadata_columns: Collection[str] | None = None,
        executor: str | Executor | None = None,
        workers: int | None = None,
        threads: int | None = None,
        factor_memory: int | None = None,
        progress: Progress | None = None,
        replay: str | None = None,
    ) -> None:
        self._path = Path(path)
        self._options = options
        self._documents = documents
        self._metadata_columns = metadata_columns
        self._progress = progress or (lambda phase, done, total: None)
        self._replay = replay
        self._overwrite = overwrite
        self._resume = resume
        self._threads = _positive("threads", threads, "1")
        self._factor_memory = _positive("factor_memory", factor_memory, "8 * 2**30 (bytes)")
        refuse_taken_path(self._path, overwrite=overwrite)
        self._choice = ModelChoice(
            model,
            base_model,
            dtype,
            device,
            objective,
            context,
            options.layers,
            tensors=are_tensors(documents),
            seed=options.seed,
        )
        self._prepared = self._choice.prepare()
        self._extractor = self._prepared.extractor
        self._executor = (
            make_executor(executor, workers=workers, threads=threads or torch.get_num_threads())
            if executor is None or isinstance(executor, str)
            else executor
        )

    @property
    def model(self) -> nn.Module:
        """The model, loaded."""
        return self._prepared.loaded.module

    @property
    def objective(self) -> Objective:
        """What the model's outputs mean, with its tokenizer."""
        return self._extractor.objective

    def run(self, then: Callable[[Path], object] = lambda built: None) -> Path:
        """Build the index, or go on building it, and return its path.

        Args:
            then: Called with the finished index, while other ranks of the job still wait.

        Raises:
            WherefromError: Something is wrong with the corpus, the model or the disk.
        """
        info = {
            "path": str(self._path.resolve()),
            "process": os.getpid(),
            "replay": self._replay or "",
        }
        failed = True
        try:
            planner = self._planner()
            with workplace(
                self._path, info, overwrite=self._overwrite, is_this=planner.is_this
            ) as place:
                if state(place.folder) != "finished":
                    workshop = planner.begin(place)
                    with torch_threads(workshop.plan.threads):
                        self._build(workshop, resumed=not place.began)
            then(self._path)
            failed = False
        finally:
            self._executor.close(failed=failed)
        return self._path

    def _planner(self) -> Planner:
        return Planner(
            extractor=self._extractor,
            model=self._record,
            documents=self._documents,
            options=self._options,
            metadata_columns=self._metadata_columns,
            overwrite=self._overwrite,
            resume=self._resume,
            threads=self._threads,
            factor_memory=self._factor_memory,
            staging=self._executor.staging,
            progress=self._progress,
        )

    @cached_property
    def _record(self) -> ModelRecord:
        return model_record(self._prepared.loaded, self.objective)

    def _build(self, workshop: Workshop, *, resumed: bool) -> None:
        """Whatever of the build is not done yet."""
        folder, work, source = workshop.folder, workshop.work, workshop.source
        job = Job(folder, self._choice, workshop)
        notes: tuple[str, ...] = ()
        if not work.file(ENCODER).exists():
            curvature, record, notes = fit_curvature(self._executor, job, workshop, self._progress)
            self._choose(workshop, curvature, record, notes)
        chosen = workshop.encoder_plan
        for note in chosen.notes:
            warnings.warn(note, stacklevel=4)
        table = self._table(workshop)
        notes = encode_documents(self._executor, job, workshop, table, self._progress)
        if resumed or workshop.plan.staging == "fragments":
            # What a writer or a worker that was killed left in the table's directory goes.
            table.clean()
            work.write(COMMITTED, Committed(table_version=table.sync(), rows=len(table)))
        if len(table) != len(source):
            raise IntegrityError(
                f"{table.path} holds {len(table):,} rows of {len(source):,} documents; begin anew "
                "with --no-resume (resume=False)"
            )
        stored = table.seal()
        tokens = sum(int(rows.tokens.sum()) for rows in table.batches(BLOCK))
        measured = self._measure(workshop, table, tokens)
        self._progress("writing the index", 0, 1)
        scan = ScanCopy.build(table, folder / SCAN_DIRECTORY)
        corpus = workshop.plan.corpus
        manifest = Manifest(
            created=now(),
            model=self._record,
            layers=layer_records(self._extractor.layers),
            objective=ObjectiveRecord(
                kind=self.objective.kind, options=dict(self.objective.options())
            ),
            curvature=chosen.curvature,
            encoder=chosen.encoder,
            corpus=CorpusRecord(
                documents=len(table),
                parents=corpus.parents,
                tokens=tokens,
                skipped=corpus.skipped,
                skipped_count=corpus.skipped_count,
                content_sha256=corpus.content_sha256,
            ),
            scale=1.0 / len(table),
            metadata=source.metadata,
            inputs=source.inputs,
            store=stored,
            scan=scan,
            background=measured.background,
            seconds_per_document=measured.seconds_per_document,
            versions=versions(),
            replay=self._replay or "",
            warnings=tuple(dict.fromkeys((*chosen.notes, *notes))),
        )
        manifest.write(folder)
        self._progress("writing the index", 1, 1)

    def _choose(
        self,
        workshop: Workshop,
        curvature: FittedCurvature,
        record: CurvatureRecord,
        notes: tuple[str, ...],
    ) -> None:
        """Choose the encoder, write it, and enter it in the ledger."""
        choose = partial(self._chosen, workshop, curvature)
        chosen = workshop.room.run(choose, "choosing the encoder")
        look = partial(vacuity_note, self._extractor, curvature, workshop.source, workshop.room)
        vacuous = workshop.room.run(
            partial(look, workshop.plan.seed + 1), "measuring the curvature"
        )
        path = workshop.folder / ENCODER_FILE
        write_atomically(path, partial(save_encoder, chosen.encoder))
        plan = EncoderPlan(
            encoder=encoder_record(chosen, file_sha256(path)),
            curvature=record,
            metadata=workshop.source.metadata,
            shard=encode_shard_size(chosen.encoder.dimension),
            notes=(*notes, *(note for note in (vacuous, chosen.note) if note is not None)),
        )
        workshop.work.write(ENCODER, plan)
        for name in (CURVATURE_FILE, CURVATURE):
            workshop.work.forget(name)

    def _chosen(self, workshop: Workshop, curvature: FittedCurvature) -> Chosen:
        return EncoderChoice(
            self._extractor,
            curvature,
            workshop.source,
            self._options.wish,
            budget=self._options.bytes_per_document,
            fidelity=self._options.fidelity,
            batch_size=workshop.room.documents,
            progress=partial(self._progress, "choosing the encoder"),
        ).choose()

    def _table(self, workshop: Workshop) -> DocumentTable:
        """The documents table, as far as it is durable."""
        folder, work = workshop.folder, workshop.work
        committed = work.read(COMMITTED, Committed)
        if committed is None:
            drop_table(folder / TABLE_DIRECTORY)
            table = DocumentTable.create(
                folder,
                metadata=workshop.source.metadata,
                dimension=workshop.encoder.dimension,
                bits=workshop.encoder_plan.encoder.bits,
                inputs=workshop.source.inputs,
            )
            work.write(COMMITTED, Committed(table_version=table.sync(), rows=0))
            return table
        take_back(Database(os.fspath(folder)), TABLE_NAME, committed.table_version)
        try:
            return DocumentTable.resume(folder, workshop.layout, committed.table_version)
        except IntegrityError:
            # Killed after the table was cleaned, and before the ledger was told of its new version.
            table = DocumentTable.resume(folder, workshop.layout, None)
            if len(table) != committed.rows or len(table) != len(workshop.source):
                raise
            return table

    def _measure(self, workshop: Workshop, table: DocumentTable, tokens: int) -> Measured:
        """The background of cosines, and the model's speed."""
        found = workshop.work.read(MEASURED, Measured)
        if found is not None:
            return found
        self._progress("measuring the index", 0, 1)
        source, seed = workshop.source, workshop.plan.seed
        measured = Measured(
            background=background(
                source,
                lambda asked: encoded_queries(
                    self._extractor, workshop.encoder, query_batches(source, asked)
                ),
                table,
                seed,
            ),
            seconds_per_document=seconds_per_document(
                self._extractor, source, tokens / len(table), seed
            ),
        )
        workshop.work.write(MEASURED, measured)
        self._progress("measuring the index", 1, 1)
        return measured


def _positive(name: str, given: object, such: str) -> int | None:
    """A whole number above 0, or none at all."""
    if given is None:
        return None
    if not isinstance(given, int) or isinstance(given, bool) or given < 1:
        raise WherefromError(f"{name}={given!r} is not allowed; give a whole number, as {such}")
    return given
