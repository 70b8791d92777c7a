"""Perceptrons and logistic regressions, many of them trained together as one batched network.

What a model becomes depends on its members and its seed alone, down to the last bit, and not on
which others are trained beside it: a run can be repeated, and an interrupted evaluation goes on.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from wherefrom.errors import EvaluationError
from wherefrom.evaluation.logistic import fit_logistic
from wherefrom.evaluation.trainers import Run

__all__ = [
    "LogisticTrainer",
    "MLPRecipe",
    "PerceptronTrainer",
    "descend",
    "first_weights",
    "mlp_logits",
    "perceptron",
]

_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class MLPRecipe:
    """How a perceptron with ReLUs is trained: momentum, weight decay, a cosine down to zero.

    Attributes:
        widths: Inputs, hidden layers, classes.
        epochs: Passes over the documents.
        batch_size: Documents per step.
        learning_rate: At the start.
        momentum: Of the gradients.
        weight_decay: On weights and biases alike.
    """

    widths: tuple[int, ...] = (64, 128, 128, 10)
    epochs: int = 40
    batch_size: int = 64
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 3e-3


class PerceptronTrainer:
    """Trains perceptrons on some of the documents each.

    Members come in the order that all documents have with a seed, and models of one seed have the
    same first weights. Some chance is left between them: a document that is left out moves all
    later ones up, into other batches. Models with equally many members are trained together.

    Args:
        inputs: ``[document, width]``; the models have their precision.
        targets: Classes, int64 ``[document]``.
        recipe: Sizes and schedule.

    Attributes:
        recipe: The same in words.
        at_once: Runs to train together.

    Raises:
        EvaluationError: Inputs, targets and the recipe's widths do not go together.
    """

    at_once = _AT_ONCE

    def __init__(self, inputs: Tensor, targets: Tensor, recipe: MLPRecipe | None = None) -> None:
        schedule = MLPRecipe() if recipe is None else recipe
        _check_examples(inputs, targets, schedule.widths[0], schedule.widths[-1])
        self.recipe = repr(schedule)
        self._inputs = inputs
        self._targets = targets
        self._schedule = schedule

    def train(self, runs: Sequence[Run]) -> Iterator[nn.Module]:
        """A perceptron for each run, in their order, in evaluation mode.

        Args:
            runs: Members and seed of each.

        Raises:
            EvaluationError: A run has no members or other documents, or training diverged.
        """
        _check_runs(runs, len(self._inputs))
        by_size: dict[int, list[int]] = defaultdict(list)
        for place, run in enumerate(runs):
            by_size[int(run.members.sum())].append(place)
        models: dict[int, nn.Module] = {}
        for places in by_size.values():
            parameters = self._train_together([runs[place] for place in places])
            for row, place in enumerate(places):
                models[place] = perceptron([parameter[row] for parameter in parameters])
        yield from (models[place] for place in range(len(runs)))

    def _train_together(self, runs: Sequence[Run]) -> list[Tensor]:
        """Parameters of runs that have equally many members, ``[run, ...]``."""
        seeds = sorted({run.seed for run in runs})
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        drawn = [first_weights(1, self._schedule.widths, generator) for generator in generators]
        which = torch.tensor([seeds.index(run.seed) for run in runs])
        members = torch.from_numpy(np.stack([run.members for run in runs]))

        def order() -> Tensor:
            documents = len(self._inputs)
            orders = [torch.rand(documents, generator=one).argsort() for one in generators]
            every = torch.stack(orders)[which]
            return every[members.gather(1, every)].view(len(runs), -1)

        parameters = [torch.cat(same)[which] for same in zip(*drawn, strict=True)]
        return descend(parameters, self._inputs, self._targets, order, self._schedule)


class LogisticTrainer:
    """Fits multinomial logistic regressions, each exactly, so that no chance is left in them.

    The optimum is that of

        (1/N) sum over members of log p(target | input)  -  (l2 / 2) (|W|^2 + |b|^2),

    with N the number of all documents: to leave a document out takes its term away and changes
    nothing else, as in Koh and Liang (2017), equation 1 and what follows it.

    Args:
        inputs: ``[document, width]``; the models have their precision, the fit is in float64.
        targets: Classes, int64 ``[document]``.
        l2: Strength of the penalty, positive: without it classes that a plane can part have no
            optimum.

    Attributes:
        recipe: What is fitted, in words.
        at_once: Runs to fit together.

    Raises:
        EvaluationError: Inputs and targets do not go together, or ``l2`` is not positive.
    """

    at_once = _AT_ONCE

    def __init__(self, inputs: Tensor, targets: Tensor, l2: float = 1e-3) -> None:
        if not (l2 > 0 and math.isfinite(l2)):
            raise EvaluationError(f"l2={l2} is not allowed; give a positive number")
        classes = int(targets.max()) + 1 if targets.numel() else 0
        _check_examples(inputs, targets, inputs.shape[-1], classes)
        self.recipe = f"logistic regression, l2={l2!r} on weights and bias, at its optimum"
        self._inputs = inputs
        self._targets = targets
        self._classes = classes
        self._l2 = l2
        self._start: Tensor | None = None

    def train(self, runs: Sequence[Run]) -> Iterator[nn.Module]:
        """An ``nn.Linear`` for each run, in their order, in evaluation mode.

        Args:
            runs: Members of each; seeds decide nothing.

        Raises:
            EvaluationError: A run has no members or other documents, or the fit did not converge.
        """
        _check_runs(runs, len(self._inputs))
        everything = torch.ones(1, len(self._inputs), dtype=torch.bool)
        if self._start is None:
            self._start = self._fitted(everything)[0]
        fitted = self._fitted(torch.from_numpy(np.stack([run.members for run in runs])))
        for weights in fitted.to(self._inputs.dtype):
            yield _linear(weights[:, :-1], weights[:, -1]).eval()

    def _fitted(self, members: Tensor) -> Tensor:
        return fit_logistic(
            self._inputs, self._targets, members, self._classes, self._l2, start=self._start
        )


def descend(
    parameters: Sequence[Tensor],
    inputs: Tensor,
    targets: Tensor,
    order: Callable[[], Tensor],
    recipe: MLPRecipe,
) -> list[Tensor]:
    """Train perceptrons side by side, each on its own documents.

    Args:
        parameters: First weights ``[model, out, in]`` and biases ``[model, 1, out]``, in turn.
        inputs: ``[document, width]``.
        targets: Classes, int64 ``[document]``.
        order: Called once an epoch: documents in the order in which each model sees them, int64
            ``[model, place]``.
        recipe: Schedule.

    Returns:
        The trained ones.

    Raises:
        EvaluationError: Training diverged.
    """
    weights = [p.detach().to(inputs.dtype, copy=True).requires_grad_() for p in parameters]
    velocities = [torch.zeros_like(weight) for weight in weights]
    step = 0
    for _ in range(recipe.epochs):
        batches = torch.split(order(), recipe.batch_size, 1)
        for batch in batches:
            logits = mlp_logits(weights, inputs[batch])
            # A sum over models of means over documents: each model has its own gradient.
            loss = cross_entropy(logits.flatten(0, 1), targets[batch].flatten(), reduction="sum")
            gradients = torch.autograd.grad(loss / batch.shape[1], weights)
            steps = recipe.epochs * len(batches)
            rate = recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps))
            step += 1
            with torch.no_grad():
                for weight, velocity, gradient in zip(weights, velocities, gradients, strict=True):
                    velocity.mul_(recipe.momentum).add_(gradient)
                    velocity.add_(weight, alpha=recipe.weight_decay)
                    weight.sub_(velocity, alpha=rate)
    if not all(bool(torch.isfinite(weight).all()) for weight in weights):
        raise EvaluationError(
            f"training diverged with learning_rate={recipe.learning_rate}; give a lower one"
        )
    return [weight.detach() for weight in weights]


def first_weights(models: int, widths: Sequence[int], generator: torch.Generator) -> list[Tensor]:
    """Uniform within 1 / sqrt(d_in), as ``nn.Linear`` draws them; see :func:`descend`."""
    parameters = []
    for d_in, d_out in pairwise(widths):
        for shape in ((models, d_out, d_in), (models, 1, d_out)):
            drawn = (torch.rand(shape, generator=generator) * 2 - 1) / math.sqrt(d_in)
            parameters.append(drawn)
    return parameters


def mlp_logits(parameters: Sequence[Tensor], inputs: Tensor) -> Tensor:
    """``[model, document, class]`` of inputs ``[model, document, width]``."""
    values = inputs
    for weight, bias in zip(parameters[::2], parameters[1::2], strict=True):
        if values is not inputs:
            values = torch.relu(values)
        values = torch.baddbmm(bias, values, weight.transpose(1, 2))
    return values


def perceptron(parameters: Sequence[Tensor]) -> nn.Sequential:
    """One model as a module in evaluation mode, from weights and biases without ``model``."""
    modules: list[nn.Module] = []
    for weight, bias in zip(parameters[::2], parameters[1::2], strict=True):
        modules += [_linear(weight, bias.flatten()), nn.ReLU()]
    return nn.Sequential(*modules[:-1]).eval()


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    # On the meta device nothing is drawn, so the caller's random state stays as it was.
    linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta", dtype=weight.dtype)
    linear.load_state_dict({"weight": weight.clone(), "bias": bias.clone()}, assign=True)
    return linear


def _check_examples(inputs: Tensor, targets: Tensor, width: int, classes: int) -> None:
    if inputs.ndim != 2 or inputs.shape[1] != width or not inputs.dtype.is_floating_point:
        raise EvaluationError(
            f"inputs are {inputs.dtype} {list(inputs.shape)}; give floats [document, {width}]"
        )
    if not bool(torch.isfinite(inputs).all()):
        raise EvaluationError("inputs are not finite; give documents without NaN or infinity")
    if targets.shape != inputs.shape[:1] or targets.dtype != torch.int64:
        raise EvaluationError(
            f"targets are {targets.dtype} {list(targets.shape)}; give one class for each of "
            f"{len(inputs)} documents, as int64"
        )
    if not len(targets) or int(targets.min()) < 0 or int(targets.max()) >= classes:
        raise EvaluationError(
            f"targets are not all classes from 0 to {classes - 1}; check them, or raise the last "
            "width"
        )


def _check_runs(runs: Sequence[Run], documents: int) -> None:
    for run in runs:
        if run.members.shape != (documents,) or run.members.dtype != np.bool_:
            raise EvaluationError(
                f"members are {run.members.dtype} {list(run.members.shape)}; give a bool for each "
                f"of {documents} documents"
            )
        if not run.members.any():
            raise EvaluationError("a run has no members; train each model on at least one document")
