"""What a row of a corpus file means: its id, its text, the part that carries loss, its metadata.

A row is a mapping of field names to values, whatever file it came from. Its text is one of

* ``text``: the loss lies on all of it;
* ``prompt`` and ``completion``: the loss lies on the completion;
* ``messages``: a chat of ``{"role": ..., "content": ...}``; the loss lies on the assistant's turns.

The id is ``doc_id`` or ``id``. Every other field is metadata.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Collection, Mapping

import numpy as np

from wherefrom.errors import CorpusError
from wherefrom.records import Document, Message, MetadataValue

__all__ = ["CONTENT_FIELDS", "ID_FIELDS", "document_from_row", "metadata_value"]

ID_FIELDS = ("doc_id", "id")
CONTENT_FIELDS = ("text", "prompt", "completion", "messages")

_FORMS: tuple[tuple[str, ...], ...] = (("text",), ("prompt", "completion"), ("messages",))
_FORMS_ALLOWED = "'text', or 'prompt' and 'completion', or 'messages'"


def document_from_row(
    row: object,
    where: str,
    ordinal: int,
    *,
    stem: str = "document",
    metadata_columns: Collection[str] | None = None,
) -> Document:
    """Turn one row into a document.

    Args:
        row: The row; anything but a mapping is refused.
        where: File and line, for messages.
        ordinal: Position of the row among the corpus's rows, from 0; makes the id
            ``<stem>-<ordinal>`` of a row that has none.
        stem: See ``ordinal``.
        metadata_columns: The fields to keep as metadata; all by default.

    Raises:
        CorpusError: The row has no text, two kinds of text, or a value that cannot be kept.
    """
    if not isinstance(row, Mapping):
        raise CorpusError(
            f"{where}: expected an object with fields, got {_kind(row)}; "
            f"write one object per row with {_FORMS_ALLOWED}"
        )
    present = {name for name in CONTENT_FIELDS if row.get(name) is not None}
    forms = [form for form in _FORMS if present.issuperset(form)]
    if len(forms) != 1:
        raise CorpusError(_form_problem(row, where, forms))
    (form,) = forms

    id_field = next((name for name in ID_FIELDS if name in row), None)
    doc_id = (
        f"{stem}-{ordinal:06d}" if id_field is None else _doc_id(row[id_field], id_field, where)
    )
    # A null content field is the padding of a file that mixes forms, not metadata.
    consumed = {id_field, *form, *(set(CONTENT_FIELDS) - present)}
    metadata = {
        name: _metadata_field(name, value, where)
        for name, value in row.items()
        if name not in consumed and (metadata_columns is None or name in metadata_columns)
    }

    if form == ("text",):
        return Document(doc_id, _string(row, "text", where), metadata)
    if form == ("messages",):
        return Document.chat(doc_id, _messages(row["messages"], where), metadata)
    prompt, completion = _string(row, "prompt", where), _string(row, "completion", where)
    return Document.completion(doc_id, prompt, completion, metadata)


def metadata_value(value: object) -> MetadataValue:
    """The plain value that stands for ``value`` in a metadata column.

    NumPy scalars become Python's, dates and times ISO 8601 text, and NaN ``None``: data frames
    write a missing number so.

    Raises:
        TypeError: ``value`` is no scalar, or infinite.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if math.isinf(value):
            raise TypeError("infinity is no number of JSON; give a finite one, or text")
        return None if math.isnan(value) else float(value)
    if isinstance(value, str):
        return str(value)
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    raise TypeError(f"{_kind(value)} is not text, a number, true/false or null")


def _form_problem(row: Mapping[str, object], where: str, forms: list[tuple[str, ...]]) -> str:
    if forms:
        both = " and ".join("/".join(form) for form in forms)
        return f"{where}: has both {both}; keep the one the model was trained on"
    seen = ", ".join(f"{name!r}{' (null)' if value is None else ''}" for name, value in row.items())
    return f"{where}: has no text: needs {_FORMS_ALLOWED}; fields seen: {seen or 'none'}"


def _doc_id(value: object, field: str, where: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value:
        got = "empty text" if value == "" else _kind(value)
        raise CorpusError(
            f"{where}: {field!r} is {got}; ids are text or whole numbers "
            "(leave the field out to have them numbered)"
        )
    return value


def _metadata_field(name: str, value: object, where: str) -> MetadataValue:
    if not name:
        raise CorpusError(
            f"{where}: a metadata column has no name; name it, remove it, or choose the columns "
            "to keep with metadata_columns"
        )
    try:
        return metadata_value(value)
    except TypeError as error:
        raise CorpusError(
            f"{where}: field {name!r}: {error}; flatten it, or choose the columns to keep with "
            "metadata_columns"
        ) from None


def _string(row: Mapping[str, object], field: str, where: str) -> str:
    value = row[field]
    if isinstance(value, str):
        return value
    hint = ""
    if field != "text" and isinstance(value, (list, tuple)):
        hint = "; put the whole conversation into one 'messages' field"
    raise CorpusError(f"{where}: {field!r} must be text, got {_kind(value)}{hint}")


def _messages(value: object, where: str) -> list[Message]:
    if not isinstance(value, (list, tuple)) or not value:
        got = "an empty list" if isinstance(value, (list, tuple)) else _kind(value)
        raise CorpusError(
            f"{where}: 'messages' must be a list of {{'role', 'content'}} objects, got {got}"
        )
    return [_message(turn, f"{where}: message {number}") for number, turn in enumerate(value, 1)]


def _message(turn: object, where: str) -> Message:
    if not isinstance(turn, Mapping):
        raise CorpusError(f"{where} must be an object with 'role' and 'content', got {_kind(turn)}")
    for field in ("role", "content"):
        if not isinstance(turn.get(field), str):
            raise CorpusError(f"{where}: {field!r} must be text, got {_kind(turn.get(field))}")
    # Columnar files give every turn every turn's fields, null where it had none.
    extra = [name for name, item in turn.items() if item is not None]
    unknown = sorted(map(str, set(extra) - {"role", "content"}))
    if unknown:
        raise CorpusError(
            f"{where}: has {', '.join(map(repr, unknown))}; only 'role' and 'content' are "
            "understood, so render such chats yourself into 'prompt' and 'completion'"
        )
    return Message(turn["role"], turn["content"])


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", type(None): "null", bool: "true/false"}
    return names.get(type(value), f"a value of type {type(value).__name__}")
