"""What docstrings write as Sphinx reads it, for mkdocstrings: cross references, literal blocks."""

from __future__ import annotations

import re
from typing import Any

import griffe

import wherefrom

__all__ = ["Roles"]

_ROLE = re.compile(
    r":(?:class|func|meth|attr|mod|data|exc):`(?:(?P<title>[^`<]+?)\s*<(?P<target>[\w.]+)>"
    r"|(?P<short>~?)(?P<name>[\w.]+))`"
)
_LITERAL = re.compile(r"::$", re.MULTILINE)


class Roles(griffe.Extension):
    """Turns ``:class:`~module.Name``` into a link, where the site documents that name."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the object's docstring."""
        if obj.docstring is not None:
            linked = _ROLE.sub(lambda found: _link(obj, found), obj.docstring.value)
            obj.docstring.value = _LITERAL.sub(":", linked)


def _link(obj: griffe.Object, found: re.Match[str]) -> str:
    name = found["target"] or found["name"]
    shown = found["title"] or name.removeprefix("wherefrom.")
    if found["short"]:
        shown = name.rsplit(".", 1)[-1]
    return f'<autoref optional identifier="{_resolved(obj, name)}"><code>{shown}</code></autoref>'


def _resolved(obj: griffe.Object, name: str) -> str:
    """The whole path of a name as the docstring's author would say it."""
    if name.startswith("wherefrom."):
        return _at_home(name)
    owner: griffe.Object | None = obj
    while owner is not None:
        if name in owner.members:
            return f"{owner.path}.{name}"
        owner = owner.parent
    try:
        return obj.resolve(name)
    except griffe.NameResolutionError:
        return name


def _at_home(name: str) -> str:
    """The path of a public name, or of something in it, under the module that defines it."""
    _, public, *rest = name.split(".")
    if public not in wherefrom.__all__:
        return name
    value = getattr(wherefrom, public)
    return ".".join([value.__module__, value.__qualname__, *rest])
