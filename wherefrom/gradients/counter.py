"""Counter-based random numbers: pure functions of a seed and a position.

Unlike a generator's stream they do not depend on library versions, devices, or on the order in
which they are asked for, so an index can be reproduced from its manifest. The mixing function is
SplitMix64's (Steele, Lea and Flood 2014), applied to a counter.
"""

from __future__ import annotations

import numpy as np

__all__ = ["bits", "key_of", "normals", "uniforms"]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed


def key_of(seed: int, stream: int) -> np.ndarray:
    """A 0-d uint64 key for one stream of a seed."""
    with np.errstate(over="ignore"):
        start = np.array([seed % 2**64], np.uint64) + _GOLDEN
        key: np.ndarray = _mix(_mix(start) + np.uint64(stream % 2**64) * _GOLDEN)[0]
    return key


def bits(key: np.ndarray, start: int, count: int) -> np.ndarray:
    """64 random bits for each counter in ``range(start, start + count)``, uint64 ``[count]``."""
    counter = np.arange(start + 1, start + count + 1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        return _mix(key + counter * _GOLDEN)


def uniforms(key: np.ndarray, keys: np.ndarray, positions: int) -> np.ndarray:
    """Uniform numbers in [0, 1), float64 ``[doc, position]``.

    Args:
        key: Of the stream.
        keys: uint64 ``[doc]``, one a document.
        positions: How many numbers for each document.
    """
    counter = np.arange(1, positions + 1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        mixed = _mix(_mix(keys ^ key)[:, None] + counter[None, :] * _GOLDEN)
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normals(key: np.ndarray, keys: np.ndarray, positions: int) -> np.ndarray:
    """Standard normal numbers, float64 ``[doc, position]``, by Box and Muller's transform (1958).

    A number does not depend on how many are asked for.

    Args:
        key: Of the stream.
        keys: uint64 ``[doc]``, one a document.
        positions: How many numbers for each document.
    """
    pairs = uniforms(key, keys, positions + positions % 2)
    radius = np.sqrt(-2.0 * np.log1p(-pairs[:, ::2].copy()))
    angle = 2.0 * np.pi * pairs[:, 1::2].copy()
    both = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 2)
    return both.reshape(len(keys), -1)[:, :positions]
