"""What a FAISS index may hold, and how far its scores can be from the stored ones: three formats.

The bounds are proved from FAISS's arithmetic, not from statistics. Notation, all in the units of
the index: q the query, u = 2**-24, Q = ‖q‖, R the largest residual ‖x - d‖ of a stored vector x
and the vector d that its code decodes to, D >= ‖d‖, n the dimension; γ, κ and the further entries
of vectors and queries as in :mod:`wherefrom.store.float32`. Each starts from
``|⟨q, x⟩ - ⟨q, d⟩| <= Q R``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wherefrom.errors import MissingExtraError
from wherefrom.store.float32 import UNIT, ScaledQuery, accumulation, rounded_up, with_norms
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

    def further(self, dimension: int) -> int:
        """How many entries vectors have beyond their own."""
        return 0

    @abstractmethod
    def empty(self, faiss: Any, low: NDArray[np.float64], high: NDArray[np.float64]) -> Any:
        """A trained FAISS index without vectors, whose own entries will lie in [low, high]."""

    def trained(self, index: Any) -> bytes:
        """What ``index`` has learnt of the vectors, as it stands in its file; of most, nothing."""
        return b""

    def extended(
        self, exact: NDArray[np.float64], rounded: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Vectors [n, dimension] with their further entries."""
        return rounded

    def asked(self, query: ScaledQuery) -> NDArray[np.float32]:
        """The query with its further entries."""
        return query.values

    def clean(self, codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The codes [n, bytes] as they are to be stored."""
        return codes

    @abstractmethod
    def slack(self, query: ScaledQuery, largest: float, index: Any) -> float:
        """What, added to a row's score, makes an upper bound of ⟨q, d⟩; ``largest`` is D."""


class Flat(Format):
    """float32 entries, 4 (n + 1) bytes.

    The further entry is the norm; κ = Q γ(n + 3) / (1 - γ(n + 3)) makes up for the sum's rounding.
    """

    on_gpu = True

    def further(self, dimension: int) -> int:
        """The norm."""
        return 1

    def empty(self, faiss: Any, low: NDArray[np.float64], high: NDArray[np.float64]) -> Any:
        """An index of inner products."""
        return faiss.IndexFlatIP(len(low) + 1)

    def extended(
        self, exact: NDArray[np.float64], rounded: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """With the norms."""
        return with_norms(exact, rounded)

    def asked(self, query: ScaledQuery) -> NDArray[np.float32]:
        """With κ."""
        return query.with_entries(rounded_up(query.sum_error(3)))

    def slack(self, query: ScaledQuery, largest: float, index: Any) -> float:
        """What may underflow."""
        return UNIT * query.norm * largest


class ScalarBytes(Format):
    """8 bits an entry, over the range of each dimension: n bytes.

    An entry decodes to ``v_j + w_j (code + 1/2) / 255``, which FAISS computes while it sums, in
    one of several ways; no intermediate exceeds twice ``|v_j| + |w_j|``. Those few roundings and
    the sum's are at most γ(n + 16) Q ‖2 (|v| + |w|)‖, for long and short vectors alike; like R, for
    the ranges are those of the longest. So this serves vectors of similar norms only.
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

    def trained(self, index: Any) -> bytes:
        """The ranges, two float32 an entry."""
        return bytes(import_faiss().vector_to_array(index.sq.trained).tobytes())

    def slack(self, query: ScaledQuery, largest: float, index: Any) -> float:
        """By the ranges that ``index`` was trained on."""
        dimension = len(query.values)
        trained = import_faiss().vector_to_array(index.sq.trained).astype(np.float64)
        sums = np.abs(trained.reshape(2, dimension)).sum(axis=0)
        reach = 2.0 * float(np.linalg.norm(sums)) * ROUNDING
        return accumulation(dimension + 16) * query.norm * reach


class RaBitQ(Format):
    """Signs and one factor f a row (Gao and Long 2024): n / 8 + 8 bytes and n / 512 more.

    The factor is ``‖x‖² / ‖x‖₁``, the scale that one-bit codes have in the table anyway: of those,
    nothing but rounding is lost. Of finer codes most is, and R, though it holds, rules nothing out.
    The centre is 0. The m further entries of a row are the mean of its magnitudes: they
    leave f as it is and all decode to it.

    FAISS rounds the query to 256 levels over its range, δ apart. With e_j the distance of entry j
    from the nearest one, and float32 moving levels by less than 10**-4 δ and taking the other of
    two that are as near, ⟨q, d⟩ moves by at most ``(‖e‖ √n + 10**-3 δ n) f``. Bits are counted in
    integers, exactly. FAISS then combines three terms, together at most ``9 (n + m) p f`` with
    p = max|q_j|, in fewer than a dozen roundings each: at most ``128 u (n + m) p f``. The query's m
    further entries share the sum of these, and half a δ each. Last, FAISS adds ‖q‖² and subtracts
    another float32 evaluation of it: off by 2 γ(n + m + 2) ‖q‖² at most, which the exponent of D
    makes negligible. It is so high also because FAISS takes rows with ‖x‖² < 2**-23 for zero.
    """

    exponent = 60

    def further(self, dimension: int) -> int:
        """One for 64, in whole bytes of codes."""
        return 8 * (1 + dimension // 512)

    def empty(self, faiss: Any, low: NDArray[np.float64], high: NDArray[np.float64]) -> Any:
        """Trained on the zero vector, which makes that the centre."""
        entries = len(low) + self.further(len(low))
        index = faiss.IndexRaBitQ(entries, faiss.METRIC_INNER_PRODUCT)
        index.train(np.zeros((1, entries), np.float32))
        index.qb = 8
        index.centered = False
        return index

    def extended(
        self, exact: NDArray[np.float64], rounded: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """With the means of their magnitudes."""
        count, dimension = exact.shape
        means = np.abs(exact).mean(axis=1).astype(np.float32)
        further = np.broadcast_to(means[:, None], (count, self.further(dimension)))
        return np.concatenate([rounded, further], axis=1)

    def asked(self, query: ScaledQuery) -> NDArray[np.float32]:
        """With equal entries that outweigh the rounding which they are part of."""
        entries, dimension = query.values.astype(np.float64), len(query.values)
        count = self.further(dimension)
        low, high = float(entries.min()), float(entries.max())
        weight = 0.0
        while True:
            bottom, top = min(low, weight), max(high, weight)
            step = (top - bottom) / 255.0
            missed = 0.0
            if step > 0.0:
                levels = (entries - bottom) / step
                missed = step * float(np.linalg.norm(levels - np.rint(levels))) * ROUNDING
            needed = missed * math.sqrt(dimension) + 1e-3 * step * dimension
            needed += 128.0 * UNIT * (dimension + count) * max(-bottom, top)
            needed = needed / count + 0.501 * step
            if needed <= weight:
                return query.with_entries(weight, count)
            weight = rounded_up(1.02 * needed)

    def clean(self, codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Clear the first factor, ``‖x - centre‖² - ‖x‖²``: it is 0 up to rounding."""
        codes[:, -8:-4] = 0
        return codes

    def slack(self, query: ScaledQuery, largest: float, index: Any) -> float:
        """What adding ‖q‖² costs, the further entries included, and what may underflow."""
        asked = self.asked(query).astype(np.float64)
        squares = 2.0 * accumulation(len(asked) + 2) * float(asked @ asked) * ROUNDING
        return squares + UNIT * query.norm * largest


FORMATS: dict[str, Format] = {
    "faiss-flat": Flat(),
    "faiss-sq8": ScalarBytes(),
    "faiss-rabitq": RaBitQ(),
}
"""The formats by the names of their accelerators."""
