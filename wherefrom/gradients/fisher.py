"""Runs over batches: true gradients, and the pseudo-gradients that define the Fisher matrix.

The Gauss-Newton/Fisher block of a layer is the mean over documents of the second moment of
*pseudo-gradients*, whose labels come from the model's own output (Martens 2020, section 9):

* ``sampled``: one draw a position, from random numbers keyed by document and position;
* ``expected``: all classes, each weighted by the square root of its probability, so that squares
  carry its probability (exact for one prediction a document);
* ``empirical``: the true labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, Protocol

import torch
from torch import Tensor

from wherefrom.errors import CurvatureError, ModelError
from wherefrom.gradients.batches import Batch
from wherefrom.gradients.counter import key_of, uniforms
from wherefrom.gradients.extractor import Consumer, Forward, GradientExtractor
from wherefrom.gradients.layers import Layer
from wherefrom.gradients.objectives import Categorical

__all__ = ["EXPECTED_CLASSES", "Fisher", "PairSource", "PseudoGradients", "true_gradients"]

Fisher = Literal["sampled", "expected", "empirical"]

EXPECTED_CLASSES = 1000
"""Up to this many classes, classifiers sum over all of them instead of drawing."""


class PairSource(Protocol):
    """Something that can be run through more than once, giving every layer's pairs."""

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers, in the order of ``LayerPair.layer``."""
        ...

    def run(self, consume: Consumer) -> int:
        """One pass over all documents, the same pairs each time.

        Returns:
            Number of documents seen.
        """
        ...


def true_gradients(extractor: GradientExtractor, batch: Batch, consume: Consumer) -> Tensor:
    """Hand over each layer's pairs of the gradient of ``log p(target)``.

    Returns:
        ``[doc]`` log-likelihoods in nats.

    Raises:
        ModelError: A log-likelihood is not finite (the document is named).
    """
    forward = extractor.forward(batch)
    nats, gradient = extractor.objective.differentiate(
        forward.outputs, forward.batch.targets, forward.batch
    )
    _require_finite(nats, forward.batch)
    forward.backward(gradient, consume)
    return nats


def _require_finite(values: Tensor, batch: Batch) -> None:
    """Refuse a batch in which the loss of a document (one row of ``values``) is not finite."""
    finite = torch.isfinite(values.reshape(len(batch), -1)).all(1)
    if not bool(finite.all()):
        worst = batch.doc_ids[int((~finite).nonzero()[0])]
        raise ModelError(
            f"the model's loss on document {worst!r} is not finite; check the document and the "
            "model (its weights may hold NaN), or remove the document"
        )


class PseudoGradients:
    """The pseudo-gradients of a set of documents, as a source of layer pairs.

    Args:
        extractor: Model, objective and layers.
        batches: Called once a pass; gives the documents in batches.
        fisher: Where labels come from; see the module's text.
        seed: Seed of ``sampled``.
        progress: Called after each batch with the number of documents done in this pass.

    Raises:
        CurvatureError: The objective knows no distribution to draw from, or ``expected`` is asked
            of a model with several predictions a document.
    """

    def __init__(
        self,
        extractor: GradientExtractor,
        batches: Callable[[], Iterable[Batch]],
        fisher: Fisher,
        *,
        seed: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        if fisher != "empirical" and not isinstance(extractor.objective, Categorical):
            raise CurvatureError(
                f"fisher={fisher!r} needs an objective with a known distribution; "
                f"{type(extractor.objective).__name__} has none: use fisher='empirical'"
            )
        self._extractor = extractor
        self._batches = batches
        self._fisher = fisher
        self._seed = seed
        self._progress = progress

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers, in the order of ``LayerPair.layer``."""
        return self._extractor.layers

    def run(self, consume: Consumer) -> int:
        """One pass over all documents, with the same pseudo-labels each time.

        The same, and not fresh ones, because output gradients of other labels would reach into
        directions where the first pass saw nothing and the eigenbasis is arbitrary.
        """
        done = 0
        with self._extractor.session():
            for batch in self._batches():
                self._batch(batch, consume)
                done += len(batch)
                if self._progress is not None:
                    self._progress(done)
        return done

    def _batch(self, batch: Batch, consume: Consumer) -> None:
        if self._fisher == "empirical":
            true_gradients(self._extractor, batch, consume)
            return
        objective = self._extractor.objective
        if not isinstance(objective, Categorical):
            raise CurvatureError(f"fisher={self._fisher!r} needs a categorical objective")
        forward = self._extractor.forward(batch)
        probabilities = objective.probabilities(forward.outputs, forward.batch)
        _require_finite(probabilities[..., 0], forward.batch)
        if self._fisher == "sampled":
            drawn = objective.draw(probabilities, self._uniforms(forward.batch))
            forward.backward(
                objective.pseudo_gradient(probabilities, drawn, forward.batch), consume
            )
        else:
            self._expected(objective, forward, probabilities, consume)

    def _uniforms(self, batch: Batch) -> Tensor:
        positions = batch.targets[0].numel()
        numbers = uniforms(key_of(self._seed, 0), batch.keys, positions)
        return torch.from_numpy(numbers).to(batch.targets.device).reshape(batch.targets.shape)

    def _expected(
        self, objective: Categorical, forward: Forward, probabilities: Tensor, consume: Consumer
    ) -> None:
        if probabilities.ndim != 2:
            raise CurvatureError(
                "fisher='expected' sums over the classes of one prediction a document; this model "
                "makes several: use fisher='sampled'"
            )
        classes = probabilities.shape[1]
        if classes > EXPECTED_CLASSES:
            raise CurvatureError(
                f"fisher='expected' would need {classes} backward passes a batch (at most "
                f"{EXPECTED_CLASSES}); use fisher='sampled'"
            )
        weights = probabilities.sqrt()
        for label in range(classes):
            targets = torch.full_like(forward.batch.targets, label)
            gradient = objective.pseudo_gradient(probabilities.clone(), targets, forward.batch)
            forward.backward(gradient * weights[:, label, None], consume, last=label == classes - 1)
