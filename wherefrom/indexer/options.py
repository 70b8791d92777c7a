"""How to build an index: every choice, checked before anything is read or written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from wherefrom.curvature.fitted import require_damping
from wherefrom.curvature.kinds import make_curvature
from wherefrom.encoding.stages import REDUCTIONS
from wherefrom.errors import CurvatureError, WherefromError
from wherefrom.gradients.fisher import Fisher
from wherefrom.indexer.candidates import EncoderWish
from wherefrom.records import CODE_BITS, Bits

__all__ = ["SMALLEST_BUDGET", "BuildOptions"]

SMALLEST_BUDGET = 64
"""Fewest bytes a stored vector may have."""


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How to build; see :func:`wherefrom.build` for what each means."""

    curvature: str = "ekfac"
    damping: float | None = None
    fisher: Fisher | None = None
    layers: str | Sequence[str] | None = None
    encoder: str = "auto"
    bits: int | None = None
    pca: int | None = None
    bytes_per_document: int | None = None
    fidelity: float | None = None
    fit_documents: int | float | None = None
    batch_size: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what no build could do, before anything is read or written.

        Raises:
            WherefromError: An option is out of range.
        """
        labels = make_curvature(self.curvature).labels
        if self.damping is not None:
            require_damping(self.damping)
        if self.damping == 0.0 and labels != "none":
            raise CurvatureError(
                f"damping={self.damping} is not allowed; give a number > 0, as 0.1"
            )
        if self.fisher not in (None, "sampled", "expected", "empirical"):
            raise CurvatureError(
                f"fisher={self.fisher!r} is unknown; choose 'sampled', 'expected' or 'empirical'"
            )
        if labels != "model" and self.fisher is not None:
            what = "documents' own gradients" if labels == "own" else "no gradients"
            raise CurvatureError(
                f"fisher={self.fisher!r} does not go with curvature={self.curvature!r}, which is "
                f"fitted on {what}; leave fisher out"
            )
        self._require_encoder()
        share = self.fit_documents
        if isinstance(share, bool):
            raise WherefromError(f"fit_documents={share} is not allowed; give a count or a share")
        if share is not None and not (share >= 1 if isinstance(share, int) else 0.0 < share <= 1.0):
            raise WherefromError(
                f"fit_documents={share} is not allowed; give a count >= 1 or a share in (0, 1]"
            )
        if self.batch_size is not None and self.batch_size < 1:
            raise WherefromError(f"batch_size={self.batch_size} is not allowed; give at least 1")

    @property
    def wish(self) -> EncoderWish:
        """What is asked for of the encoder."""
        return EncoderWish(self.encoder, cast("Bits | None", self.bits), self.pca, self.seed)

    def _require_encoder(self) -> None:
        if self.encoder not in ("auto", *REDUCTIONS):
            names = ", ".join(map(repr, ("auto", *REDUCTIONS)))
            raise WherefromError(f"encoder={self.encoder!r} is unknown; choose one of {names}")
        for name in ("bits", "pca", "bytes_per_document"):
            given = getattr(self, name)
            if given is not None and (isinstance(given, bool) or not isinstance(given, int)):
                raise WherefromError(f"{name}={given!r} is not possible; give a whole number")
        if self.bits is not None and self.bits not in CODE_BITS:
            raise WherefromError(
                f"bits={self.bits!r} is not possible; choose one of {list(CODE_BITS)}"
            )
        if self.pca is not None and self.pca < 1:
            raise WherefromError(f"pca={self.pca} is not possible; give at least 1")
        if self.bytes_per_document is not None and self.bytes_per_document < SMALLEST_BUDGET:
            raise WherefromError(
                f"bytes_per_document={self.bytes_per_document} is too small; give at least "
                f"{SMALLEST_BUDGET}"
            )
        if self.fidelity is not None and not 0.0 < self.fidelity <= 1.0:
            raise WherefromError(
                f"fidelity={self.fidelity} is not allowed; give a number in (0, 1], as 0.95"
            )
