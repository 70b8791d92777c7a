"""Many questions asked of one index, one entry after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from wherefrom.audit.entries import Entry, Failure, Wanted
from wherefrom.audit.gate import Gate
from wherefrom.errors import QueryError, WherefromError
from wherefrom.query.answer import Answer
from wherefrom.query.options import QueryOptions
from wherefrom.records import Query, QuerySet

if TYPE_CHECKING:
    from wherefrom.maintenance.index import Index

__all__ = ["BatchQuery", "ask_all", "told"]

_TOGETHER = 16
"""Questions that share a scan. More would spare little, and hold finished answers back longer."""


@dataclass(frozen=True, slots=True)
class BatchQuery:
    """A question of a file.

    Attributes:
        id: Unique among those asked together.
        query: What is asked; ``None`` for what cannot be asked, but is to be on record.
        tags: Further fields, carried through.
        obstacle: Why it cannot be asked.
    """

    id: str
    query: Query | QuerySet | None
    tags: Mapping[str, Any] = field(default_factory=dict)
    obstacle: str = ""


def ask_all(
    index: Index,
    asked: Sequence[BatchQuery],
    options: Mapping[str, Any],
    *,
    wanted: Wanted | None = None,
    fail_if: Sequence[str] = (),
) -> Iterator[Entry]:
    """Ask questions; one that fails becomes an entry as well, and the others go on.

    Answers are, to the last bit, those of :meth:`wherefrom.Index.query`.

    Args:
        index: An open index.
        asked: The questions.
        options: How to ask them all, as arguments of :meth:`wherefrom.Index.query`.
        wanted: What else to tell of each answer.
        fail_if: Conditions of a gate to hold each answer against.

    Yields:
        An entry for each question, in their order.

    Raises:
        QueryError: An option is not allowed.
        FilterError: A condition of the gate does not fit the index.
    """
    wanted = wanted or Wanted()
    asked_with = asdict(QueryOptions(**options))
    gate = Gate.parse(fail_if, index.manifest.metadata, options.get("sign", "both"))
    for start in range(0, len(asked), _TOGETHER):
        group = asked[start : start + _TOGETHER]
        queries = [one.query for one in group if one.query is not None]
        outcomes = _outcomes(index, queries, asked_with, wanted)
        for one in group:
            entry = Entry(
                one.id, one.query, asked_with, wanted, fail_if=tuple(fail_if), tags=one.tags
            )
            outcome = QueryError(one.obstacle) if one.query is None else next(outcomes)
            if isinstance(outcome, WherefromError):
                yield replace(entry, failure=Failure.of(outcome))
            else:
                findings = gate.judge(outcome)
                yield replace(entry, answer=outcome, gate=findings)


def _outcomes(
    index: Index, queries: Sequence[Query | QuerySet], options: Mapping[str, Any], wanted: Wanted
) -> Iterator[Answer | WherefromError]:
    """Answers by one scan; one by one if that fails, to find out whose fault it is."""
    if not queries:
        return
    try:
        answers = index.answers(queries, **options)
    except WherefromError as error:
        if len(queries) == 1:
            yield error
            return
        for query in queries:
            yield from _outcomes(index, [query], options, wanted)
        return
    for answer in answers:
        try:
            yield told(index, answer, wanted)
        except WherefromError as error:
            yield error


def told(index: Index, answer: Answer, wanted: Wanted) -> Answer:
    """The answer with all that is wanted of it.

    Raises:
        WherefromError: The index cannot tell.
    """
    if wanted == Wanted():
        return answer
    return index.annotate(
        answer, explain=wanted.explain, similarity=wanted.similarity, group_by=wanted.group_by
    )
