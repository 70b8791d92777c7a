r"""Conditions of a gate: typed comparisons joined by ``and``, read by a small parser.

A condition is about one hit, about the answer, or both::

    proponent.source == 'blocked' and percentile > 99
    hit.year >= 1861 and year <= 1865 and party in ['Whig', 'Democratic']
    answer.certified == false

``proponent.``, ``opponent.`` or ``hit.`` (either; the default) says which hits are meant; all
comparisons must hold of the *same* hit. A name is a field of a hit (:data:`HIT_FIELDS`) or a
metadata column; ``metadata.NAME`` and a name in quotes are always columns. ``answer.`` names one of
:data:`ANSWER_FIELDS`. Values are strings in quotes (``\`` before a quote or a ``\`` that belongs
to them), numbers, ``true`` and ``false``. Operators are those of filters
(:mod:`wherefrom.store.filters`); of a missing value, ``!=`` and ``not in`` are undecidable
(:mod:`wherefrom.audit.gate`), and all other comparisons false. For *or*, give several conditions.

Nothing is evaluated as code.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast, get_args

from wherefrom.errors import FilterError
from wherefrom.records import MetadataValue
from wherefrom.store.filters import Comparison, comparisons
from wherefrom.store.manifest_parts import ColumnType

__all__ = [
    "ANSWER_FIELDS",
    "HIT_FIELDS",
    "LONGEST_CONDITION",
    "Condition",
    "Hits",
    "Term",
    "parse_condition",
]

LONGEST_CONDITION = 2000
"""Characters; no condition that anybody means is longer."""

Hits = Literal["proponent", "opponent", "hit"]
"""Which hits a condition is about; ``hit`` is either."""

HIT_FIELDS: Mapping[str, ColumnType] = {
    "score": "float64",
    "percentile": "float64",
    "cosine": "float64",
    "relatif": "float64",
    "norm": "float64",
    "rank": "int64",
    "tokens": "int64",
    "doc_id": "string",
    "parent_id": "string",
    "text": "string",
}
"""Fields of :class:`~wherefrom.records.Hit` and their types."""

ANSWER_FIELDS: Mapping[str, ColumnType] = {
    "certified": "bool",
    "tier": "string",
    "recall": "float64",
    "proponents_stand_out": "bool",
    "opponents_stand_out": "bool",
    "documents": "int64",
    "log_likelihood": "float64",
}
"""What is said of an answer; ``recall`` is the estimate, and 1 where the lists are certified."""

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<number>[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)
      | (?P<word>[^\W\d]\w*)
      | (?P<quoted>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
      | (?P<sign>==|!=|<=|>=|[<>=\[\]().,])
    )""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_SIGNS = ("==", "!=", "<", "<=", ">", ">=")
_TRUTHS = {"true": True, "false": False}
_CLOSING = {"[": "]", "(": ")"}


@dataclass(frozen=True, slots=True)
class Term:
    """One comparison.

    Attributes:
        of: What its field is one of: an ``answer``, a ``hit``, or a hit's ``metadata``.
        comparison: Checked: its value has the field's type.
    """

    of: Literal["answer", "hit", "metadata"]
    comparison: Comparison


@dataclass(frozen=True, slots=True)
class Condition:
    """Comparisons that must all hold.

    Attributes:
        hits: Which hits it is about; ``None`` for a condition on the answer alone.
        terms: At least one.
        given: As it was written.
    """

    hits: Hits | None
    terms: tuple[Term, ...]
    given: str = field(compare=False)

    def __str__(self) -> str:
        """Written so that :func:`parse_condition` reads it back to the same."""
        return " and ".join(self._term(term) for term in self.terms)

    def _term(self, term: Term) -> str:
        compared = term.comparison
        prefix = "answer" if term.of == "answer" else self.hits
        name = f"metadata.{_quote(compared.column)}" if term.of == "metadata" else compared.column
        return f"{prefix}.{name} {_operation(compared)}"


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    start: int

    @property
    def string(self) -> str:
        """The value of a quoted string."""
        return _ESCAPE.sub(r"\1", self.text[1:-1])


def parse_condition(text: str, columns: Mapping[str, ColumnType]) -> Condition:
    """Read a condition and check it against the metadata columns of an index.

    Args:
        text: See the module.
        columns: Metadata columns and their types.

    Raises:
        FilterError: It cannot be read, names what there is not, or compares with a wrong type.
    """
    if len(text) > LONGEST_CONDITION:
        raise FilterError(
            f"the condition {text[:40]!r}... has {len(text):,} characters; give at most "
            f"{LONGEST_CONDITION:,}"
        )
    return _Parser(text, columns).condition()


class _Parser:
    """Recursive descent over the tokens of one condition."""

    def __init__(self, text: str, columns: Mapping[str, ColumnType]) -> None:
        self._text = text
        self._columns = columns
        self._tokens = _tokens(text)
        self._next = 0
        self._hits: Hits | None = None
        self._prefixed = False

    def condition(self) -> Condition:
        """``term ("and" term)*``."""
        terms = [self._term()]
        while self._word("and"):
            terms.append(self._term())
        if self._peek is not None:
            raise self._unexpected("'and', or the end; for 'or', give several conditions")
        return Condition(self._hits, tuple(terms), self._text)

    def _term(self) -> Term:
        of, name, kind = self._field()
        operator, value = self._operation()
        (comparison,) = comparisons({name: [(operator, value)]}, {name: kind})
        return Term(of, comparison)

    def _field(self) -> tuple[Literal["answer", "hit", "metadata"], str, ColumnType]:
        """``[prefix "."] name``, where a name may hold dots."""
        path = [self._name()]
        while self._sign("."):
            path.append(self._name())
        first = path[0]
        if len(path) > 1 and first.kind == "word" and first.text == "answer":
            name = ".".join(token.text for token in path[1:])
            if name not in ANSWER_FIELDS:
                raise FilterError(
                    f"condition {self._text!r}: answers have no {name!r}; they have "
                    f"{', '.join(ANSWER_FIELDS)}"
                )
            return "answer", name, ANSWER_FIELDS[name]
        if len(path) > 1 and first.kind == "word" and first.text in get_args(Hits):
            self._about(cast(Hits, first.text))
            path = path[1:]
        elif self._hits is None:
            self._hits = "hit"
        return self._hit_field(path)

    def _hit_field(
        self, path: Sequence[_Token]
    ) -> tuple[Literal["hit", "metadata"], str, ColumnType]:
        single = path[0]
        if len(path) == 1 and single.kind == "word" and single.text in HIT_FIELDS:
            return "hit", single.text, HIT_FIELDS[single.text]
        if len(path) > 1 and single.kind == "word" and single.text == "metadata":
            path = path[1:]
        name = ".".join(token.string if token.kind == "quoted" else token.text for token in path)
        if name not in self._columns:
            raise FilterError(
                f"condition {self._text!r}: no field or metadata column {name!r}; hits have "
                f"{', '.join(HIT_FIELDS)}; the index has {', '.join(self._columns) or 'none'}"
            )
        return "metadata", name, self._columns[name]

    def _about(self, hits: Hits) -> None:
        """Note which hits are meant; a prefix on one comparison holds for all."""
        if self._prefixed and hits != self._hits:
            raise FilterError(
                f"condition {self._text!r} is about one hit, not {self._hits} and {hits}; give "
                "two conditions"
            )
        self._hits, self._prefixed = hits, True

    def _operation(self) -> tuple[str, object]:
        if self._word("is"):
            if self._word("missing"):
                return "==", None
            if self._word("present"):
                return "!=", None
            raise self._unexpected("'missing' or 'present'")
        if self._word("in"):
            return "in", self._values()
        if self._word("not"):
            if not self._word("in"):
                raise self._unexpected("'in' after 'not'")
            return "not in", self._values()
        if self._word("contains"):
            return "contains", self._value()
        token = self._peek
        if token is not None and token.text in (*_SIGNS, "="):
            self._next += 1
            return "==" if token.text == "=" else token.text, self._value()
        raise self._unexpected(
            f"an operator: {' '.join(_SIGNS)} in, not in, contains, is missing, is present"
        )

    def _values(self) -> list[MetadataValue]:
        """``"[" value ("," value)* "]"``, or in round brackets."""
        for opening, closing in _CLOSING.items():
            if self._sign(opening):
                values = [self._value()]
                while self._sign(","):
                    values.append(self._value())
                if not self._sign(closing):
                    raise self._unexpected(f"',' or {closing!r}")
                return values
        raise self._unexpected("a list, as ['a', 'b']")

    def _value(self) -> MetadataValue:
        token = self._peek
        if token is not None:
            self._next += 1
            if token.kind == "quoted":
                return token.string
            if token.kind == "number":
                return self._number(token)
            if token.text in _TRUTHS:
                return _TRUTHS[token.text]
            self._next -= 1
        raise self._unexpected("a value: a string in quotes, a number, true or false")

    def _number(self, token: _Token) -> int | float:
        if token.text.lstrip("+-").isdigit():
            return int(token.text)
        number = float(token.text)
        if not math.isfinite(number):
            raise FilterError(f"condition {self._text!r}: {token.text} is beyond all numbers")
        return number

    def _name(self) -> _Token:
        token = self._peek
        if token is None or token.kind not in ("word", "quoted"):
            raise self._unexpected("a field")
        self._next += 1
        return token

    @property
    def _peek(self) -> _Token | None:
        return self._tokens[self._next] if self._next < len(self._tokens) else None

    def _word(self, word: str) -> bool:
        return self._accept("word", word)

    def _sign(self, sign: str) -> bool:
        return self._accept("sign", sign)

    def _accept(self, kind: str, text: str) -> bool:
        token = self._peek
        if token is None or (token.kind, token.text) != (kind, text):
            return False
        self._next += 1
        return True

    def _unexpected(self, wanted: str) -> FilterError:
        token = self._peek
        found = "it ends" if token is None else f"{token.text!r} stands at {token.start + 1}"
        return FilterError(f"cannot read the condition {self._text!r}: {found}; write {wanted}")


def _tokens(text: str) -> list[_Token]:
    tokens = []
    end = len(text.rstrip())
    start = 0
    while start < end:
        match = _TOKEN.match(text, start)
        if match is None:
            rest = text[start:].lstrip()
            why = "a quote is not closed" if rest[0] in "'\"" else f"{rest[0]!r} has no meaning"
            raise FilterError(
                f"cannot read the condition {text!r}: {why} at {len(text) - len(rest) + 1}; write "
                "FIELD OPERATOR VALUE, joined by and"
            )
        kind = str(match.lastgroup)
        tokens.append(_Token(kind, match[kind], match.start(kind)))
        start = match.end()
    return tokens


def _operation(compared: Comparison) -> str:
    """Operator and value, as they are written."""
    operator, value = compared.operator, compared.value
    if value is None:
        return "is missing" if operator == "==" else "is present"
    if isinstance(value, tuple):
        return f"{operator} [{', '.join(map(_literal, value))}]"
    return f"{operator} {_literal(value)}"


def _literal(value: MetadataValue) -> str:
    if isinstance(value, str):
        return _quote(value)
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
