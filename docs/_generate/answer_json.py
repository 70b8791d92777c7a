"""The JSON form of answers, from its published schema."""

from __future__ import annotations

import json

from schemas import fields_table

from wherefrom.query.export.schema import answer_schema

__all__ = ["answer_fields"]


def answer_fields() -> str:
    """An answer's fields, and those of the records in it."""
    schema = json.loads(answer_schema())
    parts = [f"## {schema['title']}\n\n{schema['description']}\n\n{fields_table(schema, _link)}"]
    parts += [
        f"## {name}\n\n{record['description']}\n\n{fields_table(record, _link)}"
        for name, record in schema["$defs"].items()
    ]
    return "\n\n".join(parts)


def _link(name: str) -> str:
    return f"[{name}](#{name.lower()})"
