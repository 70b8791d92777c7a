"""A connection's patience: with clients that do not finish a request's head, or do not read.

uvicorn waits for both without end. A client of either kind would hold its place among the
connections, and whatever the server still has for it, for as long as it likes.
"""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["PatientProtocol"]

_HEAD_SECONDS = 10.0
_READING_SECONDS = 30.0


class PatientProtocol(H11Protocol):
    """HTTP/1.1 that ends connections which do not get on.

    Attributes:
        head_seconds: How long the head of a request may take to arrive.
        reading_seconds: How long a client may leave unread what was sent.
    """

    head_seconds = _HEAD_SECONDS
    reading_seconds = _READING_SECONDS
    _head: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the head of the first request."""
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Wait for what is left of a head, if anything is."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._expect_no_head()
        elif self._head is None:
            self._expect_head()

    def pause_writing(self) -> None:
        """Wait for the client to read."""
        super().pause_writing()
        self._reading = self.loop.call_later(self.reading_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on, for the client reads."""
        if self._reading is not None:
            self._reading.cancel()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        self._expect_no_head()
        if self._reading is not None:
            self._reading.cancel()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        self._head = self.loop.call_later(self.head_seconds, self.transport.abort)

    def _expect_no_head(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None
