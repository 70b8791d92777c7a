"""Targets that are classes: logits, and the softmax distribution over them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wherefrom.errors import CurvatureError, ModelError
from wherefrom.gradients.batches import Batch
from wherefrom.gradients.counter import uniforms
from wherefrom.gradients.objectives.base import Probabilistic, require_finite

__all__ = ["Categorical", "Classification"]

_BLOCK = 64


class Categorical(Probabilistic):
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

    def sampled_gradient(self, outputs: Tensor, batch: Batch, key: np.ndarray) -> Tensor:
        """``onehot(y) - p`` at scored positions, one class y drawn for each."""
        probabilities = self._finite_probabilities(outputs, batch)
        shape = batch.targets.shape
        numbers = uniforms(key, batch.keys, batch.targets[0].numel())
        levels = torch.from_numpy(numbers).to(outputs.device).reshape(shape)
        return self.pseudo_gradient(probabilities, self.draw(probabilities, levels), batch)

    def expected_terms(self, outputs: Tensor) -> int | None:
        """One a class, where a document has one prediction."""
        return outputs.shape[1] if outputs.ndim == 2 else None

    def expected_gradients(self, outputs: Tensor, batch: Batch) -> Iterator[Tensor]:
        """``sqrt(p_c) (onehot(c) - p)`` for each class c.

        Raises:
            CurvatureError: A document has several predictions, whose draws are independent: it
                would take every combination of their classes.
        """
        if outputs.ndim != 2:
            raise CurvatureError(
                "fisher='expected' sums over the classes of one prediction a document; this model "
                "makes several: use fisher='sampled'"
            )
        probabilities = self._finite_probabilities(outputs, batch)
        weights = probabilities.sqrt()
        for label in range(outputs.shape[1]):
            targets = torch.full_like(batch.targets, label)
            gradient = self.pseudo_gradient(probabilities.clone(), targets, batch)
            yield gradient * weights[:, label, None]

    def fisher_product(self, outputs: Tensor, vectors: Tensor, batch: Batch) -> Tensor:
        """``p (v - sum_c p_c v_c)`` at scored positions, zero elsewhere."""
        probabilities = self._finite_probabilities(outputs, batch)
        weighted = probabilities * vectors.to(probabilities.dtype)
        product = weighted - probabilities * weighted.sum(-1, keepdim=True)
        if batch.scored is not None:
            product.mul_(batch.scored.unsqueeze(-1))
        return product

    def _finite_probabilities(self, outputs: Tensor, batch: Batch) -> Tensor:
        probabilities = self.probabilities(outputs, batch)
        # One column will do: a softmax with anything not finite in it is NaN throughout.
        require_finite(probabilities[..., 0], batch)
        return probabilities

    def probabilities(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The model's own distribution, at least float32, of the shape of ``outputs``.

        Raises:
            ModelError: The batch's own targets are no classes of the model.
        """
        logits = outputs.detach()
        _require_classes(batch.targets, logits.shape[-1], batch)
        return torch.softmax(logits, -1, dtype=torch.promote_types(logits.dtype, torch.float32))

    def draw(self, probabilities: Tensor, levels: Tensor) -> Tensor:
        """Targets drawn from a distribution by inversion.

        Args:
            probabilities: ``[doc, (position,) class]``.
            levels: float64 in [0, 1), of the shape of the targets.
        """
        classes = probabilities.shape[-1]
        rows = probabilities.reshape(-1, classes)
        padded = F.pad(rows, (0, -classes % _BLOCK)) if classes % _BLOCK else rows
        # Two levels, blocks and then the classes of one: a cumulative sum over a whole vocabulary
        # costs as much as its softmax.
        blocks = padded.view(len(rows), -1, _BLOCK)
        reached = blocks.sum(2).cumsum_(1)
        level = levels.to(rows.dtype).reshape(-1, 1) * reached[:, -1:]
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
