"""The build: corpus -> curvature (two passes) -> encoder -> vectors, shard by shard -> manifest.

The index directory is marked as a build in progress before anything else is written and becomes an
index when its manifest is, last of all. A build that fails takes back what it made; one that is
interrupted leaves a directory that says it is unfinished. With ``overwrite`` the new index
is built beside the old one, which is replaced only when the new one is complete.
"""

from __future__ import annotations

import hashlib
import os
import platform
import warnings
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from wherefrom.curvature.ekfac import EKFAC, FittedEKFAC
from wherefrom.encoding.encoder import Encoder
from wherefrom.encoding.persistence import ENCODER_FILE, encoder_bytes
from wherefrom.encoding.reduction import make_reduction
from wherefrom.errors import ModelError
from wherefrom.gradients.batches import Batch
from wherefrom.gradients.examples import batches
from wherefrom.gradients.extractor import GradientExtractor
from wherefrom.gradients.fisher import EXPECTED_CLASSES, Fisher, PseudoGradients
from wherefrom.gradients.layers import Layer, select_layers
from wherefrom.gradients.models import load_model, tokenizer_sha256, weights_sha256
from wherefrom.gradients.objectives import Categorical, CausalLM, Classification, Objective
from wherefrom.indexer.corpus import Corpus
from wherefrom.indexer.options import BuildOptions
from wherefrom.indexer.prepare import Skipped, context_of, passages, tokenizer_of
from wherefrom.indexer.sources import Source, TensorSource, TextSource, sample
from wherefrom.indexer.vacuity import VACUOUS, gradient_dot_correlation
from wherefrom.indexer.workplace import refuse_taken_path, workplace
from wherefrom.records import Document, Progress
from wherefrom.store import (
    SCAN_DIRECTORY,
    CorpusRecord,
    CurvatureRecord,
    DocumentTable,
    EncoderRecord,
    LayerRecord,
    Manifest,
    ModelRecord,
    ObjectiveRecord,
    ScanCopy,
    write_bytes_atomically,
)

if TYPE_CHECKING:
    from wherefrom.store.manifest import CodeType

__all__ = ["Documents", "IndexBuilder"]

Documents = str | os.PathLike[str] | Iterable[Document] | tuple[Tensor, Tensor]

_SHARD_BYTES = 1 << 26
_LONGEST_SHARD = 1024
_SAMPLE = 48
_SAMPLE_POSITIONS = 2048
_POSITIONS = 2048


