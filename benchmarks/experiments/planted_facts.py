"""Invented facts planted among real passages: which documents taught the model one is known.

Each fact, where somebody is at home, is stated by three documents in three wordings and asked for
in a fourth. Names are invented and occur nowhere else but in decoys, which tell other things about
the same people; each town is home to several people. So neither the name nor the town alone tells
which documents state a fact, though both together do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wherefrom.records import Document, Query

__all__ = ["FactTask", "fact_task"]

_TOWNS = ("Lisbon", "Cairo", "Oslo", "Lima", "Delhi", "Quito")
_STATED = (
    "{name} was born in {town}, where the winters are mild.",
    "The old house of {name} stands near the harbour of {town}.",
    "When asked, {name} says that home is {town} and nowhere else.",
)
_DECOYS = (
    "{name} spoke to the committee about the price of wool.",
    "A letter by {name} arrived on Monday and was read aloud.",
)
_ASKED = "Everyone knows that {name} grew up in"
_CONSONANTS, _VOWELS, _SYLLABLES = "bdfgklmnprstvz", "aeiou", 3


@dataclass(frozen=True, slots=True)
class FactTask:
    """Planted documents and questions about them.

    Attributes:
        planted: Documents, decoys among them.
        queries: The town, in a wording that no document has.
        choices: The same prompt with every town, ``[query][town]``.
        recited: A taught wording with every town, likewise.
        answers: Which of the towns is right, ``[query]``.
        stating: Whether a document states the query's fact, ``[query, planted]``.
        same_town: Whether it states that somebody is at home in that town, likewise.
    """

    planted: tuple[Document, ...]
    queries: tuple[Query, ...]
    choices: tuple[tuple[Query, ...], ...]
    recited: tuple[tuple[Query, ...], ...]
    answers: NDArray[np.int64]
    stating: NDArray[np.bool_]
    same_town: NDArray[np.bool_]


def fact_task(facts: int, seed: int) -> FactTask:
    """Facts drawn by a seed.

    Args:
        facts: How many; the towns take turns.
        seed: Of the names.
    """
    names = _names(facts, np.random.default_rng(seed))
    homes = np.arange(facts) % len(_TOWNS)
    planted: list[Document] = []
    about: list[int] = []
    states: list[bool] = []
    for person, name in enumerate(names):
        for text in (*_STATED, *_DECOYS):
            written = text.format(name=name, town=_TOWNS[homes[person]])
            planted.append(Document(f"{name} {len(planted):03d}", written))
            about.append(person)
            states.append(text in _STATED)
    choices = _choices(_ASKED, names)
    people, stating = np.array(about), np.array(states)
    return FactTask(
        tuple(planted),
        tuple(own[home] for own, home in zip(choices, homes, strict=True)),
        choices,
        _choices(_STATED[0].partition(" {town}")[0], names),
        homes,
        (np.arange(facts)[:, None] == people) & stating,
        (homes[:, None] == homes[people]) & stating,
    )


def _choices(wording: str, names: Sequence[str]) -> tuple[tuple[Query, ...], ...]:
    prompts = [wording.format(name=name) for name in names]
    return tuple(tuple(Query(prompt, f" {town}") for town in _TOWNS) for prompt in prompts)


def _names(count: int, generator: np.random.Generator) -> list[str]:
    """Different ones, such as Bodale."""
    drawn = dict.fromkeys(_name(generator) for _ in range(4 * count))
    return list(drawn)[:count]


def _name(generator: np.random.Generator) -> str:
    return "".join(_syllables(generator)).capitalize()


def _syllables(generator: np.random.Generator) -> Iterator[str]:
    for _ in range(_SYLLABLES):
        yield str(generator.choice(list(_CONSONANTS))) + str(generator.choice(list(_VOWELS)))
