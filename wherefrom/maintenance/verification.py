"""Whether an index is what its build left: everything checked, damage named, repaired if asked."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from wherefrom.encoding.persistence import ENCODER_FILE
from wherefrom.errors import IndexBusyError, ModelError, QueryError, WherefromError
from wherefrom.gradients.models import ModelSource
from wherefrom.gradients.objectives import Objective
from wherefrom.maintenance.inspection import MOST_NAMED, RESTORE, Inspection, Problem, cause
from wherefrom.maintenance.reencoding import TOLERANCES, Reencoded, reencode
from wherefrom.maintenance.repair import repaired
from wherefrom.query.asker import Asker, load_asker
from wherefrom.query.recall import drawn
from wherefrom.records import Progress
from wherefrom.store import Location, Manifest
from wherefrom.store.directory import BUILD_FILE, MANIFEST_FILE

__all__ = ["VERIFICATION_SCHEMA", "Verification", "verify", "verify_open"]

VERIFICATION_SCHEMA = "wherefrom-verification/1"

_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found out about an index.

    Attributes:
        path: Where it stands.
        problems: All that is wrong with it; empty if nothing is.
        checked: How many of each part were looked at (``files``, ``rows``, ``accelerators``).
        reencoded: The sample that was encoded again, if one was.
        notes: What was not looked at and why, and files that nothing names.
        repaired: What was made again.
        manifest_sha256: Identifies the index; ``None`` where its manifest cannot be read.
    """

    path: str
    problems: tuple[Problem, ...]
    checked: Mapping[str, int]
    reencoded: Reencoded | None
    notes: tuple[str, ...]
    repaired: tuple[str, ...]
    manifest_sha256: str | None

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong (any more)."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "schema": VERIFICATION_SCHEMA,
            "path": self.path,
            "ok": self.ok,
            "manifest_sha256": self.manifest_sha256,
            "problems": [asdict(problem) for problem in self.problems],
            "checked": dict(self.checked),
            "reencoded": None if self.reencoded is None else asdict(self.reencoded),
            "notes": list(self.notes),
            "repaired": list(self.repaired),
        }


def verify(
    path: str | os.PathLike[str],
    *,
    model: ModelSource | None = None,
    base_model: ModelSource | None = None,
    objective: Objective | None = None,
    device: str = "auto",
    sample: int = 64,
    seed: int = 0,
    digests_only: bool = False,
    repair: bool = False,
    progress: Progress | None = None,
) -> Verification:
    """Check everything in an index, also in one that cannot be opened any more.

    Args:
        path: The index.
        model: The model that a sample is encoded again with; by default the one that the manifest
            names.
        base_model: The model that an adapter is for; likewise.
        objective: Needed for an objective of your own only.
        device: Where to run the model.
        sample: How many documents to encode again from their texts.
        seed: Of their choice.
        digests_only: Encode nothing again, and load no model.
        repair: Make again what can be made from what is whole, and publish it.
        progress: Called as ``progress(phase, done, total)``.

    Returns:
        What was found. With ``repair``, what is wrong *after* it.

    Raises:
        NotAnIndexError: There is no index, nor what is left of one.
        UnfinishedIndexError: A build there was interrupted.
        IndexBusyError: It is to be repaired while another process writes to it, or was changed
            again and again meanwhile.
        QueryError: The sample is negative.
        StorageError: The disk refuses, or the index is on object storage.
    """
    if sample < 0:
        raise QueryError(f"sample={sample} is not allowed; give 0 or more documents")
    folder, told = Location.of(path).directory, progress or _untold

    def load(manifest: Manifest) -> Asker | None:
        record = manifest.model
        named = record.source is not None or (record.adapter and record.adapter.source) is not None
        if model is None and not named:
            return None
        return load_asker(folder, manifest, model, base_model, objective, device)

    given = model is not None or base_model is not None
    again = _Again(load, 0 if digests_only else sample, seed, given=given)
    found = _verified(folder, again, told)
    if not repair or found.ok:
        return found
    made: tuple[str, ...] = ()
    # What barred the way to the rows may have hidden something else that is wrong.
    while not found.ok and (more := repaired(folder, found.problems, told)):
        found = _verified(folder, again, told)
        if set(more) <= set(made):
            break
        made += more
    return replace(found, repaired=made)


