"""What the service refuses, each with its status and one line."""

from __future__ import annotations

import json
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import wherefrom as wf
from served import COMPLETION, PROMPT, TOKEN, Running, running
from wherefrom.errors import IntegrityError
from wherefrom.maintenance.index import Index
from wherefrom.serve.protocol import PatientProtocol
from wherefrom.serve.service import Limits

ASKED = {"prompt": PROMPT, "completion": COMPLETION, "rerank": "stored"}
JSON = {"Content-Type": "application/json"}


def refusal(response: httpx.Response) -> tuple[int, str, str]:
    body = response.json()
    assert set(body) == {"error", "detail"}
    assert response.headers["content-type"] == "application/json"
    assert len(body["detail"].splitlines()) == 1
    return response.status_code, body["error"], body["detail"]


@pytest.fixture(scope="module")
def locked(index: wf.Index) -> Iterator[Running]:
    """A server with a token and little patience."""
    with running(index, token=TOKEN, queue=0, limits=Limits(body_bytes=2048, seconds=1.0)) as found:
        yield found


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"k": 0}, "k: "),
        ({"k": 101}, "k: "),
        ({"k": "3"}, "k: "),
        ({"k": 3.5}, "k: "),
        ({"k": 1e300}, "k: "),
        ({"k": True}, "k: "),
        ({"completion": ""}, "completion: "),
        ({"completion": None}, "completion: "),
        ({"completion": "a" * 20_001}, "completion: "),
        ({"completion": "\ud800"}, "completion: "),
        ({"prompt": "\udfff the"}, "prompt: "),
        ({"sign": "neither"}, "sign: "),
        ({"damping": -0.1}, "damping: "),
        ({"unknown": 1}, "unknown: "),
        ({"path": "/etc/passwd"}, "path: "),
        ({"explain": "yes"}, "explain: "),
        ({"group_by": ["party"] * 11}, "group_by: "),
        ({"where": {"year": {}}}, "where.year: "),
        ({"where": {"year": []}}, "where.year: "),
        ({"where": {"year": ["<", [[1]]]}}, "where.year: "),
        ({"where": {"year": [["<", 1], ["<"]]}}, "where.year: "),
        ({"where": "year < 1900"}, "where: "),
        ({"where": {str(i): i for i in range(21)}}, "where: "),
        ({"where": {"\ud800": 1}}, "where"),
    ],
)
def test_malformed_questions(client: httpx.Client, changed: dict[str, Any], named: str) -> None:
    sent = json.dumps({**ASKED, **changed})
    status, error, detail = refusal(client.post("/v1/query", content=sent, headers=JSON))
    assert (status, error) == (422, "RequestError")
    assert detail.startswith(named)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", 422),
        (b"{", 422),
        (b"[]", 422),
        (b"null", 422),
        (b'"text"', 422),
        (b"\xff\xfe", 422),
        (b"\x00", 422),
        (b"[" * 100_000, 422),
        (b'{"where":' + b'{"a":' * 30_000 + b"1" + b"}" * 30_001, 422),
        (b'{"completion": " a", "damping": NaN}', 422),
        (b'{"completion": " a", "damping": Infinity}', 422),
        (b'{"completion": " a", "k": ' + b"9" * 5000 + b"}", 422),
        (b'{"completion": " a", "where": {"year": ' + b"9" * 400 + b"}}", 400),
    ],
    ids=lambda value: None if isinstance(value, int) else repr(value[:12]),
)
def test_bodies_that_are_no_question(client: httpx.Client, sent: bytes, status: int) -> None:
    assert refusal(client.post("/v1/query", content=sent, headers=JSON))[0] == status


