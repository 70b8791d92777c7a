"""From what a user asks to what is differentiated: weighted log-likelihoods, one batch each.

A question is a measurement ``f = sum_t w_t log p(target_t | input_t)``: one output of the model,
the difference of two, or the mean or sum of several. Each term runs alone, so that a question's
bits do not depend on what else is asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypedDict, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wherefrom.errors import QueryError
from wherefrom.gradients.batches import Batch, stack_examples
from wherefrom.gradients.objectives import Objective, TextObjective
from wherefrom.query.asker import Asker
from wherefrom.records import Query, QuerySet, Reduce
from wherefrom.store import InputRecord

__all__ = [
    "Asked",
    "EncodedQuestion",
    "Queries",
    "Question",
    "ask",
    "encode",
    "questions",
]

Queries = Sequence[Query | QuerySet] | tuple[Tensor, Tensor]
"""Text queries, or ``(inputs, targets)`` tensors whose first dimension is the query."""


class Asked(TypedDict, total=False):
    """The arguments of :func:`ask` that make a question; see there."""

    prompt: str | None
    completion: str | None
    contrast: str | Tensor | int | None
    inputs: Tensor | None
    target: Tensor | float | None
    queries: Queries | QuerySet | None
    reduce: Reduce


@dataclass(frozen=True, slots=True)
class Question:
    """A measurement of the model's outputs.

    Attributes:
        asked: What was asked, for text.
        terms: Weights, and a batch of one example each.
    """

    asked: Query | QuerySet | None
    terms: tuple[tuple[float, Batch], ...]

    @property
    def scored_tokens(self) -> int:
        """Predictions that count, over all terms; one an example of tensors."""
        if self.asked is None:
            return len(self.terms)
        return sum(
            int(batch.targets.numel() if batch.scored is None else batch.scored.sum())
            for _, batch in self.terms
        )


@dataclass(frozen=True, slots=True)
class EncodedQuestion:
    """What stored vectors are multiplied with.

    Attributes:
        vector: float32 ``[dimension]``.
        nats: Value of the measurement.
        residual: Relative residual of the solution, where it was solved for by iteration.
        damping: Under which, in units of a layer's mean eigenvalue; for a refined question, of the
            mean over all layers.
        refined: Steps of conjugate gradients taken.
        solved: What these found, of each layer float64 ``[d_out, d_in]`` in the curvature's
            coordinates; ``None`` where the fitted curvature itself was inverted.
    """

    vector: NDArray[np.float32]
    nats: float
    residual: float | None
    damping: float
    refined: int = 0
    solved: tuple[Tensor, ...] | None = None


def ask(
    objective: Objective,
    record: InputRecord | None,
    *,
    prompt: str | None = None,
    completion: str | None = None,
    contrast: str | Tensor | int | None = None,
    inputs: Tensor | None = None,
    target: Tensor | float | None = None,
    queries: Queries | QuerySet | None = None,
    reduce: Reduce = "mean",
) -> Question:
    """The question of one call: a completion, one example, or several reduced to one.

    Args:
        objective: Bound to the model that is asked.
        record: Shape of tensor examples, in indexes over them.
        prompt: What the model was given.
        completion: What it said.
        contrast: What it might have said instead, a completion or a target.
        inputs: One example ``[...]``.
        target: Its target.
        queries: Several, in place of all above; a set brings its own ``reduce``.
        reduce: How to make one of them.

    Raises:
        QueryError: The question is not well formed.
    """
    text = prompt is not None or completion is not None
    tensors = inputs is not None or target is not None
    if text + tensors + (queries is not None) != 1:
        raise QueryError(
            "give prompt= and completion=, or inputs= and target=, or queries=, and one of these "
            "only"
        )
    if queries is not None:
        if contrast is not None:
            raise QueryError("contrast= goes with one query; give wf.Query(..., contrast=...)")
        if isinstance(queries, QuerySet):
            return _one_question(objective, record, queries)
        return _reduced(list(questions(objective, record, queries)), reduce)
    if text:
        if completion is None:
            raise QueryError("completion= is missing; give the text whose origin is asked for")
        if contrast is not None and not isinstance(contrast, str):
            raise QueryError(f"contrast= is a {type(contrast).__name__}; give another completion")
        return _one_question(objective, record, Query(prompt or "", completion, contrast))
    if inputs is None or target is None:
        raise QueryError("inputs= and target= go together")
    if isinstance(contrast, str):
        raise QueryError("contrast= is text; give another target")
    (question,) = questions(objective, record, (inputs[None], torch.as_tensor(target)[None]))
    if contrast is None:
        return question
    (other,) = questions(objective, record, (inputs[None], torch.as_tensor(contrast)[None]))
    return Question(None, (*question.terms, *_weighted(other, -1.0)))


def questions(
    objective: Objective, record: InputRecord | None, queries: Queries
) -> Iterator[Question]:
    """One question a query.

    Args:
        objective: Bound to the model that is asked.
        record: Shape of tensor examples; ``None`` for text.
        queries: Text queries, sets of them, or ``(inputs, targets)`` tensors.

    Raises:
        QueryError: A query is not well formed or of the wrong kind for the index.
    """
    if isinstance(queries, tuple) and len(queries) == 2 and isinstance(queries[0], Tensor):
        yield from _examples(record, *queries)
        return
    if isinstance(queries, (Query, QuerySet)):
        raise QueryError("queries are a single one; give a list: [query]")
    for query in queries:
        yield _one_question(objective, record, query)


def _one_question(objective: Objective, record: InputRecord | None, query: object) -> Question:
    """The question of a text query or of a set of them.

    Raises:
        QueryError: It is not well formed, or the index holds tensors.
    """
    if record is not None or not isinstance(objective, TextObjective):
        raise QueryError("this index holds tensors; ask with inputs and targets")
    if isinstance(query, QuerySet):
        members = [_one_question(objective, record, member) for member in query.queries]
        return replace(_reduced(members, query.reduce), asked=query)
    if not isinstance(query, Query):
        raise QueryError(f"a query is a {type(query).__name__}; give wf.Query or tensors")
    terms = [(1.0, query)]
    if query.contrast is not None:
        terms.append((-1.0, Query(query.prompt, query.contrast)))
    return Question(query, tuple((weight, objective.query_batch(term)) for weight, term in terms))


def encode(asker: Asker, question: Question, damping: float | None) -> EncodedQuestion:
    """A question's vector; terms are added in float64, in order. Inside ``extractor.session()``.

    Raises:
        ModelError: A log-likelihood is not finite.
        CurvatureError: The damping is not allowed.
    """
    vector: NDArray[np.float64] = np.zeros(asker.encoder.dimension)
    nats = 0.0
    residuals: list[float] = []
    for weight, batch in question.terms:
        encoded = asker.encoder.encode_query(asker.extractor, batch, damping=damping)
        vector += weight * encoded.vectors[0]
        nats += weight * float(encoded.nats[0])
        if encoded.residual is not None:
            residuals.append(encoded.residual)
    own = asker.encoder.curvature.damping
    return EncodedQuestion(
        vector.astype(np.float32),
        nats,
        max(residuals, default=None),
        own if damping is None else damping,
    )


def _examples(record: InputRecord | None, inputs: Tensor, targets: Tensor) -> Iterator[Question]:
    if record is None:
        raise QueryError("this index holds text; ask with wf.Query(prompt, completion)")
    expected = tuple(record.shape)
    if tuple(inputs.shape[1:]) != expected or len(inputs) != len(targets):
        raise QueryError(
            f"inputs of shape {tuple(inputs.shape)} with {len(targets)} targets; this index takes "
            f"inputs [query, {', '.join(map(str, expected))}], a target each"
        )
    if inputs.dtype.is_floating_point and not bool(torch.isfinite(inputs).all()):
        raise QueryError("inputs of a query hold NaN or infinity; give finite ones")
    for i in range(len(inputs)):
        batch = stack_examples(inputs[i : i + 1], targets[i : i + 1], ["query"])
        yield Question(None, ((1.0, batch),))


def _weighted(question: Question, weight: float) -> tuple[tuple[float, Batch], ...]:
    return tuple((weight * own, batch) for own, batch in question.terms)


def _reduced(members: Sequence[Question], reduce: Reduce) -> Question:
    """The mean or sum of several questions."""
    if reduce not in get_args(Reduce):
        raise QueryError(f"reduce={reduce!r} is unknown; give 'mean' or 'sum'")
    if not members:
        raise QueryError("queries are empty; give at least one")
    weight = 1.0 / len(members) if reduce == "mean" else 1.0
    single = []
    for member in members:
        if isinstance(member.asked, QuerySet):
            raise QueryError("a set holds single queries only; give wf.Query, not wf.QuerySet")
        if member.asked is not None:
            single.append(member.asked)
    terms = tuple(term for member in members for term in _weighted(member, weight))
    return Question(QuerySet(tuple(single), reduce) if single else None, terms)
