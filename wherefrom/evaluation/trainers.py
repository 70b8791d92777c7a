"""Who trains a model anew: the interface, and a function of the user's own behind it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import nn

from wherefrom.errors import EvaluationError
from wherefrom.evaluation.sources import function_text

__all__ = ["FunctionTrainer", "Run", "TrainFunction", "Trainer"]

TrainFunction = Callable[[NDArray[np.int64], int], nn.Module]
"""``train(members, seed)``: positions of the documents to train on, int64 ``[member]`` ascending,
in the order of ``index.doc_ids()``; all chance must come from ``seed``."""


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """One training.

    Attributes:
        members: Which documents to train on, bool ``[document]``.
        seed: Of first weights, order and all other chance.
    """

    members: NDArray[np.bool_]
    seed: int

    @property
    def key(self) -> str:
        """A digest of members and seed."""
        packed = np.packbits(self.members).tobytes()
        text = f"{len(self.members)} {self.seed} ".encode()
        return hashlib.sha256(text + packed).hexdigest()


class Trainer(Protocol):
    """Trains models on subsets of the documents.

    Attributes:
        recipe: In words, all that decides a model but members and seed; retrainings are kept under
            it, so that another recipe never reads them.
        at_once: How many runs :meth:`train` had best be given together.
    """

    @property
    def recipe(self) -> str:
        """All that decides a model but members and seed."""
        ...

    @property
    def at_once(self) -> int:
        """How many runs to give together."""
        ...

    def train(self, runs: Sequence[Run]) -> Iterator[nn.Module]:
        """One model a run, in order; each may be dropped before the next is asked for.

        The same run gives the same model, to the last bit on one machine, whatever other runs it
        is given with.
        """
        ...


@dataclass(frozen=True, slots=True)
class FunctionTrainer:
    """A function of the user's own as a trainer.

    Attributes:
        function: See :data:`TrainFunction`. For several workers it must be importable by name.
        recipe: In words, all that decides its models; by default its source and what its defaults
            and closure bind, so that an edited function trains anew. What it calls and reads from
            its module is not seen: change the recipe when that changes. A method, a
            ``functools.partial`` and any other object that is called need one.
        at_once: One.

    Raises:
        EvaluationError: No recipe is given, and none can be read off the function.
    """

    function: TrainFunction
    recipe: str = ""
    at_once: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        if not self.recipe:
            object.__setattr__(self, "recipe", function_text(self.function))

    def train(self, runs: Sequence[Run]) -> Iterator[nn.Module]:
        """Call the function for each run.

        Raises:
            EvaluationError: It returns no module.
        """
        for run in runs:
            module = self.function(np.flatnonzero(run.members), run.seed)
            if not isinstance(module, nn.Module):
                raise EvaluationError(
                    f"the training function returned a {type(module).__name__}; return the "
                    "trained torch.nn.Module"
                )
            yield module
