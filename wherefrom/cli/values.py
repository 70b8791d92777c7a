"""Option values that click has no type for, checked before anything is loaded."""

from __future__ import annotations

import math

import click

__all__ = ["count_or_share", "damping", "dampings", "fidelity", "seconds", "valid_unicode"]


def count_or_share(
    context: click.Context, option: click.Parameter, value: str | None
) -> int | float | None:
    """``600`` (documents) or ``0.15`` (a share of them).

    Raises:
        BadParameter: It is neither.
    """
    if value is None:
        return None
    try:
        number = float(value) if "." in value else int(value)
    except ValueError:
        number = 0
    if number >= 1 if isinstance(number, int) else 0.0 < number < 1.0:
        return number
    raise click.BadParameter(
        f"{value!r} is neither a whole number of at least 1 nor a share below 1, as 0.15"
    )


def damping(context: click.Context, option: click.Parameter, value: str | None) -> float | None:
    """A finite number that is not negative.

    Raises:
        BadParameter: It is something else.
    """
    return None if value is None else _damping(value)


def dampings(
    context: click.Context, option: click.Parameter, value: str | None
) -> tuple[float, ...] | None:
    """Dampings with commas between them.

    Raises:
        BadParameter: One is none.
    """
    return None if value is None else tuple(map(_damping, value.split(",")))


def fidelity(context: click.Context, option: click.Parameter, value: str | None) -> float | None:
    """A share above 0 and up to 1.

    Raises:
        BadParameter: It is something else.
    """
    if value is None:
        return None
    number = _number(value)
    if not 0.0 < number <= 1.0:
        raise click.BadParameter(f"{value!r} is no fidelity; give a number in (0, 1], as 0.95")
    return number


def seconds(context: click.Context, option: click.Parameter, value: str) -> float:
    """A time, which may be without limit.

    Raises:
        BadParameter: It is something else.
    """
    number = _number(value)
    if not number >= 0.0:
        raise click.BadParameter(f"{value!r} is no time; give seconds, as 5, or inf")
    return number


def valid_unicode(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """Text without the stand-ins for bytes that are no UTF-8.

    Raises:
        BadParameter: There are some.
    """
    try:
        (value or "").encode()
    except UnicodeEncodeError as error:
        raise click.BadParameter("not valid UTF-8; check the terminal's encoding") from error
    return value


def _damping(value: str) -> float:
    number = _number(value)
    if not 0.0 <= number < math.inf:
        raise click.BadParameter(f"{value!r} is no damping; give a number of at least 0, as 0.1")
    return number


def _number(value: str) -> float:
    """A number; NaN, which is in no range, if it is none."""
    try:
        return float(value)
    except ValueError:
        return math.nan
