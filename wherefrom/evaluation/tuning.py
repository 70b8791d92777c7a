"""Fine-tuning as a trainer: a base model trained further on some of the documents.

Whatever an index can be built over can be tuned: the objective says what the loss is and the
examples what counts in it, so that training and influence speak of the same log-likelihoods. The
whole model learns, or its LoRA adapters where it holds any.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from wherefrom.errors import EvaluationError
from wherefrom.evaluation.fresh_adapters import fresh, redraw
from wherefrom.evaluation.trainers import Run
from wherefrom.gradients.adapter_weights import plain_model, weight_parts
from wherefrom.gradients.examples import Examples, TextExamples
from wherefrom.gradients.fingerprints import adapter_sha256, weights_sha256
from wherefrom.gradients.models import ModelSource, load_model
from wherefrom.gradients.objectives import (
    CausalLM,
    Objective,
    SequenceClassification,
    TextObjective,
)
from wherefrom.records import Document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["FineTuner", "TuningRecipe"]

# What a configuration says of its past: a model in memory and the same one saved differ in it.
_ORIGIN = {
    "_name_or_path",
    "architectures",
    "auto_mapping",
    "base_model_name_or_path",
    "dtype",
    "inference_mode",
    "peft_version",
    "transformers_version",
}


@dataclass(frozen=True, slots=True)
class TuningRecipe:
    """How a model is fine-tuned: by AdamW, with a cosine down to zero.

    Attributes:
        epochs: Passes over the members.
        batch_size: Documents per step.
        learning_rate: At the start.
        weight_decay: AdamW's, on all weights that learn.
        dropout: Whether the model's dropout is on. Without it two models of one seed differ by
            their members alone, and not by what was dropped.
    """

    epochs: int = 3
    batch_size: int = 8
    learning_rate: float = 5e-5
    weight_decay: float = 0.0
    dropout: bool = True

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size) < 1:
            raise EvaluationError(
                f"epochs={self.epochs}, batch_size={self.batch_size}; give at least 1 of each"
            )
        if not (self.learning_rate > 0 and self.weight_decay >= 0):
            raise EvaluationError(
                f"learning_rate={self.learning_rate}, weight_decay={self.weight_decay}; give a "
                "positive rate and a decay of at least 0"
            )


class FineTuner:
    """Trains a copy of a base model on some of the documents.

    Members come in the order that all documents have with a seed. Some chance is left between two
    models of one seed: a document that is left out moves all later ones up, into other batches. A
    step's loss is minus the mean log-likelihood of its scored predictions.

    The base is the model *before* it saw any of the documents. Where it holds LoRA adapters in
    use, these learn and all else stays; otherwise every weight that requires a gradient learns.
    An adapter that has learnt nothing yet is drawn by each run's seed, as a training draws it that
    begins with ``get_peft_model``; one that was trained is trained further.

    Args:
        base: The model, or its path or cached id: one in memory is sent to every worker, one on
            disk is read by each of them, and either is copied for each run.
        objective: What the loss is; bound to the model, where it is one of text.
        documents: Made ready by that objective, in the order that members count in.
        recipe: Schedule.
        device: Where to train a model that is loaded; one in memory stays where it is.

    Attributes:
        recipe: All that decides a model but members, seed and documents, in words.
        at_once: One.

    Raises:
        ModelError: The base cannot be loaded.
    """

    at_once = 1

    def __init__(
        self,
        base: ModelSource,
        objective: Objective,
        documents: Examples,
        recipe: TuningRecipe | None = None,
        *,
        device: str = "auto",
    ) -> None:
        self._base = base
        self._device = device
        self._opened: nn.Module | None = None
        self._objective = objective
        self._documents = documents
        self._schedule = TuningRecipe() if recipe is None else recipe
        self.recipe = (
            f"{self._schedule!r} of {_made(self._module())} under {objective.kind} "
            f"{dict(objective.options())}"
        )

    @classmethod
    def of_texts(
        cls,
        base: ModelSource,
        documents: Sequence[Document],
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        objective: TextObjective | None = None,
        recipe: TuningRecipe | None = None,
        device: str = "auto",
    ) -> FineTuner:
        """Of a causal language model or a text classifier.

        Args:
            base: As above.
            documents: Chats rendered, none longer than the context.
            tokenizer: By default the one saved with the model.
            objective: By default what the model was made for.
            recipe: Schedule.
            device: As above.

        Raises:
            ModelError: The base cannot be loaded, or objective, model and tokenizer do not go
                together.
        """
        if isinstance(base, nn.Module):
            device = str(next(base.parameters()).device)
        loaded = load_model(base, device)
        own = SequenceClassification if loaded.task == "sequence_classification" else CausalLM
        bound = (objective or own()).bind(loaded.module, tokenizer or loaded.tokenizer)
        return cls(base, bound, TextExamples.of(documents, bound), recipe, device=device)

    def train(self, runs: Sequence[Run]) -> Iterator[nn.Module]:
        """A tuned copy of the base for each run, in evaluation mode.

        The caller's random state is left as it was.

        Args:
            runs: Members and seed of each.

        Raises:
            EvaluationError: A run has other documents, or fewer members than one batch, or its
                loss was not finite.
            ModelError: The base cannot be loaded.
        """
        for run in runs:
            chosen = self._checked(run)
            module = copy.deepcopy(self._module())
            device = next(module.parameters()).device
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                torch.manual_seed(run.seed)
                redraw(module)
                self._tune(module, chosen, torch.Generator().manual_seed(run.seed))
            yield module

    def _tune(self, module: nn.Module, members: torch.Tensor, generator: torch.Generator) -> None:
        schedule = self._schedule
        learning = _learning(module)
        device = learning[0].device
        module.requires_grad_(False)
        for weight in learning:
            weight.requires_grad_()
        optimizer = torch.optim.AdamW(
            learning, lr=schedule.learning_rate, weight_decay=schedule.weight_decay, fused=True
        )
        steps = schedule.epochs * math.ceil(int(members.sum()) / schedule.batch_size)
        rate = CosineAnnealingLR(optimizer, steps)
        module.train(schedule.dropout)
        for _ in range(schedule.epochs):
            order = torch.randperm(len(members), generator=generator)
            for places in torch.split(order[members[order]], schedule.batch_size):
                loss = self._loss(module, places.numpy(), device)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                rate.step()
        module.zero_grad(set_to_none=True)
        module.eval()

    def _loss(
        self, module: nn.Module, places: NDArray[np.int64], device: torch.device
    ) -> torch.Tensor:
        batch = self._documents.batch(places).to(device)
        outputs = self._objective.outputs(module, batch)
        nats = self._objective.log_likelihood(outputs, batch.targets, batch)
        loss = -nats.sum() / int(self._documents.tokens[places].sum())
        if not bool(torch.isfinite(loss)):
            raise EvaluationError(
                f"the training loss became {loss.item()}; tune with a learning_rate below "
                f"{self._schedule.learning_rate}"
            )
        return loss

    def __getstate__(self) -> dict[str, Any]:
        """For workers, each of which reads a saved base itself."""
        return {**self.__dict__, "_opened": None}

    def _module(self) -> nn.Module:
        """The base, never to be changed."""
        if isinstance(self._base, nn.Module):
            return self._base
        if self._opened is None:
            self._opened = load_model(self._base, self._device).module
        return self._opened

    def _checked(self, run: Run) -> torch.Tensor:
        documents = len(self._documents.lengths)
        if run.members.shape != (documents,) or run.members.dtype != np.bool_:
            raise EvaluationError(
                f"members are {run.members.dtype} {list(run.members.shape)}; give a bool for each "
                f"of {documents} documents"
            )
        count, batch = int(run.members.sum()), self._schedule.batch_size
        if count < min(batch, documents):
            raise EvaluationError(
                f"{count} of {documents} documents are members, less than one batch of {batch}; "
                "train on more of them, or with a smaller batch_size"
            )
        return torch.from_numpy(run.members)


def _made(module: nn.Module) -> str:
    """All of a base that decides what it becomes, in words and digests."""
    learning = {id(weight) for weight in _learning(module)}
    names = [name for name, weight in module.named_parameters() if id(weight) in learning]
    device = next(module.parameters()).device.type
    count = sum(weight.numel() for weight in module.parameters() if id(weight) in learning)
    # Dropout and the like stand in no weight, but in the configuration or in the modules.
    parts = [names, re.sub(r" at 0x[0-9a-f]+", "", repr(module)), *_configurations(module)]
    settings = hashlib.sha256(json.dumps(parts, sort_keys=True, default=_plain).encode())
    return (
        f"{count} weights{', drawn by the seed' if fresh(module) else ''}, of "
        f"{type(module).__name__} {weights_sha256(module)}+{adapter_sha256(module)}, settings "
        f"{settings.hexdigest()}, on {device}"
    )


def _configurations(module: nn.Module) -> list[dict[str, Any]]:
    """The model's and its adapters', without where they were read from."""
    adapters = getattr(module, "peft_config", {})
    plain: Any = plain_model(module)
    found = [getattr(plain, "config", None), *(adapters[name] for name in sorted(adapters))]
    return [
        {name: value for name, value in config.to_dict().items() if name not in _ORIGIN}
        for config in found
        if hasattr(config, "to_dict")
    ]


def _plain(value: object) -> object:
    """What JSON does not know: the sets and enumerations of a configuration."""
    return sorted(map(str, value)) if isinstance(value, (set, frozenset)) else str(value)


def _learning(module: nn.Module) -> list[nn.Parameter]:
    """The weights of adapters in use, or else all that require a gradient."""
    adapters = weight_parts(module).adapters
    own = {weight.data_ptr() for weights in adapters.values() for weight in weights.values()}
    if own:
        return [weight for weight in module.parameters() if weight.data_ptr() in own]
    learning = [weight for weight in module.parameters() if weight.requires_grad]
    if not learning:
        raise EvaluationError(
            f"no weight of this {type(module).__name__} requires a gradient; call "
            "requires_grad_() on those that are to learn"
        )
    return learning
