"""What a benchmark hands over: figures with their targets, and the checks that it made."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

import click

__all__ = ["BenchmarkError", "Figure", "Report", "command", "expect"]


class BenchmarkError(Exception):
    """What was timed is not right, or could not run: there is no figure."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One quantity, measured several times.

    Attributes:
        name: What it is.
        unit: Its unit; ``×`` for ratios.
        values: Every measurement, in order.
        at_most: Target, if it is to be low.
        at_least: Target, if it is to be high.
        judged_by: Which value must meet the target: the ``median`` or the ``worst``.
    """

    name: str
    unit: str
    values: tuple[float, ...]
    at_most: float | None = None
    at_least: float | None = None
    judged_by: Literal["median", "worst"] = "median"

    @property
    def median(self) -> float:
        """Of all values."""
        return median(self.values)

    @property
    def met(self) -> bool | None:
        """Whether the target is met; ``None`` without a target."""
        worst = self.judged_by == "worst"
        if self.at_most is not None:
            return (max(self.values) if worst else self.median) <= self.at_most
        if self.at_least is not None:
            return (min(self.values) if worst else self.median) >= self.at_least
        return None

    def to_json(self) -> dict[str, Any]:
        """All of it, with median, smallest and largest value written out."""
        ends = {"median": self.median, "min": min(self.values), "max": max(self.values)}
        return {**asdict(self), **ends, "met": self.met}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Figure:
        """Inverse of :meth:`to_json`."""
        given = {name: stored[name] for name in cls.__dataclass_fields__}
        return cls(**{**given, "values": tuple(given["values"])})


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome of one benchmark.

    Attributes:
        figures: In the order to show them.
        checks: What was found equal (a check that fails is a :class:`BenchmarkError`).
        setting: Sizes and whatever else is needed to read the figures.
        skipped: Why there are no figures, if there are none.
    """

    figures: tuple[Figure, ...] = ()
    checks: tuple[str, ...] = ()
    setting: Mapping[str, Any] = field(default_factory=dict)
    skipped: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "figures": [figure.to_json() for figure in self.figures],
            "checks": list(self.checks),
            "setting": dict(self.setting),
            "skipped": self.skipped,
        }


def expect(holds: bool, claim: str) -> str:
    """``claim``, if it holds.

    Raises:
        BenchmarkError: It does not.
    """
    if not holds:
        raise BenchmarkError(f"not so: {claim}")
    return claim


def command(measure: Callable[..., Report], *options: Callable[[Any], Any]) -> click.Command:
    """A command line for one benchmark: ``--quick``, ``--output FILE`` and its own ``options``.

    Args:
        measure: Called with ``quick`` and the values of ``options``, by name.
        options: ``click.option(...)`` decorators.
    """

    def run(quick: bool, output: Path | None, **others: Any) -> None:
        try:
            report = measure(quick=quick, **others)
        except BenchmarkError as error:
            raise click.ClickException(str(error)) from error
        text = json.dumps(report.to_json(), indent=2, ensure_ascii=False)
        if output is None:
            click.echo(text)
        else:
            output.write_text(f"{text}\n", encoding="utf-8")

    run.__doc__ = measure.__doc__
    decorated: Any = run
    for option in (
        click.option("--quick", is_flag=True, help="Small sizes: shows that it runs."),
        click.option("--output", type=click.Path(path_type=Path), help="Write the JSON there."),
        *options,
    ):
        decorated = option(decorated)
    return click.command()(decorated)
