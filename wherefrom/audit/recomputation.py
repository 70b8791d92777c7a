"""A bundle's questions, asked again.

On the machine that answered, the same index gives the same bits. Another processor, or another
torch, rounds otherwise; scores then agree to a tolerance, which has to be asked for.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from wherefrom.audit.asking import BatchQuery, ask_all
from wherefrom.audit.bundle import bundle_line, portable
from wherefrom.audit.canonical import canonical_json
from wherefrom.audit.entries import Entry, Wanted
from wherefrom.audit.verification import Problem
from wherefrom.query.answer import Answer
from wherefrom.records import Hit, Progress

if TYPE_CHECKING:
    from wherefrom.maintenance.index import Index

__all__ = ["Recomputation", "recompute"]

_RANKS = ("proponents[].rank", "opponents[].rank")
"""Places, which near ties may change; they are compared by the scores that stand there."""

_CANDIDATES = "certificate.candidates"
"""How many documents bounds do not rule out; at the bound there are near ties, too."""

_GIVEN = (
    "index.",
    "options.",
    "where.",
    "damping",
    "proponents[].metadata.",
    "opponents[].metadata.",
    "groups[].groups[].value",
)
"""Fields whose floats nobody computes."""

_SHARES = ("percentile", "_beyond")
_STEEP = 100.0
"""What a percentile may differ by, in units of what the cosine that it is of may."""


@dataclass(frozen=True, slots=True)
class Recomputation:
    """What asking again brought.

    Attributes:
        answers: Questions asked again. What could not be asked in the first place is not among
            them: that it could not is vouched for by a signature alone.
        identical: Those answered with the same bits.
        largest_difference: Of any score, relative to the largest score of its answer.
        problems: Answers that are others.
    """

    answers: int
    identical: int
    largest_difference: float
    problems: tuple[Problem, ...]


def recompute(
    index: Index,
    entries: Sequence[Entry],
    *,
    tolerance: float | None = None,
    progress: Progress | None = None,
) -> Recomputation:
    """Ask the questions of a bundle again and compare.

    Args:
        index: The index that was asked.
        entries: Of the bundle.
        tolerance: Largest difference of floats that passes, relative to the largest value that
            their field has in the answer (for percentiles a hundred times that); whatever is no
            float, and the gate's findings, must be the same. By default all must be, to the last
            bit.
        progress: Called as ``progress(phase, done, total)``.
    """
    problems: list[Problem] = []
    asked = [entry for entry in entries if entry.query is not None]
    identical, largest = 0, 0.0
    for done, (entry, again) in enumerate(_again(index, asked), start=1):
        same = bundle_line(portable(again)) == bundle_line(entry)
        identical += same
        if not same:
            difference, detail = _compare(entry, again, tolerance)
            largest = max(largest, difference)
            if detail is not None:
                problems.append(Problem("index", f"answer {entry.id}", detail))
        if progress is not None:
            progress("asking again", done, len(asked))
    return Recomputation(len(asked), identical, largest, tuple(problems))


def _again(index: Index, entries: Sequence[Entry]) -> Iterator[tuple[Entry, Entry]]:
    """Each entry beside a new one; those that were asked alike share scans."""
    for _, group in groupby(entries, key=_how):
        before = list(group)
        asked = [BatchQuery(entry.id, entry.query, entry.tags) for entry in before]
        first = before[0]
        again = ask_all(index, asked, first.options, wanted=first.wanted, fail_if=first.fail_if)
        yield from zip(before, again, strict=True)


def _how(entry: Entry) -> tuple[bytes, Wanted, tuple[str, ...]]:
    return canonical_json(entry.options), entry.wanted, entry.fail_if


def _compare(entry: Entry, again: Entry, tolerance: float | None) -> tuple[float, str | None]:
    """The largest relative difference of scores, and what is wrong, if anything is."""
    if entry.answer is None or again.answer is None:
        return 0.0, _failed(entry, again)
    for sign in ("proponents", "opponents"):
        told, found = (_ids(answer, sign) for answer in (entry.answer, again.answer))
        alike = told == found if tolerance is None else sorted(told) == sorted(found)
        if not alike:
            return 0.0, f"names other {sign} than the index does now"
    difference = _largest_difference(entry.answer, again.answer)
    if tolerance is None:
        first = next((path for path, *_ in _differing(entry, again)), "its bytes")
        return difference, f"differs in {first}; scores by up to {difference:.3g} of the largest"
    if difference > tolerance:
        return difference, (
            f"has scores that differ by {difference:.3g} of the largest one; {tolerance:g} passes"
        )
    return difference, _beyond(entry, again, tolerance)


def _failed(entry: Entry, again: Entry) -> str:
    was, now = (
        "answered" if one.failure is None else f"refused ({one.failure.detail})"
        for one in (entry, again)
    )
    return f"was {was}; asked again, it is {now}"


def _ids(answer: Answer, sign: str) -> list[str]:
    return [hit.doc_id for hit in getattr(answer, sign)]


def _largest_difference(before: Answer, now: Answer) -> float:
    """Of scores, by document and by place, relative to the largest score of now.

    Near ties may change places; whatever else does, differs by place.
    """
    scores = {hit.doc_id: hit.score for hit in now.hits}
    unit = max(map(abs, scores.values()), default=0.0)
    by_document = (abs(hit.score - scores[hit.doc_id]) for hit in before.hits)
    by_place = (
        abs(one.score - other.score) for one, other in zip(before.hits, now.hits, strict=True)
    )
    largest = max((*by_document, *by_place), default=0.0)
    return 0.0 if largest == 0.0 else largest / unit if unit else math.inf


def _in_order(hits: Sequence[Hit]) -> bool:
    return [hit.rank for hit in hits] == list(range(1, len(hits) + 1))


def _nearly(before: object, now: object) -> bool:
    """Whether two counts are the same but for a few in a hundred."""
    return type(before) is int and type(now) is int and abs(before - now) <= max(2, now // 50)


def _beyond(entry: Entry, again: Entry, tolerance: float) -> str | None:
    """What differs by more than rounding explains, if anything does."""
    if entry.gate != again.gate:
        return "has other findings of the gate than its conditions give now"
    lists = () if entry.answer is None else (entry.answer.proponents, entry.answer.opponents)
    if not all(map(_in_order, lists)):
        return "has hits that are out of order"
    scales = _scales(again)
    for path, field, before, now in _differing(entry, again):
        # Only floats are rounded; of whole numbers, two depend on them.
        if field in _RANKS or (field == _CANDIDATES and _nearly(before, now)):
            continue
        rounded = type(before) is type(now) is float and not field.startswith(_GIVEN)
        if not rounded:
            return f"differs in {path}"
        steep = _STEEP if field.endswith(_SHARES) else 1.0
        if not abs(before - now) <= tolerance * steep * scales[field]:
            return f"differs in {path}: {before!r}, asked again {now!r}"
    return None


def _scales(entry: Entry) -> dict[str, float]:
    """The largest absolute value of each field that is a float, as it was found now."""
    scales: dict[str, float] = {}
    for _, field, value in _leaves(_plain(entry, entry), "", ""):
        if type(value) is float:
            scales[field] = max(scales.get(field, 0.0), abs(value))
    return scales


def _differing(entry: Entry, again: Entry) -> Iterator[tuple[str, str, Any, Any]]:
    """Path, field, and both values, wherever two answers differ."""
    missing = object()
    told = {path: (field, value) for path, field, value in _leaves(_plain(entry, entry), "", "")}
    found = {path: (field, value) for path, field, value in _leaves(_plain(again, entry), "", "")}
    for path in (*told, *(path for path in found if path not in told)):
        field, before = told.get(path, (path, missing))
        _, now = found.get(path, (path, missing))
        if before != now or type(before) is not type(now):
            yield path, field, before, now


def _plain(entry: Entry, order: Entry) -> Any:
    """An answer as it stands in a bundle, with its documents in the order of another one."""
    fields = json.loads(bundle_line(portable(entry)))
    places = {} if order.answer is None else {h.doc_id: i for i, h in enumerate(order.answer.hits)}
    lists = [(fields, "proponents"), (fields, "opponents")]
    lists += [(fields[name], "hits") for name in ("explanation", "similarity") if fields[name]]
    for owner, name in lists:
        owner[name].sort(key=lambda hit: places.get(hit["doc_id"], len(places)))
    return fields


def _leaves(value: Any, path: str, field: str) -> Iterator[tuple[str, str, Any]]:
    """Path, field (the path without places in lists) and value of all that is no container."""
    if isinstance(value, dict):
        for key, inner in value.items():
            dot = "." if path else ""
            yield from _leaves(inner, f"{path}{dot}{key}", f"{field}{dot}{key}")
    elif isinstance(value, list):
        yield f"{path}.length", f"{field}.length", len(value)
        for place, inner in enumerate(value):
            yield from _leaves(inner, f"{path}[{place}]", f"{field}[]")
    else:
        yield path, field, value
