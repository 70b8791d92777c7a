"""What a build goes over, several times: documents of text on disk, or tensors in memory."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wherefrom.errors import CorpusError
from wherefrom.gradients.batches import document_key
from wherefrom.gradients.counter import key_of, uniforms
from wherefrom.gradients.examples import Examples, TensorExamples, TextExamples
from wherefrom.gradients.objectives import TextObjective
from wherefrom.indexer.corpus import Corpus
from wherefrom.indexer.sealed import load_tensors, save_tensors
from wherefrom.records import Document
from wherefrom.store import InputRecord

if TYPE_CHECKING:
    from wherefrom.store.manifest_parts import ColumnType

__all__ = [
    "EXAMPLES_FILE",
    "Named",
    "Shard",
    "Source",
    "TensorSource",
    "TextSource",
    "disjoint_samples",
    "sample",
    "sample_size",
    "stamp",
]

EXAMPLES_FILE = "examples.safetensors"


class Shard(Protocol):
    """Consecutive documents, ready for the model and for the store."""

    documents: Sequence[Document]
    examples: Examples
    inputs: NDArray[Any] | None
    targets: NDArray[Any] | None


class _Shard:
    def __init__(
        self,
        documents: Sequence[Document],
        examples: Examples,
        inputs: NDArray[Any] | None = None,
        targets: NDArray[Any] | None = None,
    ) -> None:
        self.documents = documents
        self.examples = examples
        self.inputs = inputs
        self.targets = targets


class Named(Protocol):
    """Documents that can be sampled."""

    def __len__(self) -> int:
        """Number of documents."""
        ...

    def doc_ids(self) -> Iterable[str]:
        """Their ids, in order."""
        ...


class Source(Named, Protocol):
    """Documents that can be gone over again and again, in one order."""

    metadata: dict[str, ColumnType]
    inputs: InputRecord | None
    content_sha256: str

    def part(self, positions: NDArray[np.int64]) -> Shard:
        """The documents at ascending ``positions``."""
        ...

    def shards(self, size: int, chosen: NDArray[np.bool_] | None = None) -> Iterator[Shard]:
        """Documents in order, ``size`` at a time; ``chosen`` keeps some of them."""
        ...


class TextSource:
    """A spooled corpus of passages, tokenised shard by shard by a bound objective."""

    inputs: InputRecord | None = None

    def __init__(self, corpus: Corpus, objective: TextObjective) -> None:
        self.metadata = dict(corpus.metadata)
        self.content_sha256 = corpus.content_sha256
        self._corpus = corpus
        self._objective = objective

    def __len__(self) -> int:
        """Number of passages."""
        return len(self._corpus)

    def doc_ids(self) -> Iterator[str]:
        """Ids of the passages."""
        return (document.doc_id for document in self._corpus)

    def part(self, positions: NDArray[np.int64]) -> Shard:
        """The passages at ascending ``positions``, tokenised."""
        documents = list(self._corpus.at(positions))
        return _Shard(documents, TextExamples.of(documents, self._objective))

    def shards(self, size: int, chosen: NDArray[np.bool_] | None = None) -> Iterator[Shard]:
        """Passages in order, tokenised."""
        documents = (
            document for i, document in enumerate(self._corpus) if chosen is None or bool(chosen[i])
        )
        while part := list(islice(documents, size)):
            yield _Shard(part, TextExamples.of(part, self._objective))


class TensorSource:
    """``(inputs, targets)`` tensors.

    Args:
        documents: The two.
        names: Ids of the examples; by default their positions, with leading zeros so that they
            sort.

    Raises:
        CorpusError: They are no such tensors, or hold NaN or infinity.
    """

    def __init__(self, documents: tuple[Tensor, ...], names: Sequence[str] | None = None) -> None:
        if len(documents) != 2 or not all(isinstance(part, Tensor) for part in documents):
            kinds = ", ".join(type(part).__name__ for part in documents)
            raise CorpusError(
                f"documents are a tuple of ({kinds}); give tensors (inputs, targets), a path, or "
                "wf.Document records"
            )
        inputs, targets = (part.detach().cpu().contiguous().numpy() for part in documents)
        if inputs.ndim < 2 or len(inputs) != len(targets) or len(inputs) == 0:
            raise CorpusError(
                f"inputs have shape {inputs.shape} and targets {targets.shape}; give "
                "inputs [document, ...] and one target each, at least one"
            )
        self._inputs, self._targets, self._names = inputs, targets, names
        for what, values in (("input", self._inputs), ("target", self._targets)):
            bad = ~np.isfinite(values.reshape(len(values), -1)).all(1)
            if bad.any():
                raise CorpusError(
                    f"the {what} of document {self._name(int(np.argmax(bad)))!r} holds NaN or "
                    "infinity; repair or remove it"
                )
        self.metadata: dict[str, ColumnType] = {}
        self.inputs: InputRecord | None = InputRecord.of(self._inputs, self._targets)
        digest = hashlib.sha256(self._inputs.tobytes())
        digest.update(self._targets.tobytes())
        if names is not None:
            digest.update(_name_bytes(names))
        self.content_sha256 = digest.hexdigest()

    def _name(self, position: int) -> str:
        if self._names is not None:
            return self._names[position]
        return f"{position:0{len(str(len(self._inputs) - 1))}d}"

    def __len__(self) -> int:
        """Number of examples."""
        return len(self._inputs)

    def doc_ids(self) -> Iterator[str]:
        """Ids of the examples."""
        return (self._name(i) for i in range(len(self)))

    def part(self, positions: NDArray[np.int64]) -> Shard:
        """The examples at ascending ``positions``."""
        documents = [Document(self._name(int(i))) for i in positions]
        inputs, targets = self._inputs[positions], self._targets[positions]
        examples = TensorExamples(inputs, targets, [d.doc_id for d in documents])
        return _Shard(documents, examples, inputs, targets)

    def shards(self, size: int, chosen: NDArray[np.bool_] | None = None) -> Iterator[Shard]:
        """Examples in order."""
        wanted = np.arange(len(self)) if chosen is None else np.flatnonzero(chosen)
        for start in range(0, len(wanted), size):
            yield self.part(wanted[start : start + size])

    def save(self, directory: Path) -> None:
        """Write the tensors to a file, for :meth:`saved`.

        Raises:
            StorageError: The disk refuses.
        """
        path = directory / EXAMPLES_FILE
        if path.exists():
            return
        tensors = {
            "inputs": torch.from_numpy(self._inputs),
            "targets": torch.from_numpy(self._targets),
        }
        if self._names is not None:
            tensors["names"] = torch.frombuffer(
                bytearray(_name_bytes(self._names)), dtype=torch.uint8
            )
        save_tensors(path, tensors)

    @classmethod
    def saved(cls, directory: Path) -> TensorSource:
        """The tensors that :meth:`save` wrote, mapped into memory.

        Raises:
            IntegrityError: They are missing or damaged.
        """
        stored = load_tensors(
            directory / EXAMPLES_FILE,
            torch.device("cpu"),
            "begin anew with --no-resume (resume=False)",
        )
        names = stored.get("names")
        return cls(
            (stored["inputs"], stored["targets"]),
            None if names is None else json.loads(names.numpy().tobytes()),
        )


def _name_bytes(names: Sequence[str]) -> bytes:
    return json.dumps(list(names)).encode()


def sample(source: Source, wanted: int | float | None, seed: int) -> NDArray[np.bool_] | None:
    """Which documents to take, by a hash of their ids, so that order does not matter."""
    number = sample_size(len(source), wanted)
    if number == len(source):
        return None
    return disjoint_samples(source, (number,), seed)[0]


def sample_size(count: int, wanted: int | float | None) -> int:
    """How many of ``count`` documents that is: a number, a share, or all."""
    if wanted is None:
        return count
    return min(count, wanted if isinstance(wanted, int) else max(1, round(wanted * count)))


def stamp(documents: object) -> tuple[object, ...]:
    """What changes when files that documents are read from do: names, sizes, times.

    Args:
        documents: A path of a corpus; of anything else nothing is known.
    """
    if not isinstance(documents, (str, os.PathLike)):
        return ()
    path = Path(documents)
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    stats = [(file, file.stat()) for file in files if file.is_file()]
    return tuple((str(file), found.st_size, found.st_mtime_ns) for file, found in stats)


def disjoint_samples(source: Named, sizes: Sequence[int], seed: int) -> list[NDArray[np.bool_]]:
    """Samples of documents, chosen as by :func:`sample`, that overlap only where there are too few.

    Args:
        source: The documents.
        sizes: Of the samples; none holds more than all documents.
        seed: Of the choice.
    """
    count = len(source)
    keys = np.fromiter((document_key(d) for d in source.doc_ids()), np.uint64, count)
    order = np.argsort(uniforms(key_of(seed, 3), keys, 1)[:, 0], kind="stable")
    samples, start = [], 0
    for size in sizes:
        taken = order[np.arange(start, start + min(size, count)) % count]
        mask = np.zeros(count, bool)
        mask[taken] = True
        samples.append(mask)
        start += size
    return samples
