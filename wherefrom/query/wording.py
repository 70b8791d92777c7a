"""Scores, certificates and filters in words: said alike on the terminal and in reports."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from wherefrom.query.answer import Answer
from wherefrom.query.measurement import Measurement, measurement_of
from wherefrom.records import Certificate, Query, QuerySet

__all__ = [
    "NO_PROOF",
    "certificate_in_words",
    "damping_in_words",
    "empty_in_words",
    "filter_in_words",
    "index_in_words",
    "measured",
    "residual_in_words",
    "set_in_words",
    "signed",
    "value_in_words",
    "worth_in_words",
]

NO_PROOF = (
    "Influence says what the model's behaviour would owe to a document, by a first-order estimate. "
    "It is no proof that text was copied, and no measure of similarity."
)

_TIERS = {
    "stored": "the scores of the stored vectors",
    "exact": "scores of uncompressed gradients, computed anew",
}
_INDEX_LABELS = {
    "path": "Index",
    "manifest_sha256": "Manifest SHA-256",
    "weights_sha256": "Weights SHA-256",
    "documents": "Documents (N)",
    "bytes_per_document": "Bytes per document",
}


def signed(score: float) -> str:
    """A score with its sign and three significant digits."""
    return f"{score:+#.3g}".rstrip(".")


def value_in_words(value: object) -> str:
    """A metadata value as a reader writes it; a missing one is a dash."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)


def certificate_in_words(certificate: Certificate) -> str:
    """What a certificate vouches for, in one or two sentences."""
    searched = _counted(certificate.documents, "document")
    by = _TIERS[certificate.tier]
    if certificate.documents == 0:
        return "Nothing was searched: no document passes the filter."
    if not certificate.certified:
        return (
            f"Not certified: the best of {certificate.candidates:,} candidates among {searched}, "
            f"by {by}; a stronger document may be missing."
        )
    start = f"Certified: no stronger document exists among the {searched} searched, by {by}. "
    if certificate.next_bound is None:
        return start + "Each of them was scored in full."
    return start + (
        f"{certificate.candidates:,} of them were scored in full; bounds on the scores of all "
        f"others, {certificate.next_bound:.3g} nats at most, rule them out."
    )


def measured(answer: Answer) -> Measurement:
    """What an answer's scores are nats of."""
    return measurement_of(answer.query, answer.index.get("objective"))


def worth_in_words(answer: Answer) -> str:
    """The value of what was measured: of a completion's log-likelihood, a difference, a mean."""
    nats, count = answer.log_likelihood, answer.scored_tokens
    of_labels = measured(answer).answered == "label"
    one = isinstance(answer.query, Query) and answer.query.contrast is None
    if one and of_labels:
        return f"{nats:.3f} nats (probability {math.exp(nats):.3g})"
    noun = "prediction" if answer.query is None else "label" if of_labels else "token"
    over = f"nats over {_counted(count, noun)}"
    if one:
        return f"{nats:.3f} {over}" + (f" ({nats / count:.3f} a token)" if count > 1 else "")
    return f"{nats:+.3f} {over}"


def set_in_words(query: QuerySet) -> str:
    """How many questions were asked as one, and how they were made one."""
    return f"the {query.reduce} over {_counted(len(query.queries), 'question')}"


def damping_in_words(answer: Answer) -> str | None:
    """The damping of the scores, where it is not the index's own."""
    own = answer.index["damping"]
    if answer.damping == own:
        return None
    return f"{answer.damping:g} for this answer; the index was built with {own:g}"


def residual_in_words(answer: Answer) -> str | None:
    """How closely the inverse was solved for, where it was solved by iteration."""
    if answer.residual is None:
        return None
    return f"{answer.residual:.2g} of the query's gradient left unsolved (0 = an exact inverse)"


def empty_in_words(answer: Answer) -> str:
    """Why an answer lists no document at all."""
    if answer.certificate.documents == 0:
        return "No document passes the filter."
    return "No document has influence in the direction asked for."


def filter_in_words(where: Mapping[str, Any]) -> str:
    """A metadata filter, its conditions joined by ``and``."""
    return " and ".join(
        _condition(column, *pair)
        for column, condition in where.items()
        for pair in _pairs(condition)
    )


def index_in_words(index: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What identifies an index, as ``(label, value)``."""
    return [
        (_INDEX_LABELS.get(name, name.replace("_", " ").capitalize()), value_in_words(value))
        for name, value in index.items()
    ]


def _pairs(condition: object) -> list[tuple[str, object]]:
    """The (operator, value) pairs of a condition in any of its written forms."""
    if not isinstance(condition, (list, tuple)):
        return [("==", condition)]
    if len(condition) == 2 and isinstance(condition[0], str):
        return [(condition[0], condition[1])]
    return [(operator, value) for operator, value in condition]


def _condition(column: str, operator: str, value: object) -> str:
    if value is None:
        return f"{column} is {'missing' if operator == '==' else 'present'}"
    if isinstance(value, (list, tuple, set, frozenset)):
        return f"{column} {operator} {', '.join(map(value_in_words, value))}"
    return f"{column} {'=' if operator == '==' else operator} {value_in_words(value)}"


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
