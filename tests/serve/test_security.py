"""Addresses, tokens and the names that a server goes by."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from served import TOKEN
from wherefrom.errors import StorageError, WherefromError
from wherefrom.serve.errors import ForbiddenError, RequestError, UnauthorizedError
from wherefrom.serve.security import TOKEN_VARIABLE, Access, is_loopback, read_token

LETTERS = st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=40)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.5", False),
        ("10.0.0.1", False),
    ],
)
def test_loopback_addresses(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize("host", ["", "example.org", "localhost.example.org", "127.0.0.1:80", "1"])
def test_names_are_not_looked_up(host: str) -> None:
    with pytest.raises(RequestError, match="is no address"):
        is_loopback(host)


def test_tokens_come_from_a_file_or_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    assert read_token(None, {}) is None
    assert read_token(None, {TOKEN_VARIABLE: f" {TOKEN} "}) == TOKEN
    assert read_token(file, {TOKEN_VARIABLE: "another token that is long"}) == TOKEN


@pytest.mark.parametrize(
    "content", ["", "short", "a" * 15, "tökens of many characters", "a\nb" * 9]
)
def test_tokens_that_will_not_do(tmp_path: Path, content: str) -> None:
    file = tmp_path / "token"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(RequestError, match="openssl"):
        read_token(file, {})
    with pytest.raises(RequestError, match=TOKEN_VARIABLE):
        read_token(None, {TOKEN_VARIABLE: content})


def test_token_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff" * 20)
    for file in (tmp_path / "missing", tmp_path, tmp_path / "bytes"):
        with pytest.raises(StorageError, match="token file"):
            read_token(file, {})


def test_a_token_is_not_kept() -> None:
    assert TOKEN not in repr(Access.of(TOKEN))


@pytest.mark.parametrize("given_token", ["", "x" * 32, TOKEN[:-1], f"{TOKEN} x"])
def test_another_token_will_not_do(given_token: str) -> None:
    headers = Headers({"host": "127.0.0.1", "authorization": f"Bearer {given_token}"})
    with pytest.raises(UnauthorizedError):
        Access.of(TOKEN).check("GET", "/v1/index", headers)


@pytest.mark.parametrize(
    "host", ["localhost/evil", "localhost?evil", "localhost#evil", "localhost\\"]
)
def test_a_host_is_a_name_and_a_port_only(host: str) -> None:
    with pytest.raises(ForbiddenError):
        Access.of().check("GET", "/", Headers({"host": host}))


def test_names_may_be_allowed() -> None:
    access = Access.of(names=["Index.Example.org"])
    access.check("GET", "/", Headers({"host": "index.example.ORG:443"}))
    with pytest.raises(ForbiddenError, match="--allow-host"):
        access.check("GET", "/", Headers({"host": "example.org"}))


@given(host=LETTERS, origin=st.none() | LETTERS, given_token=LETTERS)
def test_any_headers_are_let_in_or_refused(host: str, origin: str | None, given_token: str) -> None:
    raw = {"host": host, "authorization": given_token}
    headers = Headers(raw if origin is None else {**raw, "origin": origin})
    with pytest.raises(WherefromError) as refused:
        Access.of(TOKEN).check("POST", "/v1/query", headers)
    assert isinstance(refused.value, ForbiddenError | UnauthorizedError)


@given(path=LETTERS)
def test_only_the_page_and_health_are_open(path: str) -> None:
    headers = Headers({"host": "localhost"})
    if path in ("/", "/healthz", "/readyz") or path.startswith("/page/"):
        Access.of(TOKEN).check("GET", path, headers)
    else:
        with pytest.raises(UnauthorizedError):
            Access.of(TOKEN).check("GET", path, headers)
