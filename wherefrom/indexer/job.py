"""What a worker needs to take part in a build: where it happens, and how to load the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from wherefrom.errors import ModelError
from wherefrom.gradients.extractor import GradientExtractor
from wherefrom.gradients.layers import select_layers
from wherefrom.gradients.models import LoadedModel, ModelSource, load_model
from wherefrom.gradients.objectives import (
    CausalLM,
    Classification,
    MaskedLM,
    Objective,
    SequenceClassification,
    TextObjective,
)
from wherefrom.indexer.prepare import bind_to_text

if TYPE_CHECKING:
    from wherefrom.indexer.workshop import Workshop

__all__ = ["Job", "ModelChoice", "Prepared"]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model ready to be differentiated.

    Attributes:
        loaded: The model, and where it is from.
        extractor: With its objective and layers.
    """

    loaded: LoadedModel
    extractor: GradientExtractor


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """The model, what its outputs mean, and which layers; see :func:`wherefrom.build`."""

    model: ModelSource
    base_model: ModelSource | None = None
    dtype: str = "float32"
    device: str = "auto"
    objective: Objective | None = None
    context: int | None = None
    layers: str | Sequence[str] | None = None
    tensors: bool = False
    seed: int = 0

    def prepare(self, device: str | None = None) -> Prepared:
        """Load the model.

        Args:
            device: Where to run, if elsewhere than ``device`` says.

        Raises:
            WherefromError: Model, objective, layers and documents do not go together.
        """
        objective = self.objective
        loaded = load_model(
            self.model, device or self.device, base=self.base_model, dtype=self.dtype
        )
        if objective is not None and not isinstance(objective, Objective):
            raise ModelError(
                f"objective is {objective!r}; give an object, such as wf.CausalLM() or your own"
            )
        if objective is None:
            objective = Classification() if self.tensors else _objective_for(loaded, self.seed)
        if not self.tensors:
            objective = bind_to_text(objective, loaded, self.context)
        elif isinstance(objective, TextObjective):
            raise ModelError(
                f"{type(objective).__name__} reads text, the documents are tensors; give "
                "objective=wf.Classification() or another over tensors"
            )
        layers = select_layers(loaded.module, self.layers)
        return Prepared(loaded, GradientExtractor(loaded.module, objective, layers))


@dataclass(frozen=True)
class Job:
    """A build, for those who work on it; goes to other processes as it is.

    Attributes:
        folder: The directory of the build; all workers see it under this path.
        choice: How to load the model.
        here: The workshop of this process, if the model is loaded in it already; stays behind when
            the job goes to another process.
    """

    folder: Path
    choice: ModelChoice
    here: Workshop | None = field(default=None, compare=False, repr=False)

    def __getstate__(self) -> dict[str, object]:
        """All but the workshop of this process."""
        return {"folder": self.folder, "choice": self.choice, "here": None}

    def open(self, worker: int = 0) -> Workshop:
        """The workshop to carry out tasks in; loads the model unless it is loaded here.

        Args:
            worker: Number of the worker on its machine: GPUs are dealt out by it.

        Raises:
            WherefromError: The model cannot be loaded, or the build's files cannot be read.
        """
        if self.here is not None:
            return self.here
        from wherefrom.indexer.workshop import Workshop

        return Workshop.open(self.folder, self.choice.prepare(self._device(worker)))

    def _device(self, worker: int) -> str:
        several = self.choice.device in ("auto", "cuda") and torch.cuda.is_available()
        return f"cuda:{worker % torch.cuda.device_count()}" if several else self.choice.device


def _objective_for(loaded: LoadedModel, seed: int) -> Objective:
    """What a model of transformers was trained for; next-token prediction where that is unknown."""
    if loaded.task == "masked_lm":
        return MaskedLM(seed=seed)
    return SequenceClassification() if loaded.task == "sequence_classification" else CausalLM()
