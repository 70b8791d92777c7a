"""What a FAISS index may hold, and how far its scores can be from the stored ones: three formats.

The bounds are proved from FAISS's arithmetic, not from statistics. Notation, all in the units of
the index: q the query, u = 2**-24, Q = ‖q‖, R the largest residual ‖x - d‖ of a stored vector x
and the vector d that its code decodes to, D >= ‖d‖, n the dimension, γ as in
:mod:`wherefrom.store.float32`. Each starts from ``|⟨q, x⟩ - ⟨q, d⟩| <= Q R``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wherefrom.errors import MissingExtraError
from wherefrom.store.float32 import UNIT, ScaledQuery, accumulation
from wherefrom.store.quantise import ROUNDING

__all__ = ["FORMATS", "Flat", "Format", "RaBitQ", "ScalarBytes", "import_faiss"]


def import_faiss() -> Any:
    """The ``faiss`` package, which is loaded only where it is used.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import faiss
    except ImportError:
        raise MissingExtraError(
            "faiss accelerators need faiss, which is not installed: "
            "pip install 'wherefrom[faiss]' (or 'wherefrom[faiss-gpu]', never both)"
        ) from None
    return faiss


class Format(ABC):
    """A way in which FAISS stores vectors.

    Attributes:
        exponent: The largest stored vector's norm is scaled to just below 2**exponent.
        on_gpu: Whether FAISS can search it on a GPU.
    """

    exponent = 0
    on_gpu = False

    @abstractmethod
    def empty(self, faiss: Any, low: NDArray[np.float64], high: NDArray[np.float64]) -> Any:
        """A trained FAISS index without vectors, whose entries will lie in [low, high]."""

    def clean(self, codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The codes [n, bytes] as they are to be stored."""
        return codes

    @abstractmethod
    def accumulated(self, query: ScaledQuery, largest: float, index: Any) -> float:
        """Bound on ``|score - ⟨q, d⟩|`` for every row, ``largest`` being D; scaled units."""


class Flat(Format):
    """float32 entries, 4 n bytes: off by γ(n + 2) Q D."""

    on_gpu = True

    def empty(self, faiss: Any, low: NDArray[np.float64], high: NDArray[np.float64]) -> Any:
        """An index of inner products."""
        return faiss.IndexFlatIP(len(low))

    def accumulated(self, query: ScaledQuery, largest: float, index: Any) -> float:
        """One sum of n products."""
        return accumulation(len(query.values) + 2) * query.norm * largest


class ScalarBytes(Format):
    """8 bits an entry, over the range of each dimension: n bytes.

    An entry decodes to ``v_j + w_j (code + 1/2) / 255``, which FAISS computes while it sums, in
    one of several ways; no intermediate exceeds twice ``|v_j| + |w_j|``. Those few roundings and
    the sum's are at most γ(n + 16) Q ‖2 (|v| + |w|)‖.
    """

    def empty(self, faiss: Any, low: NDArray[np.float64], high: NDArray[np.float64]) -> Any:
        """Trained on two vectors that hold every dimension's ends, so that nothing is cut off."""
        index = faiss.IndexScalarQuantizer(
            len(low), faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
        )
        index.sq.rangestat = faiss.ScalarQuantizer.RS_minmax
        index.sq.rangestat_arg = 0.0
        index.train(np.stack([low, high]).astype(np.float32))
        return index

    def accumulated(self, query: ScaledQuery, largest: float, index: Any) -> float:
        """By the ranges that ``index`` was trained on."""
        dimension = len(query.values)
        trained = import_faiss().vector_to_array(index.sq.trained).astype(np.float64)
        sums = np.abs(trained.reshape(2, dimension)).sum(axis=0)
        reach = 2.0 * float(np.linalg.norm(sums)) * ROUNDING
        return accumulation(dimension + 16) * query.norm * reach


class RaBitQ(Format):
    """Signs and one factor a row (Gao and Long 2024): n / 8 + 8 bytes, with the centre at 0.

    The factor is ``‖x‖² / ‖x‖₁``, the scale that one-bit codes have in the table anyway: of those,
    nothing but rounding is lost. Of finer codes most is, and the bound, though it holds, rules
    nothing out.

    The query is rounded to 256 levels over its range [a, b], δ = (b - a) / 255 apart: with e_j the
    distance of entry j from the nearest one, and float32 moving levels by less than 10**-4 δ and
    taking the other of two that are as near, ⟨q, d⟩ moves by at most ``(‖e‖ + 10**-3 δ √n) D``.
    Bits are counted in integers, exactly. FAISS then combines three terms, together at most
    ``9 √n p D`` with p = max|q_j|, in fewer than a dozen roundings each: at most
    ``128 u √n p D``. Last, it adds ‖q‖² and subtracts another float32 evaluation of it: off by
    2 γ(n + 2) Q² at most, which the exponent of D makes negligible. It is so high also because
    FAISS takes rows with ‖x‖² < 2**-23 for zero.
    """

    exponent = 60

    def empty(self, faiss: Any, low: NDArray[np.float64], high: NDArray[np.float64]) -> Any:
        """Trained on the zero vector, which makes that the centre."""
        index = faiss.IndexRaBitQ(len(low), faiss.METRIC_INNER_PRODUCT)
        index.train(np.zeros((1, len(low)), np.float32))
        index.qb = 8
        index.centered = False
        return index

    def clean(self, codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Clear the first factor, ``‖x - centre‖² - ‖x‖²``: it is 0 up to rounding."""
        codes[:, -8:-4] = 0
        return codes

    def accumulated(self, query: ScaledQuery, largest: float, index: Any) -> float:
        """Rounding of the query, then of the sums."""
        entries = query.values.astype(np.float64)
        step = float(entries.max() - entries.min()) / 255.0
        missed = np.zeros(1)
        if step > 0.0:
            levels = (entries - entries.min()) / step
            missed = step * (levels - np.rint(levels))
        rounded = float(np.linalg.norm(missed)) * ROUNDING
        rounded += math.sqrt(len(entries)) * (1e-3 * step + 128.0 * UNIT * query.peak)
        return rounded * largest + 2.0 * accumulation(len(entries) + 2) * query.norm**2


FORMATS: dict[str, Format] = {
    "faiss-flat": Flat(),
    "faiss-sq8": ScalarBytes(),
    "faiss-rabitq": RaBitQ(),
}
"""The formats by the names of their accelerators."""
