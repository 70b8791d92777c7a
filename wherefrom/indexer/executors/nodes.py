"""Whether another machine is fit to take part in a build: it sees the files, has the software."""

from __future__ import annotations

import contextlib
import os
import platform
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from wherefrom.errors import ExecutionError, StorageError
from wherefrom.indexer.provenance import versions
from wherefrom.store import storage_errors

if TYPE_CHECKING:
    from wherefrom.gradients.models import ModelSource
    from wherefrom.indexer.job import Job

__all__ = ["Nonce", "from_anywhere", "require_same_software", "software"]

_SECONDS_TO_SEE = 5.0  # What a network file system may take to show another machine's file.


@dataclass(frozen=True, slots=True)
class Nonce:
    """A file with random contents, by which nodes tell that they see the driver's disk."""

    path: Path
    contents: str
    patience: float = _SECONDS_TO_SEE

    @classmethod
    def leave(cls, folder: Path) -> Nonce:
        """Write the file."""
        nonce = cls(folder / f".nodes-{secrets.token_hex(4)}.tmp", secrets.token_hex(16))
        with storage_errors(nonce.path):
            nonce.path.write_text(nonce.contents)
        return nonce

    def see(self) -> None:
        """Look for the file.

        Raises:
            StorageError: It is not there, or not the same.
        """
        last = time.monotonic() + self.patience
        while True:
            with contextlib.suppress(OSError):
                if self.path.read_text() == self.contents:
                    return
            if time.monotonic() > last:
                raise StorageError(
                    f"node {platform.node()} does not see the files of {self.path.parents[1]}; "
                    "build in a directory that all nodes of the cluster mount at the same path"
                )
            time.sleep(0.1)

    def remove(self) -> None:
        """Take the file away."""
        with storage_errors(self.path):
            self.path.unlink(missing_ok=True)


def from_anywhere(job: Job) -> Job:
    """The job with absolute paths, for processes that work in another directory."""
    choice = job.choice
    model, base = _absolute(choice.model), choice.base_model
    choice = replace(choice, model=model, base_model=None if base is None else _absolute(base))
    return replace(job, folder=job.folder.absolute(), choice=choice)


def _absolute(model: ModelSource) -> ModelSource:
    # What is no path is a module, or the id of a model in the cache.
    if isinstance(model, (str, os.PathLike)) and Path(model).exists():
        return Path(model).absolute()
    return model


def software() -> dict[str, str]:
    """Name of this machine, and versions of what the numbers depend on."""
    return {"node": platform.node(), **versions()}


def require_same_software(theirs: Mapping[str, str]) -> None:
    """Refuse a node that would compute something else.

    Raises:
        ExecutionError: It has other software than this machine.
    """
    ours = software()
    differing = [name for name in ours if name != "node" and theirs.get(name) != ours[name]]
    if differing:
        name = differing[0]
        raise ExecutionError(
            f"node {theirs['node']} has {name} {theirs.get(name)}, this machine {ours[name]}; "
            "install the same versions on all nodes"
        )
