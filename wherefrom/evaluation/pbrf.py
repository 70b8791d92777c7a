"""The proximal Bregman response: what influence functions of a network do foretell.

Leaving a document out and training anew moves a network for many reasons; Bae et al. (2022, "If
Influence Functions are the Answer, Then What is the Question?", section 4) name the change that
damped Gauss-Newton influence is the first order of. From the trained weights ``theta_s``, minimise

    (1/N) sum_i D(h(theta, x_i), h(theta_s, x_i)) + |theta - theta_s|^2_lambda / 2
        - epsilon log p(z, theta),

with ``h`` the outputs, ``D`` the Bregman divergence of the loss in them (for classes the
Kullback-Leibler divergence, for Gaussian targets the squared difference over twice the variance)
and ``lambda`` the damping. The first two terms are zero at ``theta_s``, and so are their gradients;
their Hessian there is ``G + lambda``, over all layers at once. The response is the change of a
question's value at the minimum, divided by ``epsilon N`` copies of z.

Only the selected layers move. Weights, documents and questions are taken to float64.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wherefrom.curvature.eigen import FittedEigen
from wherefrom.curvature.fitted import FittedCurvature
from wherefrom.curvature.memory import require_memory
from wherefrom.errors import EvaluationError
from wherefrom.evaluation.agreement import Changes, agreement
from wherefrom.evaluation.evidence import Evidence
from wherefrom.evaluation.measurement import Measurement
from wherefrom.evaluation.quasi_newton import minimise
from wherefrom.evaluation.statistics import Scores
from wherefrom.evaluation.subject import Subject
from wherefrom.gradients.batches import Batch
from wherefrom.gradients.layers import Layer, tapped_modules
from wherefrom.gradients.objectives import Probabilistic
from wherefrom.query.questions import Question

__all__ = ["Responses", "damping_of", "proximal_bregman", "proximal_responses"]

_AT_ONCE = 512
_VECTORS = 80
"""Vectors over all layers that L-BFGS holds: two for each of 30 steps, and those at work."""


@dataclass(frozen=True, slots=True, eq=False)
class Responses:
    """Proximal Bregman responses of some documents.

    Attributes:
        documents: Their positions, int64 ``[response]``.
        nats: Change of each question's value per added copy, float64 ``[response, question]``.
        residuals: Norm of the gradient at the minimum as a share of that at the start, ``sqrt(g^T
            P g)`` with P the curvature's damped inverse, float64 ``[response]``.
        passes: Over all documents, that it took, int64 ``[response]``.
        step: Copies that were added.
        damping: ``lambda`` of each layer, in the curvature's own unit.
    """

    documents: NDArray[np.int64]
    nats: Changes
    residuals: NDArray[np.float64]
    passes: NDArray[np.int64]
    step: float
    damping: tuple[float, ...]

    def as_scores(self, documents: int) -> Scores:
        """``[question, document]`` with zero for documents that have no response.

        A method among others for :func:`wherefrom.evaluation.leave_out.leave_out` of the same
        documents.
        """
        scores = np.zeros((self.nats.shape[1], documents))
        scores[:, self.documents] = self.nats.T
        return scores


def proximal_responses(
    subject: Subject,
    documents: Sequence[int] | NDArray[np.int64],
    fitted: FittedCurvature,
    *,
    damping: float | None = None,
    step: float = 1.0,
    tolerance: float = 1e-3,
    most: int = 400,
    progress: Callable[[int, int], None] | None = None,
) -> Responses:
    """Minimise the proximal Bregman objective of each document by preconditioned L-BFGS.

    Each takes some tens of passes, forward and backward in float64, over *all* documents.

    Args:
        subject: Model, documents and questions.
        documents: Positions of those to add.
        fitted: Preconditions, and says what ``lambda`` is.
        damping: One ``lambda`` for all layers in units of the mean eigenvalue over all of them; by
            default each layer's own, as the curvature has it.
        step: Copies to add: ``epsilon = step / N``. Negative takes away; -1 leaves the document
            out. Small steps give the damped Gauss-Newton influence exactly.
        tolerance: See ``Responses.residuals``.
        most: Passes after which to give up.
        progress: Called with the number of responses done and of all.

    Raises:
        EvaluationError: A minimum was not reached, the curvature has no eigenvalues, the objective
            no convex loss, or an argument is out of range.
        CurvatureError: Vectors or outputs do not fit in memory.
    """
    places = np.asarray(documents, np.int64)
    if not len(places) or places.min() < 0 or places.max() >= len(subject):
        raise EvaluationError(
            f"positions of documents must be from 0 to {len(subject) - 1}, and at least one"
        )
    if step == 0.0 or not np.isfinite(step):
        raise EvaluationError(f"step={step} adds nothing; give a number of copies, as 1")
    if not 0.0 < tolerance < 1.0:
        raise EvaluationError(f"tolerance={tolerance} is not allowed; give one in (0, 1), as 1e-3")
    lambdas = damping_of(fitted, damping)
    problem = _Problem(subject, _eigen(fitted), lambdas)
    measurement = Measurement(subject.extractor.objective, [_doubled(q) for q in subject.questions])
    before = measurement(problem.model)
    nats, residuals, passes = [], [], []
    for done, place in enumerate(places.tolist(), start=1):
        found = minimise(
            problem.adding(place, step / len(subject)),
            problem.trained,
            problem.precondition,
            tolerance=tolerance,
            most=most,
        )
        if not found.reached:
            raise EvaluationError(
                f"the response of document {subject.doc_ids[place]!r} was not reached in "
                f"{found.passes} passes (residual {found.residual:.1e}, tolerance "
                f"{tolerance:.1e}); raise damping=, tolerance= or most=, or add less (step=)"
            )
        problem.weights.write(found.point)
        nats.append((measurement(problem.model) - before) / step)
        residuals.append(found.residual)
        passes.append(found.passes)
        if progress is not None:
            progress(done, len(places))
    return Responses(places, np.stack(nats), np.array(residuals), np.array(passes), step, lambdas)


def damping_of(fitted: FittedCurvature, damping: float | None = None) -> tuple[float, ...]:
    """``lambda`` of each layer.

    Args:
        fitted: One with eigenvalues.
        damping: One for all, in units of the mean eigenvalue over all layers; by default each
            layer's own.

    Raises:
        EvaluationError: The curvature has no eigenvalues, or a ``lambda`` is not positive.
    """
    eigen = _eigen(fitted)
    if damping is None:
        found = [eigen.damping * float(values.mean()) for values in eigen.eigenvalues]
    else:
        weights = sum(values.numel() for values in eigen.eigenvalues)
        mean = sum(float(values.sum()) for values in eigen.eigenvalues) / weights
        found = [damping * mean] * len(eigen.eigenvalues)
    if not min(found) > 0.0:
        raise EvaluationError(
            "the proximal term needs a damping > 0, or nothing holds directions that no document "
            "sees; give damping=0.1"
        )
    return tuple(found)


def proximal_bregman(
    scores: Mapping[str, Scores],
    responses: Responses,
    *,
    subject: str,
    reference: str | None = None,
    draws: int = 200,
) -> Evidence:
    """Correlations of scores with responses: Pearson and Spearman, means over questions.

    Args:
        scores: ``[query, document]`` of each method, of all documents.
        responses: Of some of them.
        subject: What was evaluated, in words.
        reference: A method that the others are compared with, ``Pearson above ...``.
        draws: Of the bootstrap, which resamples documents and questions.

    Raises:
        EvaluationError: There are too few responses, or shapes do not fit.
    """
    predicted = {method: found[:, responses.documents].T for method, found in scores.items()}
    figures = agreement(predicted, responses.nats, reference=reference, draws=draws)
    return Evidence(
        "pbrf",
        subject,
        tuple(figures),
        {
            "responses": len(responses.documents),
            "queries": responses.nats.shape[1],
            "step": responses.step,
            "damping": list(responses.damping),
            "largest_residual": float(responses.residuals.max()),
            "mean_passes": float(responses.passes.mean()),
            "bootstrap_draws": draws,
        },
    )


def _eigen(fitted: FittedCurvature) -> FittedEigen:
    if isinstance(fitted, FittedEigen) and fitted.kind != "identity":
        return fitted
    raise EvaluationError(
        f"responses need eigenvalues to precondition with, and {fitted.kind!r} has none; fit "
        "'ekfac' (or 'kfac', 'diagonal', 'exact')"
    )


class _Weights:
    """The selected layers' weights in a copy of a model, as one float64 vector.

    By rows of each layer's ``[d_out, d_in]``, the bias last, as gradients are.
    """

    def __init__(self, model: nn.Module, layers: Sequence[Layer]) -> None:
        for position, module, _ in tapped_modules(model, layers):
            layer = layers[position]
            if all(module is not model.get_submodule(name) for name in layer.modules):
                raise EvaluationError(
                    f"layer {layer.name!r} is merged into its base, whose weights would move in "
                    "its place; unmerge the adapter (model.unmerge_adapter())"
                )
        self._layers = layers
        self.parameters = [
            model.get_parameter(f"{layer.name}.{part}")
            for layer in layers
            for part in (("weight", "bias") if layer.bias else ("weight",))
        ]
        self._ends = [0]
        for layer in layers:
            self._ends.append(self._ends[-1] + layer.size)

    def split(self, flat: Tensor) -> Iterator[Tensor]:
        """Views ``[d_out, d_in]`` of a vector, one a layer."""
        for layer, (start, end) in zip(self._layers, pairwise(self._ends), strict=True):
            yield flat[start:end].view(layer.shape)

    def vector(self, parts: Sequence[Tensor]) -> Tensor:
        """Tensors shaped as ``parameters``, laid end to end."""
        flat = parts[0].new_zeros(self._ends[-1])
        for part, place in zip(parts, self._places(flat), strict=True):
            place.copy_(part.reshape(place.shape))
        return flat

    @torch.no_grad()
    def write(self, flat: Tensor) -> None:
        """Set the model's weights."""
        for parameter, place in zip(self.parameters, self._places(flat), strict=True):
            parameter.copy_(place.reshape(parameter.shape))

    def _places(self, flat: Tensor) -> Iterator[Tensor]:
        """Views of a vector, one a parameter: of its shape, that of kernels laid flat."""
        for layer, matrix in zip(self._layers, self.split(flat), strict=True):
            weight = matrix[:, : layer.d_in]
            yield weight.T if layer.kind == "Conv1D" else weight
            if layer.bias:
                yield matrix[:, -1]


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """Some documents, and what holds their outputs where they were.

    Attributes:
        positions: Of the documents, int64 ``[doc]``.
        batch: In float64.
        outputs: Of the trained model.
        nats: Log-likelihoods under it, ``[doc]``.
        held: Their gradient with respect to ``outputs``.
    """

    positions: NDArray[np.int64]
    batch: Batch
    outputs: Tensor
    nats: Tensor
    held: Tensor


