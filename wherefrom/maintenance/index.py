"""An index: asked as a :class:`~wherefrom.query.searcher.Searcher`, and kept over time."""

from __future__ import annotations

from wherefrom.query.searcher import Searcher

__all__ = ["Index"]


class Index(Searcher):
    """A finished index on disk.

    Made by :func:`wherefrom.open` and :func:`wherefrom.build`.

    Attributes:
        path: Its directory.
        manifest: What it was built from and with.
    """
