"""What is evaluated: a trained model, the documents it was trained on, and outputs to explain."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from wherefrom.errors import EvaluationError
from wherefrom.gradients.batches import Batch
from wherefrom.gradients.examples import (
    Examples,
    TensorExamples,
    TextExamples,
    batches,
    documents_at_once,
)
from wherefrom.gradients.extractor import GradientExtractor
from wherefrom.gradients.layers import select_layers
from wherefrom.gradients.objectives import CausalLM, Classification, Objective, TextObjective
from wherefrom.maintenance.index import Index
from wherefrom.query.documents import row_blocks
from wherefrom.query.questions import Queries, Question, questions
from wherefrom.records import Document, Query, QuerySet
from wherefrom.store import InputRecord

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Subject"]

_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class Subject:
    """A model with documents and questions, without an index.

    Attributes:
        name: In words, for results.
        extractor: Model, objective and layers.
        documents: What it was trained on, in the order of all scores.
        questions: What is asked of it.
        doc_ids: Of the documents.
        texts: Of the documents; ``None`` for tensors.
        asked: Text of each question; ``None`` for tensors.
        digest: SHA-256 of the documents' contents and order, by which retrainings are kept.
    """

    name: str
    extractor: GradientExtractor
    documents: Examples
    questions: tuple[Question, ...]
    doc_ids: tuple[str, ...]
    texts: tuple[str, ...] | None
    asked: tuple[str, ...] | None
    digest: str

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.doc_ids)

    def document_batches(self, size: int = _AT_ONCE) -> Iterator[tuple[NDArray[np.int64], Batch]]:
        """Every document once, with positions; at most ``size`` at a time, fewer if large."""
        copies = self.extractor.objective.copies
        at_once = documents_at_once(size, self.extractor.layers, copies)
        return batches(self.documents, max_documents=at_once)

    @classmethod
    def of_index(cls, index: Index, queries: Queries, *, name: str | None = None) -> Subject:
        """The model, all documents of an open index, and queries.

        Args:
            index: Opened with its model.
            queries: Text queries, sets of them, or ``(inputs, targets)`` tensors.
            name: By default the model's and the index's.

        Raises:
            ModelError: The index was opened without its model.
            QueryError: A query is not well formed.
            IntegrityError: A stored document differs from its digest.
        """
        extractor = index.asker.extractor
        rows = [rows for _, rows in row_blocks(index.table)]
        doc_ids = [doc_id for block in rows for doc_id in block.doc_ids]
        asked = index.questions(queries)
        name = name or f"{index.manifest.model.architecture}, {index.location.name}"
        if index.manifest.inputs is None:
            documents = [document for block in rows for document in block.documents()]
            return _of_documents(name, extractor, documents, asked)
        inputs = np.concatenate([_present(block.inputs) for block in rows])
        targets = np.concatenate([_present(block.targets) for block in rows])
        return _of_arrays(name, extractor, inputs, targets, doc_ids, asked)

    @classmethod
    def of_tensors(
        cls,
        name: str,
        model: nn.Module,
        documents: tuple[Tensor, Tensor],
        queries: tuple[Tensor, Tensor],
        *,
        objective: Objective | None = None,
        layers: str | Sequence[str] = "linear",
    ) -> Subject:
        """A model in memory with tensors.

        Args:
            name: In words, for results.
            model: Trained on ``documents``.
            documents: ``(inputs, targets)``, ``[document, ...]`` each.
            queries: Likewise ``[query, ...]``.
            objective: ``Classification`` by default.
            layers: As for ``wherefrom.build``.
        """
        objective = objective or Classification()
        extractor = GradientExtractor(model, objective, select_layers(model, layers))
        inputs, targets = (part.detach().cpu().contiguous().numpy() for part in documents)
        width = len(str(len(inputs) - 1))
        record = InputRecord.of(inputs, targets)
        doc_ids = [f"{i:0{width}d}" for i in range(len(inputs))]
        asked = list(questions(objective, record, queries))
        return _of_arrays(name, extractor, inputs, targets, doc_ids, asked)

    @classmethod
    def of_texts(
        cls,
        name: str,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        documents: Sequence[Document],
        queries: Sequence[Query | QuerySet],
        *,
        objective: TextObjective | None = None,
        layers: str | Sequence[str] = "mlp",
    ) -> Subject:
        """A model in memory with texts.

        Args:
            name: In words, for results.
            model: Trained on ``documents``.
            tokenizer: Its tokenizer.
            documents: Chats rendered, none longer than the context.
            queries: What is asked.
            objective: ``CausalLM`` by default.
            layers: As for ``wherefrom.build``.
        """
        bound = (objective or CausalLM()).bind(model, tokenizer)
        extractor = GradientExtractor(model, bound, select_layers(model, layers))
        asked = list(questions(bound, None, list(queries)))
        return _of_documents(name, extractor, documents, asked)


def _of_documents(
    name: str,
    extractor: GradientExtractor,
    documents: Sequence[Document],
    asked: Sequence[Question],
) -> Subject:
    objective = extractor.objective
    if not isinstance(objective, TextObjective):
        raise EvaluationError(f"{objective.kind} reads tensors; give (inputs, targets)")
    digest = hashlib.sha256()
    for document in documents:
        content = (document.text, document.scored, document.special_tokens)
        digest.update(repr((*content, sorted(document.metadata.items()))).encode())
    return Subject(
        name,
        extractor,
        TextExamples.of(documents, objective),
        tuple(asked),
        tuple(document.doc_id for document in documents),
        tuple(document.text for document in documents),
        tuple(_text(question) for question in asked),
        digest.hexdigest(),
    )


def _of_arrays(
    name: str,
    extractor: GradientExtractor,
    inputs: NDArray[np.generic],
    targets: NDArray[np.generic],
    doc_ids: Sequence[str],
    asked: Sequence[Question],
) -> Subject:
    digest = hashlib.sha256(inputs.tobytes())
    digest.update(targets.tobytes())
    examples = TensorExamples(inputs, targets, doc_ids)
    return Subject(
        name, extractor, examples, tuple(asked), tuple(doc_ids), None, None, digest.hexdigest()
    )


def _present(values: NDArray[np.generic] | None) -> NDArray[np.generic]:
    if values is None:
        raise EvaluationError("the index records tensors, and its table holds none; verify it")
    return values


def _text(question: Question) -> str:
    """What a text question says, all of a set's texts in a row."""
    asked = question.asked
    members = asked.queries if isinstance(asked, QuerySet) else (asked,)
    return "\n".join(query.prompt + query.completion for query in members if query is not None)
