"""What lists of documents held, over queries and seeds: means with intervals, and differences."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wherefrom.evaluation.evidence import Figure, plain
from wherefrom.evaluation.statistics import Scores, mean_estimate
from wherefrom.gradients.objectives.base import JSON

__all__ = ["POOLED", "Found", "highest"]

POOLED = (
    "Intervals are of other queries, those of all seeds taken together; what each seed gave by "
    "itself stands in the details."
)


def highest(scores: NDArray[np.float64], k: int) -> NDArray[np.int64]:
    """Positions of the ``k`` highest scores, the highest first; ties in an order of no meaning."""
    ties = np.random.default_rng(len(scores)).random(len(scores))
    order: NDArray[np.int64] = np.lexsort((ties, -scores))
    return order[:k]


class Found:
    """Values of each query, seed by seed, under a method and a name."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, str], list[Scores]] = defaultdict(list)

    def add(self, method: str, name: str, values: ArrayLike) -> None:
        """The values of one seed's queries."""
        self._values[method, name].append(np.asarray(values, np.float64))

    def figures(self, unit: str = "") -> tuple[Figure, ...]:
        """Means over the queries of all seeds."""
        return tuple(
            Figure.of(method, name, mean_estimate(np.concatenate(values)), unit)
            for (method, name), values in self._values.items()
        )

    def above(self, reference: str, unit: str = "") -> tuple[Figure, ...]:
        """Means of the differences from what the reference found for the same query."""
        figures = []
        for (method, name), values in self._values.items():
            if method != reference and (reference, name) in self._values:
                others = np.concatenate(self._values[reference, name])
                gained = mean_estimate(np.concatenate(values) - others)
                figures.append(Figure.of(method, f"{name} above {reference}", gained, unit))
        return tuple(figures)

    def details(self) -> dict[str, JSON]:
        """Each seed's mean."""
        return {
            "mean_of_each_seed": plain(
                {
                    f"{method}, {name}": [float(own.mean()) for own in values]
                    for (method, name), values in self._values.items()
                }
            )
        }
