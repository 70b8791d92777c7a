"""``wherefrom serve`` as a process of its own: start, one line, no connection out, a good end."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from served import COMPLETION, PROMPT, TOKEN
from wherefrom.cli.main import commands
from wherefrom.serve.security import TOKEN_VARIABLE

PAGE = Path(__file__).parents[2] / "wherefrom" / "serve" / "page"

LOCKED_IN = """
import socket, sys

def connect(self, address):
    raise SystemExit(f"tried to connect to {address}")

def look_up(*arguments, **options):
    raise SystemExit(f"tried to look up {arguments}")

socket.socket.connect = socket.socket.connect_ex = connect
socket.getaddrinfo = socket.gethostbyname = look_up
sys.argv[0] = "wherefrom"
from wherefrom.cli.main import main
main()
"""


@contextmanager
def process(*arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """The command, unable to connect to anything."""
    command = [sys.executable, "-c", LOCKED_IN, "serve", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop(TOKEN_VARIABLE, None)
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, env=environment, bufsize=1
    ) as started:
        try:
            yield started
        finally:
            started.kill()


def first_line(started: subprocess.Popen[str]) -> str:
    assert started.stderr is not None
    return started.stderr.readline()


def test_it_serves_until_it_is_told_to_end(index_path: Path, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    with process(index_path, "--port", "0", "--token-file", token) as started:
        line = first_line(started)
        found = re.fullmatch(
            r"Serving 23 documents of (\S+) at (http://127\.0\.0\.1:\d+/) \(Ctrl-C ends it\)\n",
            line,
        )
        assert found, line + (started.stderr.read() if started.stderr else "")
        assert found[1] == str(index_path)
        headers = {"Authorization": f"Bearer {TOKEN}"}
        with httpx.Client(base_url=found[2], headers=headers, trust_env=False) as client:
            asked = {"prompt": PROMPT, "completion": COMPLETION, "explain": True}
            told = client.post("/v1/query", json=asked, timeout=60)
            assert told.status_code == 200
            assert client.get("/v1/document", params={"doc_id": "speech 07"}).status_code == 200
            assert client.get("/", headers={"Authorization": ""}).status_code == 200
            assert client.get("/secret?secret", headers={"X-Request-ID": "mine"}).status_code == 404
        started.send_signal(signal.SIGTERM)
        out, errors = started.communicate(timeout=30)
        assert started.returncode == 0
    assert out == ""
    log = [json.loads(line) for line in errors.splitlines()]
    assert [(one["method"], one["route"], one["status"]) for one in log] == [
        ("POST", "/v1/query", 200),
        ("GET", "/v1/document", 200),
        ("GET", "/", 200),
        ("GET", "other", 404),
    ]
    assert log[-1]["request_id"] == "mine"
    assert set(log[0]) == {"time", "request_id", "method", "route", "status", "seconds"}
    for told_of in (PROMPT, COMPLETION.strip(), "speech 07", "secret", TOKEN):
        assert told_of not in errors


def error_line(*arguments: str | Path, environment: dict[str, str] | None = None) -> str:
    """The one line that the command fails with, before it loads torch."""
    result = CliRunner().invoke(
        commands, ["serve", *map(str, arguments)], env={TOKEN_VARIABLE: None, **(environment or {})}
    )
    assert result.exit_code in (1, 2), result.output
    assert result.stdout == ""
    return result.stderr.splitlines()[-1]


@pytest.fixture(autouse=True)
def _no_model(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """What is refused is refused before the index, and with it the model, is opened."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the index was opened")

    monkeypatch.setattr("wherefrom.api.open", refuse)


def test_mistakes_are_told_in_one_line(index_path: Path, tmp_path: Path) -> None:
    assert "no wherefrom index" in error_line(tmp_path) or "no index" in error_line(tmp_path)
    assert "--token-file" in error_line(index_path, "--host", "0.0.0.0")
    assert "--token-file" in error_line(index_path, "--host", "::")
    assert "is no address" in error_line(index_path, "--host", "example.org")
    assert "token file" in error_line(index_path, "--token-file", tmp_path / "missing")
    assert "openssl" in error_line(index_path, environment={TOKEN_VARIABLE: "short"})
    assert "--port" in error_line(index_path, "--port", "65536")
    assert "--queue" in error_line(index_path, "--queue", "-1")


def test_a_port_that_is_taken(index_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as other:
        port = str(other.getsockname()[1])
        line = error_line(index_path, "--port", port)
    assert line.startswith(f"wherefrom: error: 127.0.0.1 port {port} ")
    assert "--port 0" in line


@pytest.mark.parametrize("option", [("--port", "0"), ("--host", "::1"), ("--max-body", "2000")])
def test_options_of_http_have_no_meaning_over_stdio(
    index_path: Path, option: tuple[str, str]
) -> None:
    line = error_line(index_path, "--mcp", "stdio", *option)
    assert f"{option[0]} is for HTTP" in line


def test_without_the_extra_the_pip_line_is_told(
    index_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wherefrom.serve.find_spec", lambda package: None)
    assert "pip install 'wherefrom[serve]'" in error_line(index_path)


def test_mistakes_are_told_before_torch_is_loaded(index_path: Path) -> None:
    program = (
        "import sys\n"
        "from wherefrom.cli.main import main\n"
        "sys.argv = ['wherefrom', 'serve', *sys.argv[1:]]\n"
        "try:\n    main()\n"
        "except SystemExit as stop:\n    print(stop.code, 'torch' in sys.modules)\n"
    )
    arguments = [str(index_path), "--host", "0.0.0.0"]
    finished = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True
    )
    assert finished.stdout.split() == ["2", "False"], finished.stderr


def test_the_page_names_no_other_machine() -> None:
    """Nothing in it is loaded from, or sent to, anywhere else; namespaces are names only."""
    for file in sorted(PAGE.iterdir()):
        text = file.read_text(encoding="utf-8")
        found = re.findall(
            r"(?:https?:)?//[\w-]+\.[\w./-]+", re.sub(r"^\s*//.*$", "", text, flags=re.M)
        )
        assert [url for url in found if "www.w3.org/" not in url] == [], file.name
        assert not re.search(r"\bon\w+\s*=\s*[\"']|javascript:|\beval\(|innerHTML", text), file.name
