"""The tools of the MCP server, from the server's own list."""

from __future__ import annotations

from schemas import fields_table

from wherefrom.serve.mcp_server import TOOLS, Tool

__all__ = ["mcp_tools"]


def mcp_tools() -> str:
    """Every tool with what it takes and what it returns."""
    return "\n\n".join(_page(tool) for tool in TOOLS)


def _page(tool: Tool) -> str:
    asked = tool.asked.model_json_schema()
    returned = tool.returned.model_json_schema(mode="serialization")
    takes = fields_table(asked, str) if asked["properties"] else "Nothing."
    return (
        f"### {tool.name}\n\n{tool.description}\n\nTakes:\n\n{takes}\n\nReturns, as structured "
        f"content:\n\n{fields_table(returned, str)}"
    )