class _Problem:
    """The proximal Bregman objective of a subject, by its gradients."""

    def __init__(self, subject: Subject, fitted: FittedEigen, lambdas: Sequence[float]) -> None:
        extractor = subject.extractor
        if not isinstance(extractor.objective, Probabilistic):
            raise EvaluationError(
                f"{type(extractor.objective).__name__} has no known distribution, so its loss may "
                "not be convex in the outputs; derive it from Categorical or Gaussian"
            )
        size = sum(layer.size for layer in extractor.layers)
        require_memory(
            _VECTORS * 8 * size,
            "the vectors of a proximal Bregman response",
            "choose fewer layers (layers=)",
            extractor.device,
        )
        self._objective = extractor.objective
        self._count = len(subject)
        self._fitted = fitted
        self._lambdas = lambdas
        self.model = copy.deepcopy(extractor.model).double().eval()
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        self.weights = _Weights(self.model, extractor.layers)
        for parameter in self.weights.parameters:
            parameter.requires_grad_(True)
        self.trained = self.weights.vector([p.detach() for p in self.weights.parameters])
        self._pull = torch.cat(
            [
                self.trained.new_full((layer.size,), value)
                for layer, value in zip(extractor.layers, lambdas, strict=True)
            ]
        )
        self._parts: list[_Part] = []
        for positions, batch in subject.document_batches(_AT_ONCE):
            placed = _in_float64(batch.to(extractor.device))
            outputs, nats, held = self._differentiated(placed)
            self._parts.append(_Part(positions, placed, outputs.detach(), nats, held))
            require_memory(
                2 * held.nbytes * self._count // len(positions),
                "the outputs on all documents",
                "evaluate fewer or shorter documents",
                extractor.device,
            )

    def adding(self, document: int, epsilon: float) -> Callable[[Tensor], tuple[float, Tensor]]:
        """Value and gradient of the objective that adds ``epsilon`` of a document.

        The value is zero at the trained weights, as a difference: ``-epsilon log p`` is left out.
        """

        def objective(weights: Tensor) -> tuple[float, Tensor]:
            self.weights.write(weights)
            totals = [torch.zeros_like(parameter) for parameter in self.weights.parameters]
            moved = weights - self.trained
            value = 0.5 * float(self._pull @ moved.square())
            for part in self._parts:
                outputs, nats, now = self._differentiated(part.batch)
                gained = nats - part.nats
                here = np.flatnonzero(part.positions == document)
                away = _rowwise(part.held, outputs.detach() - part.outputs)
                value += float((away - gained).sum()) / self._count
                value -= epsilon * float(gained[here].sum())
                carried = (part.held - now) / self._count
                carried[here] -= epsilon * now[here]
                found = torch.autograd.grad(
                    outputs, self.weights.parameters, carried, allow_unused=True
                )
                for total, added in zip(totals, found, strict=True):
                    if added is not None:
                        total += added
            return value, self.weights.vector(totals).addcmul_(self._pull, moved)

        return objective

    def precondition(self, flat: Tensor) -> Tensor:
        """The curvature's ``(G + lambda)^-1``, layer by layer."""
        solved = []
        for layer, matrix in enumerate(self.weights.split(flat)):
            damped = self._fitted.eigenvalues[layer] + self._lambdas[layer]
            point = torch.zeros_like(matrix, requires_grad=True)
            # The basis is orthogonal: its transpose, which autograd knows, is its inverse.
            with torch.enable_grad():
                rotated = self._fitted.raw(layer, point)
            (coordinates,) = torch.autograd.grad(rotated, point, matrix)
            solved.append(self._fitted.raw(layer, coordinates / damped).flatten())
        return torch.cat(solved)

    def _differentiated(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs with their graph, log-likelihoods, and their gradient with respect to outputs."""
        with torch.enable_grad():
            outputs = self._objective.outputs(self.model, batch)
        nats, gradient = self._objective.differentiate(outputs, batch.targets, batch)
        return outputs, nats, gradient


def _rowwise(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of rows, ``[doc]``."""
    return (a * b).flatten(1).sum(1)


def _in_float64(batch: Batch) -> Batch:
    inputs, targets = (
        part.double() if part.dtype.is_floating_point else part
        for part in (batch.inputs, batch.targets)
    )
    return replace(batch, inputs=inputs, targets=targets)


def _doubled(question: Question) -> Question:
    terms = tuple((weight, _in_float64(batch)) for weight, batch in question.terms)
    return replace(question, terms=terms)
