"""Runs over batches: true gradients, and the pseudo-gradients that define the Fisher matrix.

The Gauss-Newton/Fisher block of a layer is the mean over documents of the second moment of
*pseudo-gradients*, whose labels come from the model's own output (Martens 2020, section 9):

* ``sampled``: one draw a position, from random numbers keyed by document and position;
* ``expected``: the sum over everything that could be drawn: all classes, each weighted by the
  square root of its probability, so that squares carry its probability (one prediction a
  document); for Gaussian targets each entry of the outputs, which gives the Gauss-Newton matrix;
* ``empirical``: the true labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, Protocol

from torch import Tensor

from wherefrom.errors import CurvatureError, ModelError
from wherefrom.gradients.batches import Batch
from wherefrom.gradients.counter import key_of
from wherefrom.gradients.extractor import Consumer, Forward, GradientExtractor
from wherefrom.gradients.layers import Layer
from wherefrom.gradients.objectives import Probabilistic, require_finite

__all__ = [
    "EXPECTED_CLASSES",
    "Fisher",
    "PairSource",
    "PseudoGradients",
    "default_fisher",
    "true_gradients",
]

Fisher = Literal["sampled", "expected", "empirical"]

EXPECTED_CLASSES = 1000
"""Up to this many classes, or entries of a regression, all are summed over instead of drawn."""


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
        ModelError: A log-likelihood is not finite (the document is named), or there is not one a
            document.
    """
    forward = extractor.forward(batch)
    nats, gradient = extractor.objective.differentiate(
        forward.outputs, forward.batch.targets, forward.batch
    )
    if nats.shape != (len(batch),):
        raise ModelError(
            f"{type(extractor.objective).__name__}.log_likelihood returned shape "
            f"{tuple(nats.shape)} for {len(batch)} documents; it must be one number a document"
        )
    require_finite(nats, forward.batch)
    forward.backward(gradient, consume)
    return nats


def default_fisher(extractor: GradientExtractor, batch: Batch) -> Fisher:
    """The kind of Fisher that suits a model.

    ``expected`` where it takes at most ``EXPECTED_CLASSES`` backward passes, ``sampled`` where it
    takes more or is not defined, ``empirical`` for an objective that knows no distribution.

    Args:
        extractor: Model, objective and layers.
        batch: A batch to run the model on, best of one document.
    """
    objective = extractor.objective
    if not isinstance(objective, Probabilistic):
        return "empirical"
    with extractor.session():
        terms = objective.expected_terms(extractor.forward(batch).outputs)
    return "expected" if terms is not None and terms <= EXPECTED_CLASSES else "sampled"


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
            of a model for which it is not defined or takes too many passes.
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
        if fisher != "empirical" and not isinstance(extractor.objective, Probabilistic):
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
        if not isinstance(objective, Probabilistic):
            raise CurvatureError(f"fisher={self._fisher!r} needs an objective with a distribution")
        forward = self._extractor.forward(batch)
        if self._fisher == "sampled":
            gradient = objective.sampled_gradient(
                forward.outputs, forward.batch, key_of(self._seed, 0)
            )
            forward.backward(gradient, consume)
        else:
            _expected(objective, forward, consume)


def _expected(objective: Probabilistic, forward: Forward, consume: Consumer) -> None:
    terms = objective.expected_terms(forward.outputs)
    if terms is not None and terms > EXPECTED_CLASSES:
        raise CurvatureError(
            f"fisher='expected' would need {terms} backward passes a batch (at most "
            f"{EXPECTED_CLASSES}); use fisher='sampled'"
        )
    gradients = objective.expected_gradients(forward.outputs, forward.batch)
    for number, gradient in enumerate(gradients, start=1):
        forward.backward(gradient, consume, last=number == terms)