@pytest.mark.parametrize(
    ("changed", "error", "told"),
    [
        ({"where": {"nothing": 1}}, "FilterError", "year"),
        ({"where": {"year; DROP TABLE documents": 1}}, "FilterError", "year"),
        ({"where": {"year": "1900"}}, "FilterError", "int64"),
        ({"where": {"year": ["like", 1]}}, "FilterError", "like"),
        ({"where": {"year": 2**64}}, "FilterError", "int64"),
        ({"completion": "the " * 200}, "QueryError", "context"),
        ({"group_by": ["nothing"]}, "FilterError", "year"),
    ],
)
def test_questions_that_cannot_be_answered(
    client: httpx.Client, changed: dict[str, Any], error: str, told: str
) -> None:
    status, kind, detail = refusal(client.post("/v1/query", json={**ASKED, **changed}))
    assert (status, kind) == (400, error)
    assert told in detail


@pytest.mark.parametrize("text", ["\x00", "the\x00union", "\x1b[2J", "\u202e", "\U0010ffff"])
def test_odd_characters_are_text_as_any_other(client: httpx.Client, text: str) -> None:
    asked = {**ASKED, "prompt": text, "completion": f" {text}b", "where": {"party": text}}
    told = client.post("/v1/query", json=asked)
    assert told.status_code == 200, told.text
    assert told.json()["query"]["prompt"] == text
    assert told.json()["proponents"] == []
    detail = refusal(client.get("/v1/document", params={"doc_id": text}))[2]
    assert detail.isprintable()


@pytest.mark.parametrize(
    "asked", [{"offset": -1}, {"offset": 2**60}, {"limit": 0}, {"limit": 201}, {"offset": 1.5}]
)
def test_pages_that_do_not_exist(client: httpx.Client, asked: dict[str, Any]) -> None:
    assert refusal(client.post("/v1/documents", json=asked))[0] == 422


def test_a_page_beyond_the_end_is_empty(client: httpx.Client) -> None:
    assert client.post("/v1/documents", json={"offset": 2**53}).json()["documents"] == []


def test_unknown_documents_paths_and_methods(client: httpx.Client) -> None:
    unknown = client.get("/v1/document", params={"doc_id": "../../etc/passwd"})
    assert refusal(unknown)[:2] == (404, "UnknownDocumentError")
    assert refusal(client.get("/v1/document"))[0] == 422
    asked = {**ASKED, "doc_ids": ["speech 07", "nobody's"]}
    del asked["rerank"]
    assert refusal(client.post("/v1/explain", json=asked))[:2] == (400, "QueryError")
    assert refusal(client.get("/v1/nothing"))[:2] == (404, "UnknownRouteError")
    wrong = client.get("/v1/query")
    assert refusal(wrong)[:2] == (405, "WrongMethodError")
    assert wrong.headers["allow"] == "POST"
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "HEAD"):
        assert client.request(method, "/v1/index").status_code == 405


def test_only_json_is_read(client: httpx.Client) -> None:
    sent = json.dumps(ASKED)
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        response = client.post("/v1/query", content=sent, headers={"Content-Type": kind})
        assert refusal(response)[0] == 422
    assert client.post("/v1/query", content=sent).status_code == 422


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),
        ({"Host": "localhost:1"}, True),
        ({"Host": "LOCALHOST"}, True),
        ({"Host": "[::1]:8765"}, True),
        ({"Host": "192.168.1.5"}, True),
        ({"Host": "evil.example"}, False),
        ({"Host": "127.0.0.1.evil.example"}, False),
        ({"Host": "localhost.evil.example:80"}, False),
        ({"Host": "localhost@evil.example"}, False),
        ({"Host": "evil.example@localhost"}, False),
        ({"Host": "localhost:x"}, False),
        ({"Host": "[::1"}, False),
        ({"Host": ""}, False),
        ({"Host": "localhost", "Origin": "http://localhost"}, True),
        ({"Host": "localhost", "Origin": "https://localhost"}, True),
        ({"Host": "localhost", "Origin": "http://localhost:81"}, False),
        ({"Origin": "http://evil.example"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": "http://[::1"}, False),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Sec-Fetch-Site": "same-origin"}, True),
    ],
)
def test_pages_of_other_sites_and_rebound_names_are_kept_out(
    client: httpx.Client, headers: dict[str, str], allowed: bool
) -> None:
    response = client.post("/v1/documents", json={"limit": 1}, headers=headers)
    if allowed:
        assert response.status_code == 200
    else:
        assert refusal(response)[:2] == (403, "ForbiddenError")


