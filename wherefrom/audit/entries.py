"""Entries: answers to many questions, one JSON object a line.

A line is :meth:`Answer.to_dict() <wherefrom.Answer.to_dict>` with more keys::

    id        of the question, unique in the file
    tags      further fields of the question, carried through
    fail_if   conditions of the gate that the answer was held against
    gate      what stopped it there

A question that could not be answered is a line of another ``schema``, with ``id``, ``tags``,
``query``, ``options``, ``wanted``, ``error`` (the error's class) and ``detail`` (what it says).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

from pydantic import JsonValue, TypeAdapter, ValidationError

from wherefrom.audit.canonical import canonical_json, read_strictly
from wherefrom.audit.gate import Finding
from wherefrom.errors import IntegrityError, QueryError, WherefromError
from wherefrom.query.answer import ANSWER_SCHEMA, Answer
from wherefrom.query.export.json_text import as_json
from wherefrom.query.options import QueryOptions
from wherefrom.records import Normalise, Query, QuerySet, Rerank, Sign

__all__ = ["FAILURE_SCHEMA", "Entry", "Failure", "Wanted", "read_answer", "read_entries"]

FAILURE_SCHEMA = "wherefrom-failure/1"

_OWN = ("id", "tags", "fail_if", "gate")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What else to tell of an answer; see :meth:`wherefrom.Index.annotate`.

    Attributes:
        explain: Shares of layers and tokens.
        similarity: How alike documents and question are in words.
        group_by: Sums by these columns, of numbers in so many bins.
    """

    explain: bool = False
    similarity: bool = False
    group_by: Mapping[str, int | None] = field(default_factory=dict)

    @classmethod
    def of(cls, answer: Answer) -> Wanted:
        """What an answer tells."""
        return cls(
            answer.explanation is not None,
            answer.similarity is not None,
            {grouping.column: grouping.bins for grouping in answer.groups},
        )


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a question was not answered.

    Attributes:
        error: Name of the error's class.
        detail: What it says, on one line.
    """

    error: str
    detail: str

    @classmethod
    def of(cls, error: WherefromError) -> Failure:
        """An error's."""
        return cls(type(error).__name__, str(error))


@dataclass(frozen=True, slots=True)
class Entry:
    """A question and what came of it: an answer or a failure.

    Attributes:
        id: Unique among the entries of a file.
        query: What was asked; ``None`` for what could not be, and so has failed.
        options: How, as arguments of :meth:`wherefrom.Index.query`.
        wanted: What else was to be told of the answer.
        answer: What was answered.
        failure: Why nothing was.
        fail_if: Conditions of a gate.
        gate: What stopped the answer there.
        tags: What the question's author noted with it.
    """

    id: str
    query: Query | QuerySet | None
    options: Mapping[str, Any]
    wanted: Wanted
    answer: Answer | None = None
    failure: Failure | None = None
    fail_if: tuple[str, ...] = ()
    gate: tuple[Finding, ...] = ()
    tags: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        answer: Answer,
        id: str,
        *,
        fail_if: tuple[str, ...] = (),
        gate: tuple[Finding, ...] = (),
        tags: Mapping[str, Any] | None = None,
    ) -> Entry:
        """An answer's entry.

        Raises:
            QueryError: The answer is about tensors, which no file of questions holds.
        """
        if answer.query is None:
            raise QueryError("the answer is about tensors; only answers about text make entries")
        wanted = Wanted.of(answer)
        return cls(
            id,
            answer.query,
            answer.options,
            wanted,
            answer,
            fail_if=fail_if,
            gate=gate,
            tags=tags or {},
        )

    def judged(self) -> dict[str, Any]:
        """What came of the question, without its id: the answer and the gate's findings."""
        fields: dict[str, Any] = {}
        if self.fail_if:
            fields["fail_if"] = list(self.fail_if)
            fields["gate"] = [asdict(finding) for finding in self.gate]
        if self.answer is not None:
            return self.answer.to_dict() | fields
        failure = {} if self.failure is None else asdict(self.failure)
        plain = {
            "query": None if self.query is None else as_json(asdict(self.query)),
            "wanted": as_json(asdict(self.wanted)),
            "options": as_json(self.options),
        }
        return {"schema": FAILURE_SCHEMA} | plain | failure | fields

    def to_dict(self) -> dict[str, Any]:
        """One line of the file, as plain values."""
        return {"id": self.id, "tags": dict(self.tags)} | self.judged()

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], name: str = "the entry") -> Entry:
        """Read :meth:`to_dict` back.

        Args:
            fields: Plain values.
            name: What to call them in errors.

        Raises:
            IntegrityError: They are no entry, or hold more or less than one does.
        """
        rest = {key: value for key, value in fields.items() if key not in _OWN}
        try:
            own = _own().validate_python({key: fields[key] for key in _OWN if key in fields})
            _require_options(rest.get("options"), name)
            if "error" not in rest:
                answer = read_answer(rest, name)
                return cls.of(answer, own.id, fail_if=own.fail_if, gate=own.gate, tags=own.tags)
            failed = _unanswered().validate_python(rest)
        except ValidationError as error:
            raise IntegrityError(f"{name} is no answer of ours: {_first(error)}") from error
        except QueryError as error:
            raise IntegrityError(f"{name}: {error}") from error
        entry = cls(
            own.id,
            failed.query,
            failed.options,
            failed.wanted,
            failure=Failure(failed.error, failed.detail),
            fail_if=own.fail_if,
            gate=own.gate,
            tags=own.tags,
        )
        if canonical_json(entry.to_dict()) != canonical_json(fields):
            raise IntegrityError(f"{name} holds more or less than a question that failed")
        return entry


