"""The port that a server takes. Free of torch, so that a mistake in it shows at once."""

from __future__ import annotations

import socket

from wherefrom.errors import StorageError

__all__ = ["bind", "url_of"]


def bind(host: str, port: int) -> socket.socket:
    """Take a port; connections are refused until somebody listens.

    Args:
        host: An IP address, or ``localhost`` for 127.0.0.1: names are not looked up.
        port: 0 takes a free one.

    Raises:
        StorageError: The port is taken, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    taken = socket.socket(family, socket.SOCK_STREAM)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind(("127.0.0.1" if host == "localhost" else host, port))
    except OSError as error:
        taken.close()
        raise StorageError(
            f"{host} port {port} cannot be served at ({error.strerror}); give another --port, or "
            "--port 0 for a free one"
        ) from error
    return taken


def url_of(taken: socket.socket, host: str) -> str:
    """Where a browser finds the server."""
    port = taken.getsockname()[1]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
