"""What influence has to beat: rankings that know less, or nothing, of how the model was trained.

Baselines' scores have no units: they rank the documents of one query, and their sums say nothing in
nats. A contrast or a set of queries is the weighted sum of its terms' scores, as its measurement is
the weighted sum of their log-likelihoods.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wherefrom.errors import EvaluationError
from wherefrom.evaluation.scores import fit, influence
from wherefrom.evaluation.statistics import Scores
from wherefrom.evaluation.subject import Subject
from wherefrom.gradients.batches import Batch
from wherefrom.gradients.kinds import Kind, kind_of
from wherefrom.gradients.lora import Adapters
from wherefrom.query.exact import energies, gradient_of
from wherefrom.query.interpretation.lexical import Lexicon, words
from wherefrom.query.questions import Question
from wherefrom.records import Query, QuerySet

__all__ = ["BASELINES", "baselines", "words"]

BASELINES = ("dot", "cosine", "bm25", "embedding", "random")
"""All there are; ``bm25`` for text only."""


def baselines(
    subject: Subject, names: Sequence[str] | None = None, *, seed: int = 0
) -> dict[str, Scores]:
    """Scores of documents by simpler means than influence.

    * ``dot``: inner product of the raw gradients of all traced layers, as one vector.
    * ``cosine``: the same, divided by both norms.
    * ``bm25``: words that document and query share, weighted by how rare they are (Lucene's form,
      k1 = 1.5, b = 0.75), case folded. A query's words are those of prompt and completion, so those
      of the prompt cancel in a contrast; a classifier's labels are no words of a document's.
    * ``embedding``: cosine of hidden states, the mean over attended positions of what the model's
      last linear map or convolution reads: what enters a language model's head.
    * ``random``: normal numbers.

    Where a contrast changes only the target and not what is read, ``embedding`` has nothing to tell
    apart, nor has ``bm25`` for a classifier of text: then the contrast is left out.

    Args:
        subject: Model, documents and questions.
        names: Which; by default all that apply.
        seed: Of ``random``.

    Returns:
        By name, float64 ``[question, document]``; higher = nearer, without units.

    Raises:
        EvaluationError: A name is unknown, or ``bm25`` is asked of tensors.
    """
    asked = [name for name in BASELINES if name != "bm25" or subject.texts is not None]
    if names is not None:
        unknown = sorted(set(names) - set(BASELINES))
        if unknown:
            raise EvaluationError(
                f"baseline {unknown[0]!r} is unknown; choose among {', '.join(BASELINES)}"
            )
        if "bm25" in names and subject.texts is None:
            raise EvaluationError("bm25 compares words, and these documents are tensors; leave out")
        asked = list(names)
    gradients = _Gradients(subject)
    recipes: dict[str, Callable[[], Scores]] = {
        "dot": lambda: gradients.products,
        "cosine": lambda: gradients.cosines,
        "bm25": lambda: _bm25(subject),
        "embedding": lambda: _embedding(subject),
        "random": lambda: np.random.default_rng(seed).standard_normal(
            (len(subject.questions), len(subject))
        ),
    }
    return {name: recipes[name]() for name in asked}


class _Gradients:
    """Inner products of raw gradients, computed when they are asked for, and once."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._identity = fit(subject, "identity")

    @cached_property
    def products(self) -> Scores:
        """float64 ``[question, document]``."""
        return influence(self._subject, self._identity) * len(self._subject)

    @cached_property
    def cosines(self) -> Scores:
        """Divided by both norms; zero where a gradient is zero."""
        extractor, documents = self._subject.extractor, self._subject.document_batches()
        squares = energies(extractor, self._identity, documents, len(self._subject))
        reach = np.sqrt(np.outer(self._question_squares(), squares))
        return np.divide(self.products, reach, out=np.zeros_like(reach), where=reach > 0.0)

    def _question_squares(self) -> NDArray[np.float64]:
        squares = []
        for question in self._subject.questions:
            gradient, _ = gradient_of(self._subject.extractor, self._identity, question)
            squares.append(sum(float(part.square().sum()) for part in gradient))
        return np.array(squares)


