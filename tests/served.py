"""A tiny index to serve, and servers over it that listen on this machine."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

import wherefrom as wf
from tiny_lm import text_documents
from wherefrom.serve.app import make_app
from wherefrom.serve.security import Access
from wherefrom.serve.server import make_server
from wherefrom.serve.service import Limits, Service
from wherefrom.serve.sockets import bind, url_of

PROMPT, COMPLETION = "the union of states", " shall be preserved"
TOKEN = "a token of thirty-two characters"
HOSTILE_TEXT = (
    "the union <img src=x onerror=alert(1)> [red]danger[/red] \x1b[31mred\x1b[0m \u202egnisrever"
)


@dataclass(frozen=True)
class Running:
    """A server that listens.

    Attributes:
        url: With a slash at its end.
        service: What answers.
        stop: Ends it as SIGTERM would, at once.
    """

    url: str
    service: Service
    stop: Callable[[], None]

    def client(self, **options: Any) -> httpx.Client:
        # Nothing here is encrypted, and certificates take a while to load.
        options = {"timeout": 30.0, "verify": False, **options}
        return httpx.Client(base_url=self.url, trust_env=False, **options)


def served_documents() -> list[wf.Document]:
    """Twenty texts with a year and a party, two passages of one speech, and one that means harm."""
    passages = [
        wf.Document(
            f"long speech#{i}",
            text,
            {"year": 1900, "party": "Whig"},
            parent_id="long speech",
            char_start=i * 30,
        )
        for i, text in enumerate(["the union shall be preserved ", "by law and not by war"])
    ]
    hostile = wf.Document("<b>harm</b>", HOSTILE_TEXT, {"year": None, "party": "<i>party</i>"})
    return [*text_documents(20), *passages, hostile]


@contextmanager
def running(
    index: wf.Index,
    *,
    token: str | None = None,
    queue: int = 8,
    limits: Limits | None = None,
    mcp: bool = False,
) -> Iterator[Running]:
    """A server over an index, on a free port, until the end of the block."""
    service = Service(index, queue=queue, limits=limits)
    app = make_app(service, Access.of(token), mcp=mcp)
    taken = bind("127.0.0.1", 0)
    started = threading.Event()
    server = make_server(app, service, started.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]})

    def stop() -> None:
        server.handle_exit(signal.SIGTERM, None)

    thread.start()
    try:
        assert started.wait(10)
        yield Running(url_of(taken, "127.0.0.1"), service, stop)
    finally:
        stop()
        thread.join(20)
        assert not thread.is_alive()
