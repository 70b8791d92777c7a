"""The HTTP API, from the service's own OpenAPI document."""

from __future__ import annotations

import asyncio
import json
from typing import Any, cast

from schemas import fields_table

from wherefrom.maintenance.index import Index
from wherefrom.serve.app import make_app
from wherefrom.serve.security import Access
from wherefrom.serve.service import Service

__all__ = ["http_api", "openapi"]

_RECORDS = {
    "Answer": "answer-schema.md",
    "DocumentPage": "records.md#wherefrom.query.reading.DocumentPage",
    "Explanation": "records.md#wherefrom.query.interpretation.explanation.Explanation",
    "Failure": "#failures",
    "Grouping": "records.md#wherefrom.query.interpretation.explanation.Grouping",
    "StoredDocument": "records.md#wherefrom.query.reading.StoredDocument",
}
_OK = "200"


class _NoIndex:
    """In the place of an index, of which the document says nothing."""

    def __len__(self) -> int:
        return 0


def openapi() -> dict[str, Any]:
    """What the service answers to ``GET /openapi.json``."""
    application = make_app(Service(cast("Index", _NoIndex())), Access.of())
    body = b""
    sent = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> dict[str, Any]:
        # A client that stays: after its request nothing comes from it any more.
        return next(sent, None) or await asyncio.Future()

    async def send(message: Any) -> None:
        nonlocal body
        body += message.get("body", b"")

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/openapi.json",
        "raw_path": b"/openapi.json",
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    asyncio.run(application(scope, receive, send))
    document: dict[str, Any] = json.loads(body)
    return document


def http_api() -> str:
    """Every route with its fields and its answers."""
    document = openapi()
    parts = []
    for path, methods in document["paths"].items():
        for method, route in methods.items():
            parts.append(_route(document, method, path, route))
    return "\n\n".join(parts)


def _route(document: dict[str, Any], method: str, path: str, route: dict[str, Any]) -> str:
    parts = [f"## {method.upper()} {path}", route["summary"]]
    body = route.get("requestBody")
    if body is not None:
        name = body["content"]["application/json"]["schema"]["$ref"].rsplit("/", 1)[-1]
        schema = document["components"]["schemas"][name]
        parts.append(f"Body: a JSON object.\n\n{fields_table(schema, _link)}")
    if "parameters" in route:
        schema = {
            "properties": {
                one["name"]: {**one["schema"], "description": one.get("description", "")}
                for one in route["parameters"]
            },
            "required": [one["name"] for one in route["parameters"] if one.get("required")],
        }
        parts.append(f"Query:\n\n{fields_table(schema, _link)}")
    parts.append(_responses(route["responses"]))
    return "\n\n".join(parts)


def _responses(responses: dict[str, Any]) -> str:
    rows = ["| status | |", "|---|---|"]
    for status, response in sorted(responses.items()):
        told = response["description"]
        if status == _OK:
            told = f"{_content(response)} {'' if told == 'Successful Response' else told}".strip()
        rows.append(f"| {status} | {told} |")
    return "\n".join(rows)


def _content(response: dict[str, Any]) -> str:
    for kind, content in response.get("content", {}).items():
        reference = content.get("schema", {}).get("$ref")
        return f"`{kind}`" if reference is None else _link(reference.rsplit("/", 1)[-1]) + "."
    return ""


def _link(name: str) -> str:
    return f"[{name}]({_RECORDS[name]})" if name in _RECORDS else name
