"""The service: an index asked by people through a page, and by programs through HTTP and MCP.

Whoever asks, asks a :class:`~wherefrom.serve.service.Service`: one open index whose model works in
one thread, behind a queue of bounded length. No part of it ever opens a connection to another
machine. Needs the extra ``serve``.
"""

from __future__ import annotations

from importlib.util import find_spec

from wherefrom.errors import MissingExtraError

__all__ = ["require_extra"]


def require_extra(*packages: str) -> None:
    """Make sure that packages of the extra are installed, without importing them.

    Args:
        packages: Names, as they are imported.

    Raises:
        MissingExtraError: One is not.
    """
    for package in packages:
        if find_spec(package) is None:
            raise MissingExtraError(
                f"serving needs the package {package}; pip install 'wherefrom[serve]'"
            )
