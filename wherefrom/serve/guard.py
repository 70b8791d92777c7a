"""What stands before every route: access, limits, headers, counting, and the log of requests.

The log is one JSON object a line, without what was asked: no query string, no body, no address.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid
from collections.abc import Collection
from datetime import datetime, timezone

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wherefrom.errors import WherefromError
from wherefrom.serve.errors import TimeLimitError, TooLargeError
from wherefrom.serve.exchange import Exchange
from wherefrom.serve.logs import ACCESS_LOG, FAILURES
from wherefrom.serve.metrics import Metrics
from wherefrom.serve.replies import error_reply, internal_reply
from wherefrom.serve.security import RESPONSE_HEADERS, Access
from wherefrom.serve.service import Limits

__all__ = ["Guard"]

_REQUEST_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
_METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
_BODY_SECONDS = 10.0
_LEFT = 499
"""Logged where the client left before it was answered, as nginx does."""


class Guard:
    """The outermost layer of the application.

    Args:
        app: What it guards.
        access: Who may ask.
        limits: Of every request.
        metrics: What counts them.
        routes: Paths of the API, for the log and the counters; others are named ``other``.
        folders: Likewise, with all that lies under them.
        listening: Paths where a GET lasts as long as its client listens.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        access: Access,
        limits: Limits,
        metrics: Metrics,
        routes: Collection[str],
        folders: Collection[str],
        listening: Collection[str] = (),
    ) -> None:
        self._app = app
        self._access = access
        self._limits = limits
        self._metrics = metrics
        self._routes = frozenset(routes)
        self._folders = tuple(folders)
        self._listening = frozenset(listening)
        self._listeners: set[Exchange] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection's request, or the application's start and end."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1000})

    def hang_up(self) -> None:
        """End the streams that clients only listen at, which would outlast any patience."""
        for listener in self._listeners:
            listener.end()

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        status = _LEFT

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                response_headers = MutableHeaders(scope=message)
                for name, value in RESPONSE_HEADERS.items():
                    response_headers.setdefault(name, value)
                response_headers["X-Request-ID"] = request_id
            await send(message)

        try:
            self._access.check(scope["method"], scope["path"], headers)
            body = await self._body(headers, receive)
            if body is not None:
                await self._exchange(Exchange(self._app, scope, body, receive, told))
        except WherefromError as error:
            await error_reply(error)(scope, receive, told)
        except Exception:
            FAILURES.exception("request %s failed", request_id)
            if status == _LEFT:
                await internal_reply(request_id)(scope, receive, told)
        finally:
            self._note(scope, request_id, status, time.perf_counter() - started)

    async def _exchange(self, exchange: Exchange) -> None:
        if exchange.scope["method"] == "GET" and exchange.scope["path"] in self._listening:
            self._listeners.add(exchange)
        try:
            await exchange.run()
        finally:
            self._listeners.discard(exchange)

    async def _body(self, headers: Headers, receive: Receive) -> bytes | None:
        """The whole body; ``None`` if the client left while sending it.

        Raises:
            TooLargeError: It is larger than allowed.
            TimeLimitError: It comes too slowly.
        """
        most = self._limits.body_bytes
        too_large = TooLargeError(f"the request's body is larger than {most} bytes; send a shorter")
        announced = headers.get("content-length", "")
        if announced.isdigit() and (len(announced) > 18 or int(announced) > most):
            raise too_large
        parts: list[bytes] = []
        length = 0
        deadline = time.monotonic() + min(_BODY_SECONDS, self._limits.seconds)
        while True:
            try:
                message = await asyncio.wait_for(receive(), max(0.0, deadline - time.monotonic()))
            except asyncio.TimeoutError as error:
                raise TimeLimitError(
                    f"the request's body did not arrive within {_BODY_SECONDS:g} s; send it faster"
                ) from error
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            length += len(parts[-1])
            if length > most:
                raise too_large
            if not message.get("more_body", False):
                return b"".join(parts)

    def _note(self, scope: Scope, request_id: str, status: int, seconds: float) -> None:
        path: str = scope["path"]
        route = path if path in self._routes else "other"
        route = next((folder for folder in self._folders if path.startswith(folder)), route)
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._metrics.count(route, method, status, seconds)
        noted = {
            "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            "request_id": request_id,
            "method": method,
            "route": route,
            "status": status,
            "seconds": round(seconds, 6),
        }
        ACCESS_LOG.info("%s", json.dumps(noted))
