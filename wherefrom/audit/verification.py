"""Whether a bundle is what it says: digests, statement, and its questions asked again.

Everything that does not fit is named, not only the first.

What a bundle cannot prove by itself is that it is the one that was made. Who changes all its files
alike makes another bundle; asking again then finds changed answers, but not a question that was
left out, nor a gate. Against that helps a signature on the statement, or what the auditor knows
from elsewhere (:func:`unexpected`): the statement's SHA-256, the questions, the conditions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from wherefrom.audit.asking import BatchQuery
from wherefrom.audit.bundle import (
    ANSWERS_FILE,
    ENVIRONMENT_FILE,
    ENVIRONMENT_SCHEMA,
    MANIFEST_FILE,
    REPORT_FILE,
    STATEMENT_FILE,
    bundle_line,
    portable,
    render_report,
)
from wherefrom.audit.canonical import canonical_json, read_strictly, sha256
from wherefrom.audit.contents import read_contents
from wherefrom.audit.entries import Entry, read_entries
from wherefrom.audit.gate import Gate
from wherefrom.audit.statement import (
    Predicate,
    Statement,
    index_subjects,
    make_predicate,
    read_statement,
)
from wherefrom.errors import FilterError, IntegrityError
from wherefrom.store.manifest import Manifest

__all__ = ["SIGNATURE_FILES", "Bundle", "Problem", "ProblemKind", "read_bundle", "unexpected"]

ProblemKind = Literal["file", "digest", "statement", "manifest", "answers", "report", "index"]

SIGNATURE_FILES = ("statement.json.sig", "statement.dsse.json", "statement.sigstore.json")
"""What signing tools leave beside a statement; noted, and checked with these tools."""

_ATTESTED = (ANSWERS_FILE, ENVIRONMENT_FILE, MANIFEST_FILE, REPORT_FILE)


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that does not fit.

    Attributes:
        kind: Of what kind.
        where: The file, or the answer.
        detail: What is wrong with it.
    """

    kind: ProblemKind
    where: str
    detail: str


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle as it was read, and all that does not fit.

    Attributes:
        path: Where it stands.
        problems: Empty if all fits.
        entries: Its answers, as far as they can be read.
        manifest: Of the index that was asked, if it can be read.
        signatures: Files that hold some.
        statement_sha256: Of ``statement.json``, if it is there.
        report_checked: Whether the report was made again and compared: this takes the version of
            wherefrom that wrote it.
    """

    path: Path
    problems: tuple[Problem, ...]
    entries: tuple[Entry, ...] = ()
    manifest: Manifest | None = None
    signatures: tuple[str, ...] = ()
    statement_sha256: str | None = None
    report_checked: bool = False


@dataclass(slots=True)
class _Check:
    """Files under check, and what was found."""

    files: dict[str, bytes]
    problems: list[Problem] = field(default_factory=list)

    def note(self, kind: ProblemKind, where: str, detail: str) -> None:
        self.problems.append(Problem(kind, where, detail))


def read_bundle(path: Path, *, other_version: bool = False) -> Bundle:
    """Read a bundle and check all that can be checked without its index.

    Args:
        path: A directory or zip file.
        other_version: Whether to let a report pass that another version of wherefrom wrote, which
            cannot be made again to compare: who has no signature can then not trust it.

    Raises:
        NotAnIndexError: There is neither.
        IntegrityError: It is a zip file that cannot be read, or too large for a bundle.
        StorageError: The disk refuses.
    """
    contents = read_contents(path)
    check = _Check(dict(contents.files))
    for oddity in contents.oddities:
        check.note("file", oddity.name, oddity.what)
    signatures = tuple(name for name in SIGNATURE_FILES if check.files.pop(name, None) is not None)
    for name in check.files:
        if name not in (*_ATTESTED, STATEMENT_FILE):
            check.note("file", name, "does not belong to a bundle")
    for name in (*_ATTESTED, STATEMENT_FILE):
        if name not in check.files:
            check.note("file", name, "is missing")
    statement = _statement(check)
    manifest = _manifest(check)
    entries = _entries(check)
    environment = _environment(check)
    report_checked = False
    if statement is not None:
        if environment is not None:
            _check_making(check, statement.predicate, environment)
        _check_subjects(check, statement, manifest)
        if entries is not None:
            _check_predicate(check, statement.predicate, entries)
            report_checked = _check_report(check, statement.predicate, entries, other_version)
    if entries is not None and manifest is not None:
        _check_entries(check, entries, manifest)
    data = check.files.get(STATEMENT_FILE)
    return Bundle(
        path,
        tuple(check.problems),
        tuple(entries or ()),
        manifest,
        signatures,
        None if data is None else sha256(data),
        report_checked,
    )


def unexpected(
    bundle: Bundle,
    *,
    statement_sha256: str | None = None,
    questions: Sequence[BatchQuery] | None = None,
    fail_if: Sequence[str] | None = None,
) -> list[Problem]:
    """Where a bundle is not what is known of it from elsewhere; what is ``None`` is not compared.

    Args:
        bundle: As it was read.
        statement_sha256: Of its statement, as it was told when the bundle was made.
        questions: That were asked, in their order.
        fail_if: Conditions of the gate that all answers were held against.
    """
    problems = []
    if statement_sha256 is not None and statement_sha256.lower() != bundle.statement_sha256:
        detail = f"has SHA-256 {bundle.statement_sha256}, not {statement_sha256}"
        problems.append(Problem("statement", STATEMENT_FILE, detail))
    if questions is not None:
        problems += _other_questions(bundle.entries, questions)
    if fail_if is not None:
        problems += [
            Problem("answers", f"answer {entry.id}", "was held against another gate")
            for entry in bundle.entries
            if sorted(entry.fail_if) != sorted(fail_if)
        ]
    return problems


def _other_questions(entries: Sequence[Entry], asked: Sequence[BatchQuery]) -> list[Problem]:
    """Questions that were left out, put in, or changed."""
    due = {one.id: (one.query, one.tags) for one in asked}
    held = {entry.id: (entry.query, entry.tags) for entry in entries}
    problems = [
        Problem("answers", f"answer {named}", "is missing") for named in due if named not in held
    ]
    for named, what in held.items():
        if named not in due:
            problems.append(Problem("answers", f"answer {named}", "is to no question of the file"))
        elif due[named] != what:
            problems.append(Problem("answers", f"answer {named}", "is to another question"))
    return problems


def _statement(check: _Check) -> Statement | None:
    data = check.files.get(STATEMENT_FILE)
    if data is None:
        return None
    try:
        return read_statement(data, STATEMENT_FILE)
    except IntegrityError as error:
        check.note("statement", STATEMENT_FILE, _without(str(error), STATEMENT_FILE))
        return None


def _manifest(check: _Check) -> Manifest | None:
    data = check.files.get(MANIFEST_FILE)
    if data is None:
        return None
    try:
        fields = read_strictly(data, MANIFEST_FILE)
        if not isinstance(fields, dict):
            raise IntegrityError(f"{MANIFEST_FILE} is no JSON object")
        fields.pop("sha256", None)
        manifest = Manifest.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        check.note("manifest", MANIFEST_FILE, f"is no manifest (field {where!r}: {first['msg']})")
        return None
    except IntegrityError as error:
        check.note("manifest", MANIFEST_FILE, _without(str(error), MANIFEST_FILE))
        return None
    if manifest.to_bytes() != data:
        check.note("manifest", MANIFEST_FILE, "was changed: its own SHA-256 does not fit")
    return manifest


def _entries(check: _Check) -> list[Entry] | None:
    data = check.files.get(ANSWERS_FILE)
    if data is None:
        return None
    lines = data.splitlines(keepends=True)
    try:
        entries = list(read_entries(lines, ANSWERS_FILE))
    except IntegrityError as error:
        check.note("answers", ANSWERS_FILE, _without(str(error), ANSWERS_FILE))
        return None
    for number, (line, entry) in enumerate(zip(lines, entries, strict=True), start=1):
        if bundle_line(portable(entry)) != line:
            check.note("answers", ANSWERS_FILE, f"line {number} is not written as in a bundle")
    return entries


def _environment(check: _Check) -> dict[str, Any] | None:
    data = check.files.get(ENVIRONMENT_FILE)
    if data is None:
        return None
    try:
        fields = read_strictly(data, ENVIRONMENT_FILE)
    except IntegrityError as error:
        check.note("file", ENVIRONMENT_FILE, _without(str(error), ENVIRONMENT_FILE))
        return None
    ours = isinstance(fields, dict) and fields.get("schema") == ENVIRONMENT_SCHEMA
    if not ours or canonical_json(fields) + b"\n" != data:
        check.note("file", ENVIRONMENT_FILE, "is not what wherefrom wrote")
        return None
    return dict(fields)


def _check_subjects(check: _Check, statement: Statement, manifest: Manifest | None) -> None:
    """Each subject once, of a file that is there or of the index, with the right digest."""
    expected = {name: sha256(check.files[name]) for name in _ATTESTED if name in check.files}
    urns = {} if manifest is None else index_subjects(manifest)
    seen: set[str] = set()
    for subject in statement.subject:
        name, digest = subject.name, subject.digest.sha256
        if name in seen:
            check.note("statement", STATEMENT_FILE, f"names {name!r} twice")
        seen.add(name)
        if name in urns:
            if digest != urns[name]:
                check.note("statement", STATEMENT_FILE, f"{name} is not what {MANIFEST_FILE} says")
        elif name in expected:
            if digest != expected[name]:
                check.note("digest", name, "differs from the SHA-256 in the statement")
        elif name not in _ATTESTED and not (manifest is None and name.startswith("urn:")):
            check.note("statement", STATEMENT_FILE, f"names {name!r}, which no bundle holds")
    for name in (*expected, *urns):
        if name not in seen:
            check.note("statement", STATEMENT_FILE, f"does not name {name}")


def _check_making(check: _Check, predicate: Predicate, environment: dict[str, Any]) -> None:
    """Version and command, which nothing else tells, stand in two files."""
    told = {"wherefrom": predicate.wherefrom, "command": list(predicate.command)}
    for name, value in told.items():
        if environment.get(name) != value:
            detail = f"its {name!r} is not what {ENVIRONMENT_FILE} says"
            check.note("statement", STATEMENT_FILE, detail)


def _check_predicate(check: _Check, predicate: Predicate, entries: Sequence[Entry]) -> None:
    """What the statement says of the answers is what they come to."""
    due = make_predicate(entries, predicate.command, predicate.wherefrom)
    for name in Predicate.model_fields:
        if getattr(due, name) != getattr(predicate, name):
            detail = f"its {name!r} is not what {ANSWERS_FILE} comes to"
            check.note("statement", STATEMENT_FILE, detail)


def _check_report(
    check: _Check, predicate: Predicate, entries: Sequence[Entry], other_version: bool
) -> bool:
    """Make the report again and compare; whether that could be done."""
    data = check.files.get(REPORT_FILE)
    if data is None:
        return False
    writer, reader = predicate.wherefrom, metadata.version("wherefrom")
    if writer != reader:
        if not other_version:
            detail = (
                f"cannot be made again to compare: wherefrom {writer} wrote it, this is {reader}; "
                "verify with that version, or let it pass with --other-version"
            )
            check.note("report", REPORT_FILE, detail)
        return False
    if render_report(entries) != data:
        check.note("report", REPORT_FILE, f"is not the report on {ANSWERS_FILE}")
    return True


def _check_entries(check: _Check, entries: Sequence[Entry], manifest: Manifest) -> None:
    """All answers are of the one index, and the gate's findings what its conditions find."""
    for entry in entries:
        where = f"answer {entry.id}"
        if entry.answer is not None and entry.answer.index["manifest_sha256"] != manifest.digest:
            check.note("answers", where, f"is of another index than {MANIFEST_FILE}")
        detail = _gate_problem(entry, manifest)
        if detail is not None:
            check.note("answers", where, detail)


def _gate_problem(entry: Entry, manifest: Manifest) -> str | None:
    """What is wrong with the gate's findings, if anything is."""
    if entry.answer is None:
        return "was stopped at the gate without an answer" if entry.gate else None
    try:
        gate = Gate.parse(entry.fail_if, manifest.metadata, entry.answer.sign)
    except FilterError as error:
        return f"has a gate that does not fit the index: {error}"
    if gate.judge(entry.answer) != entry.gate:
        return "has other findings of the gate than its conditions give"
    return None


def _without(message: str, name: str) -> str:
    """A message that need not begin with the file's name, which stands before it."""
    return message.removeprefix(f"{name}, ").removeprefix(f"{name} ")
