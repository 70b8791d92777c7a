"""Everything in an index that can be wrong, looked for part by part, and named.

Each part is looked at as far as it can be, whatever is wrong with the others, in memory that does
not grow with the documents. What is compared with what:

* every file with its SHA-256 in the manifest, and the manifest with its own;
* every row of the documents table with the digest it holds, its text with its content hash, its
  number with its place;
* ids with each other, for none may come twice;
* the scan copy and the facts, which answers are searched and filtered by, with the rows they are
  copies of, to the last bit;
* accelerators with the table they were made from.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from wherefrom.encoding.persistence import ENCODER_FILE
from wherefrom.errors import MissingExtraError, WherefromError
from wherefrom.maintenance.changes import Unreadable, readable
from wherefrom.maintenance.writer import is_left_behind, is_made_by_writers
from wherefrom.records import Progress
from wherefrom.store import (
    SCAN_DIRECTORY,
    DocumentTable,
    Manifest,
    ScanCopy,
    StoredRows,
    content_hash,
    file_sha256,
    open_accelerator,
)
from wherefrom.store.directory import BUILD_FILE, MANIFEST_FILE
from wherefrom.store.facts import Facts
from wherefrom.store.lance import unreadable_versions
from wherefrom.store.location import Database
from wherefrom.store.lock import LOCK_FILE
from wherefrom.store.segments import scan_columns
from wherefrom.store.versions import HINT, hint

__all__ = [
    "MOST_NAMED",
    "PURGE",
    "REPAIR",
    "RESTORE",
    "Inspection",
    "Problem",
    "ProblemKind",
    "cause",
]

ProblemKind = Literal[
    "manifest", "file", "documents", "row", "scan", "encoder", "accelerator", "model", "encoding"
]

MOST_NAMED = 100
"""Rows that are named one by one; where more are damaged, the rest of them is not looked for."""

RESTORE = "restore the index from a copy, or build it again"
REPAIR = "make it again with wherefrom verify --repair"
"""Remedies: what cannot be made again, and what can."""

PURGE = "remove them with wherefrom verify --repair, or give the purge again"
"""Remedy for a purge that was interrupted when all but its last step was done."""

_ENTRIES_PER_READ = 1 << 22
_ROWS_PER_READ = 1024
_LISTED = 5


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong with an index.

    Attributes:
        kind: The part it is in.
        where: The file, within the index, or the document.
        detail: What is wrong with it.
        remedy: What to do.
        rebuildable: Whether it can be made again from what is whole.
    """

    kind: ProblemKind
    where: str
    detail: str
    remedy: str
    rebuildable: bool = False


