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

_BLOCK = 64


class Objective(ABC):
    """How likely targets are under a model. Subclasses give two methods."""

    kind: ClassVar[str]

    @abstractmethod
    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Run the model on ``batch.inputs``; the result's first dimension is the document."""

    @abstractmethod
    def log_likelihood(self, outputs: Tensor, targets: Tensor, batch: Batch) -> Tensor:
        """``[doc]`` log-likelihood of ``targets`` in nats, summed over scored positions."""

    def differentiate(
        self, outputs: Tensor, targets: Tensor, batch: Batch
    ) -> tuple[Tensor, Tensor]:
        """``[doc]`` log-likelihoods, and the gradient of their sum with respect to ``outputs``."""
        leaf = outputs.detach().requires_grad_()
        with torch.enable_grad():
            nats = self.log_likelihood(leaf, targets, batch)
            (gradient,) = torch.autograd.grad(nats.sum(), leaf)
        return nats.detach(), gradient


class Categorical(Objective):
    """Targets are classes; outputs are logits ``[doc, class]`` or ``[doc, position, class]``."""

    def log_likelihood(self, outputs: Tensor, targets: Tensor, batch: Batch) -> Tensor:
        """Sum of ``log softmax(outputs)[target]`` over scored positions, ``[doc]``."""
        nats = torch.log_softmax(outputs, -1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        return _summed(nats, batch)

    def differentiate(
        self, outputs: Tensor, targets: Tensor, batch: Batch
    ) -> tuple[Tensor, Tensor]:
        """In closed form, with one softmax: ``onehot(target) - p`` at scored positions."""
        if type(self).log_likelihood is not Categorical.log_likelihood:
            return super().differentiate(outputs, targets, batch)
        logits = outputs.detach()
        _require_classes(targets, logits.shape[-1], batch)
        logp = torch.log_softmax(logits, -1, dtype=torch.promote_types(logits.dtype, torch.float32))
        nats = logp.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        return _summed(nats, batch), self.pseudo_gradient(logp.exp_(), targets, batch)

    def probabilities(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The model's own distribution, at least float32, of the shape of ``outputs``.

        Raises:
            ModelError: The batch's own targets are no classes of the model.
        """
        logits = outputs.detach()
        _require_classes(batch.targets, logits.shape[-1], batch)
        return torch.softmax(logits, -1, dtype=torch.promote_types(logits.dtype, torch.float32))

    def draw(self, probabilities: Tensor, uniforms: Tensor) -> Tensor:
        """Targets drawn from a distribution by inversion.

        Args:
            probabilities: ``[doc, (position,) class]``.
            uniforms: float64 in [0, 1), of the shape of the targets.
        """
        classes = probabilities.shape[-1]
        rows = probabilities.reshape(-1, classes)
        padded = F.pad(rows, (0, -classes % _BLOCK)) if classes % _BLOCK else rows
        # Two levels, blocks and then the classes of one: a cumulative sum over a whole vocabulary
        # costs as much as its softmax.
        blocks = padded.view(len(rows), -1, _BLOCK)
        reached = blocks.sum(2).cumsum_(1)
        level = uniforms.to(rows.dtype).reshape(-1, 1) * reached[:, -1:]
        block = torch.searchsorted(reached, level, right=True).clamp_(max=reached.shape[1] - 1)
        before = F.pad(reached, (1, 0)).gather(1, block)
        inside = blocks[torch.arange(len(rows), device=rows.device), block[:, 0]].cumsum_(1)
        offset = torch.searchsorted(inside, level - before, right=True)
        drawn = (block * _BLOCK + offset.clamp_(max=_BLOCK - 1)).clamp_(max=classes - 1)
        return drawn.reshape(probabilities.shape[:-1])

    def pseudo_gradient(self, probabilities: Tensor, targets: Tensor, batch: Batch) -> Tensor:
        """``onehot(target) - p`` at scored positions, zero elsewhere; overwrites ``probabilities``.

        It is the gradient of the targets' log-likelihood with respect to the logits.
        """
        gradient = probabilities.neg_()
        ones = gradient.new_ones(()).expand(targets.unsqueeze(-1).shape)
        gradient.scatter_add_(-1, targets.unsqueeze(-1), ones)
        if batch.scored is not None:
            gradient.mul_(batch.scored.unsqueeze(-1))
        return gradient


def _require_classes(targets: Tensor, classes: int, batch: Batch) -> None:
    """Refuse targets that are no classes of the model, naming the document."""
    if targets.dtype.is_floating_point or targets.dtype == torch.bool:
        raise ModelError(
            f"targets are of type {targets.dtype}; give the number of the class as integers "
            "(targets.long())"
        )
    wrong = ((targets < 0) | (targets >= classes)).reshape(len(targets), -1).any(1)
    if bool(wrong.any()):
        worst = int(wrong.nonzero()[0])
        raise ModelError(
            f"the target of document {batch.doc_ids[worst]!r} is not one of the model's {classes} "
            f"classes (0 to {classes - 1}); check labels, or tokenizer and model against each other"
        )


def _summed(nats: Tensor, batch: Batch) -> Tensor:
    """Sum over the scored positions of each document."""
    if batch.scored is not None:
        nats = torch.where(batch.scored, nats, 0.0)
    return nats.reshape(len(nats), -1).sum(1)


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
