"""The record of an evaluation: figures with their intervals, and all that decided them.

One form for every kind, so that what one writes another reads, plots or checks years later.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from wherefrom.errors import EvaluationError
from wherefrom.evaluation.statistics import Estimate

if TYPE_CHECKING:
    from wherefrom.gradients.objectives.base import JSON

__all__ = ["SCHEMA", "Evidence", "Figure", "beside", "plain"]

SCHEMA = "wherefrom.evaluation/1"
"""Name and version of the JSON form."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One number about one method.

    Attributes:
        method: What was judged, such as ``ekfac`` or ``bm25``.
        name: What of it, such as ``LDS``.
        value: The number.
        low: Lower end of its 95 % interval, where there is one.
        high: Upper end.
        unit: Such as ``nats`` or ``s``; empty for shares and correlations.
    """

    method: str
    name: str
    value: float
    low: float | None = None
    high: float | None = None
    unit: str = ""

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise EvaluationError(
                f"{self.name!r} of {self.method!r} is {self.value}, which is no figure; leave the "
                "method out"
            )

    @classmethod
    def of(cls, method: str, name: str, measured: Estimate | float, unit: str = "") -> Figure:
        """A figure from an estimate, or from a number without an interval."""
        if isinstance(measured, Estimate):
            return cls(method, name, measured.value, measured.low, measured.high, unit)
        return cls(method, name, float(measured), unit=unit)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What an evaluation found.

    Attributes:
        kind: Of evaluation, such as ``lds``.
        subject: What was evaluated, in words.
        figures: In the order to be shown.
        setting: Sizes, seeds, recipes: all that decides the figures, as plain JSON.
        notes: Sentences that a reader must see: misses, warnings, what a figure does not say.
        details: What the figures summarise, as plain JSON.
    """

    kind: str
    subject: str
    figures: tuple[Figure, ...]
    setting: Mapping[str, JSON]
    notes: tuple[str, ...] = ()
    details: Mapping[str, JSON] = field(default_factory=dict)

    def figure(self, method: str, name: str) -> Figure:
        """The figure of that name about that method.

        Raises:
            EvaluationError: There is none.
        """
        for figure in self.figures:
            if (figure.method, figure.name) == (method, name):
                return figure
        raise EvaluationError(f"this {self.kind} evaluation has no {name!r} of {method!r}")

    def value(self, method: str, name: str) -> float:
        """The number itself; see :meth:`figure`."""
        return self.figure(method, name).value

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; the form is ``SCHEMA``."""
        return {
            "schema": SCHEMA,
            "kind": self.kind,
            "subject": self.subject,
            "figures": [asdict(figure) for figure in self.figures],
            "setting": dict(self.setting),
            "notes": list(self.notes),
            "details": dict(self.details),
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Evidence:
        """What :meth:`to_json` gave.

        Raises:
            EvaluationError: It is of another form.
        """
        if stored.get("schema") != SCHEMA:
            raise EvaluationError(
                f"a result of schema {stored.get('schema')!r}; this version reads {SCHEMA!r}"
            )
        try:
            return cls(
                stored["kind"],
                stored["subject"],
                tuple(Figure(**figure) for figure in stored["figures"]),
                stored["setting"],
                tuple(stored["notes"]),
                stored["details"],
            )
        except (KeyError, TypeError) as error:
            raise EvaluationError(
                f"a result of schema {SCHEMA!r} lacks or adds a field ({error}); restore it or "
                "evaluate again"
            ) from error


def beside(evidence: Evidence, name: str, other: Evidence) -> Evidence:
    """Evidence with the figures of another evaluation of the same subject after its own.

    Args:
        evidence: Keeps its kind and its details.
        name: Put before the names of the other's figures, and the key of its setting.
        other: What to add.
    """
    added = (replace(figure, name=f"{name}: {figure.name}") for figure in other.figures)
    return replace(
        evidence,
        figures=(*evidence.figures, *added),
        setting={**evidence.setting, name: dict(other.setting)},
        notes=(*evidence.notes, *other.notes),
    )


def plain(values: Any) -> JSON:
    """Arrays and numpy's numbers as plain JSON; what is not finite becomes ``None``."""
    if isinstance(values, np.ndarray):
        return [plain(value) for value in values.tolist()]
    if isinstance(values, np.generic):
        return plain(values.item())
    if isinstance(values, float):
        return values if np.isfinite(values) else None
    if isinstance(values, Mapping):
        return {str(key): plain(value) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [plain(value) for value in values]
    if values is None or isinstance(values, (bool, int, str)):
        return values
    raise TypeError(f"a {type(values).__name__} is no JSON")
