"""Answers made by hand, for what shows them; some documents mean harm."""

from __future__ import annotations

from typing import Any

from wherefrom.query.answer import Answer
from wherefrom.records import Certificate, Hit, Query, QuerySet

HOSTILE = (
    "<script>alert(1)</script> </style> [red]danger[/red] :skull: {{ 7*7 }} "
    "\x1b[31mred\x1b[0m \x9b2J"
    "\x1b]0;title\x07 \u202egnisrever\u202c \x00\x08 \ud800 end"
)

INDEX = {
    "path": "/data/my.index",
    "manifest_sha256": "ab" * 32,
    "documents": 4321,
    "objective": "causal_lm",
    "curvature": "ekfac",
    "damping": 0.1,
    "fisher": "sampled",
    "encoder": "sketch 32768, rotated, 1 bit",
    "bytes_per_document": 4096.0,
    "weights_sha256": "cd" * 32,
}


def hit(rank: int, score: float, **fields: Any) -> Hit:
    values: dict[str, Any] = {
        "doc_id": f"speech {rank}",
        "text": "The Union shall be preserved. " * 40,
        "metadata": {"year": 1860 + rank, "president": "Abraham Lincoln", "party": None},
        "parent_id": None,
        "char_start": 0,
        "tokens": 12,
        "norm": 2.0,
        "cosine": 10 * score,
        "relatif": score / 2,
        "percentile": None,
    }
    return Hit(rank=rank, score=score, **{**values, **fields})


def certificate(**fields: Any) -> Certificate:
    values: dict[str, Any] = {
        "tier": "stored",
        "certified": True,
        "documents": 4321,
        "candidates": 57,
        "backend": "scan",
        "next_proponent": 0.00123,
        "next_opponent": 0.00099,
    }
    return Certificate(**{**values, **fields})


def answer(**fields: Any) -> Answer:
    values: dict[str, Any] = {
        "query": Query("The Union shall", " be preserved"),
        "proponents": (hit(1, 0.0123456), hit(2, 0.00617)),
        "opponents": (hit(1, -0.003086, doc_id="message 9"),),
        "certificate": certificate(),
        "log_likelihood": -3.25,
        "scored_tokens": 2,
        "sign": "both",
        "normalise": "none",
        "damping": 0.1,
        "refined": 0,
        "residual": None,
        "index": INDEX,
        "where": {"year": [("<", 1900)], "party": [("!=", None)]},
    }
    return Answer(**{**values, **fields})


CLASSIFIED = {**INDEX, "objective": "sequence_classification"}

CONTRAST = Query("The Union shall", " be preserved", contrast=" be dissolved")

QUERIES = QuerySet(tuple(Query(f"Question {i}:", f" answer {i}") for i in range(1, 31)))


def hostile_answers() -> list[Answer]:
    """Harm in all that is shown: asked once, against a contrast, of a classifier, in a set."""
    one = Query(HOSTILE, HOSTILE, HOSTILE)
    fields: dict[str, Any] = {
        "proponents": (
            hit(
                1, 0.5, doc_id=HOSTILE, text=HOSTILE, metadata={HOSTILE: HOSTILE}, parent_id=HOSTILE
            ),
        ),
        "opponents": (),
        "where": {HOSTILE: ("==", HOSTILE)},
        "index": {**INDEX, "path": HOSTILE},
    }
    return [
        answer(**fields, query=Query(HOSTILE, HOSTILE)),
        answer(**fields, query=one),
        answer(**{**fields, "index": {**CLASSIFIED, "path": HOSTILE}}, query=one),
        answer(**fields, query=QuerySet((one, one), "sum")),
    ]
