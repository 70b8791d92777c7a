"""One request with its response, which ends when its client leaves."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Exchange"]

_ENDING_SECONDS = 1.0


class Exchange:
    """Runs an application until it is done or its client leaves, whichever is first.

    Args:
        app: The application.
        scope: Of the request.
        body: Of the request, all of it.
        receive: Tells when the client leaves.
        send: For the response.
    """

    def __init__(
        self, app: ASGIApp, scope: Scope, body: bytes, receive: Receive, send: Send
    ) -> None:
        self.scope = scope
        self._app = app
        self._unread: bytes | None = body
        self._receive = receive
        self._send = send
        self._left = asyncio.Event()
        self._begun = False
        self._answered = False

    def end(self) -> None:
        """Have the application know that the client left, though it did not."""
        self._left.set()

    async def run(self) -> None:
        """Answer the request; what the application raises is raised here."""
        watching = asyncio.ensure_future(self._watch())
        leaving = asyncio.ensure_future(self._left.wait())
        answering = asyncio.ensure_future(self._answer())
        try:
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if self._answered:
                # The server tells of the end of a response as if the client had left: what the
                # application does after it goes on.
                await asyncio.wait({answering})
            elif self.scope["method"] == "GET":
                # What listens for the end may end in good order.
                await asyncio.wait({answering}, timeout=_ENDING_SECONDS)
        finally:
            for task in (watching, leaving, answering):
                task.cancel()
        try:
            await answering
        except asyncio.CancelledError:
            if not self._left.is_set():
                raise
        if self._begun and not self._answered:
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _answer(self) -> None:
        await self._app(self.scope, self._told, self._tell)

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._left.set()

    async def _told(self) -> Message:
        if self._unread is not None:
            body, self._unread = self._unread, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _tell(self, message: Message) -> None:
        self._begun = True
        last = message["type"] == "http.response.body" and not message.get("more_body", False)
        self._answered = last
        await self._send(message)
