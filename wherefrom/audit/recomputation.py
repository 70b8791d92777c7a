"""A bundle's questions, asked again.

On the machine that answered, the same index gives the same bits. Another processor, or another
torch, rounds otherwise; scores then agree to a tolerance, which has to be asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from wherefrom.audit.asking import BatchQuery, ask_all
from wherefrom.audit.bundle import bundle_line, portable
from wherefrom.audit.canonical import canonical_json
from wherefrom.audit.entries import Entry, Wanted
from wherefrom.audit.verification import Problem
from wherefrom.query.answer import Answer
from wherefrom.records import Progress

if TYPE_CHECKING:
    from wherefrom.query.index import Index

__all__ = ["Recomputation", "recompute"]

_ROUNDED = (int, float)


@dataclass(frozen=True, slots=True)
class Recomputation:
    """What asking again brought.

    Attributes:
        answers: Questions asked again.
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
        tolerance: Largest difference of scores that passes, relative to the largest score of an
            answer; by default answers must be the same to the last bit, in all they hold.
        progress: Called as ``progress(phase, done, total)``.
    """
    problems: list[Problem] = []
    identical, largest = 0, 0.0
    for done, (entry, again) in enumerate(_again(index, entries), start=1):
        same = bundle_line(portable(again)) == bundle_line(entry)
        identical += same
        if not same:
            difference, detail = _compare(entry, again, tolerance)
            largest = max(largest, difference)
            if detail is not None:
                problems.append(Problem("index", f"answer {entry.id}", detail))
        if progress is not None:
            progress("asking again", done, len(entries))
    return Recomputation(len(entries), identical, largest, tuple(problems))


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
        first = next(_differences(_plain(entry.answer), _plain(again.answer)), "its bytes")
        return difference, (
            f"differs in {first}; scores by up to {difference:.3g} of the largest one"
        )
    if difference > tolerance:
        return difference, (
            f"has scores that differ by {difference:.3g} of the largest one; {tolerance:g} passes"
        )
    odd = next(_differences(_plain(entry.answer), _plain(again.answer), rounded=True), None)
    return difference, None if odd is None else f"differs in {odd}"


def _failed(entry: Entry, again: Entry) -> str:
    was, now = (
        "answered" if one.failure is None else f"refused ({one.failure.detail})"
        for one in (entry, again)
    )
    return f"was {was}; asked again, it is {now}"


def _ids(answer: Answer, sign: str) -> list[str]:
    return [hit.doc_id for hit in getattr(answer, sign)]


def _largest_difference(before: Answer, now: Answer) -> float:
    scores = {hit.doc_id: hit.score for hit in now.hits}
    unit = max((abs(hit.score) for hit in before.hits), default=0.0)
    largest = max((abs(hit.score - scores[hit.doc_id]) for hit in before.hits), default=0.0)
    return 0.0 if largest == 0.0 else largest / unit if unit else float("inf")


def _plain(answer: Answer) -> dict[str, Any]:
    """What is compared: hits by their ids, for near ties may change places."""
    plain = {
        **answer.to_dict(),
        "proponents": {hit.doc_id: asdict(hit) for hit in answer.proponents},
        "opponents": {hit.doc_id: asdict(hit) for hit in answer.opponents},
    }
    for own in ("seconds", "index"):
        del plain[own]
    if answer.explanation is not None:
        plain["explanation"]["hits"] = {hit.doc_id: asdict(hit) for hit in answer.explanation.hits}
    return plain


def _differences(before: Any, now: Any, where: str = "", *, rounded: bool = False) -> Iterator[str]:
    """Paths at which two plain values differ; ``rounded`` passes over numbers that may be so."""
    if isinstance(before, dict) and isinstance(now, dict) and before.keys() == now.keys():
        for key, value in before.items():
            path = f"{where}.{key}" if where else str(key)
            yield from _differences(value, now[key], path, rounded=rounded)
    elif (
        isinstance(before, (list, tuple))
        and isinstance(now, (list, tuple))
        and len(before) == len(now)
    ):
        for place, (one, other) in enumerate(zip(before, now, strict=True)):
            yield from _differences(one, other, f"{where}[{place}]", rounded=rounded)
    elif before != now or type(before) is not type(now):
        numbers = all(type(value) in _ROUNDED for value in (before, now))
        if not (rounded and numbers):
            yield where