def test_a_rebound_name_reads_nothing_either(client: httpx.Client) -> None:
    for path in ("/", "/v1/index", "/metrics", "/openapi.json", "/healthz"):
        assert client.get(path, headers={"Host": "evil.example"}).status_code == 403


@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        "Bearer",
        f"Basic {TOKEN}",
        TOKEN,
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN.upper()}",
        "Bearer \xff\xfe",
    ],
)
def test_without_the_token_nothing_is_told(locked: Running, given: str | None) -> None:
    headers = {} if given is None else {"Authorization": given.encode("latin-1")}
    with locked.client() as client:
        for path in ("/v1/index", "/v1/document?doc_id=a", "/metrics", "/openapi.json", "/mcp"):
            response = client.get(path, headers=headers)
            assert refusal(response)[:2] == (401, "UnauthorizedError")
            assert response.headers["www-authenticate"] == "Bearer"
        assert client.post("/v1/query", json=ASKED, headers=headers).status_code == 401
        for path in ("/", "/page/page.js", "/healthz", "/readyz"):
            assert client.get(path).status_code == 200


def test_with_the_token_all_is_told(locked: Running) -> None:
    with locked.client(headers={"Authorization": f"bearer {TOKEN}"}) as client:
        assert client.get("/v1/index").status_code == 200
        assert client.post("/v1/query", json=ASKED).status_code == 200


def test_large_bodies_are_refused_announced_or_not(locked: Running) -> None:
    with locked.client(headers={"Authorization": f"Bearer {TOKEN}", **JSON}) as client:
        most = json.dumps({**ASKED, "prompt": "a"}).encode()
        padded = most + b" " * (2048 - len(most))
        assert client.post("/v1/query", content=padded).status_code == 200
        response = client.post("/v1/query", content=padded + b" ")
        assert refusal(response)[:2] == (413, "TooLargeError")
        chunks = (b" " * 1000 for _ in range(3))
        assert refusal(client.post("/v1/query", content=chunks))[0] == 413
        assert refusal(client.post("/v1/query", content=b" " * 10**6))[0] == 413


def test_a_body_that_does_not_come_is_not_waited_for(locked: Running) -> None:
    host, port = httpx.URL(locked.url).host, httpx.URL(locked.url).port
    assert port is not None
    with closing(socket.create_connection((host, port), timeout=10)) as connection:
        connection.sendall(
            b"POST /v1/query HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n"
            b"Authorization: Bearer " + TOKEN.encode() + b"\r\n\r\n{"
        )
        assert connection.recv(1000).startswith(b"HTTP/1.1 504")


