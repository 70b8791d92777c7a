"""Ground truth for influence: models trained anew on random halves of the documents.

The linear datamodelling score (Park et al. 2023, section 2.2) asks whether scores add up: over many
random subsets of the documents, the sum of a query's scores within a subset is set against the
log-likelihood that a model trained on that subset alone gives to the query, by rank correlation.

Retrainings of a small network run together, as one network with a further dimension. Everything is
a function of the seed, on one machine with one version of torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaForCausalLM

from benchmarks.rankings import spearman

__all__ = [
    "MLPRecipe",
    "Retrainings",
    "TuningRecipe",
    "datamodelling_scores",
    "fine_tune",
    "log_likelihoods",
    "mlp_logits",
    "random_halves",
    "train_mlps",
]

Scores = NDArray[np.float64]

_IGNORED = -100


@dataclass(frozen=True, slots=True)
class Retrainings:
    """What models trained on subsets say.

    Attributes:
        members: Whether a document was trained on, bool ``[subset, document]``.
        nats: Log-likelihood of each query, mean over the models of a subset, float64
            ``[subset, query]``.
        spread: Standard deviation over those models, mean over subsets, float64 ``[query]``; zero
            where there is one model a subset.
    """

    members: NDArray[np.bool_]
    nats: Scores
    spread: Scores

    @classmethod
    def of(cls, members: NDArray[np.bool_], nats: Scores) -> Retrainings:
        """From the log-likelihoods of every model, ``[subset, model, query]``."""
        return cls(members, nats.mean(1), nats.std(1).mean(0))

    @classmethod
    def kept(cls, path: Path, recipe: str, make: Callable[[], Retrainings]) -> Retrainings:
        """What ``path`` holds, or else what ``make`` gives, which is then kept there.

        Args:
            path: Of a ``.npz`` file.
            recipe: All that decides the result; what was kept under another is made anew.
            make: Trains the models.
        """
        if path.is_file():
            with np.load(path) as stored:
                if str(stored["recipe"]) == recipe:
                    return cls(stored["members"], stored["nats"], stored["spread"])
        made = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, members=made.members, nats=made.nats, spread=made.spread, recipe=recipe)
        partial.rename(path)
        return made


def random_halves(documents: int, count: int, seed: int) -> NDArray[np.bool_]:
    """``count`` random subsets of half of the documents, bool ``[subset, document]``."""
    generator = np.random.default_rng(seed)
    members = np.zeros((count, documents), np.bool_)
    for row in members:
        row[generator.permutation(documents)[: documents // 2]] = True
    return members


def datamodelling_scores(scores: Scores, retrainings: Retrainings) -> Scores:
    """Rank correlation, over subsets, of summed scores with log-likelihoods.

    Args:
        scores: ``[query, document]``, positive for proponents.
        retrainings: The truth.

    Returns:
        Of each query, float64 ``[query]``; their mean is the linear datamodelling score.
    """
    sums = scores @ retrainings.members.T.astype(np.float64)
    pairs = zip(sums, retrainings.nats.T, strict=True)
    return np.array([spearman(summed, nats) for summed, nats in pairs])


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


def train_mlps(
    inputs: Tensor, targets: Tensor, members: NDArray[np.int64], recipe: MLPRecipe, seed: int
) -> list[Tensor]:
    """Train one perceptron on each row of ``members``, all together.

    Args:
        inputs: float32 ``[document, width]``.
        targets: Classes, int64 ``[document]``.
        members: Documents to train each model on, ``[model, place]``.
        recipe: Sizes and schedule.
        seed: Decides first weights and orders, other ones for each model.

    Returns:
        Weights ``[model, out, in]`` and biases ``[model, 1, out]`` of each layer in turn.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.from_numpy(members)
    models, size = chosen.shape
    parameters = _first_weights(models, recipe.widths, generator)
    velocities = [torch.zeros_like(parameter) for parameter in parameters]
    steps = recipe.epochs * math.ceil(size / recipe.batch_size)
    step = 0
    for _ in range(recipe.epochs):
        order = chosen.gather(1, torch.rand(models, size, generator=generator).argsort(1))
        for batch in order.split(recipe.batch_size, 1):
            logits = mlp_logits(parameters, inputs[batch])
            # A sum over models of means over documents: each model has its own gradient.
            loss = cross_entropy(logits.flatten(0, 1), targets[batch].flatten(), reduction="sum")
            gradients = torch.autograd.grad(loss / batch.shape[1], parameters)
            rate = recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps))
            step += 1
            with torch.no_grad():
                for parameter, velocity, gradient in zip(
                    parameters, velocities, gradients, strict=True
                ):
                    velocity.mul_(recipe.momentum).add_(gradient)
                    velocity.add_(parameter, alpha=recipe.weight_decay)
                    parameter.sub_(velocity, alpha=rate)
    return [parameter.detach() for parameter in parameters]


