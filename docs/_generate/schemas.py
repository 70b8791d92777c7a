"""JSON Schemas as tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["Link", "fields_table", "type_in_words"]

Schema = Mapping[str, Any]
Link = Callable[[str], str]
"""A record's name, as a link to where it is described."""

_BOUNDS = {
    "minimum": "≥ {:,}",
    "maximum": "≤ {:,}",
    "minLength": "≥ {:,} characters",
    "maxLength": "≤ {:,} characters",
    "minItems": "≥ {:,}",
    "maxItems": "≤ {:,}",
}
_LARGEST_SHOWN = 1 << 31


def fields_table(schema: Schema, link: Link) -> str:
    """A row for each property: name, type, and description with its default.

    Args:
        schema: Of an object.
        link: For the records that it refers to.
    """
    required = schema.get("required", ())
    rows = ["| field | type | |", "|---|---|---|"]
    for name, field in schema["properties"].items():
        told = [_cell(field.get("description", ""))]
        if name not in required and "default" in field:
            told.append(f"Default: `{_plain(field['default'])}`.")
        elif name not in required:
            told.append("May be left out.")
        rows.append(f"| `{name}` | {type_in_words(field, link)} | {' '.join(told).strip()} |")
    return "\n".join(rows)


def type_in_words(schema: Schema, link: Link) -> str:
    """A type with its bounds, short enough for a table's cell."""
    if "$ref" in schema:
        return link(schema["$ref"].rsplit("/", 1)[-1])
    if "const" in schema:
        return f"`{_plain(schema['const'])}`"
    if "enum" in schema:
        return ", ".join(f"`{_plain(value)}`" for value in schema["enum"])
    if "anyOf" in schema:
        kinds = dict.fromkeys(type_in_words(one, link) for one in schema["anyOf"])
        return " or ".join(kinds)
    kind = {"array": "list", None: "anything"}.get(schema.get("type"), schema.get("type"))
    if kind == "list" and "items" in schema:
        kind = f"list of {type_in_words(schema['items'], link)}"
    elif kind == "list":
        kind = "list of " + " and ".join(
            type_in_words(one, link) for one in schema.get("prefixItems", ())
        )
    bounds = [
        text.format(int(schema[key]))
        for key, text in _BOUNDS.items()
        if key in schema and abs(schema[key]) < _LARGEST_SHOWN
    ]
    return f"{kind} ({', '.join(bounds)})" if bounds else str(kind)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _plain(value: object) -> str:
    return {None: "null", True: "true", False: "false", "": '""'}.get(value, str(value))  # type: ignore[call-overload,no-any-return]
