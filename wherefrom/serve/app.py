"""The HTTP face of the service: its routes, and the page."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from wherefrom import __version__
from wherefrom.errors import WherefromError
from wherefrom.query.interpretation.explanation import Explanation, Grouping
from wherefrom.query.printable import excerpt
from wherefrom.query.reading import DocumentPage, StoredDocument
from wherefrom.records import SCORE_CONTRACT
from wherefrom.serve.errors import (
    RequestError,
    ServiceError,
    UnknownRouteError,
    WrongMethodError,
)
from wherefrom.serve.guard import Guard
from wherefrom.serve.logs import FAILURES
from wherefrom.serve.metrics import Metrics
from wherefrom.serve.openapi import ANSWER, failures, openapi_document
from wherefrom.serve.replies import (
    JSON,
    error_body,
    error_reply,
    internal_body,
    internal_reply,
    json_reply,
    sse,
)
from wherefrom.serve.requests import (
    DocumentsRequest,
    ExplainRequest,
    GroupsRequest,
    QueryRequest,
)
from wherefrom.serve.security import Access
from wherefrom.serve.service import Event, Service

__all__ = ["PAGE", "make_app"]

PAGE = Path(__file__).parent / "page"
_MCP = "/mcp"
_NAMED_CHARACTERS = 100
_STREAM = "text/event-stream"
_PAGE_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
_EVENTS = (
    "Server-sent events, the data of each a JSON object. `stored`: the answer by stored scores. "
    "`answer`: the same by exact scores, where those are to be. `words`: what reports say of it. "
    "`shares`: what the score of one `hit` is made of, with its `layers`. `similarity`, `groups` "
    "(one a column): as in an answer. `done`: all was told. `error`: as of any request; nothing "
    "follows."
)


def make_app(service: Service, access: Access, *, mcp: bool = False) -> Guard:
    """The application, an ASGI one.

    Args:
        service: Who is asked. The application closes it when it ends.
        access: Who may ask.
        mcp: Whether to speak MCP at ``/mcp`` too.

    Raises:
        MissingExtraError: MCP is asked for and not installed.
    """
    metrics = Metrics(service)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            if endpoint is None:
                yield
            else:
                async with endpoint.run():
                    yield
        finally:
            await service.close()

    app = FastAPI(
        title="wherefrom",
        version=__version__,
        description="Which training documents made this model say that? " + SCORE_CONTRACT + ".",
        docs_url=None,  # Their pages load scripts from elsewhere.
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
        lifespan=lifespan,
    )
    _add_asking(app, service)
    _add_reading(app, service)
    _add_page(app)
    _add_health(app, service, metrics)
    endpoint = None
    if mcp:
        from wherefrom.serve.mcp_server import McpEndpoint

        endpoint = McpEndpoint(service, max_body=service.limits.body_bytes)
        app.router.routes.append(Route(_MCP, endpoint, include_in_schema=False))
    app.exception_handler(WherefromError)(_refused)
    app.exception_handler(RequestValidationError)(_malformed)
    app.exception_handler(HTTPException)(_unrouted)
    app.exception_handler(Exception)(_failed)
    document = openapi_document(app, token=access.token_sha256 is not None)
    app.openapi = lambda: document  # type: ignore[method-assign]
    return Guard(
        app,
        access=access,
        limits=service.limits,
        metrics=metrics,
        routes=[*document["paths"], "/", "/openapi.json", _MCP],
        folders=["/page/"],
        listening=[_MCP],
    )


def _add_asking(app: FastAPI, service: Service) -> None:
    """Routes that the model works for."""
    refusals = failures(400, 413, 422, 429, 503, 504)

    @app.post(
        "/v1/query",
        summary="Which documents made the model say that?",
        responses={
            **refusals,
            200: {"description": "The answer.", "content": {JSON: {"schema": ANSWER}}},
        },
    )
    async def query(request: QueryRequest) -> Response:
        return Response((await service.query(request)).to_json(), media_type=JSON)

    @app.post(
        "/v1/query/stream",
        summary="The same, told part by part.",
        responses={**refusals, 200: {"description": _EVENTS, "content": {_STREAM: {}}}},
        response_class=StreamingResponse,
    )
    async def stream(request: QueryRequest, sent: Request) -> Response:
        events = service.stream(request)
        # What fails before the first event fails with a status of its own.
        first = await anext(events)
        told = _told(first, events, sent.state.request_id)
        return StreamingResponse(told, media_type=_STREAM)

    @app.post(
        "/v1/explain",
        summary="What the scores of some documents are made of.",
        responses=refusals,
        response_model=Explanation,
    )
    async def explain(request: ExplainRequest) -> Response:
        return json_reply(asdict(await service.explain(request)))

    @app.post(
        "/v1/groups",
        summary="The influence of all documents, summed by a metadata column.",
        responses=refusals,
        response_model=Grouping,
    )
    async def groups(request: GroupsRequest) -> Response:
        return json_reply(asdict(await service.groups(request)))


def _add_reading(app: FastAPI, service: Service) -> None:
    """Routes that only read the index."""

    @app.get(
        "/v1/index",
        summary="What the index holds and was built with.",
        responses=failures(503),
        response_model=dict[str, Any],
    )
    async def index() -> Response:
        return json_reply(service.info())

    @app.get(
        "/v1/document",
        summary="One document with its text and metadata.",
        responses=failures(404, 422, 429, 503, 504),
        response_model=StoredDocument,
    )
    async def document(doc_id: Annotated[str, Query(max_length=1_000)]) -> Response:
        return json_reply((await service.document(doc_id)).to_dict())

    @app.post(
        "/v1/documents",
        summary="Documents whose metadata pass a filter, a page of them.",
        responses=failures(400, 413, 422, 429, 503, 504),
        response_model=DocumentPage,
    )
    async def documents(request: DocumentsRequest) -> Response:
        page = await service.documents(request.filter, request.offset, request.limit)
        return json_reply(asdict(page))


def _add_page(app: FastAPI) -> None:
    """The page: a route for each of its files, and none for any other path."""

    def add(path: str, file: Path) -> None:
        @app.get(path, include_in_schema=False)
        async def page() -> Response:
            return FileResponse(file, media_type=_PAGE_TYPES[file.suffix])

    add("/", PAGE / "index.html")
    for file in sorted(PAGE.iterdir()):
        if file.suffix in _PAGE_TYPES:
            add(f"/page/{file.name}", file)


def _add_health(app: FastAPI, service: Service, metrics: Metrics) -> None:
    """Routes for those who watch over the service."""

    @app.get(
        "/healthz",
        summary="Whether the process answers.",
        responses=failures(),
        response_model=dict[str, str],
    )
    async def healthz() -> Response:
        return json_reply({"status": "ok"})

    @app.get(
        "/readyz",
        summary="Whether requests are taken.",
        responses=failures(429, 503, 504),
        response_model=dict[str, str],
    )
    async def readyz() -> Response:
        await service.check()
        return json_reply({"status": "ready"})

    @app.get(
        "/metrics",
        summary="Counters in Prometheus' text format.",
        responses={**failures(), 200: {"content": {"text/plain": {}}}},
        response_class=PlainTextResponse,
    )
    async def counters() -> Response:
        return Response(metrics.exposition(), media_type="text/plain; version=0.0.4")


async def _told(
    first: Event, events: AsyncIterator[Event], request_id: str
) -> AsyncIterator[bytes]:
    """Events as they go over the wire; the last one is ``done`` or ``error``."""
    try:
        yield sse(first.kind, first.data)
        async for event in events:
            yield sse(event.kind, event.data)
    except WherefromError as error:
        yield sse("error", error_body(error))
    except Exception:  # What nobody foresaw: the status is sent already, so the stream tells.
        FAILURES.exception("request %s failed", request_id)
        yield sse("error", internal_body(request_id))


async def _refused(_: Request, error: Exception) -> Response:
    if not isinstance(error, WherefromError):
        raise error
    return error_reply(error)


async def _malformed(request: Request, error: Exception) -> Response:
    """The first mistake, by the name of its field; never what was given."""
    if not isinstance(error, RequestValidationError):
        raise error
    (_, *names), message = (mistake := error.errors()[0])["loc"], mistake["msg"]
    if mistake["type"] == "json_invalid":
        return error_reply(RequestError("the body is no JSON; send a JSON object"))
    if not names and "json" not in request.headers.get("content-type", ""):
        return error_reply(
            RequestError("the body is read as JSON; send Content-Type: application/json")
        )
    if names[:1] == ["where"] and len(names) > 1:
        # Of a union, pydantic tells of every member that does not fit.
        names, message = names[:2], "give a value, [operator, value] or a list of such pairs"
    field = excerpt(".".join(map(str, names)), _NAMED_CHARACTERS) or "the body"
    return error_reply(RequestError(f"{field}: {message}"))


async def _unrouted(request: Request, error: Exception) -> Response:
    """What no route takes."""
    if not isinstance(error, HTTPException):
        raise error
    refused: ServiceError
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "GET")
        refused = WrongMethodError(f"that path takes {allowed} only", allowed)
    elif error.status_code == 404:
        refused = UnknownRouteError("there is nothing at that path; /openapi.json lists the paths")
    else:
        refused = RequestError("the body cannot be read; send a JSON object in UTF-8")
    return error_reply(refused)


async def _failed(request: Request, _: Exception) -> Response:
    """What nobody foresaw; it goes on to the log from here."""
    return internal_reply(request.state.request_id)
