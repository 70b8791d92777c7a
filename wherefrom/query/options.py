"""How to answer a question: every choice, checked before the model runs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, TypedDict, get_args

from wherefrom.errors import QueryError
from wherefrom.records import Normalise, Rerank, Sign
from wherefrom.store import Where

__all__ = ["Choices", "QueryOptions"]


class Choices(TypedDict, total=False):
    """The fields of :class:`QueryOptions`, as arguments."""

    k: int
    sign: Sign
    where: Where
    damping: float | None
    normalise: Normalise
    rerank: Rerank
    rerank_seconds: float | None
    candidates: int
    refine: int
    refine_damping: float | None
    refine_documents: int | None
    backend: str


@dataclass(frozen=True, slots=True)
class QueryOptions:
    """How to answer; see :meth:`wherefrom.Index.query` for what each means."""

    k: int = 10
    sign: Sign = "both"
    where: Where = field(default_factory=dict)
    damping: float | None = None
    normalise: Normalise = "none"
    rerank: Rerank = "auto"
    rerank_seconds: float | None = 5.0
    candidates: int = 100
    refine: int = 0
    refine_damping: float | None = None
    refine_documents: int | None = None
    backend: str = "scan"

    def __post_init__(self) -> None:
        """Refuse what cannot be answered.

        Raises:
            QueryError: An option is out of range.
        """
        _require_count("k", self.k, 1)
        _require_count("candidates", self.candidates, 1)
        _require_count("refine", self.refine, 0)
        if self.refine_documents is not None:
            _require_count("refine_documents", self.refine_documents, 1)
        for name, kinds in (("sign", Sign), ("normalise", Normalise), ("rerank", Rerank)):
            given, allowed = getattr(self, name), get_args(kinds)
            if given not in allowed:
                raise QueryError(f"{name}={given!r} is unknown; choose one of {list(allowed)}")
        limit = self.rerank_seconds
        if limit is not None and (not isinstance(limit, (int, float)) or not limit >= 0.0):
            raise QueryError(
                f"rerank_seconds={limit!r} is not allowed; give at least 0, or None for no limit"
            )
        if limit == math.inf:  # which JSON cannot tell
            object.__setattr__(self, "rerank_seconds", None)
        if self.refine and self.damping is not None:
            raise QueryError(
                "damping= is the factored curvature's; a refined query has its own: give "
                "refine_damping="
            )
        for name in ("refine_damping", "refine_documents"):
            if getattr(self, name) is not None and not self.refine:
                raise QueryError(f"{name}= goes with refine=; give the number of steps")
        if self.normalise != "none" and self.backend != "scan":
            raise QueryError(
                f"normalise={self.normalise!r} ranks by another value than backend="
                f"{self.backend!r} was built for; leave backend out"
            )

    def in_time(self, seconds: float) -> bool:
        """Whether recomputing may take so long."""
        return self.rerank_seconds is None or seconds <= self.rerank_seconds


def _require_count(name: str, given: Any, smallest: int) -> None:
    if isinstance(given, bool) or not isinstance(given, int) or given < smallest:
        raise QueryError(
            f"{name}={given!r} is not allowed; give a whole number of at least {smallest}"
        )
