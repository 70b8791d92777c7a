"""Sums of groups as bars with whiskers, on one scale that holds zero and every interval."""

from __future__ import annotations

from dataclasses import dataclass

from wherefrom.query.interpretation.explanation import Group, Grouping

__all__ = ["Bar", "Bars", "bars"]

_MOST = 24


@dataclass(frozen=True, slots=True)
class Bar:
    """A group, and where its bar lies, in per cent of the width.

    Attributes:
        group: What is summed.
        start: Left end of the bar.
        width: Of the bar.
        low: Left end of the whisker.
        high: Its right end.
    """

    group: Group
    start: float
    width: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Bars:
    """The bars of a grouping.

    Attributes:
        grouping: What they show.
        zero: Where zero lies, in per cent of the width.
        shown: The groups of largest and of smallest sum, in descending order.
        hidden: How many others there are, in the middle.
    """

    grouping: Grouping
    zero: float
    shown: tuple[Bar, ...]
    hidden: int


def bars(grouping: Grouping) -> Bars:
    """Lay out the bars of a grouping."""
    groups = grouping.groups
    shown = groups if len(groups) <= _MOST else (*groups[: _MOST // 2], *groups[-_MOST // 2 :])
    ends = [0.0, *(end for group in shown for end in (group.total, group.low, group.high))]
    least, most = min(ends), max(ends)

    def place(value: float) -> float:
        return 100.0 * (value - least) / (most - least) if most > least else 0.0

    zero = place(0.0)
    laid = tuple(
        _bar(group, place(group.total), zero, place(group.low), place(group.high))
        for group in shown
    )
    return Bars(grouping, zero, laid, len(groups) - len(shown))


def _bar(group: Group, total: float, zero: float, low: float, high: float) -> Bar:
    return Bar(group, min(total, zero), abs(total - zero), low, high)
