"""The build: corpus -> curvature (two passes) -> encoder -> vectors, shard by shard -> manifest.

The index directory is marked as a build in progress before anything else is written and becomes an
index when its manifest is, last of all. A build that fails takes back what it made; one that is
interrupted leaves a directory that says it is unfinished. With ``overwrite`` the new index
is built beside the old one, which is replaced only when the new one is complete.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TypeGuard, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from wherefrom.curvature.fitted import Curvature, FittedCurvature
from wherefrom.curvature.kinds import make_curvature
from wherefrom.encoding.encoder import Encoder
from wherefrom.encoding.persistence import ENCODER_FILE, save_encoder
from wherefrom.errors import ModelError
from wherefrom.gradients.batches import Batch
from wherefrom.gradients.examples import batches, documents_at_once
from wherefrom.gradients.extractor import GradientExtractor
from wherefrom.gradients.fisher import Fisher, PseudoGradients, default_fisher
from wherefrom.gradients.layers import select_layers
from wherefrom.gradients.models import LoadedModel, ModelSource, load_model
from wherefrom.gradients.objectives import (
    CausalLM,
    Classification,
    MaskedLM,
    Objective,
    SequenceClassification,
    TextObjective,
)
from wherefrom.indexer.background import background, seconds_per_document
from wherefrom.indexer.choice import Chosen, EncoderChoice
from wherefrom.indexer.corpus import Corpus
from wherefrom.indexer.options import BuildOptions
from wherefrom.indexer.prepare import Skipped, bind_to_text, passages
from wherefrom.indexer.provenance import (
    curvature_record,
    encoder_record,
    layer_records,
    model_record,
    now,
    versions,
)
from wherefrom.indexer.sources import Source, TensorSource, TextSource, sample
from wherefrom.indexer.vacuity import VACUOUS, gradient_dot_correlation
from wherefrom.indexer.workplace import refuse_taken_path, workplace
from wherefrom.records import Document, Progress
from wherefrom.store import (
    SCAN_DIRECTORY,
    CorpusRecord,
    DocumentTable,
    Manifest,
    ObjectiveRecord,
    ScanCopy,
    file_sha256,
    write_atomically,
)

__all__ = ["Documents", "IndexBuilder"]

Documents = str | os.PathLike[str] | Iterable[Document] | tuple[Tensor, Tensor]

_SHARD_BYTES = 1 << 26
_LONGEST_SHARD = 1024
_SAMPLE, _SMALLEST_SAMPLE = 48, 6
_SAMPLE_POSITIONS = 2048


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
        overwrite: Whether an index at ``path`` may be replaced.
        metadata_columns: For a corpus from a path, the columns to keep.
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
        metadata_columns: Collection[str] | None = None,
        progress: Progress | None = None,
        replay: str | None = None,
    ) -> None:
        self._path = Path(path)
        self._options = options
        self._documents = documents
        self._metadata_columns = metadata_columns
        self._progress = progress or (lambda phase, done, total: None)
        self._replay = replay
        refuse_taken_path(self._path, overwrite=overwrite)
        self._loaded = load_model(model, device, base=base_model, dtype=dtype)
        tensors = _are_tensors(documents)
        if objective is not None and not isinstance(objective, Objective):
            raise ModelError(
                f"objective is {objective!r}; give an object, such as wf.CausalLM() or your own"
            )
        if objective is None:
            objective = Classification() if tensors else _objective_for(self._loaded, options.seed)
        if not tensors:
            objective = bind_to_text(objective, self._loaded, context)
        elif isinstance(objective, TextObjective):
            raise ModelError(
                f"{type(objective).__name__} reads text, the documents are tensors; give "
                "objective=wf.Classification() or another over tensors"
            )
        layers = select_layers(self._loaded.module, options.layers)
        self._extractor = GradientExtractor(self._loaded.module, objective, layers)

    @property
    def model(self) -> nn.Module:
        """The model, loaded."""
        return self._loaded.module

    @property
    def objective(self) -> Objective:
        """What the model's outputs mean, with its tokenizer."""
        return self._extractor.objective

    def run(self) -> Path:
        """Build the index and return its path.

        Raises:
            WherefromError: Something is wrong with the corpus, the model or the disk; what was
                built is removed.
        """
        mark = {
            "path": str(self._path.resolve()),
            "process": os.getpid(),
            "replay": self._replay or "",
        }
        with workplace(self._path, mark) as folder, ExitStack() as stack:
            skipped = Skipped()
            source = self._source(folder, skipped, stack)
            recipe = make_curvature(self._options.curvature, self._options.damping)
            fisher = self._fisher(source, recipe)
            curvature = self._fit(source, recipe, fisher)
            chosen = self._choose(source, curvature)
            encoder = chosen.encoder
            notes = [*self._check_vacuity(source, curvature), *self._note(chosen.note)]
            write_atomically(folder / ENCODER_FILE, partial(save_encoder, encoder))
            table = DocumentTable.create(
                folder,
                metadata=source.metadata,
                dimension=encoder.dimension,
                bits=chosen.stages.bits,
                inputs=source.inputs,
            )
            tokens = self._encode(source, encoder, table)
            stored = table.seal()
            self._progress("measuring the index", 0, 2)
            seed = self._options.seed
            seconds = seconds_per_document(self._extractor, source, tokens / len(table), seed)
            found = background(self._extractor, encoder, source, table, seed)
            self._progress("measuring the index", 1, 2)
            scan = ScanCopy.build(table, folder / SCAN_DIRECTORY)
            self._progress("measuring the index", 2, 2)
            stack.close()
            manifest = Manifest(
                created=now(),
                model=model_record(self._loaded, self.objective),
                layers=layer_records(self._extractor.layers),
                objective=ObjectiveRecord(
                    kind=self.objective.kind, options=dict(self.objective.options())
                ),
                curvature=curvature_record(curvature, fisher, seed),
                encoder=encoder_record(chosen, file_sha256(folder / ENCODER_FILE)),
                corpus=CorpusRecord(
                    documents=len(table),
                    parents=skipped.parents or len(table),
                    tokens=tokens,
                    skipped=tuple(skipped.doc_ids),
                    skipped_count=skipped.count,
                    content_sha256=source.content_sha256,
                ),
                scale=1.0 / len(table),
                metadata=source.metadata,
                inputs=source.inputs,
                store=stored,
                scan=scan,
                background=found,
                seconds_per_document=seconds,
                versions=versions(),
                replay=self._replay or "",
                warnings=tuple(notes),
            )
            manifest.write(folder)
        return self._path

    def _source(self, folder: Path, skipped: Skipped, stack: ExitStack) -> Source:
        if _are_tensors(self._documents):
            return TensorSource(self._documents)
        objective = self.objective
        if not isinstance(objective, TextObjective):
            raise ModelError(f"{objective.kind} reads tensors, the documents are text")
        self._progress("reading the corpus", 0, 1)
        stream = passages(
            cast("str | os.PathLike[str] | Iterable[Document]", self._documents),
            objective,
            skipped,
            metadata_columns=self._metadata_columns,
        )
        corpus = stack.enter_context(Corpus.spool(stream, folder))
        self._progress("reading the corpus", 1, 1)
        return TextSource(corpus, objective)

    def _fisher(self, source: Source, recipe: Curvature) -> Fisher | None:
        """Where labels come from: what was asked for, or what suits the objective."""
        if recipe.labels != "model":
            return "empirical" if recipe.labels == "own" else None
        if self._options.fisher is not None:
            return self._options.fisher
        first = next(source.shards(1)).examples.batch(np.array([0]))
        return default_fisher(self._extractor, first)

    def _batch_size(self, source: Source) -> int:
        """Most documents that run together."""
        wanted = 32 if source.inputs is None else 256
        at_once = documents_at_once(wanted, self._extractor.layers, self.objective.copies)
        return self._options.batch_size or at_once

    def _batches(self, source: Source, chosen: NDArray[np.bool_] | None) -> Iterator[Batch]:
        size = self._batch_size(source)
        for shard in source.shards(_LONGEST_SHARD, chosen):
            for _, batch in batches(shard.examples, max_documents=size):
                yield batch

    def _fit(self, source: Source, recipe: Curvature, fisher: Fisher | None) -> FittedCurvature:
        chosen = sample(source, self._options.fit_documents, self._options.seed)
        total = len(source) if chosen is None else int(chosen.sum())
        passes = [0]

        def told(done: int) -> None:
            phase = f"fitting the curvature, pass {passes[0]} of {recipe.passes}"
            self._progress(phase, done, total)

        def once() -> Iterator[Batch]:
            passes[0] += 1
            return self._batches(source, chosen)

        pseudo = PseudoGradients(
            self._extractor,
            once,
            fisher or "empirical",
            seed=self._options.seed,
            progress=told,
        )
        return recipe.fit(pseudo, documents=total)

    def _choose(self, source: Source, curvature: FittedCurvature) -> Chosen:
        choice = EncoderChoice(
            self._extractor,
            curvature,
            source,
            self._options.wish,
            budget=self._options.bytes_per_document,
            fidelity=self._options.fidelity,
            batch_size=self._batch_size(source),
            progress=partial(self._progress, "choosing the encoder"),
        )
        return choice.choose()

    def _encode(self, source: Source, encoder: Encoder, table: DocumentTable) -> int:
        size = max(16, min(_LONGEST_SHARD, _SHARD_BYTES // (4 * encoder.dimension)))
        at_once = self._batch_size(source)
        tokens = done = 0
        for shard in source.shards(size):
            count = len(shard.documents)
            vectors = np.empty((count, encoder.dimension), np.float32)
            norms = np.empty(count)
            with self._extractor.session():
                for positions, batch in batches(shard.examples, max_documents=at_once):
                    encoded = encoder.encode(self._extractor, batch)
                    vectors[positions], norms[positions] = encoded.vectors, encoded.norms
                    done += len(batch)
                    self._progress("encoding the documents", done, len(source))
            scored = shard.examples.tokens
            table.append(
                shard.documents,
                vectors,
                norms=norms,
                tokens=scored,
                inputs=shard.inputs,
                targets=shard.targets,
            )
            tokens += int(scored.sum())
        return tokens

    def _check_vacuity(self, source: Source, curvature: FittedCurvature) -> list[str]:
        if curvature.kind == "identity":
            return []  # It is the gradient dot product.
        at_most = documents_at_once(_SAMPLE, self._extractor.layers, self.objective.copies)
        at_most = max(at_most, _SMALLEST_SAMPLE)
        chosen = sample(source, at_most, self._options.seed + 1)
        shard = next(source.shards(at_most, chosen))
        count = len(shard.documents)
        batch = shard.examples.shortened(_SAMPLE_POSITIONS // count).batch(np.arange(count))
        correlation = gradient_dot_correlation(self._extractor, curvature, batch)
        if not correlation >= VACUOUS:
            return []
        note = (
            f"scores correlate at {correlation:.3f} with the plain gradient dot product on a "
            f"sample of {len(batch)} documents: the curvature does next to nothing here; more "
            f"documents to fit on{'' if curvature.kind == 'ekfac' else ', another curvature'} or a "
            "smaller damping may help"
        )
        return self._note(note)

    def _note(self, note: str | None) -> list[str]:
        """Warn of something that the manifest will hold, too."""
        if note is None:
            return []
        warnings.warn(note, stacklevel=5)
        return [note]


def _objective_for(loaded: LoadedModel, seed: int) -> Objective:
    """What a model of transformers was trained for; next-token prediction where that is unknown."""
    if loaded.task == "masked_lm":
        return MaskedLM(seed=seed)
    return SequenceClassification() if loaded.task == "sequence_classification" else CausalLM()


def _are_tensors(documents: Documents) -> TypeGuard[tuple[Tensor, ...]]:
    """A tuple is a pair of tensors, unless it holds documents."""
    return isinstance(documents, tuple) and not any(isinstance(d, Document) for d in documents)
