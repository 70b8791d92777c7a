"""Multinomial logistic regressions at their optima, many at once, in float64.

Newton's method (Nocedal and Wright 2006, algorithm 7.1): each step by conjugate gradients, with the
Kronecker factors of the Hessian as the preconditioner. For one linear layer these are nearly the
Hessian itself.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad

from wherefrom.errors import EvaluationError

__all__ = ["fit_logistic"]

_TOLERANCE = 1e-12
_NEWTON_STEPS = 60
_CG_STEPS = 200
_CG_TOLERANCE = 1e-3
_HALVINGS = 30
_ROUNDING = 1e-13


def fit_logistic(
    inputs: Tensor,
    targets: Tensor,
    members: Tensor,
    classes: int,
    l2: float,
    *,
    start: Tensor | None = None,
) -> Tensor:
    """Minimise ``(1/N) sum over members of -log p(target | input) + (l2/2) |W|^2``.

    Args:
        inputs: ``[document, width]``; a 1 is appended, so that a bias is a weight like others.
        targets: int64 ``[document]``.
        members: bool ``[model, document]``; N is the number of documents, members or not.
        classes: How many there are.
        l2: Strength of the penalty, positive.
        start: Weights to start from, float64 ``[class, width + 1]``; zero by default. They decide
            how long it takes, not where it ends.

    Returns:
        float64 ``[model, class, width + 1]``, the bias last. No entry of the gradient exceeds
        1e-12.

    Raises:
        EvaluationError: The gradient did not become that small.
    """
    problem = _Problem(inputs, targets, members, classes, l2)
    first = torch.zeros(classes, inputs.shape[1] + 1).double() if start is None else start
    precondition = problem.kronecker_factors(first)
    weights = first.repeat(len(members), 1, 1)
    for _ in range(_NEWTON_STEPS):
        loss, gradient, probabilities = problem.at(weights)
        there = gradient.abs().amax((1, 2), keepdim=True) <= _TOLERANCE
        if bool(there.all()):
            return weights
        # A model that has arrived stays where it is, whatever the others still need.
        wanted = torch.where(there, 0.0, gradient)
        step = _solve(partial(problem.product, probabilities), wanted, precondition)
        weights = _descended(problem, weights, loss, step)
    raise EvaluationError(
        f"logistic regression with l2={l2} did not converge in {_NEWTON_STEPS} Newton steps (a "
        f"gradient of {float(gradient.abs().max()):.1e} is left); give a larger l2 or scale the "
        "inputs to about 1"
    )


class _Problem:
    """Losses of all models, with the first dimension the model and the last the document.

    Args: those of :func:`fit_logistic`.
    """

    def __init__(
        self, inputs: Tensor, targets: Tensor, members: Tensor, classes: int, l2: float
    ) -> None:
        self._inputs = pad(inputs.double(), (0, 1), value=1.0)
        self._answers = one_hot(targets, classes).T.double()
        self._shares = members.double()[:, None] / len(inputs)
        self._l2 = l2

    def at(self, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Losses ``[model]``, gradients, and probabilities ``[model, class, document]``."""
        logits = self._through(weights)
        log_probabilities = logits.log_softmax(1)
        penalty = 0.5 * self._l2 * weights.square().sum((1, 2))
        loss = penalty - (log_probabilities * self._answers * self._shares).sum((1, 2))
        probabilities = log_probabilities.exp()
        gradient = self._back((probabilities - self._answers) * self._shares)
        return loss, gradient + self._l2 * weights, probabilities

    def product(self, probabilities: Tensor, vectors: Tensor) -> Tensor:
        """The Hessian times vectors of the weights' shape."""
        weighted = probabilities * self._through(vectors)
        weighted -= probabilities * weighted.sum(1, keepdim=True)
        return self._back(weighted * self._shares) + self._l2 * vectors

    def kronecker_factors(self, weights: Tensor) -> Callable[[Tensor], Tensor]:
        """The inverse of ``share x S (x) A + l2``, the factors taken at these weights."""
        documents = len(self._inputs)
        probabilities = self._through(weights[None])[0].softmax(0)
        curvature = probabilities.mean(1).diag() - probabilities @ probabilities.T / documents
        a, to_a = torch.linalg.eigh(self._inputs.T @ self._inputs / documents)
        s, to_s = torch.linalg.eigh(curvature)
        shares = self._shares.sum((1, 2))[:, None, None]
        scale = shares * (s[:, None] * a).clamp(min=0.0) + self._l2
        back = to_a.T.contiguous()

        def precondition(vectors: Tensor) -> Tensor:
            turned = torch.einsum("ij,njk->nik", to_s.T, _each(vectors, to_a))
            return torch.einsum("ij,njk->nik", to_s, _each(turned / scale, back))

        return precondition

    def _through(self, weights: Tensor) -> Tensor:
        """Logits ``[model, class, document]``."""
        return _each(weights, self._inputs.T)

    def _back(self, deltas: Tensor) -> Tensor:
        """Gradients ``[model, class, width + 1]``."""
        return _each(deltas, self._inputs)


def _solve(
    product: Callable[[Tensor], Tensor], wanted: Tensor, precondition: Callable[[Tensor], Tensor]
) -> Tensor:
    """Conjugate gradients on every model's system at once."""
    solved = torch.zeros_like(wanted)
    residual = wanted.clone()
    towards = precondition(residual)
    direction = towards.clone()
    energy = _inner(residual, towards)
    enough = _CG_TOLERANCE**2 * energy
    for _ in range(_CG_STEPS):
        left = energy > enough
        if not bool(left.any()):
            break
        curved = product(direction)
        length = torch.where(left, energy / _inner(direction, curved), 0.0)
        solved += length * direction
        residual -= length * curved
        towards = precondition(residual)
        before, energy = energy, _inner(residual, towards)
        direction = torch.where(left, towards + energy / before * direction, direction)
    return solved


def _descended(problem: _Problem, weights: Tensor, loss: Tensor, step: Tensor) -> Tensor:
    """Weights after the step, halved for each model until its loss does not grow."""
    length = torch.ones_like(loss)
    for _ in range(_HALVINGS):
        found = weights - length[:, None, None] * step
        worse = problem.at(found)[0] > loss + _ROUNDING * (1.0 + loss.abs())
        if not bool(worse.any()):
            break
        length = torch.where(worse, 0.5 * length, length)
    return found


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((1, 2), keepdim=True)


def _each(values: Tensor, matrix: Tensor) -> Tensor:
    """``values @ matrix`` of each model by itself, so that its bits are its own."""
    return torch.bmm(values, matrix.expand(len(values), -1, -1))
