"""MCP as clients reach it: a process on standard input and output, and a server's /mcp."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import anyio
import pytest

pytest.importorskip("mcp")

import httpx2
from mcp import Client, StdioServerParameters, types
from mcp.client.streamable_http import streamable_http_client

import wherefrom as wf
from served import COMPLETION, PROMPT, TOKEN, Running, running

ASKED = {"prompt": PROMPT, "completion": COMPLETION}
COMMAND = ["-m", "wherefrom", "serve"]
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "0"},
    },
}
HEADERS = {
    "Content-Type": "application/json",
    "Accept": "application/json, text/event-stream",
    "Authorization": f"Bearer {TOKEN}",
}

Result = TypeVar("Result")


@pytest.fixture(scope="module")
def guarded(index: wf.Index) -> Iterator[Running]:
    """A server with a token that speaks MCP."""
    with running(index, token=TOKEN, mcp=True) as found:
        yield found


def over_http(
    server: Running, speak: Callable[[Client], Awaitable[Result]], mode: Any = "auto"
) -> Result:
    async def converse() -> Result:
        authorization = {"Authorization": HEADERS["Authorization"]}
        async with httpx2.AsyncClient(headers=authorization, trust_env=False) as web:
            transport = streamable_http_client(server.url + "mcp", http_client=web)
            async with Client(transport, mode=mode) as client:
                await client.list_tools()
                return await speak(client)

    return asyncio.run(converse())


def scores(result: types.CallToolResult) -> list[tuple[str, float]]:
    assert not result.is_error, result.content
    assert result.structured_content is not None
    found = result.structured_content
    return [(hit["doc_id"], hit["score"]) for hit in found["proponents"] + found["opponents"]]


def expected_scores(index: wf.Index, **options: Any) -> list[tuple[str, float]]:
    return [(hit.doc_id, hit.score) for hit in index.query(**ASKED, **options).hits]


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_http_has_the_scores_of_the_index(guarded: Running, index: wf.Index, mode: str) -> None:
    arguments = {**ASKED, "k": 3, "rerank": "recompute"}
    found = over_http(guarded, lambda client: client.call_tool("trace_output", arguments), mode)
    assert scores(found) == expected_scores(index, k=3, rerank="recompute")


def test_http_serves_several_clients_at_a_time(guarded: Running, index: wf.Index) -> None:
    async def speak(client: Client) -> list[types.CallToolResult]:
        return await asyncio.gather(
            *(client.call_tool("trace_output", {**ASKED, "k": k}) for k in range(1, 5))
        )

    for k, found in enumerate(over_http(guarded, speak), start=1):
        assert scores(found) == expected_scores(index, k=k)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Authorization": ""}, 401),
        ({"Authorization": "Bearer another token, just as long"}, 401),
        ({"Host": "rebound.example"}, 403),
        ({"Origin": "https://elsewhere.example"}, 403),
        ({}, 200),
    ],
)
def test_http_lets_in_whom_the_service_lets_in(
    guarded: Running, headers: dict[str, str], status: int
) -> None:
    with guarded.client() as client:
        told = client.post("/mcp", headers={**HEADERS, **headers}, json=INITIALIZE)
        assert told.status_code == status, told.text
        assert told.headers["x-content-type-options"] == "nosniff"


def test_http_limits_requests(guarded: Running) -> None:
    most = guarded.service.limits.body_bytes
    with guarded.client() as client:
        long = {**INITIALIZE, "padding": "x" * most}
        assert client.post("/mcp", headers=HEADERS, json=long).status_code == 413
        assert client.post("/mcp", headers=HEADERS, content=b"{").status_code == 400
        assert client.put("/mcp", headers=HEADERS, json=INITIALIZE).status_code == 405


def test_http_is_silent_unless_asked_for(server: Running) -> None:
    with server.client() as client:
        assert client.post("/mcp", headers=HEADERS, json=INITIALIZE).status_code == 404


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_http_gives_up_what_is_cancelled(
    guarded: Running, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    async def query(_: object) -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            given_up.set()

    async def speak(client: Client) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(client.call_tool, "trace_output", ASKED)
            await asyncio.to_thread(begun.wait, 10)
            group.cancel_scope.cancel()
        assert await asyncio.to_thread(given_up.wait, 10)

    begun, given_up = threading.Event(), threading.Event()
    monkeypatch.setattr(guarded.service, "query", query)
    over_http(guarded, speak, mode)


# --- stdio --------------------------------------------------------------------------------------


def exchange(
    command: list[str], messages: list[dict[str, Any]], replies: int
) -> tuple[list[dict[str, Any]], str]:
    """What a process answers on its standard output, and all it writes to standard error."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("".join(json.dumps(message) + "\n" for message in messages))
    process.stdin.flush()
    lines = [json.loads(process.stdout.readline()) for _ in range(replies)]
    rest, errors = process.communicate(timeout=60)  # Closes its input, which ends it.
    assert rest == ""
    assert process.returncode == 0, errors
    return lines, errors


def test_stdio_answers_and_leaves_with_its_client(index_path: Path, index: wf.Index) -> None:
    heard: list[float] = []
    strays: list[Exception] = []

    async def mind(message: object) -> None:
        if isinstance(message, Exception):
            strays.append(message)  # What stood on standard output and was no message.

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        heard.append(progress)

    async def converse() -> types.CallToolResult:
        arguments = [*COMMAND, str(index_path), "--mcp", "stdio"]
        started = StdioServerParameters(
            command=sys.executable, args=arguments, env=dict(os.environ)
        )
        async with Client(started, message_handler=mind) as client:
            assert client.server_info is not None
            assert client.server_info.version == wf.__version__
            assert len((await client.list_tools()).tools) == 5
            refused = await client.call_tool("get_document", {"doc_id": "absent"})
            assert refused.is_error
            return await client.call_tool("trace_output", {**ASKED, "k": 3}, progress_callback=hear)

    assert scores(asyncio.run(converse())) == expected_scores(index, k=3)
    assert heard
    assert strays == []


def test_stdio_of_what_is_no_index(tmp_path: Path) -> None:
    finished = subprocess.run(
        [sys.executable, *COMMAND, str(tmp_path), "--mcp", "stdio"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert finished.returncode == 1
    assert finished.stdout == ""
    (line,) = finished.stderr.splitlines()
    assert line.startswith("wherefrom: error: ")


def test_a_stray_print_does_not_reach_the_client() -> None:
    """Libraries print where they please; a client would take that for a broken message."""
    speaks = (
        "import asyncio, types\n"
        "from wherefrom.serve.mcp_server import serve_stdio\n"
        "def info():\n"
        "    print('stray')\n"
        "    return {'objective': 'causal_lm'}\n"
        "asyncio.run(serve_stdio(types.SimpleNamespace(info=info)))\n"
    )
    called = {"name": "index_info", "arguments": {}}
    messages = [INITIALIZE, {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": called}]
    lines, errors = exchange([sys.executable, "-c", speaks], messages, 2)
    assert [line["id"] for line in lines] == [1, 2]
    assert "stray" in errors