def mlp_logits(parameters: Sequence[Tensor], inputs: Tensor) -> Tensor:
    """``[model, document, class]`` of inputs ``[model, document, width]``."""
    values = inputs
    for weight, bias in zip(parameters[::2], parameters[1::2], strict=True):
        if values is not inputs:
            values = torch.relu(values)
        values = torch.baddbmm(bias, values, weight.transpose(1, 2))
    return values


def _first_weights(
    models: int, widths: tuple[int, ...], generator: torch.Generator
) -> list[Tensor]:
    """Uniform within 1 / sqrt(d_in), as ``nn.Linear`` draws them."""
    parameters = []
    for d_in, d_out in pairwise(widths):
        for shape in ((models, d_out, d_in), (models, 1, d_out)):
            drawn = (torch.rand(shape, generator=generator) * 2 - 1) / math.sqrt(d_in)
            parameters.append(drawn.requires_grad_())
    return parameters


@dataclass(frozen=True, slots=True)
class TuningRecipe:
    """How a language model is fine-tuned, all its weights, by AdamW and a cosine down to zero.

    Attributes:
        epochs: Passes over the documents.
        batch_size: Documents per step.
        learning_rate: At the start.
    """

    epochs: int = 3
    batch_size: int = 16
    learning_rate: float = 1e-3


def fine_tune(
    model: LlamaForCausalLM,
    sequences: Sequence[Tensor],
    members: NDArray[np.bool_],
    recipe: TuningRecipe,
    seed: int,
) -> None:
    """Train a model further, in place, on some of the sequences, from their second token on.

    Members come in the order that all sequences have with that seed, so that two subsets differ by
    their members and as little as possible by chance.

    Args:
        model: Left in evaluation mode.
        sequences: int64 ``[token]`` each.
        members: Which of them to train on.
        recipe: The schedule.
        seed: Decides the order.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, weight_decay=0.0, fused=True
    )
    steps = recipe.epochs * math.ceil(int(members.sum()) / recipe.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    chosen = torch.from_numpy(members)
    model.train()
    for _ in range(recipe.epochs):
        order = torch.randperm(len(sequences), generator=generator)
        for batch in order[chosen[order]].split(recipe.batch_size):
            losses, scored = _token_losses(model, [sequences[i] for i in batch.tolist()])
            optimizer.zero_grad(set_to_none=True)
            (losses.sum() / scored).backward()
            optimizer.step()
            schedule.step()
    model.eval()  # type: ignore[no-untyped-call]


@torch.no_grad()
def log_likelihoods(model: LlamaForCausalLM, sequences: Sequence[Tensor]) -> Scores:
    """Of each sequence, summed over its tokens from the second on, nats, float64 ``[sequence]``."""
    losses, _ = _token_losses(model, sequences)
    nats: Scores = -losses.double().sum(1).numpy()
    return nats


def _token_losses(model: LlamaForCausalLM, sequences: Sequence[Tensor]) -> tuple[Tensor, int]:
    """Losses ``[sequence, token]``, zero at padding, and how many are not padding.

    Padding stands on the right, where a causal model's scored positions cannot see it.
    """
    inputs = pad_sequence([tokens[:-1] for tokens in sequences], batch_first=True)
    labels = pad_sequence(
        [tokens[1:] for tokens in sequences], batch_first=True, padding_value=_IGNORED
    )
    logits = model(input_ids=inputs).logits.transpose(1, 2)
    losses = cross_entropy(logits, labels, ignore_index=_IGNORED, reduction="none")
    return losses, int((labels != _IGNORED).sum())
