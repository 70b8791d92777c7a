"""Evidence bundles: answers, what they were computed from, and a statement that can be signed.

A bundle is a directory, or a zip file, of five files::

    answers.jsonl     an entry a line (wherefrom.audit.entries), in canonical JSON
    environment.json  versions and platform
    manifest.json     the index's manifest, byte for byte
    report.html       the answers, for people
    statement.json    an in-toto Statement about the four others, to be signed

Times taken and the index's path are left out of the answers, so that the same answers make the same
bytes, wherever the index stands. (The manifest names the paths that the index was built from.)
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wherefrom.audit.canonical import canonical_json, sha256
from wherefrom.audit.contents import write_directory, write_zip
from wherefrom.audit.entries import Entry, read_entries
from wherefrom.audit.statement import Statement, make_predicate, make_statement
from wherefrom.errors import MismatchError
from wherefrom.store.manifest import Manifest

if TYPE_CHECKING:
    from wherefrom.maintenance.index import Index

__all__ = [
    "ANSWERS_FILE",
    "ENVIRONMENT_FILE",
    "ENVIRONMENT_SCHEMA",
    "MANIFEST_FILE",
    "REPORT_FILE",
    "STATEMENT_FILE",
    "bundle_line",
    "environment",
    "portable",
    "render_report",
    "write_bundle",
]

ANSWERS_FILE = "answers.jsonl"
ENVIRONMENT_FILE = "environment.json"
MANIFEST_FILE = "manifest.json"
REPORT_FILE = "report.html"
STATEMENT_FILE = "statement.json"
ENVIRONMENT_SCHEMA = "wherefrom-environment/1"

_ANY_PATH = "INDEX"
"""Stands for the index in reports and the commands they show."""


def write_bundle(
    path: Path,
    entries: Sequence[Entry],
    manifest: Manifest,
    *,
    command: Sequence[str] = (),
    index: Index | None = None,
) -> Statement:
    """Write a bundle.

    Args:
        path: What to make: a zip file if its name ends so, else a directory.
        entries: Questions and their answers, all of one index.
        manifest: Of that index.
        command: How they came about, for the record.
        index: The open index, if it has just given these answers: the environment is then theirs.

    Returns:
        What the bundle attests.

    Raises:
        MismatchError: An answer is another index's.
        IntegrityError: Two answers have the same id.
        StorageError: There is something at ``path``, or the disk refuses.
    """
    for entry in entries:
        asked = None if entry.answer is None else entry.answer.index["manifest_sha256"]
        if asked not in (None, manifest.digest):
            raise MismatchError(
                f"answer {entry.id!r} is of the index with manifest {asked[:12]}..., not of "
                f"{manifest.digest[:12]}...; give the index that was asked"
            )
    lines = [bundle_line(portable(entry)) for entry in entries]
    # As they are read back, keys in order, so that the report can be made again from them.
    plain = list(read_entries(lines, ANSWERS_FILE))
    files = {
        ANSWERS_FILE: b"".join(lines),
        ENVIRONMENT_FILE: canonical_json(environment(manifest, command, index)) + b"\n",
        MANIFEST_FILE: manifest.to_bytes(),
        REPORT_FILE: render_report(plain),
    }
    digests = {name: sha256(data) for name, data in files.items()}
    statement = make_statement(
        digests, manifest, make_predicate(plain, command, metadata.version("wherefrom"))
    )
    # Last, so that a bundle cut short has no statement.
    files[STATEMENT_FILE] = statement.to_bytes()
    (write_zip if path.suffix == ".zip" else write_directory)(path, files)
    return statement


def portable(entry: Entry) -> Entry:
    """An entry without the time that it took and the place where its index stood."""
    if entry.answer is None:
        return entry
    told = {**entry.answer.index, "path": _ANY_PATH}
    return replace(entry, answer=replace(entry.answer, index=told, seconds=0.0))


def bundle_line(entry: Entry) -> bytes:
    """The line of a :func:`portable` entry."""
    fields = entry.to_dict()
    fields.pop("seconds", None)
    return canonical_json(fields) + b"\n"


def render_report(entries: Sequence[Entry]) -> bytes:
    """The report on :func:`portable` entries."""
    from wherefrom.query.report.html import write_report

    sections = [(entry.id, entry.answer) for entry in entries if entry.answer is not None]
    notes = [
        f"{entry.id} was not answered: {entry.failure.detail}"
        for entry in entries
        if entry.failure is not None
    ]
    with tempfile.TemporaryDirectory() as folder:
        return write_report(sections, Path(folder) / REPORT_FILE, notes=notes).read_bytes()


def environment(manifest: Manifest, command: Sequence[str], index: Index | None) -> dict[str, Any]:
    """What answers depend on beside the index; no names of users, hosts or paths.

    Args:
        manifest: Names the libraries that matter.
        command: How the answers came about.
        index: The open index that answered; ``None`` for answers from elsewhere, of whose making
            nothing is known here.
    """
    answered: Mapping[str, Any] | None = None
    if index is not None:
        import torch

        answered = {
            "device": index.asker.extractor.device.type,
            "threads": torch.get_num_threads(),
        }
    return {
        "schema": ENVIRONMENT_SCHEMA,
        "wherefrom": metadata.version("wherefrom"),
        "command": list(command),
        "versions": {name: _version(name) for name in ("python", *manifest.versions)},
        "system": platform.system(),
        "machine": platform.machine(),
        "answered": answered,
    }


def _version(name: str) -> str | None:
    """Of a library; ``None`` if it is not installed."""
    if name == "python":
        return platform.python_version()
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
