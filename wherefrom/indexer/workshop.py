"""Where tasks are carried out: a loaded model, the documents, and the ledger of the build."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wherefrom.curvature.fitted import Curvature, Fit, Statistics
from wherefrom.curvature.kinds import make_curvature
from wherefrom.encoding.encoder import Encoder
from wherefrom.encoding.persistence import ENCODER_FILE, load_encoder
from wherefrom.encoding.stages import Stages
from wherefrom.errors import IntegrityError, ModelError
from wherefrom.gradients.batches import Batch
from wherefrom.gradients.examples import batches
from wherefrom.gradients.extractor import GradientExtractor
from wherefrom.gradients.fisher import PseudoGradients
from wherefrom.gradients.objectives import TextObjective
from wherefrom.indexer.corpus import Corpus
from wherefrom.indexer.executors.base import Outcome, Task
from wherefrom.indexer.job import Prepared
from wherefrom.indexer.ledger import ENCODER, EncoderPlan, Work
from wherefrom.indexer.plan import PLAN, Plan, Tree, blocks
from wherefrom.indexer.room import Room
from wherefrom.indexer.sealed import load_tensors, save_tensors
from wherefrom.indexer.sources import Source, TensorSource, TextSource, sample
from wherefrom.store.digests import file_sha256
from wherefrom.store.directory import TABLE_DIRECTORY
from wherefrom.store.layout import TableLayout
from wherefrom.store.quantise import quantise
from wherefrom.store.staging import write_staged

__all__ = ["CORPUS_FILE", "Workshop", "open_source", "torch_threads"]

CORPUS_FILE = "corpus.jsonl"


class Workshop:
    """Carries out the tasks of one build.

    Args:
        folder: The directory of the build.
        extractor: Model, objective and layers.
        source: The documents.
        plan: How they are divided.

    Attributes:
        told: Called with the number of documents done in the task that is being carried out.
    """

    def __init__(
        self, folder: Path, extractor: GradientExtractor, source: Source, plan: Plan
    ) -> None:
        self.folder = folder
        self.work = Work(folder)
        self.extractor = extractor
        self.source = source
        self.plan = plan
        self.room = Room(plan.batch_size)
        self.told: Callable[[int], None] = lambda done: None
        self._fit: tuple[int, Fit[Any]] | None = None

    @classmethod
    def open(cls, folder: Path, prepared: Prepared) -> Workshop:
        """A workshop over the files of a build that another process began.

        Raises:
            IntegrityError: They are missing or damaged.
        """
        work = Work(folder)
        plan = work.read(PLAN, Plan)
        if plan is None:
            raise IntegrityError(f"{work.path} holds no plan; run the same command again")
        torch.set_num_threads(plan.threads)
        objective = prepared.extractor.objective
        return cls(folder, prepared.extractor, open_source(work, plan, objective), plan)

    def perform(self, task: Task) -> Outcome:
        """Carry out a task and enter it in the ledger; one that is done is left alone.

        Raises:
            WherefromError: It cannot be done; the message names the document or the layer.
        """
        if self.work.is_done(task):
            return Outcome(task)
        self.work.folder_of(task)
        if task.phase == "merge":
            self._merge(task)
            return Outcome(task)
        act = self._encode if task.phase == "encode" else self._gather
        documents = self.room.run(lambda: act(task), str(task))
        return Outcome(task, documents, self.room.note)

    @cached_property
    def chosen(self) -> NDArray[np.int64]:
        """Positions of the documents that the curvature is fitted on."""
        mask = sample(self.source, self.plan.fit_documents, self.plan.seed)
        return np.arange(len(self.source)) if mask is None else np.flatnonzero(mask)

    @property
    def recipe(self) -> Curvature:
        """How the curvature is fitted."""
        return make_curvature(self.plan.curvature, self.plan.damping)

    def fit(self, step: int) -> Fit[Any]:
        """The fit with ``step`` passes done.

        Raises:
            CurvatureError: The curvature cannot be fitted here.
            IntegrityError: What the passes before left is missing or damaged.
        """
        if self._fit is None or self._fit[0] != step:
            self._fit = None
            recipe, layers = self.recipe, self.extractor.layers
            given: dict[str, Any] = {
                "documents": len(self.chosen),
                "memory": self.plan.factor_memory,
                "folder": self.work.path,
            }
            fit = (
                recipe.begin(layers, **given)
                if step == 0
                else recipe.resume(layers, self._tensors(self.work.fit_file(step)), **given)
            )
            self._fit = (step, fit)
        return self._fit[1]

    def forget_fit(self) -> None:
        """Free the fit that was last used; :meth:`fit` reads it again."""
        self._fit = None

    def statistics(self, task: Task) -> Statistics:
        """What a task of the fit left.

        Raises:
            IntegrityError: It is missing or damaged.
        """
        loaded: Statistics = self.fit(task.step).load(self._tensors(self.work.task_file(task)))
        return loaded

    def tree(self, step: int) -> Tree:
        """How the statistics of a pass are added up."""
        return Tree(-(-len(self.chosen) // self.plan.fit_shard), step)

    @cached_property
    def encoder_plan(self) -> EncoderPlan:
        """The encoder that was chosen.

        Raises:
            IntegrityError: None was yet.
        """
        found = self.work.read(ENCODER, EncoderPlan)
        if found is None:
            raise IntegrityError(f"{self.work.path} names no encoder; run the same command again")
        return found

    @cached_property
    def encoder(self) -> Encoder:
        """It, fitted.

        Raises:
            IntegrityError: Its file is missing or damaged.
        """
        chosen, path = self.encoder_plan, self.folder / ENCODER_FILE
        if not path.is_file() or file_sha256(path) != chosen.encoder.file_sha256:
            raise IntegrityError(
                f"{path} is missing or differs from its SHA-256; begin a build anew with "
                "--no-resume (resume=False), fetch a finished index from its backup"
            )
        return load_encoder(
            path,
            self.extractor.layers,
            kind=chosen.curvature.kind,
            damping=chosen.curvature.damping,
            documents=chosen.curvature.fit_documents,
            report=chosen.curvature.report,
            stages=Stages.of(chosen.encoder),
            device=self.extractor.device,
        )

    @property
    def layout(self) -> TableLayout:
        """The columns of the documents table."""
        chosen = self.encoder_plan
        return TableLayout(
            chosen.metadata, chosen.encoder.dimension, chosen.encoder.bits, self.source.inputs
        )

    def shard_of(self, task: Task) -> NDArray[np.int64]:
        """Positions of the documents that a task is about."""
        if task.phase == "encode":
            size = self.encoder_plan.shard
            return np.arange(task.index * size, min((task.index + 1) * size, len(self.source)))
        size = self.plan.fit_shard
        return self.chosen[task.index * size : (task.index + 1) * size]

    def _gather(self, task: Task) -> int:
        """Statistics of a shard."""
        fit, positions = self.fit(task.step), self.shard_of(task)
        statistics = fit.statistics()
        pseudo = PseudoGradients(
            self.extractor,
            lambda: self._batches(positions),
            self.plan.fisher or "empirical",
            seed=self.plan.seed,
            progress=self.told,
        )
        statistics.documents += pseudo.run(statistics.add)
        save_tensors(self.work.task_file(task), statistics.state())
        return len(positions)

    def _merge(self, task: Task) -> None:
        """Statistics of two nodes of the tree, whose own are then needed no more."""
        first, second = self.tree(task.step).children(task)
        try:
            merged = self.statistics(first)
            merged.merge(self.statistics(second))
        except IntegrityError:
            if self.work.is_done(task):  # Another worker was given it, too, and was faster.
                return
            raise
        save_tensors(self.work.task_file(task), merged.state())
        for child in (first, second):
            self.work.task_file(child).unlink(missing_ok=True)

    def _encode(self, task: Task) -> int:
        """Rows of a shard."""
        positions = self.shard_of(task)
        shard = self.source.part(positions)
        count, encoder = len(shard.documents), self.encoder
        vectors = np.empty((count, encoder.dimension), np.float32)
        norms = np.empty(count)
        done = 0
        with self.extractor.session():
            for places, batch in batches(
                shard.examples,
                max_documents=self.room.documents,
                max_positions=self.room.positions,
            ):
                encoded = encoder.encode(self.extractor, batch)
                vectors[places], norms[places] = encoded.vectors, encoded.norms
                done += len(batch)
                self.told(done)
        finite = np.isfinite(vectors).all(axis=1) & np.isfinite(norms)
        if not finite.all():
            doc_id = shard.documents[int(np.argmin(finite))].doc_id
            raise ModelError(
                f"the vector of document {doc_id!r} holds NaN or infinity; check the model's loss "
                "on it or leave it out"
            )
        tensors = {"input": shard.inputs, "target": shard.targets}
        layout = self.layout
        rows = layout.encode(
            self.plan.first_row + int(positions[0]),
            shard.documents,
            quantise(vectors, layout.bits),
            norms,
            shard.examples.tokens,
            {name: values for name, values in tensors.items() if values is not None},
        )
        if self.plan.staging == "fragments":
            from wherefrom.store.fragments import stage_fragment

            stage_fragment(self.work.task_file(task), self.folder / TABLE_DIRECTORY, rows)
        else:
            write_staged(self.work.task_file(task), rows)
        return count

    def _batches(self, positions: NDArray[np.int64]) -> Iterator[Batch]:
        for part in blocks(positions):
            for _, batch in batches(
                self.source.part(part).examples,
                max_documents=self.room.documents,
                max_positions=self.room.positions,
            ):
                yield batch

    def _tensors(self, path: Path) -> dict[str, Tensor]:
        remedy = "remove it and run the same command again, which makes it anew"
        return load_tensors(path, self.extractor.device, remedy)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """So many threads of torch inside the block: bits depend on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def open_source(work: Work, plan: Plan, objective: object) -> Source:
    """The documents that a build read.

    Raises:
        IntegrityError: They are missing or damaged.
    """
    if plan.tensors:
        return TensorSource.saved(work.path)
    if not isinstance(objective, TextObjective):
        raise ModelError("the documents are text, and the objective reads tensors")
    corpus = plan.corpus
    opened = Corpus.open(work.file(CORPUS_FILE), corpus.metadata, corpus.content_sha256)
    return TextSource(opened, objective)
