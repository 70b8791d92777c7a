"""Responses: JSON that reads back to the same bits, errors as one line, events of a stream."""

from __future__ import annotations

from typing import Any

from fastapi.sse import format_sse_event
from starlette.responses import Response

from wherefrom.errors import WherefromError
from wherefrom.query.export.json_text import json_text
from wherefrom.query.printable import printable
from wherefrom.serve.errors import ServiceError, status_of

__all__ = [
    "JSON",
    "error_body",
    "error_reply",
    "internal_body",
    "internal_reply",
    "json_reply",
    "sse",
]

JSON = "application/json"
_INTERNAL = 500


def json_reply(values: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Plain values as a response."""
    return Response(json_text(values), status, headers, media_type=JSON)


def error_body(error: WherefromError) -> dict[str, str]:
    """The error's class and its one line."""
    return {"error": type(error).__name__, "detail": printable(str(error))}


def error_reply(error: WherefromError) -> Response:
    """An error as a response."""
    headers = error.headers if isinstance(error, ServiceError) else None
    return json_reply(error_body(error), status_of(error), headers)


def internal_body(request_id: str) -> dict[str, str]:
    """What is told of a failure that nobody foresaw: where the log holds the rest."""
    detail = f"the server failed at this request; its log tells why under {request_id}"
    return {"error": "InternalError", "detail": detail}


def internal_reply(request_id: str) -> Response:
    """The same as a response."""
    return json_reply(internal_body(request_id), _INTERNAL)


def sse(event: str, data: Any) -> bytes:
    """A server-sent event."""
    return format_sse_event(event=event, data_str=json_text(data))
