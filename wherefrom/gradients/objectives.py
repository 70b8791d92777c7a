"""Objectives: what a model's outputs mean, as log-likelihoods of targets.

An :class:`Objective` says how to run the model on a batch and how likely a target is under its
outputs. That is enough for influence with the empirical Fisher; a :class:`Categorical` objective
also knows the model's own distribution, from which the true Fisher's pseudo-labels are drawn.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wherefrom.errors import ModelError
from wherefrom.gradients.batches import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Categorical", "CausalLM", "Classification", "Objective"]


class Objective(ABC):
    """How likely targets are under a model. Subclasses give two methods."""

    kind: ClassVar[str]

    @abstractmethod
    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Run the model on ``batch.inputs``; the result's first dimension is the document."""

    @abstractmethod
    def log_likelihood(self, outputs: Tensor, targets: Tensor, batch: Batch) -> Tensor:
        """``[doc]`` log-likelihood of ``targets`` in nats, summed over scored positions."""


class Categorical(Objective):
    """Targets are classes; outputs are logits ``[doc, class]`` or ``[doc, position, class]``."""

    def log_likelihood(self, outputs: Tensor, targets: Tensor, batch: Batch) -> Tensor:
        """Sum of ``log softmax(outputs)[target]`` over scored positions, ``[doc]``."""
        classes = outputs.shape[-1]
        nats = -F.cross_entropy(
            outputs.reshape(-1, classes), targets.reshape(-1), reduction="none"
        ).reshape(targets.shape)
        if batch.scored is not None:
            nats = nats * batch.scored
        return nats.reshape(len(nats), -1).sum(1)

    def draw(self, outputs: Tensor, uniforms: Tensor) -> Tensor:
        """Targets drawn from the model's own distribution by inversion.

        Args:
            outputs: Logits ``[doc, (position,) class]``.
            uniforms: float64 in [0, 1), of the shape of the targets.
        """
        with torch.no_grad():
            cumulative = torch.softmax(outputs, -1, dtype=torch.float32).cumsum_(-1)
            level = uniforms.to(cumulative.dtype).unsqueeze(-1) * cumulative[..., -1:]
            drawn = torch.searchsorted(cumulative, level, right=True).squeeze(-1)
            return drawn.clamp_(max=outputs.shape[-1] - 1)


class CausalLM(Categorical):
    """Next-token prediction with a Hugging Face causal language model.

    Args:
        tokenizer: A fast Hugging Face tokenizer; ``None`` takes the one saved with the model.
        context: Longest passage in tokens; ``None`` takes the model's own limit, at most 1024.
    """

    kind = "causal_lm"

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase | None = None, *, context: int | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.context = context

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits ``[doc, position, vocabulary]``; padding stands on the right."""
        mask = None if batch.attended is None else batch.attended.long()
        try:
            result = model(input_ids=batch.inputs, attention_mask=mask, use_cache=False)
        except TypeError as error:
            raise ModelError(
                f"{type(model).__name__} cannot be called as a Hugging Face causal language model "
                f"({error}); give objective=wf.Classification() or your own wf.Objective"
            ) from error
        logits: Tensor = result.logits
        return logits


class Classification(Categorical):
    """Plain classification: ``model(inputs)`` gives logits ``[doc, class]``."""

    kind = "classification"

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits ``[doc, class]``."""
        logits = model(batch.inputs)
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ModelError(
                f"{type(model).__name__} returned {shape}; classification wants logits "
                "[doc, class]: give your own wf.Objective"
            )
        return logits
