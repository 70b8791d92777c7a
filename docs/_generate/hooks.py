"""What mkdocs does beyond Markdown: generated references, and formulas as MathML.

A page holds the comment ``<!-- generated: NAME -->`` where a part is made from the code as the site
is built, so that it cannot say anything else than the code does.
"""

from __future__ import annotations

import re
from typing import Any

from answer_json import answer_fields
from commands import help_pages
from http_api import http_api
from latex2mathml.converter import convert
from mcp_tools import mcp_tools
from mkdocs.config.defaults import MkDocsConfig

__all__ = ["GENERATORS", "on_config", "on_page_markdown"]

GENERATORS = {
    "answers": answer_fields,
    "commands": help_pages,
    "http": http_api,
    "mcp": mcp_tools,
}

_MARKER = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Let fences of the language ``math`` be formulas."""
    fences = config.mdx_configs.setdefault("pymdownx.superfences", {})
    fences["custom_fences"] = [{"name": "math", "class": "math", "format": _formula}]
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put generated parts where the page wants them."""
    return _MARKER.sub(lambda found: GENERATORS[found[1]](), markdown)


def _formula(source: str, *_: Any, **__: Any) -> str:
    return convert(source.strip(), display="block")
