"""The demo's model trained anew on some of its passages, for evaluations that retrain."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from torch import nn

from wherefrom.demo.model import RECIPE, Recipe, train_model
from wherefrom.errors import EvaluationError
from wherefrom.evaluation.trainers import Run
from wherefrom.gradients.fingerprints import tokenizer_sha256
from wherefrom.records import Document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["DemoTrainer"]


class DemoTrainer:
    """Trains the demo's model from scratch, as the demo itself does.

    Args:
        documents: All passages, in the order of the members of a run.
        tokenizer: Of the model, learned from all of them.
        schedule: Sizes and schedule.

    Attributes:
        recipe: The schedule in words, and the digest of the tokenizer.
        at_once: One.
    """

    at_once = 1

    def __init__(
        self,
        documents: Sequence[Document],
        tokenizer: PreTrainedTokenizerFast,
        schedule: Recipe = RECIPE,
    ) -> None:
        self.recipe = f"demo, from scratch: {schedule}, tokens {tokenizer_sha256(tokenizer)}"
        self._documents = tuple(documents)
        self._tokenizer = tokenizer
        self._schedule = schedule

    def train(self, runs: Sequence[Run]) -> Iterator[nn.Module]:
        """One model a run.

        Raises:
            EvaluationError: A run has no members or other documents.
            ModelError: The loss became infinite or NaN.
        """
        for run in runs:
            if run.members.shape != (len(self._documents),) or not run.members.any():
                raise EvaluationError(
                    f"{int(run.members.sum())} members of {len(run.members)} documents; give at "
                    f"least one of {len(self._documents)}"
                )
            yield train_model(
                self._documents,
                self._tokenizer,
                seed=run.seed,
                progress=_quiet,
                recipe=self._schedule,
                members=run.members,
            )


def _quiet(phase: str, done: int, total: int | None) -> None:
    """Whoever retrains counts runs, not steps."""