class IndexBuilder:
    """Builds one index; :meth:`run` does all of it.

    Args:
        model: A module, or the path or cached id of a Hugging Face causal language model.
        documents: What to index.
        path: Where the index is to stand.
        options: How to build.
        objective: What the model's outputs mean; by default causal language modelling for text and
            classification for tensors.
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
        model: nn.Module | str | os.PathLike[str],
        documents: Documents,
        path: str | os.PathLike[str],
        options: BuildOptions,
        *,
        objective: Objective | None = None,
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
        tensors = _are_tensors(documents)
        if objective is None:
            objective = Classification() if tensors else CausalLM()
        self._loaded = load_model(model, device)
        self._tokenizer = tokenizer_of(objective, self._loaded, tensors)
        self._context = None if tensors else context_of(objective, self._loaded)
        if type(objective) is CausalLM:
            objective = CausalLM(self._tokenizer, context=self._context)
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
            fisher = self._fisher(source)
            curvature, fitted_on = self._fit(source, fisher)
            encoder, dtype = self._encoder(curvature)
            notes = self._check_vacuity(source, curvature)
            write_bytes_atomically(folder / ENCODER_FILE, encoder_bytes(encoder))
            table = DocumentTable.create(
                folder,
                metadata=source.metadata,
                dimension=encoder.dimension,
                dtype=dtype,
                inputs=source.inputs,
            )
            tokens = self._encode(source, encoder, table)
            stored = table.seal()
            self._progress("writing the scan copy", 0, 1)
            scan = ScanCopy.build(table, folder / SCAN_DIRECTORY)
            self._progress("writing the scan copy", 1, 1)
            stack.close()
            width = 2 if dtype == "float16" else 4
            manifest = Manifest(
                created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
                model=self._model_record(),
                layers=tuple(_layer_record(layer) for layer in self._extractor.layers),
                objective=ObjectiveRecord(
                    kind=self._extractor.objective.kind, context=self._context
                ),
                curvature=CurvatureRecord(
                    kind=curvature.kind,
                    damping=curvature.damping,
                    fisher=fisher,
                    fit_documents=fitted_on,
                    seed=self._options.seed,
                ),
                encoder=EncoderRecord(
                    kind=encoder.reduction.kind,
                    dimension=encoder.dimension,
                    dtype=dtype,
                    bytes_per_document=width * encoder.dimension,
                    seed=self._options.seed,
                    file_sha256=hashlib.sha256((folder / ENCODER_FILE).read_bytes()).hexdigest(),
                ),
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
                versions=_versions(),
                replay=self._replay or "",
                warnings=tuple(notes),
            )
            manifest.write(folder)
        return self._path

    def _source(self, folder: Path, skipped: Skipped, stack: ExitStack) -> Source:
        if _are_tensors(self._documents):
            return TensorSource(self._documents)
        if self._tokenizer is None or self._context is None:
            raise ModelError("text needs a tokenizer; give objective=wf.CausalLM(tokenizer)")
        self._progress("reading the corpus", 0, 1)
        stream = passages(
            cast("str | os.PathLike[str] | Iterable[Document]", self._documents),
            self._tokenizer,
            self._context,
            skipped,
            metadata_columns=self._metadata_columns,
        )
        corpus = stack.enter_context(Corpus.spool(stream, folder))
        self._progress("reading the corpus", 1, 1)
        return TextSource(corpus, self._tokenizer)

    def _fisher(self, source: Source) -> Fisher:
        """The one asked for; by default ``expected`` where a document has one prediction."""
        if self._options.fisher is not None:
            return self._options.fisher
        if not isinstance(self._extractor.objective, Categorical):
            return "empirical"
        first = next(source.shards(1)).examples.batch(np.array([0]))
        with self._extractor.session():
            outputs = self._extractor.forward(first).outputs
        few = outputs.ndim == 2 and outputs.shape[1] <= EXPECTED_CLASSES
        return "expected" if few else "sampled"

    def _batches(self, source: Source, chosen: NDArray[np.bool_] | None) -> Iterator[Batch]:
        size = self._options.batch_size or (32 if source.inputs is None else 256)
        for shard in source.shards(_LONGEST_SHARD, chosen):
            for _, batch in batches(shard.examples, max_documents=size, max_positions=_POSITIONS):
                yield batch

    def _fit(self, source: Source, fisher: Fisher) -> tuple[FittedEKFAC, int]:
        chosen = sample(source, self._options.fit_documents, self._options.seed)
        total = len(source) if chosen is None else int(chosen.sum())
        passes = [0]

        def told(done: int) -> None:
            self._progress(f"fitting the curvature, pass {passes[0]} of 2", done, total)

        def once() -> Iterator[Batch]:
            passes[0] += 1
            return self._batches(source, chosen)

        pseudo = PseudoGradients(
            self._extractor,
            once,
            fisher,
            seed=self._options.seed,
            progress=told,
        )
        return EKFAC(self._options.damping).fit(pseudo), total

    def _encoder(self, curvature: FittedEKFAC) -> tuple[Encoder, CodeType]:
        sizes = tuple(layer.size for layer in curvature.layers)
        budget, kind = self._options.bytes_per_document, self._options.encoder
        if kind == "auto":
            kind = "none" if 4 * sum(sizes) <= budget else "sketch"
        if kind == "none":
            return Encoder(curvature, make_reduction("none", sizes, 0, 0)), "float32"
        dimension = min(budget // 2, sum(sizes))
        reduction = make_reduction("sketch", sizes, dimension, self._options.seed)
        return Encoder(curvature, reduction), "float16"

    def _encode(self, source: Source, encoder: Encoder, table: DocumentTable) -> int:
        size = max(16, min(_LONGEST_SHARD, _SHARD_BYTES // (4 * encoder.dimension)))
        at_once = self._options.batch_size or (32 if source.inputs is None else 256)
        tokens = done = 0
        for shard in source.shards(size):
            count = len(shard.documents)
            vectors = np.empty((count, encoder.dimension), np.float32)
            norms = np.empty(count)
            with self._extractor.session():
                for positions, batch in batches(
                    shard.examples, max_documents=at_once, max_positions=_POSITIONS
                ):
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

    def _check_vacuity(self, source: Source, curvature: FittedEKFAC) -> list[str]:
        chosen = sample(source, _SAMPLE, self._options.seed + 1)
        shard = next(source.shards(_SAMPLE, chosen))
        count = len(shard.documents)
        batch = shard.examples.shortened(_SAMPLE_POSITIONS // count).batch(np.arange(count))
        correlation = gradient_dot_correlation(self._extractor, curvature, batch)
        if not correlation >= VACUOUS:
            return []
        note = (
            f"scores correlate at {correlation:.3f} with the plain gradient dot product on a "
            f"sample of {len(batch)} documents: the curvature does next to nothing here; a smaller "
            "damping or more documents to fit on may help"
        )
        warnings.warn(note, stacklevel=4)
        return [note]

    def _model_record(self) -> ModelRecord:
        loaded = self._loaded
        return ModelRecord(
            kind="module" if loaded.source is None else "huggingface",
            source=loaded.source,
            weights_sha256=weights_sha256(loaded.module),
            tokenizer_sha256=(
                None if self._tokenizer is None else tokenizer_sha256(self._tokenizer)
            ),
            architecture=type(loaded.module).__name__,
        )


def _are_tensors(documents: Documents) -> TypeGuard[tuple[Tensor, ...]]:
    """A tuple is a pair of tensors, unless it holds documents."""
    return isinstance(documents, tuple) and not any(isinstance(d, Document) for d in documents)


def _layer_record(layer: Layer) -> LayerRecord:
    return LayerRecord(
        name=layer.name, kind=layer.kind, d_in=layer.d_in, d_out=layer.d_out, bias=layer.bias
    )


def _versions() -> dict[str, str]:
    names = ("wherefrom", "torch", "transformers", "lancedb", "pyarrow", "numpy", "safetensors")
    return {"python": platform.python_version()} | {name: version(name) for name in names}