def _bm25(subject: Subject) -> Scores:
    lexicon = Lexicon(subject.texts or ())
    scores = np.zeros((len(subject.questions), len(subject)))
    labels = subject.extractor.objective.kind == "sequence_classification"
    for row, question in zip(scores, subject.questions, strict=True):
        for weight, text in _texts(question, labels=labels):
            row += weight * lexicon.scores(text)
    return scores


def _texts(question: Question, *, labels: bool) -> Iterator[tuple[float, str]]:
    """The texts of a question's terms with their weights; without completions that are labels."""
    members = question.asked.queries if isinstance(question.asked, QuerySet) else (question.asked,)
    answers = [
        (query, answer)
        for query in members
        if isinstance(query, Query)
        for answer in (query.completion, query.contrast)
        if answer is not None
    ]
    for (weight, _), (query, answer) in zip(question.terms, answers, strict=True):
        if not labels:
            yield weight, query.prompt + answer
        elif weight > 0.0:
            yield weight, query.prompt


def _embedding(subject: Subject) -> Scores:
    """Cosines of hidden states; a state of zeros is like nothing."""
    with _Reader(subject).session() as reader:
        documents = None
        for positions, batch in subject.document_batches():
            found = reader.read(batch)
            if documents is None:
                documents = np.zeros((len(subject), found.shape[1]))
            documents[positions] = found
        if documents is None:
            raise EvaluationError("there are no documents to compare with")
        scores = np.zeros((len(subject.questions), len(subject)))
        for row, question in zip(scores, subject.questions, strict=True):
            for weight, batch in _distinct(question):
                row += weight * (_unit(documents) @ _unit(reader.read(batch))[0])
    return scores


def _distinct(question: Question) -> list[tuple[float, Batch]]:
    """The terms, without those of negative weight whose inputs another term reads too."""
    kept = [(weight, batch) for weight, batch in question.terms if weight > 0.0]
    inputs = [batch.inputs for _, batch in kept]
    return kept + [
        (weight, batch)
        for weight, batch in question.terms
        if weight <= 0.0 and not any(torch.equal(batch.inputs, other) for other in inputs)
    ]


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    scaled: NDArray[np.float64] = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0.0)
    return scaled


class _Reader:
    """What the last linear map or convolution of a model to run reads, a vector a document."""

    def __init__(self, subject: Subject) -> None:
        self._model = subject.extractor.model
        self._device = subject.extractor.device
        self._objective = subject.extractor.objective
        self._last: list[tuple[Kind, Tensor]] = []

    @contextmanager
    def session(self) -> Iterator[_Reader]:
        """Evaluation mode without gradients, every map watched; the model is left as it was."""
        training = {module: module.training for module in self._model.modules()}
        # An adapter on the head would run last and read its own few dimensions.
        apart = Adapters(self._model).apart()
        kinds = [(module, kind_of(module)) for module in training if id(module) not in apart]
        handles = [
            module.register_forward_hook(self._watch(kind), with_kwargs=True)
            for module, kind in kinds
            if kind is not None
        ]
        self._model.eval()
        try:
            with torch.no_grad():
                yield self
        finally:
            for handle in handles:
                handle.remove()
            for module, mode in training.items():
                module.training = mode

    def read(self, batch: Batch) -> NDArray[np.float64]:
        """float64 ``[doc, width]``, the mean over attended positions."""
        self._last.clear()
        self._objective.outputs(self._model, batch.to(self._device))
        if not self._last:
            raise EvaluationError(
                f"{type(self._model).__name__} runs no linear map that could be read; leave out "
                "the baseline 'embedding'"
            )
        ((kind, given),) = self._last
        states = kind.activations(given).double()
        states = states.reshape(len(batch), -1, states.shape[2])
        attended = batch.attended
        if attended is None or attended.shape[1] != states.shape[1]:
            return np.asarray(states.mean(1).cpu().numpy())
        weights = attended.to(self._device).double().unsqueeze(2)
        return np.asarray(((states * weights).sum(1) / weights.sum(1)).cpu().numpy())

    def _watch(self, kind: Kind) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], named: Any, output: Tensor) -> None:
            self._last[:] = [(kind, inputs[0] if inputs else next(iter(named.values())))]

        return hook
