"""What is made again from what is whole: copies of rows, files of rows, what was built from rows.

Only verified rows are ever copied, so a repair changes no answer; where a row itself is damaged
nothing is repaired, for its text and its vector stand nowhere else.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from wherefrom.errors import MissingExtraError
from wherefrom.maintenance.changes import Contents, content_digest
from wherefrom.maintenance.inspection import Problem
from wherefrom.maintenance.rewriting import rewrite
from wherefrom.maintenance.writer import Writer
from wherefrom.records import Progress
from wherefrom.store import (
    AcceleratorRecord,
    DocumentTable,
    Manifest,
    ScanCopy,
    build_accelerator,
    write_bytes_atomically,
)
from wherefrom.store.versions import HINT, hint

__all__ = ["repaired"]


def repaired(
    folder: str | os.PathLike[str], problems: Sequence[Problem], progress: Progress
) -> tuple[str, ...]:
    """Make again what can be, and publish it as the next state of the index.

    Args:
        folder: The index.
        problems: All that is wrong with it.
        progress: Told of what is made.

    Returns:
        What was made again, in words; nothing where something is wrong that all else rests on.

    Raises:
        IndexBusyError: Another writer is at work.
        IntegrityError: A row differs from its digest.
        StorageError: The disk refuses; what was published before still is.
    """
    if any(p.kind in ("manifest", "documents", "row") and not p.rebuildable for p in problems):
        return ()
    wanted = {problem.kind for problem in problems if problem.rebuildable}
    made: list[str] = []
    with Writer.of(folder) as writer:
        made += [f"{name} (removed: a change that was cut short)" for name in writer.discarded]
        if "file" in wanted:
            writer.sweep(keep_work=True)
            made.append("what a purge had left was removed")
        hints = [p for p in problems if p.where.endswith(HINT)]
        torn = [p for p in problems if p.where in writer.discarded]
        table = writer.folder / f"{writer.manifest.store.table}.lance"
        if hints and (newest := hint(table)) is not None:
            write_bytes_atomically(table / HINT, newest)
            made.append(f"{table.name}/{HINT}")
        rewritten = any(p.kind == "documents" and p not in (*hints, *torn) for p in problems)
        before = writer.manifest.accelerators
        if rewritten or "scan" in wanted:
            progress("making the scan copy again", 0, 1)
            _republish(writer, table_too=rewritten)
            progress("making the scan copy again", 1, 1)
            made.append("the documents table and the scan copy" if rewritten else "the scan copy")
        if before and (writer.manifest.accelerators != before or "accelerator" in wanted):
            made += _accelerators(writer, before, progress)
    return tuple(made)


def _republish(writer: Writer, *, table_too: bool) -> None:
    manifest = writer.manifest
    writer.sweep()
    table = DocumentTable.open(writer.folder, manifest)
    if table_too:
        store, scan = rewrite(writer, table)
    else:
        store = manifest.store
        scan = ScanCopy.build(table, writer.scan_folder, number=writer.generation)
    nothing = content_digest(Contents(), Contents())
    writer.publish("repair", store, scan, manifest.corpus, content_sha256=nothing)


def _accelerators(
    writer: Writer, before: Sequence[AcceleratorRecord], progress: Progress
) -> list[str]:
    """Make all accelerators again, of the documents as they are published now."""
    table = DocumentTable.open(writer.folder, writer.manifest)
    made: list[str] = []
    records: list[AcceleratorRecord] = []
    for done, record in enumerate(before):
        progress("making accelerators again", done, len(before))
        try:
            records.append(build_accelerator(record.kind, table, writer.folder))
            made.append(f"the accelerator {record.kind}")
        except MissingExtraError as error:
            made.append(f"the accelerator {record.kind} was dropped: {error}")
    progress("making accelerators again", len(before), len(before))
    changed: Manifest = writer.manifest.model_copy(update={"accelerators": tuple(records)})
    changed.write(writer.folder)
    return made
