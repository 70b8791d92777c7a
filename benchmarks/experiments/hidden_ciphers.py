"""Sequences written by hidden rules, so that which documents state a rule is known and not seen.

Every document is written by one of several ciphers, cyclic permutations of an alphabet: a letter is
what the cipher makes of the letter five places before it, or, with a chance that differs from
document to document, any letter. All letters are equally frequent, neighbours are independent, and
no longer piece recurs but by chance: nothing on the surface tells two ciphers apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wherefrom.records import Document, Query

__all__ = ["CipherTask", "cipher_task"]

LAG = 5
"""How far back the letter stands that decides the next one."""

_ALPHABET = "abcdefghijklmnop"
_CIPHERS = 16
_LENGTH = 110
_MOST_NOISE = 0.6
_PROMPT = 60


@dataclass(frozen=True, slots=True)
class CipherTask:
    """Documents and questions.

    Attributes:
        documents: Of 110 letters each.
        queries: The letter that follows 60 of an unseen document without noise.
        relevant: Whether a document is written by the query's cipher, ``[query, document]``.
        stated: How often a document of any cipher has the query's answer five places after the
            letter that decides it, ``[query, document]``.
    """

    documents: tuple[Document, ...]
    queries: tuple[Query, ...]
    relevant: NDArray[np.bool_]
    stated: NDArray[np.int64]


def cipher_task(documents: int, queries: int, seed: int) -> CipherTask:
    """Ciphers, documents and queries drawn by a seed.

    Args:
        documents: How many, as many by each cipher as by any other.
        queries: How many, likewise.
        seed: Of everything.
    """
    generator = np.random.default_rng(seed)
    ciphers = np.stack([_cycle(generator) for _ in range(_CIPHERS)])
    written_by = np.arange(documents) % _CIPHERS
    asked_of = np.arange(queries) % _CIPHERS
    noise = generator.random(documents) * _MOST_NOISE
    written = np.stack(
        [
            _sequence(ciphers[cipher], share, _LENGTH, generator)
            for cipher, share in zip(written_by, noise, strict=True)
        ]
    )
    asked = np.stack(
        [_sequence(ciphers[cipher], 0.0, _PROMPT + 1, generator) for cipher in asked_of]
    )
    before, after = asked[:, -1 - LAG, None, None], asked[:, -1, None, None]
    stated = (written[None, :, :-LAG] == before) & (written[None, :, LAG:] == after)
    texts = [_text(row) for row in asked]
    return CipherTask(
        tuple(Document(f"sequence {i:04d}", _text(row)) for i, row in enumerate(written)),
        tuple(Query(text[:_PROMPT], text[_PROMPT:]) for text in texts),
        asked_of[:, None] == written_by,
        stated.sum(2),
    )


def _cycle(generator: np.random.Generator) -> NDArray[np.int64]:
    """A permutation that is one cycle: no letter stays itself, and all are as frequent."""
    order = generator.permutation(len(_ALPHABET))
    cipher = np.empty_like(order)
    cipher[order] = np.roll(order, -1)
    return cipher


def _sequence(
    cipher: NDArray[np.int64], noise: float, length: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    letters = generator.integers(0, len(cipher), length)
    kept = generator.random(length) >= noise
    for place in range(LAG, length):
        if kept[place]:
            letters[place] = cipher[letters[place - LAG]]
    return letters


def _text(letters: NDArray[np.int64]) -> str:
    return "".join(_ALPHABET[letter] for letter in letters)
