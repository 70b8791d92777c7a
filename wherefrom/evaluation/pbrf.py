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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from wherefrom.curvature.eigen import FittedEigen
from wherefrom.curvature.fitted import FittedCurvature
from wherefrom.errors import EvaluationError
from wherefrom.evaluation.agreement import Changes, agreement
from wherefrom.evaluation.evidence import Evidence, plain
from wherefrom.evaluation.measurement import Measurement
from wherefrom.evaluation.proximal_objective import ProximalObjective, in_float64
from wherefrom.evaluation.quasi_newton import minimise
from wherefrom.evaluation.statistics import Scores, question_notes, require_scores
from wherefrom.evaluation.subject import Subject
from wherefrom.query.questions import Question

__all__ = ["Responses", "damping_of", "proximal_bregman", "proximal_responses"]


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
        unreached: Positions of documents whose minimum was not reached; they have no response.
    """

    documents: NDArray[np.int64]
    nats: Changes
    residuals: NDArray[np.float64]
    passes: NDArray[np.int64]
    step: float
    damping: tuple[float, ...]
    unreached: tuple[int, ...] = ()

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
    tolerance: float = 1e-2,
    most: int = 2000,
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
            out, which of a deep network may have no minimum: its likelihood can fall for ever.
            Small steps give the damped Gauss-Newton influence exactly.
        tolerance: Of the residual; or, as the minimum may lie on a kink of ReLUs where no gradient
            vanishes, of the root of the share that the last ten steps had in all that was gained.
        most: Passes after which to give up.
        progress: Called with the number of responses done and of all.

    Raises:
        EvaluationError: No minimum was reached, the curvature has no eigenvalues, the objective
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
        raise EvaluationError(f"tolerance={tolerance} is not allowed; give one in (0, 1), as 1e-2")
    lambdas = damping_of(fitted, damping)
    problem = ProximalObjective(subject, _eigen(fitted), lambdas)
    measurement = Measurement(subject.extractor.objective, [_doubled(q) for q in subject.questions])
    before = measurement(problem.model)
    reached, nats, residuals, passes = [], [], [], []
    furthest = 0.0
    for done, place in enumerate(places.tolist(), start=1):
        found = minimise(
            problem.adding(place, step / len(subject)),
            problem.trained,
            problem.precondition,
            tolerance=tolerance,
            most=most,
        )
        if progress is not None:
            progress(done, len(places))
        if not found.reached:
            furthest = max(furthest, found.residual)
            continue
        reached.append(place)
        problem.move(found.point)
        nats.append((measurement(problem.model) - before) / step)
        residuals.append(found.residual)
        passes.append(found.passes)
    if not reached:
        raise EvaluationError(
            f"no response of {len(places)} was reached in {most} passes (residual up to "
            f"{furthest:.1e}, tolerance {tolerance:.1e}); add less (step), or raise damping, "
            "tolerance or the number of passes"
        )
    return Responses(
        np.array(reached),
        np.stack(nats),
        np.array(residuals),
        np.array(passes),
        step,
        lambdas,
        tuple(place for place in places.tolist() if place not in reached),
    )


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
    if not scores:
        raise EvaluationError("no method to judge; give the scores of at least one")
    documents = next(iter(scores.values())).shape[-1]
    require_scores(scores, responses.nats.shape[1], documents)
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
        (*question_notes(responses.nats.shape[1]), *_notes(responses)),
        {
            "documents": plain(responses.documents),
            "unreached": plain(responses.unreached),
            "responses": plain(responses.nats),
            "predicted": plain(predicted),
        },
    )


def _notes(responses: Responses) -> tuple[str, ...]:
    missing = len(responses.unreached)
    if not missing:
        return ()
    return (
        f"{missing} of {missing + len(responses.documents)} responses were not reached and are "
        "left out, often those of the largest effect: add less (step), or raise damping, tolerance "
        "or the number of passes.",
    )


def _eigen(fitted: FittedCurvature) -> FittedEigen:
    if isinstance(fitted, FittedEigen) and fitted.kind != "identity":
        return fitted
    raise EvaluationError(
        f"responses need eigenvalues to precondition with, and {fitted.kind!r} has none; fit "
        "'ekfac' (or 'kfac', 'diagonal', 'exact')"
    )


def _doubled(question: Question) -> Question:
    terms = tuple((weight, in_float64(batch)) for weight, batch in question.terms)
    return replace(question, terms=terms)
