"""The directory of an index: its files' names, and telling whether a build there is finished.

``build.json`` is the first file that a build writes and ``manifest.json`` the last, so a directory
without the latter is no index yet.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from wherefrom.errors import IndexExistsError
from wherefrom.store.boundary import read_regular
from wherefrom.store.durable import storage_errors, write_bytes_atomically
from wherefrom.store.lock import LOCK_FILE

__all__ = [
    "BUILD_FILE",
    "ENCODER_FILE",
    "FORMAT",
    "FORMAT_VERSION",
    "MANIFEST_FILE",
    "SCAN_DIRECTORY",
    "TABLE_DIRECTORY",
    "TABLE_NAME",
    "Beside",
    "IndexState",
    "begin_build",
    "beside",
    "build_info",
    "json_bytes",
    "json_object",
    "read_json",
    "read_json_bytes",
    "state",
]

FORMAT = "wherefrom-index"
FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"
BUILD_FILE = "build.json"
ENCODER_FILE = "encoder.safetensors"
TABLE_NAME = "documents"
TABLE_DIRECTORY = "documents.lance"
SCAN_DIRECTORY = "scan"

_HALF_MARKED = re.compile(rf"\.{re.escape(BUILD_FILE)}\.[0-9a-f]+\.tmp")
_LARGEST_JSON = 1 << 26
_DEEPEST_JSON = 100  # Levels of arrays and objects: what walks them must not run out of stack.

IndexState = Literal["absent", "empty", "finished", "unfinished", "foreign"]

Beside = Literal["building", "replaced", "estimate", "fetched"]
"""What may stand beside an index for a while: what is to replace it or was replaced, the folder of
an estimate, and what is being fetched to its place."""


def beside(index: Path, role: Beside) -> Path:
    """Where it stands: on the disk of the index, also where that is reached by a link."""
    place = Path(os.path.realpath(index))
    return place.with_name(f".{place.name}.{role}")


def state(directory: str | os.PathLike[str]) -> IndexState:
    """What stands at ``directory``, as far as building or opening an index there is concerned.

    Returns:
        ``absent`` (nothing), ``empty`` (an empty directory, but for a lock and what a build that
        was killed at its first step left), ``finished`` (has a
        manifest of ours, of any format version), ``unfinished`` (a build was begun, no manifest) or
        ``foreign`` (anything else, which must never be overwritten).

    Raises:
        StorageError: It cannot be read.
    """
    folder = Path(directory)
    with storage_errors(folder):
        if not folder.exists():
            return "absent"
        if not folder.is_dir():
            return "foreign"
        names = {entry.name for entry in folder.iterdir()} - {LOCK_FILE}
        names = {name for name in names if not _HALF_MARKED.fullmatch(name)}
    if not names:
        return "empty"
    if MANIFEST_FILE in names:
        return "finished" if _is_ours(folder / MANIFEST_FILE) else "foreign"
    if BUILD_FILE in names and _is_ours(folder / BUILD_FILE):
        return "unfinished"
    return "foreign"


def begin_build(directory: str | os.PathLike[str], info: Mapping[str, object]) -> None:
    """Make ``directory`` and mark it as a build in progress.

    Args:
        directory: Where the index is to stand; absent or empty.
        info: What to tell about the build should it be interrupted; JSON values.

    Raises:
        IndexExistsError: Something stands there already.
        StorageError: The disk refuses.
    """
    folder = Path(directory)
    found = state(folder)
    if found not in ("absent", "empty"):
        held = {
            "finished": "a finished index",
            "unfinished": "an unfinished build",
            "foreign": "something that is no index",
        }[found]
        raise IndexExistsError(f"{folder} already holds {held}; choose another path")
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    marker = {"format": FORMAT, "format_version": FORMAT_VERSION, "started": started, **info}
    write_bytes_atomically(folder / BUILD_FILE, json_bytes(marker))


def build_info(directory: str | os.PathLike[str]) -> dict[str, object]:
    """What :func:`begin_build` noted about an unfinished build; empty if it noted nothing.

    Raises:
        StorageError: It cannot be read.
    """
    marker = Path(directory) / BUILD_FILE
    if not marker.is_file():
        return {}
    return read_json(marker) or {}


def json_bytes(fields: Mapping[str, object]) -> bytes:
    """UTF-8 JSON, keys in their order, finite numbers only."""
    text = json.dumps(fields, indent=2, ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def read_json(file: Path) -> dict[str, object] | None:
    """The object in ``file``; ``None`` if it holds none, or one nested beyond all reason.

    Raises:
        IntegrityError: It is no plain file, or larger than any of ours.
        StorageError: It cannot be read.
    """
    return json_object(read_json_bytes(file))


def read_json_bytes(file: Path) -> bytes:
    """The bytes of a JSON file of ours.

    Raises:
        IntegrityError: It is no plain file, or larger than any of ours.
        StorageError: It cannot be read.
    """
    return read_regular(file, _LARGEST_JSON)


def json_object(data: bytes) -> dict[str, object] | None:
    """The object in ``data``; ``None`` if it holds none, or what no JSON of ours does.

    That is nesting beyond all reason, and halves of surrogate pairs, which cannot be written back.
    """
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) and _is_ordinary(fields, _DEEPEST_JSON) else None


def _is_ordinary(value: object, levels: int) -> bool:
    if isinstance(value, str):
        return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)
    if not isinstance(value, (dict, list)):
        return True
    inner = [*value, *value.values()] if isinstance(value, dict) else value
    return levels > 0 and all(_is_ordinary(one, levels - 1) for one in inner)


def _is_ours(file: Path) -> bool:
    fields = read_json(file)
    return fields is not None and fields.get("format") == FORMAT