@dataclass(frozen=True, slots=True)
class _Own:
    """What an entry holds beside its answer."""

    id: str
    tags: dict[str, JsonValue]
    fail_if: tuple[str, ...] = ()
    gate: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class _Options:
    """The fields of :class:`~wherefrom.query.options.QueryOptions`, as JSON has them."""

    k: int = 10
    sign: Sign = "both"
    where: dict[str, JsonValue] = field(default_factory=dict)
    damping: float | None = None
    normalise: Normalise = "none"
    rerank: Rerank = "auto"
    rerank_seconds: float | None = None
    candidates: int = 100
    refine: int = 0
    refine_damping: float | None = None
    refine_documents: int | None = None
    backend: str = "scan"


@dataclass(frozen=True, slots=True)
class _Unanswered:
    """What an entry holds in the place of an answer."""

    query: Query | QuerySet | None
    options: dict[str, JsonValue]
    wanted: Wanted
    schema: str
    error: str
    detail: str


def _require_options(options: Any, name: str) -> None:
    """Refuse options that no question can be asked with.

    Raises:
        ValidationError: One has another type.
        IntegrityError: One is not known, or not allowed.
    """
    read = asdict(_options().validate_json(canonical_json(options), strict=True))
    unknown = [key for key in options if key not in read]
    if unknown:
        raise IntegrityError(f"{name} has an option {unknown[0]!r}, which there is not")
    try:
        QueryOptions(**read)
    except QueryError as error:
        raise IntegrityError(f"{name} has options that cannot be: {error}") from error


def read_answer(fields: Mapping[str, Any], name: str = "the answer") -> Answer:
    """Read :meth:`Answer.to_dict() <wherefrom.Answer.to_dict>` back, to the last bit.

    Args:
        fields: Plain values; ``seconds`` may be missing.
        name: What to call them in errors.

    Raises:
        IntegrityError: They are of another schema, or not what such an answer holds.
    """
    if fields.get("schema") != ANSWER_SCHEMA:
        raise IntegrityError(
            f"{name} has schema {fields.get('schema')!r}; this wherefrom reads {ANSWER_SCHEMA!r}"
        )
    try:
        answer = _answers().validate_python(fields)
    except ValidationError as error:
        raise IntegrityError(f"{name} is no answer of ours: {_first(error)}") from error
    # What pydantic passes over or converts shows here.
    again = answer.to_dict()
    given = {"seconds": again["seconds"], **fields}
    if canonical_json(again) != canonical_json(given):
        odd = [
            key
            for key in sorted({*given, *again})
            if canonical_json(given.get(key)) != canonical_json(again.get(key))
        ]
        raise IntegrityError(
            f"{name} is no answer of ours: {', '.join(map(repr, odd))} cannot be what wherefrom "
            "wrote"
        )
    return answer


def read_entries(lines: Iterable[bytes], name: str) -> Iterator[Entry]:
    """Read the lines of a file of answers.

    Args:
        lines: With their ends.
        name: What to call the file in errors.

    Raises:
        IntegrityError: A line is no entry, is cut off, or has the id of another one.
    """
    known: set[str] = set()
    for number, line in enumerate(lines, start=1):
        place = f"{name}, line {number}"
        if not line.endswith(b"\n"):
            raise IntegrityError(f"{place} is cut off")
        fields = read_strictly(line, place)
        if not isinstance(fields, dict):
            raise IntegrityError(f"{place} is no JSON object")
        entry = Entry.from_dict(fields, place)
        if entry.id in known:
            raise IntegrityError(f"{place} has the id {entry.id!r} of another line")
        known.add(entry.id)
        yield entry


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg']}"


@cache
def _answers() -> TypeAdapter[Answer]:
    return TypeAdapter(Answer)


@cache
def _options() -> TypeAdapter[_Options]:
    return TypeAdapter(_Options)


@cache
def _own() -> TypeAdapter[_Own]:
    return TypeAdapter(_Own)


@cache
def _unanswered() -> TypeAdapter[_Unanswered]:
    return TypeAdapter(_Unanswered)