def verify_open(
    path: str | os.PathLike[str],
    asker: Asker | None,
    *,
    sample: int,
    seed: int,
    progress: Progress | None,
) -> Verification:
    """Check an index whose model is loaded already; see :meth:`wherefrom.Index.verify`."""
    if asker is None:
        return verify(path, sample=sample, seed=seed, progress=progress)
    if sample < 0:
        raise QueryError(f"sample={sample} is not allowed; give 0 or more documents")
    return _verified(Path(path), _Again(lambda _: asker, sample, seed), progress or _untold)


@dataclass(frozen=True, slots=True)
class _Again:
    """What to encode again, and with what.

    Attributes:
        load: Gives the model side of the index; ``None`` where there is no model.
        sample: How many documents.
        seed: Of their choice.
        given: Whether it is of the user's choice; else that it is not to be had says nothing of the
            index.
    """

    load: Callable[[Manifest], Asker | None]
    sample: int
    seed: int
    given: bool = True

    def encode(self, found: Inspection, progress: Progress) -> Reencoded | None:
        """Encode a sample of the rows that can be read; add what is wrong to what was found."""
        if not self.sample or found.table is None:
            return None
        if any(problem.kind == "encoder" for problem in found.problems):
            found.notes.append("no document was encoded again: the encoder is damaged")
            return None
        if len(found.damaged) >= MOST_NAMED:
            found.notes.append("no document was encoded again: too many rows are damaged")
            return None
        ordinals = drawn(
            self.sample, np.setdiff1d(np.arange(len(found.table)), found.damaged), self.seed
        )
        try:
            asker = self.load(found.manifest)
            if asker is None:
                found.notes.append(
                    "no document was encoded again: the index was built from a model in memory; "
                    "give it to wf.verify(path, model=your_model)"
                )
                return None
        except ModelError as error:
            if self.given:
                self._refused(found, error)
                return None
            found.notes.append(
                f"no document was encoded again: {cause(error)}; name the model (--model), or say "
                "--digests-only"
            )
            return None
        except WherefromError as error:
            self._refused(found, error)
            return None
        try:
            tolerance = TOLERANCES[found.manifest.model.dtype]
            again = reencode(asker, found.table, ordinals, tolerance=tolerance, progress=progress)
        except WherefromError as error:
            self._refused(found, error)
            return None
        for doc_id in again.differing:
            detail = "its vector is not what the model makes of its text"
            found.problems.append(Problem("encoding", f"document {doc_id!r}", detail, RESTORE))
        return again

    def _refused(self, found: Inspection, error: WherefromError) -> None:
        remedy = "give the model that the index was built with (--model)"
        found.problems.append(Problem("model", "model", cause(error), remedy))


def _verified(folder: Path, again: _Again, progress: Progress) -> Verification:
    """What is found out; once more where a writer took away meanwhile what was looked at."""
    for _ in range(_ATTEMPTS):
        found = _looked_at(folder, again, progress)
        if found.ok or found.manifest_sha256 is None:
            return found
        if Manifest.read(folder).digest == found.manifest_sha256:
            return found
    raise IndexBusyError(
        f"{folder} was changed {_ATTEMPTS} times while it was verified; verify it while nobody "
        "writes to it"
    )


def _looked_at(folder: Path, again: _Again, progress: Progress) -> Verification:
    manifest = _manifest(folder)
    if isinstance(manifest, Problem):
        return Verification(str(folder), (manifest,), MappingProxyType({}), None, (), (), None)
    found = Inspection(folder, manifest, progress)
    found.files()
    found.documents()
    reencoded = again.encode(found, progress)
    return Verification(
        path=str(folder),
        problems=tuple(found.problems),
        checked=MappingProxyType(found.checked),
        reencoded=reencoded,
        notes=tuple(found.notes),
        repaired=(),
        manifest_sha256=manifest.digest,
    )


def _manifest(folder: Path) -> Manifest | Problem:
    """The manifest, or what is wrong with it where all else says that this is an index."""
    try:
        return Manifest.read(folder)
    except WherefromError as error:
        there = (folder / MANIFEST_FILE).is_file()
        lost = (folder / ENCODER_FILE).is_file() and not (folder / BUILD_FILE).is_file()
        if not there and not lost:
            raise
        detail = cause(error) if there else "is missing"
        return Problem("manifest", MANIFEST_FILE, detail, RESTORE)


def _untold(phase: str, done: int, total: int) -> None:
    """Progress that nobody watches."""
