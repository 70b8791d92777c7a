"""The service's OpenAPI document: routes as declared, answers by their published schema."""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict, Field

from wherefrom.query.export.schema import answer_schema

__all__ = ["ANSWER", "Failure", "failures", "openapi_document"]

ANSWER: dict[str, Any] = {"$ref": "#/components/schemas/Answer"}
"""Where the document holds the schema of an answer."""


class Failure(BaseModel):
    """Why a request was refused.

    Attributes:
        error: The class of the error.
        detail: What was given, what is allowed, what to do: one line.
    """

    model_config = ConfigDict(extra="forbid")

    error: str = Field(description="Class of the error.")
    detail: str = Field(description="What was given, what is allowed, what to do: one line.")


_REASONS = {
    400: "The question or its filter is not well formed.",
    401: "The token is missing or wrong.",
    403: "The Host is none of this server's names, or the request comes from another site.",
    404: "There is no such document.",
    413: "The body is too large.",
    422: "A field is missing, unknown, of another type or out of range.",
    429: "As many requests as allowed wait already; see Retry-After.",
    500: "The index or the model failed.",
    503: "The service is shutting down, or the index cannot be read.",
    504: "The request took longer than allowed.",
}
_HEADERS = {
    401: {"WWW-Authenticate": {"schema": {"type": "string"}}},
    429: {"Retry-After": {"schema": {"type": "integer", "minimum": 1}}},
}


def failures(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The responses that a route may give when it does not do what it is for.

    Args:
        statuses: Those beside 401, 403 and 500, which every route may give.
    """
    told: dict[int | str, dict[str, Any]] = {}
    for status in sorted({*statuses, 401, 403, 500}):
        told[status] = {"model": Failure, "description": _REASONS[status]}
        if status in _HEADERS:
            told[status]["headers"] = _HEADERS[status]
    return told


def openapi_document(app: FastAPI, *, token: bool) -> dict[str, Any]:
    """The document.

    Args:
        app: The application.
        token: Whether requests must bring one.
    """
    document = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    components = document.setdefault("components", {})
    components["schemas"] = {**components.get("schemas", {}), **_answer_schemas()}
    # FastAPI adds its own shape of errors for parameters; ours is declared at every route.
    for unused in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(unused, None)
    if token:
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
        for path in ("/healthz", "/readyz"):
            document["paths"][path]["get"]["security"] = []
    return document


def _answer_schemas() -> dict[str, Any]:
    """The published JSON Schema of answers, its parts side by side with all others."""
    text = answer_schema().replace('"#/$defs/', '"#/components/schemas/')
    schema: dict[str, Any] = json.loads(text)
    parts: dict[str, Any] = schema.pop("$defs")
    for keyword in ("$schema", "$id"):
        schema.pop(keyword, None)
    return {**parts, "Answer": schema}
