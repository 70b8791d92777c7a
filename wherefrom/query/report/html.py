"""Answers as one HTML file that needs nothing else: to read, to print, to keep as evidence.

Whatever documents hold is shown, never obeyed: jinja2 escapes all of it, control characters are
dropped from every value that is put out, and the page's content security policy allows no script,
no request and no style but its own. The same answers give the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from wherefrom.query import wording
from wherefrom.query.answer import Answer
from wherefrom.query.export.files import write_file
from wherefrom.query.printable import excerpt, printable_lines
from wherefrom.query.report.section import Section

__all__ = ["write_report"]


def write_report(
    sections: Sequence[tuple[str, Answer]],
    path: str | os.PathLike[str],
    *,
    notes: Sequence[str] = (),
) -> Path:
    """Write answers as one self-contained HTML file.

    Args:
        sections: ``(title, answer)``; an empty title leaves the heading to the question.
        path: The file; one that is there already is replaced.
        notes: Paragraphs shown before the answers.

    Returns:
        The path, absolute.

    Raises:
        StorageError: The file cannot be written.
    """
    page = _page(sections, notes).encode()
    return write_file(path, lambda temporary: temporary.write_bytes(page))


def _page(sections: Sequence[tuple[str, Answer]], notes: Sequence[str]) -> str:
    environment = _environment()
    style = environment.get_template("report.css").render()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    answers = [answer for _, answer in sections]
    return environment.get_template("report.html").render(
        sections=[Section(title, answer) for title, answer in sections],
        notes=notes,
        style=Markup(style),
        style_digest=digest,
        indexes=_indexes(answers),
        percentiles=any(hit.percentile is not None for answer in answers for hit in answer.hits),
        tokens_are=list(
            dict.fromkeys(
                answer.explanation.tokens_are
                for answer in answers
                if answer.explanation is not None and answer.explanation.tokens_are is not None
            )
        ),
        explained=any(answer.explanation is not None for answer in answers),
        compared=any(answer.similarity is not None for answer in answers),
        contracts=list(dict.fromkeys(wording.measured(answer).contract for answer in answers)),
        excerpt=excerpt,
        version=version("wherefrom"),
        wording=wording,
    )


@cache
def _environment() -> Environment:
    """The templates, compiled once."""
    return Environment(
        loader=PackageLoader("wherefrom.query.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )


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
