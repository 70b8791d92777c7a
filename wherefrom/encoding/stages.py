"""What an encoder does, stage by stage: reduce -> pca -> rotate -> quantise."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args

from wherefrom.errors import WherefromError
from wherefrom.records import CODE_BITS, Bits

__all__ = ["REDUCTIONS", "ReductionKind", "Stages"]

ReductionKind = Literal["sketch", "energy", "random", "none"]

REDUCTIONS: tuple[ReductionKind, ...] = get_args(ReductionKind)
"""Names of all reductions."""


@dataclass(frozen=True, slots=True)
class Stages:
    """The stages of an encoder; with the fitted curvature (and the PCA's basis) they define it.

    Attributes:
        reduce: How a whitened gradient is shortened.
        reduced: Entries that leaves; for ``none`` the number of weights.
        bits: Of a stored entry.
        sketched: How many coordinates a sketch is of, those of the largest expected energy;
            ``None`` for all.
        pca: Entries that a projection on fitted directions leaves; ``None`` without one.
        rotate: Whether a random rotation spreads each vector evenly over its entries.
        seed: Of everything random.

    Raises:
        WherefromError: A stage is not allowed; the message says which and what is.
    """

    reduce: ReductionKind
    reduced: int
    bits: Bits
    sketched: int | None = None
    pca: int | None = None
    rotate: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.reduce not in REDUCTIONS:
            names = ", ".join(map(repr, REDUCTIONS))
            raise WherefromError(f"reduction {self.reduce!r} is unknown; choose one of {names}")
        if self.bits not in CODE_BITS:
            names = ", ".join(map(str, CODE_BITS))
            raise WherefromError(f"{self.bits} bits an entry are not possible; choose {names}")
        if self.reduced < 1:
            raise WherefromError(f"an encoder needs at least 1 dimension, not {self.reduced}")
        if self.sketched is not None and self.reduce != "sketch":
            raise WherefromError(
                f"sketched={self.sketched} belongs to a sketch, not to {self.reduce!r}"
            )
        if self.sketched is not None and self.sketched <= self.reduced:
            raise WherefromError(
                f"sketched={self.sketched} is not possible; give more than {self.reduced}, what it "
                "is shortened to, or choose 'energy'"
            )
        if self.pca is not None and not 1 <= self.pca <= self.reduced:
            raise WherefromError(
                f"pca={self.pca} is not possible; give 1 to {self.reduced}, what the reduction "
                "leaves"
            )

    @classmethod
    def of(cls, record: object) -> Stages:
        """The stages of a record that has attributes of the same names, as a manifest's.

        Raises:
            WherefromError: They are not allowed.
        """
        return cls(**{field.name: getattr(record, field.name) for field in fields(cls)})

    @property
    def dimension(self) -> int:
        """Entries of a vector."""
        return self.reduced if self.pca is None else self.pca

    @property
    def code_bytes(self) -> int:
        """Bytes of a document's code."""
        return -(-self.dimension * self.bits // 8)

    def describe(self) -> str:
        """One line, as ``sketch 16384 of 110592, rotated, 1 bit``."""
        words = [f"{self.reduce} {self.reduced}"]
        if self.sketched is not None:
            words[0] += f" of {self.sketched}"
        if self.pca is not None:
            words.append(f"pca {self.pca}")
        if self.rotate:
            words.append("rotated")
        words.append(
            f"fp{self.bits}" if self.bits > 8 else f"{self.bits} bit{'s' if self.bits > 1 else ''}"
        )
        return ", ".join(words)
