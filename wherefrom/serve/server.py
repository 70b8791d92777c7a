"""The server process: its log, and how it starts and ends."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from wherefrom.serve.guard import Guard
from wherefrom.serve.logs import ACCESS_LOG, FAILURES
from wherefrom.serve.protocol import PatientProtocol
from wherefrom.serve.service import Service

__all__ = ["make_server", "serve"]

_CONNECTIONS = 512


def serve(
    app: Guard,
    service: Service,
    taken: socket.socket,
    *,
    on_start: Callable[[], None],
    log_requests: bool,
) -> None:
    """Serve until SIGTERM or Ctrl-C; the request being worked for is answered then.

    A second Ctrl-C does not wait for that.

    Args:
        app: Of the service.
        service: That is told when the end begins.
        taken: A socket from :func:`~wherefrom.serve.sockets.bind`.
        on_start: Called when requests are taken.
        log_requests: Whether to write a line of JSON a request to standard error.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    for logger, level in ((ACCESS_LOG, logging.INFO), (FAILURES, logging.ERROR)):
        logger.setLevel(level if log_requests or logger is FAILURES else logging.CRITICAL)
        logger.propagate = False
        logger.addHandler(handler)
    try:
        make_server(app, service, on_start).run(sockets=[taken])
    finally:
        for logger in (ACCESS_LOG, FAILURES):
            logger.removeHandler(handler)


def make_server(app: Guard, service: Service, on_start: Callable[[], None]) -> uvicorn.Server:
    """A server that is still to be run, with the sockets it is to listen at.

    Args:
        app: Of the service.
        service: That is told when the end begins.
        on_start: Called when requests are taken.
    """
    config = uvicorn.Config(
        app,
        http=PatientProtocol,
        loop="asyncio",
        ws="none",
        lifespan="on",
        log_config=None,
        log_level=logging.ERROR,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=int(service.limits.seconds) + 1,
    )
    return _Server(config, app, service, on_start)


class _Server(uvicorn.Server):
    """Tells the service when it starts and when it is to end."""

    def __init__(
        self,
        config: uvicorn.Config,
        app: Guard,
        service: Service,
        on_start: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._app = app
        self._service = service
        self._on_start = on_start
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self._loop = asyncio.get_running_loop()
        self._on_start()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn would raise the signal again in the end; here the end that it asks for is good.
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        self._service.begin_closing()
        self._app.hang_up()
