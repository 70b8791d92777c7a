"""Curvature of small classifiers written out whole: the Gauss-Newton matrix and the Hessian.

By Jacobians and Hessians of ``torch.func``, float64: no approximation and none of the package's
own machinery.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vjp, vmap

from wherefrom.evaluation.statistics import Scores

__all__ = ["WholeMatrices"]

_AT_ONCE = 32


class WholeMatrices:
    """Matrices over all weights and biases of a classifier at its trained weights.

    Args:
        model: ``model(inputs)`` gives logits ``[document, class]``; all its parameters count.
        inputs: ``[document, ...]``.
        targets: Classes, int64 ``[document]``.
    """

    def __init__(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> None:
        self._named = {n: p.detach().double() for n, p in model.named_parameters()}
        self._model = model
        self._inputs, self._targets = inputs.double(), targets
        self._flat = torch.cat([p.flatten() for p in self._named.values()])

    @property
    def sizes(self) -> list[int]:
        """Numbers of weights, a parameter each."""
        return [parameter.numel() for parameter in self._named.values()]

    def gauss_newton(self) -> Tensor:
        """Mean over documents of ``J^T (diag p - p p^T) J``."""
        total = torch.zeros(len(self._flat), len(self._flat), dtype=torch.float64)
        jacobian = vmap(jacrev(self._logits), (None, 0))
        for part in self._inputs.split(_AT_ONCE):
            found = jacobian(self._flat, part)
            p = torch.softmax(vmap(self._logits, (None, 0))(self._flat, part), -1)
            # A root of diag p - p p^T: sqrt(p) ⊙ (v - p^T v).
            centred = found - torch.einsum("dc,dcw->dw", p, found)[:, None]
            rooted = (p.sqrt()[:, :, None] * centred).flatten(0, 1)
            total.addmm_(rooted.T, rooted)
        return total / len(self._inputs)

    def hessian(self) -> Tensor:
        """That of the mean loss, no weight decay in it; indefinite in general."""

        def loss(flat: Tensor) -> Tensor:
            logits = vmap(self._logits, (None, 0))(flat, self._inputs)
            return nn.functional.cross_entropy(logits, self._targets)

        # Symmetric, so that products from the left do: forward mode makes torch compile first.
        _, pull = vjp(grad(loss), self._flat)
        every = torch.eye(len(self._flat), dtype=torch.float64)
        (found,) = vmap(pull, chunk_size=_AT_ONCE)(every)
        symmetric: Tensor = (found + found.T) / 2
        return symmetric

    def influence(
        self, matrix: Tensor, damping: Sequence[float], questions: tuple[Tensor, Tensor]
    ) -> Scores:
        """``(1/N) grad f^T (matrix + damping)^-1 grad log p(z)``, ``[question, document]``.

        Args:
            matrix: From above.
            damping: One number for each of the model's parameters.
            questions: Inputs and targets; ``f`` is the log-likelihood.
        """
        pairs = zip(damping, self.sizes, strict=True)
        shift = torch.cat([torch.full((size,), d, dtype=torch.float64) for d, size in pairs])
        solved = torch.linalg.solve(matrix + shift.diag(), self._gradients(*questions).T)
        products = solved.T @ self._gradients(self._inputs, self._targets).T
        scores: Scores = (products / len(self._inputs)).numpy().astype(np.float64)
        return scores

    def _gradients(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Of log-likelihoods, ``[example, weight]``."""

        def log_likelihood(flat: Tensor, one: Tensor, target: Tensor) -> Tensor:
            return -nn.functional.cross_entropy(self._logits(flat, one), target)

        gradient: Callable[..., Tensor] = vmap(grad(log_likelihood), (None, 0, 0))
        return gradient(self._flat, inputs.double(), targets)

    def _logits(self, flat: Tensor, one: Tensor) -> Tensor:
        parts = flat.split(self.sizes)
        weights = {
            name: part.view(parameter.shape)
            for (name, parameter), part in zip(self._named.items(), parts, strict=True)
        }
        logits: Tensor = functional_call(self._model, weights, (one[None],))[0]
        return logits
