"""The published JSON Schema of answers: what :meth:`Answer.to_dict` holds, for other tools.

Made from the records themselves (draft 2020-12, with the descriptions of their docstrings) and kept
in the package as ``answer.schema.json``, so that other tools get it without running anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from inspect import cleandoc
from typing import Any, Literal

from pydantic import TypeAdapter

from wherefrom.query.answer import ANSWER_SCHEMA, Answer
from wherefrom.query.interpretation.explanation import (
    Explanation,
    Group,
    Grouping,
    HitShares,
    HitSimilarity,
    LayerName,
    QuestionShares,
    SimilarDocument,
    Similarity,
    TokenShare,
)
from wherefrom.records import Background, Certificate, Hit, Query, QuerySet, Recall

__all__ = ["answer_schema", "generated_schema"]


@dataclass(frozen=True, slots=True)
class _IndexIdentity:
    """What identifies an index.

    Attributes:
        path: Where it was when it was asked.
        manifest_sha256: Of its manifest, which names the digests of all else.
        documents: How many it holds (N).
        objective: Kind of what documents were trained for.
        curvature: Kind of the curvature.
        damping: In units of a layer's mean eigenvalue.
        fisher: How labels of the curvature were chosen; null where it needs none.
        encoder: The stages of the encoder, in words.
        bytes_per_document: Of a stored vector.
        weights_sha256: Of the model.
    """

    path: str
    manifest_sha256: str
    documents: int
    objective: str
    curvature: str
    damping: float
    fisher: str | None
    encoder: str
    bytes_per_document: float
    weights_sha256: str


@dataclass(frozen=True, slots=True)
class _Finding:
    """A condition that stopped the answer at the gate.

    Attributes:
        condition: As it was written.
        verdict: Whether it holds, or cannot be decided.
        hit: Of which list the hit is; null for a condition on the answer alone.
        doc_id: The hit's document.
        rank: The hit's rank within its sign.
    """

    condition: str
    verdict: Literal["fired", "undecidable"]
    hit: Literal["proponent", "opponent"] | None
    doc_id: str | None
    rank: int | None


@dataclass(frozen=True, slots=True)
class _Entry:
    """What files of answers, and gates, say besides.

    Attributes:
        id: Of the question, unique in a file of answers.
        tags: Further fields of the question, carried through such a file.
        fail_if: Conditions of the gate that the answer was held against.
        gate: What stopped it there.
    """

    id: str
    tags: dict[str, Any]
    fail_if: list[str]
    gate: list[_Finding]


_RECORDS: dict[str, type] = {
    record.__name__.lstrip("_"): record
    for record in (
        *(Answer, Background, Certificate, Explanation, Group, Grouping, Hit, HitShares),
        *(HitSimilarity, LayerName, Query, QuerySet, QuestionShares, Recall, SimilarDocument),
        *(Similarity, TokenShare, _IndexIdentity, _Entry, _Finding),
    )
}
_FROM_ONE = {"rank", "bm25_rank", "cluster"}
_PER_CENT = {"percentile", "proponents_beyond", "opponents_beyond"}
_SHARES = {"Recall": {"estimate", "low", "high", "confidence"}, "Grouping": {"confidence"}}
_DIGESTS = {"manifest_sha256", "weights_sha256"}
_ROLE = re.compile(r":\w+:`(?:~[\w.]+\.|\.)?([\w.]+)`|``([^`]+)``")
_NULL = re.compile(r"\bNone\b")
_ATTRIBUTE = re.compile(r"^    (\w+): (.*(?:\n     +.*)*)", re.MULTILINE)


def answer_schema() -> str:
    """The JSON Schema of an answer, as it is published: the text of ``answer.schema.json``."""
    return (
        files("wherefrom.query.export").joinpath("answer.schema.json").read_text(encoding="utf-8")
    )


def generated_schema() -> dict[str, Any]:
    """The JSON Schema of an answer, made from the records; a test compares it with the file."""
    schema = TypeAdapter(Answer).json_schema(mode="serialization")
    identity = TypeAdapter(_IndexIdentity).json_schema(mode="serialization")
    finding = TypeAdapter(_Finding).json_schema(mode="serialization")
    records = {**schema.pop("$defs"), "IndexIdentity": identity, "Finding": finding}
    for name, record in sorted(records.items()):
        records[name] = _strict(name, record)
    answer = _strict("Answer", schema)
    # What Answer holds as plain mappings is said by name here.
    answer["properties"] |= {
        "index": {"$ref": "#/$defs/IndexIdentity", **_described(answer, "index")},
        "where": {"type": "object", **_described(answer, "where")},
    }
    answer["properties"] = {
        "schema": {"const": ANSWER_SCHEMA, "description": "Name and version of this schema."},
        "contract": {"type": "string", "description": "Unit and sign of the scores, in words."},
        **answer["properties"],
    }
    answer["required"] = list(answer["properties"])
    # Optional: an answer by itself has none of these.
    entry = TypeAdapter(_Entry).json_schema(mode="serialization")
    answer["properties"] |= _strict("Entry", entry)["properties"]
    answer["properties"]["gate"]["items"] = {"$ref": "#/$defs/Finding"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:" + ANSWER_SCHEMA.replace("-", ":", 1).replace("/", ":"),
        **answer,
        "title": ANSWER_SCHEMA,
        "$defs": dict(sorted(records.items())),
    }


def _strict(name: str, record: dict[str, Any]) -> dict[str, Any]:
    """A record's schema with all its fields required, no other allowed, and its docstring."""
    documented = cleandoc(_RECORDS[name].__doc__ or "")
    summary = documented.partition("\nAttributes:")[0]
    told = dict(_attributes(documented))
    properties = {}
    for field, schema in record["properties"].items():
        kept = {key: value for key, value in schema.items() if key not in ("title", "default")}
        properties[field] = _bounded(name, field, kept)
        if field in told:
            properties[field]["description"] = told[field]
    return {
        "type": "object",
        "description": _prose(summary),
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _bounded(record: str, field: str, schema: dict[str, Any]) -> dict[str, Any]:
    """A field's schema with the range that its values lie in."""
    bounds: dict[str, Any] = {}
    if field in _PER_CENT:
        bounds = {"minimum": 0, "maximum": 100}
    elif field in _SHARES.get(record, ()):
        bounds = {"minimum": 0, "maximum": 1}
    elif field in _DIGESTS:
        bounds = {"pattern": "^[0-9a-f]{64}$"}
    elif {one.get("type") for one in schema.get("anyOf", [schema])} <= {"integer", "null"}:
        bounds = {"minimum": 1 if field in _FROM_ONE else 0}
    # Bounds of numbers, and patterns, say nothing about null: they need not go inside of anyOf.
    return {**schema, **bounds}


def _attributes(documented: str) -> Iterator[tuple[str, str]]:
    """Names and descriptions of the attributes that a docstring lists."""
    for name, told in _ATTRIBUTE.findall(documented.partition("\nAttributes:")[2]):
        yield name, _prose(told)


def _prose(text: str) -> str:
    """Text of a docstring without its markup, on one line."""
    plain = _ROLE.sub(lambda role: role[1] or role[2], text)
    return " ".join(_NULL.sub("null", plain).split())


def _described(answer: dict[str, Any], field: str) -> dict[str, str]:
    return {"description": answer["properties"][field]["description"]}
