"""Arrays that took minutes to compute, kept so that an interrupted experiment goes on."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["kept"]

_RECIPE = "recipe"


def kept(
    path: Path, recipe: str, make: Callable[[], Mapping[str, NDArray[Any]]]
) -> dict[str, NDArray[Any]]:
    """What ``path`` holds, or else what ``make`` gives, which is then kept there.

    Args:
        path: Of a ``.npz`` file.
        recipe: In words, all that decides the arrays but the code; what was kept under another is
            made anew.
        make: Arrays by name; none is called ``recipe``.
    """
    if path.is_file():
        with np.load(path) as stored:
            if str(stored[_RECIPE]) == recipe:
                return {name: stored[name] for name in stored.files if name != _RECIPE}
    made = dict(make())
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, allow_pickle=False, **{**made, _RECIPE: np.array(recipe)})
    os.replace(partial, path)
    return made
