"""Changes of JSON that a forger or a fuzzer would make: every leaf, every kind of wrong value."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

__all__ = ["VALUES", "changed", "leaves", "mutated"]

VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    1,
    -1,
    2**31,
    2**53,
    2**63,
    10**30,
    10**400,
    0.0,
    -0.0,
    -1.5,
    1e-320,
    1e308,
    float("nan"),
    float("inf"),
    "",
    ".",
    "..",
    "../../outside",
    "/etc/passwd",
    "file:///etc/passwd",
    "s3://bucket/key",
    "a\0b",
    "\ud800",
    "\x1b[31m\nred",
    "f4,f4",
    "O",
    "*" * 5000,
    [],
    [[]],
    {},
    {"a": {"b": []}},
)
"""Values of every type, at and beyond their limits."""

Path = tuple[str | int, ...]


def leaves(value: Any, path: Path = ()) -> Iterator[Path]:
    """The places of all values in ``value``, containers included, itself excluded."""
    inner: Any = ()
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list):
        inner = enumerate(value)
    for key, one in inner:
        yield (*path, key)
        yield from leaves(one, (*path, key))


def changed(value: Any, path: Path, new: Any) -> Any:
    """A copy of ``value`` with another one at ``path``."""
    made = copy.deepcopy(value)
    place = made
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = new
    return made


def mutated(value: Any, random: random.Random) -> Any:
    """A copy of ``value`` with a few places changed, doubled, emptied or removed."""
    made = copy.deepcopy(value)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        paths = list(leaves(made))
        if not paths:
            return made
        *front, last = random.choice(paths)
        place = made
        for key in front:
            place = place[key]
        kind = random.random()
        if kind < 0.7:
            place[last] = copy.deepcopy(random.choice(VALUES))
        elif kind < 0.8:
            del place[last]
        elif kind < 0.9 and isinstance(place[last], int):
            place[last] += random.choice((-1, 1))
        elif isinstance(place, list):
            place.append(copy.deepcopy(place[last]))
        else:
            place[f"{last}_"] = copy.deepcopy(place[last])
    return made
