"""Cross references of docstrings, which are written as Sphinx roles, for mkdocstrings."""

from __future__ import annotations

import re
from typing import Any

import griffe

__all__ = ["Roles"]

_ROLE = re.compile(r":(?:class|func|meth|attr|mod|data|exc):`(~?)([\w.]+)`")


class Roles(griffe.Extension):
    """Turns ``:class:`~module.Name``` into a link, where the site documents that name."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the object's docstring."""
        if obj.docstring is not None:
            obj.docstring.value = _ROLE.sub(lambda found: _link(obj, found), obj.docstring.value)


def _link(obj: griffe.Object, found: re.Match[str]) -> str:
    short, name = found[1] == "~", found[2]
    shown = name.rsplit(".", 1)[-1] if short else name.removeprefix("wherefrom.")
    return f'<autoref optional identifier="{_resolved(obj, name)}"><code>{shown}</code></autoref>'


def _resolved(obj: griffe.Object, name: str) -> str:
    """The whole path of a name as the docstring's author would say it."""
    if name.startswith("wherefrom."):
        return name
    owner: griffe.Object | None = obj
    while owner is not None:
        if name in owner.members:
            return f"{owner.path}.{name}"
        owner = owner.parent
    try:
        return obj.resolve(name)
    except griffe.NameResolutionError:
        return name
