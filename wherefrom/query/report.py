"""Answers as one HTML file that needs nothing else: to read, to print, to keep as evidence.

Whatever documents hold is shown, never obeyed: jinja2 escapes all of it, control characters are
dropped from every value that is put out, and the page's content security policy allows no script,
no request and no style but its own.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from wherefrom.errors import StorageError
from wherefrom.query import wording
from wherefrom.query.answer import Answer
from wherefrom.query.measurement import Measurement
from wherefrom.query.printable import printable_lines
from wherefrom.records import Hit, Normalise, Query, QuerySet
from wherefrom.store import write_bytes_atomically

__all__ = ["write_report"]

_QUERIES_SHOWN = 20


@dataclass(frozen=True, slots=True)
class _Ranking:
    """One sign's hits, and what they are ranked by; ``top`` is what a full bar stands for."""

    title: str
    kind: str
    hits: tuple[Hit, ...]
    normalise: Normalise
    top: float

    def bar(self, hit: Hit) -> str:
        """Width of a hit's bar in per cent."""
        value = abs(wording.ranked_value(hit, self.normalise))
        return f"{100 * value / self.top:.1f}" if self.top else "0"


@dataclass(frozen=True, slots=True)
class _Section:
    """One answer; ``queries`` are the questions shown, ``hidden`` the number of others."""

    title: str
    answer: Answer
    measured: Measurement
    queries: tuple[Query, ...]
    hidden: int
    rankings: list[_Ranking]

    @classmethod
    def of(cls, title: str, answer: Answer) -> _Section:
        """An answer's section."""
        asked = answer.query
        queries = asked.queries if isinstance(asked, QuerySet) else (asked,) if asked else ()
        shown = queries[:_QUERIES_SHOWN]
        measured = wording.measured(answer)
        hidden = len(queries) - len(shown)
        return cls(title, answer, measured, shown, hidden, _rankings(answer, measured))

    @property
    def reduced(self) -> str | None:
        """How several questions became one, if they did."""
        asked = self.answer.query
        return wording.set_in_words(asked) if isinstance(asked, QuerySet) else None


def write_report(
    sections: Sequence[tuple[str, Answer]],
    path: str | os.PathLike[str],
    *,
    notes: Sequence[str] = (),
) -> Path:
    """Write answers as one self-contained HTML file.

    Args:
        sections: ``(title, answer)``; an empty title leaves the heading out.
        path: The file; one that is there already is replaced.
        notes: Paragraphs shown before the answers.

    Returns:
        The path, absolute.

    Raises:
        StorageError: The file cannot be written.
    """
    target = Path(path).resolve()
    if not target.parent.is_dir():
        raise StorageError(
            f"cannot write {target}: {target.parent} is no directory; make it first or choose "
            "another path"
        )
    if target.exists() and not target.is_file():
        raise StorageError(f"cannot write {target}: it is not a file; choose another path")
    write_bytes_atomically(target, _page(sections, notes).encode())
    return target


def _page(sections: Sequence[tuple[str, Answer]], notes: Sequence[str]) -> str:
    environment = Environment(
        loader=PackageLoader("wherefrom.query"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    style = environment.get_template("report.css").render()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return environment.get_template("report.html").render(
        sections=[_Section.of(title, answer) for title, answer in sections],
        notes=notes,
        style=Markup(style),
        style_digest=digest,
        indexes=_indexes(answer for _, answer in sections),
        percentiles=any(
            hit.percentile is not None
            for _, answer in sections
            for hit in (*answer.proponents, *answer.opponents)
        ),
        contracts=list(dict.fromkeys(wording.measured(answer).contract for _, answer in sections)),
        wording=wording,
    )


def _rankings(answer: Answer, measured: Measurement) -> list[_Ranking]:
    by = answer.normalise
    hits = (*answer.proponents, *answer.opponents)
    top = max((abs(wording.ranked_value(hit, by)) for hit in hits), default=0.0)
    ranking = wording.ranked_by(answer)
    how = "" if ranking is None else f"; {ranking[1]}"
    both = [
        _Ranking(f"Proponents: {measured.raised}{how}", "pro", answer.proponents, by, top),
        _Ranking(f"Opponents: {measured.lowered}{how}", "con", answer.opponents, by, top),
    ]
    return [ranking for ranking in both if ranking.hits]


def _indexes(answers: Iterable[Answer]) -> list[list[tuple[str, str]]]:
    """The identities of all indexes asked, each once."""
    identities: list[list[tuple[str, str]]] = []
    for answer in answers:
        identity = wording.index_in_words(answer.index)
        if identity not in identities:
            identities.append(identity)
    return identities


def _shown(value: object) -> object:
    return printable_lines(value) if type(value) is str else value
