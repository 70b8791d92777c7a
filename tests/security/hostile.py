"""What is asked of all that comes from outside: an error of ours on one line, or an answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

import wherefrom as wf
from wherefrom.errors import WherefromError
from wherefrom.store import Manifest

__all__ = ["ask", "fields_of", "harmless", "publish", "with_base_path"]

LONGEST = 6000


def harmless(action: Callable[[], object]) -> WherefromError | None:
    """The error that ``action`` ends in, if any: one of ours, on one line."""
    raised = None
    try:
        action()
    except WherefromError as error:
        raised = error
    if raised is not None:
        assert len(str(raised).splitlines()) == 1, str(raised)
        assert len(str(raised)) < LONGEST
    return raised


def ask(path: Path) -> None:
    """All that a reader does with an index."""
    with wf.open(path) as index:
        index.info()
        index.documents(limit=5)
        index.query(
            prompt="gold", completion=" ships", k=3, where={"year": ("<", 1900)}, rerank="stored"
        )
        index.query(prompt="gold", completion=" ships", k=3, rerank="recompute")
        index.vectors()


def fields_of(path: Path) -> dict[str, Any]:
    """An index's manifest as plain values, without its own digest."""
    fields: dict[str, Any] = json.loads((path / "manifest.json").read_bytes())
    del fields["sha256"]
    return fields


def publish(path: Path, fields: dict[str, Any]) -> None:
    """Write a manifest as its forger would: with the digest that fits it, if it can be one."""
    try:
        data = Manifest.model_validate(fields).to_bytes()
    except (ValidationError, UnicodeEncodeError):
        data = json.dumps({**fields, "sha256": "0" * 64}).encode()
    (path / "manifest.json").write_bytes(data)


def with_base_path(data: bytes, place: str) -> bytes:
    """A version of a Lance table that names ``place`` for data (field 18 of its message)."""
    start = int.from_bytes(data[-16:-8], "little")
    length = int.from_bytes(data[start : start + 4], "little")
    message = data[start + 4 : start + 4 + length]
    name = place.encode()
    base = b"\x08\x01\x22" + bytes([len(name)]) + name
    message += b"\x92\x01" + bytes([len(base)]) + base
    return data[:start] + len(message).to_bytes(4, "little") + message + data[-16:]
