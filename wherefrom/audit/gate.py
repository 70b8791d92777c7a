"""Gates: conditions on answers that stop a pipeline.

A gate fails closed. A comparison with a value that was not measured (a percentile without a
background, say) is neither true nor false, and no more is ``!=`` or ``not in`` with metadata that a
document lacks; a condition that hangs on one is *undecidable*, and that stops a pipeline as a
condition that holds does.

Nothing can be said of hits where no document was searched: that is undecidable, too.

A gate sees the hits that an answer holds, at most ``k`` of each sign: ask for enough of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from operator import eq, ge, gt, le, lt, ne
from typing import Any, Literal

from wherefrom.audit.conditions import Condition, Hits, Term, parse_condition
from wherefrom.errors import FilterError
from wherefrom.query.answer import Answer
from wherefrom.records import Hit, Sign
from wherefrom.store import DocumentTable
from wherefrom.store.filters import Comparison
from wherefrom.store.manifest_parts import ColumnType

__all__ = ["Finding", "Gate", "Verdict"]

Verdict = Literal["fired", "undecidable"]

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "==": eq,
    "!=": ne,
    "<": lt,
    "<=": le,
    ">": gt,
    ">=": ge,
    "in": lambda value, given: value in given,
    "not in": lambda value, given: value not in given,
    "contains": lambda value, given: given in value,
}
_EXCLUDING = ("!=", "not in")
_LISTS: dict[Sign, Hits] = {"proponents": "proponent", "opponents": "opponent"}


class _Unknown:
    """The value of a field that was not measured."""


_UNKNOWN = _Unknown()


@dataclass(frozen=True, slots=True)
class Finding:
    """A condition that stops the gate.

    Attributes:
        condition: As it was written.
        verdict: ``fired``, or ``undecidable`` where a value that it needs was not measured.
        hit: ``proponent`` or ``opponent``; ``None`` for a condition on the answer alone.
        doc_id: The hit's document.
        rank: The hit's rank within its sign.
    """

    condition: str
    verdict: Verdict
    hit: Hits | None = None
    doc_id: str | None = None
    rank: int | None = None


@dataclass(frozen=True, slots=True)
class Gate:
    """Conditions, any of which stops a pipeline.

    Attributes:
        conditions: Checked against the columns of an index.
    """

    conditions: tuple[Condition, ...]

    @classmethod
    def parse(
        cls, conditions: Sequence[str], columns: Mapping[str, ColumnType], sign: Sign = "both"
    ) -> Gate:
        """Read conditions.

        Args:
            conditions: See :mod:`wherefrom.audit.conditions`.
            columns: Metadata columns of the index and their types.
            sign: Which hits will be asked for.

        Raises:
            FilterError: A condition cannot be read, does not fit the columns, or is about hits
                that are not asked for and so could never fire.
        """
        parsed = tuple(parse_condition(text, columns) for text in conditions)
        for condition in parsed:
            asked = _LISTS.get(sign, condition.hits)
            if condition.hits in _LISTS.values() and condition.hits != asked:
                raise FilterError(
                    f"condition {condition.given!r} is about {condition.hits}s, but only {sign} "
                    "are asked for; ask for both"
                )
        return cls(parsed)

    def judge(self, answer: Answer) -> tuple[Finding, ...]:
        """What stops an answer at the gate; empty if nothing does."""
        return tuple(
            finding for condition in self.conditions for finding in _findings(condition, answer)
        )

    def unmatched(self, table: DocumentTable) -> Iterator[str]:
        """Values asked for that no document has, in words: misspelt, or not of this corpus.

        Raises:
            IntegrityError: The table cannot be read.
            StorageError: The disk refuses.
        """
        for condition in self.conditions:
            for term in condition.terms:
                if term.of != "metadata" or term.comparison.operator not in ("==", "in"):
                    continue
                column, given = term.comparison.column, term.comparison.value
                for value in given if isinstance(given, tuple) else (given,):
                    if value is not None and not len(table.facts.where({column: ("==", value)})):
                        yield _never(condition, column, value, table)


def _findings(condition: Condition, answer: Answer) -> list[Finding]:
    """One for each hit of which the condition holds or cannot be decided."""
    if condition.hits is None:
        verdict = _verdict(condition.terms, answer, None)
        return [] if verdict is None else [Finding(condition.given, verdict)]
    kinds: tuple[tuple[Hits, tuple[Hit, ...]], ...] = (
        ("proponent", answer.proponents),
        ("opponent", answer.opponents),
    )
    if answer.certificate.documents == 0:
        return [Finding(condition.given, "undecidable")]
    found = []
    for kind, hits in kinds:
        if condition.hits not in ("hit", kind):
            continue
        for hit in hits:
            verdict = _verdict(condition.terms, answer, hit)
            if verdict is not None:
                found.append(Finding(condition.given, verdict, kind, hit.doc_id, hit.rank))
    return found


def _never(condition: Condition, column: str, value: object, table: DocumentTable) -> str:
    known = {str(one): one for one in table.facts.column(column) if one is not None}
    near = get_close_matches(str(value), known, n=3, cutoff=0.5)
    meant = f"; it has {', '.join(repr(known[name]) for name in near)}" if near else ""
    return (
        f"no document of the index has {column} {value!r}{meant}: that part of the condition "
        f"{condition.given!r} can never hold"
    )


def _verdict(terms: Sequence[Term], answer: Answer, hit: Hit | None) -> Verdict | None:
    """False of one term decides; else one that is unknown leaves all undecided (Kleene)."""
    held = [_holds(term.comparison, _value(term, answer, hit)) for term in terms]
    if False in held:
        return None
    return "undecidable" if None in held else "fired"


def _value(term: Term, answer: Answer, hit: Hit | None) -> object:
    name = term.comparison.column
    if term.of == "answer" or hit is None:
        return _answer_value(name, answer)
    if term.of == "metadata":
        return hit.metadata.get(name)
    value = getattr(hit, name)
    # No parent is a fact of a document; no percentile is the want of a measurement.
    return _UNKNOWN if value is None and name == "percentile" else value


def _answer_value(name: str, answer: Answer) -> object:
    certificate = answer.certificate
    if name == "log_likelihood":
        return answer.log_likelihood
    if name == "recall":
        if certificate.certified:
            return 1.0
        return _UNKNOWN if certificate.recall is None else certificate.recall.estimate
    side = name.removesuffix("_stand_out")
    if side == name:
        return getattr(certificate, name)
    if certificate.background is None or answer.sign not in ("both", side):
        return _UNKNOWN
    # An empty list stands out of nothing.
    return bool(getattr(certificate.background, side))


def _holds(compared: Comparison, value: object) -> bool | None:
    """Whether a comparison holds; ``None`` if nobody can tell."""
    if compared.value is None:
        missing = value is None or value is _UNKNOWN
        return missing == (compared.operator == "==")
    if value is _UNKNOWN:
        return None
    if value is None:
        # What has no source is not "blocked"; but whether it is none of those that are cleared,
        # nobody can tell, and filters, which let it pass no comparison, would let it pass a gate.
        return None if compared.operator in _EXCLUDING else False
    return _OPERATORS[compared.operator](value, compared.value)
