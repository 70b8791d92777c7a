"""The interface: how a model is run on a batch, and how likely targets are under its outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from wherefrom.errors import CurvatureError, ModelError
from wherefrom.gradients.batches import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from typing_extensions import Self

__all__ = ["JSON", "Objective", "Probabilistic", "require_finite"]

JSON = None | bool | int | float | str | list["JSON"] | dict[str, "JSON"]
"""What a manifest can hold."""


class Objective(ABC):
    """How likely targets are under a model. Subclasses give two methods.

    Attributes:
        kind: Name under which an index records the objective; by default the name of the class,
            so that a subclass is never taken for what it changes.
        copies: Runs of the model for each document. The model sees ``doc x copies`` rows, all of
            a document's together, and ``outputs`` still has the document as its first dimension.
    """

    kind: ClassVar[str]
    copies: int = 1

    def __init_subclass__(cls, **arguments: object) -> None:
        super().__init_subclass__(**arguments)
        if "kind" not in cls.__dict__:
            cls.kind = cls.__name__

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

    def options(self) -> Mapping[str, JSON]:
        """What an index has to record to make the objective again, as plain JSON."""
        return {}

    def bind(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase | None,
        *,
        context: int | None = None,
    ) -> Self:
        """The objective made ready for one model; text objectives take from it what they lack.

        Args:
            model: The model, loaded.
            tokenizer: The model's own, if there is one.
            context: Longest text in tokens, where the objective names none.

        Raises:
            ModelError: Objective, model and tokenizer do not go together.
        """
        return self


class Probabilistic(Objective):
    """An objective that knows the model's own distribution over targets, hence its Fisher."""

    @abstractmethod
    def sampled_gradient(self, outputs: Tensor, batch: Batch, key: np.ndarray) -> Tensor:
        """Gradient of ``log p(y)`` with respect to ``outputs``, y drawn from the model.

        Args:
            outputs: From :meth:`Objective.outputs`.
            batch: Its ``keys`` seed each document's draw.
            key: Of the stream of random numbers, from :func:`wherefrom.gradients.counter.key_of`.

        Raises:
            ModelError: Outputs are not finite (the document is named).
        """

    def expected_terms(self, outputs: Tensor) -> int | None:
        """How many gradients :meth:`expected_gradients` gives; ``None``: it is not defined."""
        return None

    def expected_gradients(self, outputs: Tensor, batch: Batch) -> Iterator[Tensor]:
        """Output gradients whose outer products sum, in each document, to the Fisher of outputs.

        Raises:
            CurvatureError: Not defined for these outputs; the message says why.
            ModelError: Outputs are not finite (the document is named).
        """
        raise CurvatureError(
            f"fisher='expected' is not defined for {type(self).__name__}; use fisher='sampled'"
        )

    def fisher_product(self, outputs: Tensor, vectors: Tensor, batch: Batch) -> Tensor:
        """Each document's Fisher matrix of outputs, times a vector.

        Args:
            outputs: From :meth:`Objective.outputs`.
            vectors: Of the shape of ``outputs``.
            batch: Its documents; positions that are not scored give zero.

        Raises:
            CurvatureError: Not defined for this objective.
            ModelError: Outputs are not finite (the document is named).
        """
        raise CurvatureError(
            f"{type(self).__name__} has no fisher_product, which Gauss-Newton products need; "
            "derive it from Categorical or Gaussian, or ask with refine=0"
        )


def require_finite(values: Tensor, batch: Batch) -> None:
    """Refuse a batch in which something of a document (one row of ``values``) is not finite.

    Raises:
        ModelError: The document is named.
    """
    finite = torch.isfinite(values.reshape(len(batch), -1)).all(1)
    if not bool(finite.all()):
        worst = batch.doc_ids[int((~finite).nonzero()[0])]
        raise ModelError(
            f"the model's loss on document {worst!r} is not finite; check the document and the "
            "model (its weights may hold NaN), or remove the document"
        )
