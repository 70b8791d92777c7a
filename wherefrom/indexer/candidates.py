"""Which encoders a budget of bytes allows: what the builder measures before it chooses one.

Many dimensions at few bits beat few dimensions at many: the noise of a sketch falls with its
dimensions, and quantising a rotated vector to signs adds but half as much again. It also falls with
what is sketched: half to an eighth of all coordinates, those of the largest expected energy, hold
most of a score. Where that is in few coordinates, as in small models, they are best stored as they
are, in more bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from wherefrom.encoding.stages import ReductionKind, Stages
from wherefrom.errors import WherefromError
from wherefrom.records import Bits

__all__ = ["EncoderWish", "budgets", "candidates", "lossless"]

_SKETCH_BITS: tuple[Bits, ...] = (1,)
_ENERGY_BITS: tuple[Bits, ...] = (1, 2, 4)
_SKETCHED_PARTS = (2, 4, 8)
"""A sketch is tried of all coordinates, and of these parts of them."""

_WHOLE_BITS: tuple[Bits, ...] = (16, 8, 4, 2, 1)
_SMALLEST_BUDGET = 256
_FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class EncoderWish:
    """What was asked for of the encoder; what is ``None`` or ``auto`` is chosen.

    Attributes:
        reduce: Kind of reduction, or ``auto``.
        bits: Of an entry.
        pca: Entries that a projection on fitted directions leaves.
        seed: Of everything random.
    """

    reduce: str
    bits: Bits | None
    pca: int | None
    seed: int


def lossless(sizes: Sequence[int], wish: EncoderWish, budget: int | None) -> Stages | None:
    """All coordinates in float32, where that is asked for or fits the budget."""
    whole = sum(sizes)
    asked = wish.reduce == "none" and wish.bits in (None, 32) and wish.pca is None
    free = wish.reduce == "auto" and wish.bits is None and wish.pca is None
    fits = budget is not None and _FLOAT_BYTES * whole <= budget
    if not ((asked and (budget is None or fits)) or (free and fits)):
        return None
    return Stages("none", whole, 32, rotate=False, seed=wish.seed)


def candidates(
    sizes: Sequence[int], wish: EncoderWish, budget: int, *, energies: bool, documents: int
) -> list[Stages]:
    """Encoders of at most ``budget`` bytes a document, best guess first.

    Args:
        sizes: Weights of each layer.
        wish: What was asked for.
        budget: Bytes of a document's code, and of its share of a PCA's basis.
        energies: Whether the curvature knows the expected energy of each coordinate.
        documents: That will share a basis.

    Raises:
        WherefromError: Nothing of what was asked for fits the budget.
    """
    whole = sum(sizes)
    found: list[Stages] = []
    for reduce in _kinds(wish, energies=energies):
        for bits in _bits(reduce, wish):
            entries = budget * 8 // bits
            if wish.pca is not None:
                found += _projected(reduce, bits, wish, budget, whole, documents)
            elif reduce == "none":
                if whole <= entries:
                    found.append(_stages(reduce, whole, bits, wish.seed))
            elif entries >= 1 and (entries < whole or wish.reduce == reduce):
                found.append(_stages(reduce, min(entries, whole), bits, wish.seed))
                if reduce == "sketch" and energies and bits == 1:
                    found += _of_parts(entries, whole, bits, wish.seed)
    if not found:
        raise WherefromError(_does_not_fit(whole, wish, budget, documents))
    return found


def _does_not_fit(whole: int, wish: EncoderWish, budget: int, documents: int) -> str:
    bits = wish.bits or 1
    start = f"bytes_per_document={budget} does not hold encoder={wish.reduce!r}"
    if wish.pca is None:
        least = -(-whole * bits // 8)
        return f"{start}, which needs {least}; give as many, or choose another encoder"
    entries = whole if wish.reduce == "none" else wish.pca
    basis = _FLOAT_BYTES * entries * wish.pca / documents
    least = math.ceil(basis) + -(-wish.pca * bits // 8)
    return (
        f"{start} with pca={wish.pca}, whose basis is shared by {documents} documents: that needs "
        f"{least}; give as many, or a smaller pca"
    )


def budgets(sizes: Sequence[int], most: int | None) -> Iterator[int]:
    """Budgets from small to ``most``, or to what holds everything in float32, doubling."""
    everything = _FLOAT_BYTES * sum(sizes)
    last = everything if most is None else min(most, everything)
    budget = _SMALLEST_BUDGET
    while budget < last:
        yield budget
        budget *= 2
    yield last


def _kinds(wish: EncoderWish, *, energies: bool) -> list[ReductionKind]:
    if wish.reduce != "auto":
        return [wish.reduce]  # type: ignore[list-item]  # checked by BuildOptions
    return ["sketch", "none", "energy"] if energies else ["sketch", "none"]


def _bits(reduce: ReductionKind, wish: EncoderWish) -> tuple[Bits, ...]:
    if wish.bits is not None:
        return (wish.bits,)
    if reduce == "random":
        return (16,)
    if reduce == "none":
        return _WHOLE_BITS
    return _SKETCH_BITS if reduce == "sketch" else _ENERGY_BITS


def _stages(reduce: ReductionKind, entries: int, bits: Bits, seed: int) -> Stages:
    return Stages(reduce, entries, bits, rotate=bits <= 8, seed=seed)


def _of_parts(entries: int, whole: int, bits: Bits, seed: int) -> list[Stages]:
    """Sketches of the coordinates of the largest expected energy."""
    return [
        Stages("sketch", entries, bits, sketched=whole // part, rotate=bits <= 8, seed=seed)
        for part in _SKETCHED_PARTS
        if whole // part > entries
    ]


def _projected(
    reduce: ReductionKind, bits: Bits, wish: EncoderWish, budget: int, whole: int, documents: int
) -> list[Stages]:
    """One with a PCA, whose basis fits what the codes leave of all documents' budgets."""
    pca = wish.pca or 0
    left = documents * (budget - -(-pca * bits // 8))
    reduced = min(whole, left // (_FLOAT_BYTES * pca)) if pca else 0
    if reduce == "none":
        reduced = whole if reduced == whole else 0
    if reduced < pca:
        return []
    return [Stages(reduce, reduced, bits, pca=pca, rotate=bits <= 8, seed=wish.seed)]
