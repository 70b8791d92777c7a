"""Damage done to files: one bit, a tail or all of one."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

DamageKind = Literal["flip", "cut", "missing"]


@dataclass(frozen=True)
class Damage:
    """Damage to one file.

    Attributes:
        kind: One bit turned, the file cut short, or gone.
        file: The file, within its folder.
        where: The bit, or how many bytes are left.
    """

    kind: DamageKind
    file: str
    where: int = 0

    @contextmanager
    def done(self, folder: Path) -> Iterator[None]:
        """The damage is there while the block runs."""
        whole = (folder / self.file).read_bytes()
        self.do(folder)
        try:
            yield
        finally:
            _put(folder / self.file, whole)

    def do(self, folder: Path) -> None:
        """Damage the file for good."""
        path = folder / self.file
        if self.kind == "missing":
            path.unlink()
        else:
            _put(path, self._damaged(path.read_bytes()))

    def _damaged(self, whole: bytes) -> bytes:
        if self.kind == "cut":
            return whole[: self.where]
        byte, bit = divmod(self.where, 8)
        return whole[:byte] + bytes([whole[byte] ^ 1 << bit]) + whole[byte + 1 :]


def kind_of(file: str) -> str:
    """What a file of an index is, whatever it is called."""
    path = Path(file)
    if path.parts[0].endswith(".lance"):
        place = "latest_version_hint" if path.suffix == ".json" else path.parts[1]
        return f"{path.parts[0].split('-')[0]}/{place}/{path.suffix}"
    if path.parts[0] == "scan":
        return f"scan/{path.name}"
    return "deleted rows" if path.name.startswith("deleted-") else file


def files_by_kind(folder: Path) -> dict[str, list[str]]:
    """All files of a folder, within it."""
    kinds: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            kinds.setdefault(kind_of(name), []).append(name)
    return kinds


def damages(folder: Path, seed: int, flips: int) -> Iterator[Damage]:
    """``flips`` single bits in files of each kind; each kind of file cut, and missing."""
    chance = random.Random(seed)
    for files in files_by_kind(folder).values():
        for _ in range(flips):
            file = chance.choice(files)
            bits = 8 * (folder / file).stat().st_size
            if bits:
                yield Damage("flip", file, chance.randrange(bits))
        file = chance.choice(files)
        size = os.path.getsize(folder / file)
        if size:
            yield Damage("cut", file, chance.randrange(size))
        yield Damage("missing", chance.choice(files))


def _put(path: Path, data: bytes) -> None:
    # Never into the file itself: it may be mapped into memory, where a cut would be fatal.
    beside = path.with_name(f".{path.name}.damaged")
    beside.write_bytes(data)
    os.replace(beside, path)