class Slow:
    """An index whose answers wait until they are let through."""

    def __init__(self, index: wf.Index, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered = threading.Semaphore(0)
        self.open = threading.Event()
        self.asked: list[str] = []
        answer = Index.query

        def query(own: Index, **options: Any) -> Any:
            self.asked.append(options["completion"])
            self.entered.release()
            assert self.open.wait(10)
            return answer(own, **options)

        monkeypatch.setattr(Index, "query", query)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def in_thread(call: Any) -> tuple[threading.Thread, list[httpx.Response]]:
    found: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()
    return thread, found


def test_a_full_queue(index: wf.Index, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow(index, monkeypatch)
    with running(index, queue=0) as server, server.client() as client:
        thread, found = in_thread(lambda: client.post("/v1/query", json=ASKED))
        assert slow.entered.acquire(timeout=10)
        for path in ("/v1/query", "/v1/query/stream"):
            response = client.post(path, json=ASKED)
            assert refusal(response)[:2] == (429, "BusyError")
            assert int(response.headers["retry-after"]) >= 1
        assert client.get("/v1/document", params={"doc_id": "speech 07"}).status_code == 200
        assert client.get("/healthz").status_code == 200
        slow.open.set()
        thread.join()
        assert found[0].status_code == 200


def test_too_slow_an_answer(index: wf.Index, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow(index, monkeypatch)
    limits = Limits(seconds=0.2)
    with running(index, limits=limits) as server, server.client() as client:
        response = client.post("/v1/query", json=ASKED)
        assert refusal(response)[:2] == (504, "TimeLimitError")
        slow.open.set()


def test_who_hangs_up_leaves_the_queue(index: wf.Index, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow(index, monkeypatch)
    with running(index) as server, server.client() as client:
        thread, found = in_thread(lambda: client.post("/v1/query", json=ASKED))
        assert slow.entered.acquire(timeout=10)
        for path in ("/v1/query", "/v1/query/stream"):
            with pytest.raises(httpx.ReadTimeout):
                client.post(path, json={**ASKED, "completion": " left"}, timeout=0.3)
        until(lambda: server.service.model.admitted == 1)
        slow.open.set()
        thread.join()
        assert found[0].status_code == 200
        assert client.post("/v1/query", json={**ASKED, "completion": " now"}).status_code == 200
        text = client.get("/metrics").text
    assert slow.asked == [COMPLETION, " now"]
    assert 'wherefrom_requests_total{method="POST",route="/v1/query",status="499"} 1.0' in text


def test_the_end_is_told_to_who_waits(index: wf.Index, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow(index, monkeypatch)
    with running(index) as server, server.client() as client:
        first, answered = in_thread(lambda: client.post("/v1/query", json=ASKED))
        assert slow.entered.acquire(timeout=10)
        second, turned_away = in_thread(lambda: client.post("/v1/query", json=ASKED))
        until(lambda: server.service.model.admitted == 2)
        server.stop()
        second.join()
        assert refusal(turned_away[0])[:2] == (503, "ClosingError")
        assert not answered
        slow.open.set()
        first.join()
        assert answered[0].status_code == 200


def test_what_nobody_foresaw_is_told_without_its_words(
    server: Running, client: httpx.Client, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(Index, "query", fail)
    for path in ("/v1/query", "/v1/query/stream"):
        response = client.post(path, json=ASKED)
        status, error, detail = refusal(response)
        assert (status, error) == (500, "InternalError")
        assert response.headers["x-request-id"] in detail
        assert "secret" not in detail
        until(lambda own=response.headers["x-request-id"]: own in caplog.text)
    monkeypatch.undo()
    monkeypatch.setattr(Index, "annotate", fail)
    told = client.post("/v1/query/stream", json={**ASKED, "group_by": ["party"]}).text
    assert told.rstrip().split("\n\n")[-1].startswith('event: error\ndata: {"error": "Internal')


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3), max_leaves=6)
OPERATORS = st.sampled_from(["==", "!=", "<", ">=", "in", "not in", "contains", "like"])
CONDITIONS = VALUES | st.tuples(OPERATORS, VALUES) | st.lists(st.tuples(OPERATORS, VALUES))
COLUMNS = st.sampled_from(["year", "party"]) | st.text(max_size=5)


@pytest.fixture(scope="module")
def lasting(server: Running) -> Iterator[httpx.Client]:
    with server.client() as found:
        yield found


@given(where=st.dictionaries(COLUMNS, CONDITIONS, max_size=3))
def test_any_filter_is_answered_or_refused(lasting: httpx.Client, where: dict[str, Any]) -> None:
    sent = json.dumps({"where": where, "limit": 1})
    response = lasting.post("/v1/documents", content=sent, headers=JSON)
    if response.status_code != 200:
        status, error, _ = refusal(response)
        assert (status, error) in ((400, "FilterError"), (422, "RequestError"))


def test_no_number_that_json_cannot_write_is_sent(
    client: httpx.Client, index: wf.Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = replace(index.query(prompt=PROMPT, completion=COMPLETION), log_likelihood=math.nan)
    monkeypatch.setattr(Index, "query", lambda *_, **__: answer)
    for path in ("/v1/query", "/v1/query/stream"):
        response = client.post(path, json=ASKED)
        assert response.status_code == 500 or "event: error" in response.text
        assert "NaN" not in response.text


def test_clients_that_only_listen_do_not_hold_up_the_end(index: wf.Index) -> None:
    pytest.importorskip("mcp")
    opening = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {
            "protocolVersion": "2025-03-26",
            "capabilities": {},
            "clientInfo": {"name": "test", "version": "1"},
        },
    }
    headers = {"Accept": "application/json, text/event-stream"}
    with running(index, mcp=True) as server, server.client(headers=headers) as client:
        opened = client.post("/mcp", json=opening)
        assert opened.status_code == 200, opened.text
        session = {"Mcp-Session-Id": opened.headers["mcp-session-id"]}
        with client.stream("GET", "/mcp", headers=session) as stream:
            assert stream.status_code == 200
            started = time.monotonic()
            server.stop()
            stream.read()
    assert time.monotonic() - started < 5


def test_failures_of_the_index_are_told_to_the_log_only(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise IntegrityError("/secret/documents.lance cannot be read")

    monkeypatch.setattr(Index, "query", fail)
    monkeypatch.setattr(Index, "documents", fail)
    responses = [client.post(path, json=ASKED) for path in ("/v1/query", "/v1/query/stream")]
    responses.append(client.post("/v1/documents", json={}))
    for response in responses:
        status, error, detail = refusal(response)
        assert (status, error) == (500, "FailedError")
        assert "IntegrityError" in detail
        assert "secret" not in detail
        assert f"{detail.split()[-1]} IntegrityError: /secret/documents.lance" in caplog.text
    unready = client.get("/readyz")
    assert refusal(unready)[:2] == (503, "UnreadyError")
    assert client.get("/healthz").status_code == 200


def connected(server: Running) -> socket.socket:
    url = httpx.URL(server.url)
    assert url.port is not None
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    connection.settimeout(10)
    connection.connect((url.host, url.port))
    return connection


def test_who_does_not_read_holds_up_nobody(
    index: wf.Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parts of an answer are computed without waiting for who is to read them."""
    monkeypatch.setattr(PatientProtocol, "reading_seconds", 0.5)
    answer = index.query(prompt=PROMPT, completion=COMPLETION, rerank="stored")
    long = tuple(replace(hit, text="the union " * 100_000) for hit in answer.proponents)
    monkeypatch.setattr(Index, "query", lambda *_, **__: replace(answer, proponents=long))
    body = json.dumps({**ASKED, "rerank": "recompute"}).encode()
    head = "POST /v1/query/stream HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    sent = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    with (
        running(index, queue=0) as server,
        server.client() as client,
        closing(connected(server)) as connection,
    ):
        connection.sendall(sent)
        until(lambda: server.service.model.busy_seconds > 0.0)
        until(lambda: server.service.model.admitted == 0)
        until(lambda: 'route="/v1/query/stream"' in client.get("/metrics").text)


def closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(4096) == b""
    except ConnectionResetError:
        return True


def test_a_request_that_does_not_come_is_not_waited_for(
    index: wf.Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PatientProtocol, "head_seconds", 0.2)
    whole = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with running(index) as server:
        for sent in (b"", whole[:-1]):
            with closing(connected(server)) as connection:
                connection.sendall(sent)
                assert closed(connection)
        with closing(connected(server)) as connection:
            connection.sendall(whole)
            told = b""
            while b'"ok"}' not in told:
                told += connection.recv(4096)
            connection.sendall(whole[:-1])
            started = time.monotonic()
            assert closed(connection)
            assert time.monotonic() - started < 3