class Inspection:
    """What is found out about an index, as it is looked at.

    Attributes:
        problems: All that is wrong.
        checked: How many of each part were looked at.
        notes: What was not looked at, and why.
        damaged: Ordinals of rows that cannot be read or differ from their digests.
        table: The documents table, if it can be opened.
    """

    def __init__(self, path: Path, manifest: Manifest, progress: Progress) -> None:
        """Of the index in ``path``, which is one by its ``manifest``."""
        self.path = path
        self.manifest = manifest
        self.problems: list[Problem] = []
        self.checked: dict[str, int] = {"manifest": 1}
        self.notes: list[str] = []
        self.damaged: list[int] = []
        self.table: DocumentTable | None = None
        self._progress = progress
        self._torn = False

    def files(self) -> None:
        """Compare the files that the manifest names with their digests; note any others."""
        named = self._named()
        held = {
            os.path.relpath(os.path.join(parent, name), self.path).replace(os.sep, "/")
            for parent, _, names in os.walk(self.path)
            for name in names
        }
        for done, (name, (sha256, kind, rebuildable)) in enumerate(named.items()):
            self._progress("comparing files with their digests", done, len(named))
            remedy = REPAIR if rebuildable else RESTORE
            if name not in held:
                self._found(kind, name, "is missing", remedy, rebuildable)
                continue
            try:
                same = file_sha256(self.path / name) == sha256
            except (WherefromError, OSError) as error:
                self._found(kind, name, f"cannot be read ({cause(error)})", remedy, rebuildable)
                continue
            if not same:
                detail = "differs from its SHA-256 in the manifest"
                self._found(kind, name, detail, remedy, rebuildable)
        self._progress("comparing files with their digests", len(named), len(named))
        self.checked["files"] = len(named)
        self._check_hint()
        self._check_versions()
        known = {MANIFEST_FILE, BUILD_FILE, LOCK_FILE, f"{self._table}/{HINT}"}
        torn = {problem.where for problem in self.problems}
        self._check_others(sorted(held - named.keys() - known - torn))

    def _check_others(self, names: list[str]) -> None:
        """Files that the manifest does not name."""
        folders = {SCAN_DIRECTORY, self._table}
        earlier = [
            name
            for name in names
            if (top := name.partition("/")[0]) in folders or is_made_by_writers(top)
        ]
        history, purged = self.manifest.history, list[str]()
        if history and history[-1].kind == "purge":
            purged = [name for name in earlier if is_left_behind(name, self.manifest)]
        if purged:
            detail = f"and {len(purged) - 1} more files are left of what was purged"
            self._found("file", purged[0], detail, PURGE, rebuildable=True)
        elif earlier:
            self.notes.append(
                f"{len(earlier):,} files of earlier states or interrupted changes are there, of "
                "which nothing is read; they go with the next change"
            )
        if others := [name for name in names if name not in set(earlier)]:
            listed = ", ".join(others[:_LISTED]) + (", ..." if len(others) > _LISTED else "")
            self.notes.append(
                f"nothing is read from files that the manifest does not name: {listed} "
                f"({len(others)} in all)"
            )

    def documents(self) -> None:
        """Read every row, and compare the copies of rows with them."""
        if self._torn:
            self.notes.append("no row was looked at: a change that was cut short bars the way")
            return
        try:
            self.table = table = DocumentTable.open(self.path, self.manifest)
        except WherefromError as error:
            self._found("documents", self._table, cause(error), RESTORE)
            return
        scan, facts = self._copies(table)
        self._check_ids(facts)
        rows_checked = 0
        for rows in self._rows(table):
            rows_checked += len(rows)
            self._check_values(rows)
            self._check_copies(rows, scan, facts)
        self.checked["rows"] = rows_checked
        if rows_checked == len(table):
            self._offer_rewriting()
        self._check_accelerators(table)

    def _named(self) -> dict[str, tuple[str, ProblemKind, bool]]:
        """Digest, part and whether it can be made again, of every file in the manifest."""
        manifest = self.manifest
        named: dict[str, tuple[str, ProblemKind, bool]] = {
            ENCODER_FILE: (manifest.encoder.file_sha256, "encoder", False)
        }
        store = manifest.store
        if store.deleted is not None:
            named[store.deleted.file] = (store.deleted.sha256, "documents", False)
        for name, sha256 in store.files.items():
            named[f"{self._table}/{name}"] = (sha256, "documents", False)
        for segment in manifest.scan.segments:
            for name, sha256 in segment.files.items():
                named[f"{SCAN_DIRECTORY}/{segment.number}/{name}"] = (sha256, "scan", True)
        for record in manifest.accelerators:
            for name, sha256 in record.files.items():
                named[name] = (sha256, "accelerator", True)
        return named

    @property
    def _table(self) -> str:
        return f"{self.manifest.store.table}.lance"

    def _check_hint(self) -> None:
        """Lance's note of its newest version, which moves on with it and so has no digest."""
        folder = self.path / self._table
        before = hint(folder)
        if before is None:
            return
        try:
            said = (folder / HINT).read_bytes()
        except OSError:
            said = b""
        # A writer may have moved on between the two looks.
        if said not in (before, hint(folder)):
            detail = "does not name the newest version"
            self._found("documents", f"{self._table}/{HINT}", detail, REPAIR, rebuildable=True)

    def _check_versions(self) -> None:
        """What the power, failing in a change, left of the table's newest version."""
        try:
            store = self.manifest.store
            torn = unreadable_versions(
                Database(os.fspath(self.path)), store.table, store.table_version
            )[:1]
        except WherefromError as error:
            self._found("documents", self._table, cause(error), RESTORE)
            return
        for file in torn:
            name = file.relative_to(self.path).as_posix()
            detail = "was left by a change that was cut short"
            remedy = "remove it with wherefrom verify --repair; nothing published is lost"
            self._found("documents", name, detail, remedy, rebuildable=True)
        self._torn = bool(torn)

    def _copies(self, table: DocumentTable) -> tuple[ScanCopy | None, Facts | None]:
        """The scan copy and the facts, as far as they can be opened."""
        scan: ScanCopy | None = None
        facts: Facts | None = None
        if any(problem.kind == "scan" for problem in self.problems):
            return scan, facts  # Its files differ already: nothing in them is worth a comparison.
        try:
            folder = self.path / SCAN_DIRECTORY
            scan = ScanCopy.open(folder, self.manifest.scan, table.live, verify=False)
            facts = table.facts
        except WherefromError as error:
            self._found("scan", SCAN_DIRECTORY, cause(error), REPAIR, rebuildable=True)
        return scan, facts

    def _rows(self, table: DocumentTable) -> Iterator[StoredRows]:
        """All rows that equal their digests; the others are named."""
        size = max(1, min(_ROWS_PER_READ, _ENTRIES_PER_READ // table.layout.dimension))
        for start in range(0, len(table), size):
            self._progress("checking the documents", start, len(table))
            yield from self._readable(table, np.arange(start, min(start + size, len(table))))
            if len(self.damaged) >= MOST_NAMED:
                detail = f"{MOST_NAMED} damaged rows up to row {start + size:,}"
                self._found("documents", self._table, f"{detail}; the rest was not read", RESTORE)
                return
        self._progress("checking the documents", len(table), len(table))

    def _readable(self, table: DocumentTable, ordinals: NDArray[np.int64]) -> Iterator[StoredRows]:
        for rows in readable(table, ordinals, WherefromError):
            if isinstance(rows, Unreadable):
                self.damaged.append(rows.ordinal)
                remedy = f"{RESTORE}; or delete it and append it again"
                self._found("row", self._name(table, rows.ordinal), cause(rows.error), remedy)
                if len(self.damaged) >= MOST_NAMED:
                    return
            else:
                yield rows

    def _name(self, table: DocumentTable, ordinal: int) -> str:
        """A document by its id, where the facts are whole."""
        try:
            (doc_id,) = table.facts.doc_ids([ordinal])
        except WherefromError:
            return f"row {ordinal}"
        return f"document {doc_id!r}"

    def _offer_rewriting(self) -> None:
        """All rows are whole: whatever is wrong with the table's files, it can be written anew."""
        if any(problem.kind == "row" for problem in self.problems):
            return
        inside = f"{self._table}/"
        self.problems = [
            replace(problem, remedy=REPAIR, rebuildable=True)
            if problem.kind == "documents" and problem.where.startswith(inside)
            else problem
            for problem in self.problems
        ]

    def _check_ids(self, facts: Facts | None) -> None:
        if facts is None:
            return
        for doc_id in facts.repeated()[:MOST_NAMED]:
            detail = "has more than one row"
            self._found("row", f"document {doc_id!r}", detail, "delete it and append it again")

    def _check_values(self, rows: StoredRows) -> None:
        """What no digest says: that a row was right when it was written."""
        numbers = np.column_stack([rows.norms, rows.residual_norms, rows.stored.scales])
        sound = np.all(np.isfinite(numbers) & (numbers >= 0), axis=1)
        tensors = list(rows.layout.tensors)
        for i, document in enumerate(rows.documents()):
            examples = (rows.batch.column(name)[i].as_py() for name in tensors)
            detail = None
            if not sound[i]:
                detail = "has a norm or scale that is negative, infinite or no number"
            elif content_hash(document, *examples) != rows.content_hashes[i]:
                detail = "has a content hash that is not its content's"
            if detail is not None:
                self._found("row", f"document {document.doc_id!r}", detail, RESTORE)

    def _check_copies(self, rows: StoredRows, scan: ScanCopy | None, facts: Facts | None) -> None:
        where = SCAN_DIRECTORY
        if facts is not None:
            for doc_id in facts.differing(rows):
                detail = f"holds other facts of document {doc_id!r} than the documents table"
                self._found("scan", where, detail, REPAIR, rebuildable=True)
        if scan is None:
            return
        (chunk,) = scan.chunks(len(rows), rows.ordinals)
        for name, expected in scan_columns(rows, scan.width).items():
            copied = getattr(chunk, name)
            same = copied.tobytes() == expected.tobytes()
            if not same:
                unequal = (copied != expected).reshape(len(rows), -1).any(1)
                doc_id = rows.doc_ids[int(np.argmax(unequal))]
                detail = f"holds another {name} of document {doc_id!r} than the documents table"
                self._found("scan", where, detail, REPAIR, rebuildable=True)

    def _check_accelerators(self, table: DocumentTable) -> None:
        """Open those whose files are whole."""
        broken = {problem.where for problem in self.problems if problem.kind == "accelerator"}
        for record in self.manifest.accelerators:
            if broken & record.files.keys():
                continue
            try:
                open_accelerator(record, table, self.path)
            except MissingExtraError as error:
                self.notes.append(f"{record.kind} was not opened: {cause(error)}")
            except WherefromError as error:
                self._found("accelerator", record.kind, cause(error), REPAIR, rebuildable=True)
        if self.manifest.accelerators:
            self.checked["accelerators"] = len(self.manifest.accelerators)

    def _found(
        self,
        kind: ProblemKind,
        where: str,
        detail: str,
        remedy: str,
        rebuildable: bool = False,
    ) -> None:
        self.problems.append(Problem(kind, where, detail, remedy, rebuildable))


def cause(error: BaseException) -> str:
    """The message of an error, on one line, without the remedy at its end."""
    line = (str(error) or type(error).__name__).splitlines()[0]
    return line.rpartition("; ")[0] or line
