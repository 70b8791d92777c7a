"""Documents that do not belong: suspects by self-influence, beside simpler signs of trouble.

A document whose label is wrong has to be learnt by itself, since no other document helps: its
gradient is large where the model is stiff, and its influence on itself is high (Koh and Liang 2017,
section 5.4). A high loss and a large gradient say much the same, for less; so they always stand
beside it, and with known flaws the difference is put in figures.

Where documents have no class (language models, regression, diffusion) the same ranking shows
*unusual* documents: noise, broken encodings, another language.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wherefrom.curvature.fitted import FittedCurvature
from wherefrom.errors import EvaluationError
from wherefrom.evaluation.evidence import Evidence, Figure, plain
from wherefrom.evaluation.scores import influence
from wherefrom.evaluation.statistics import (
    area_under_roc,
    bootstrap,
    interval,
    spearman,
)
from wherefrom.evaluation.subject import Subject
from wherefrom.evaluation.symptoms import LOSS, SELF_INFLUENCE, Symptoms, symptoms
from wherefrom.gradients.objectives.base import JSON
from wherefrom.maintenance.index import Index
from wherefrom.query.questions import Queries

__all__ = ["mislabeled", "mislabeled_of_index"]

_INSPECTED = (0.1, 0.2)
_LONGEST = 300
_LEARNT = 0.995


def mislabeled(
    subject: Subject,
    fitted: FittedCurvature,
    *,
    truth: ArrayLike | None = None,
    held_out: bool = False,
    show: int = 20,
    draws: int = 1000,
    seed: int = 0,
) -> Evidence:
    """Rank documents by how suspicious they are.

    Methods, each higher = more suspicious: ``self-influence`` (nats); ``loss`` (-log p); ``gradient
    norm`` (squared, all traced layers); for classifiers of more than two classes ``margin`` (log p
    of the likeliest other class, minus the label's); and with ``held_out`` the ``harm`` (minus the
    influence on the questions, summed).

    Args:
        subject: Model and documents.
        fitted: Whose damped inverse self-influence is taken with.
        truth: Which documents are flawed, bool ``[document]``, where it is known.
        held_out: Whether the subject's questions are a trusted set to measure harm to.
        show: How many suspects to list, by self-influence.
        draws: Of the bootstrap, which resamples flawed and other documents.
        seed: Of its draws.

    Returns:
        With ``truth`` for each method ``AUC``, ``found in first 10 %`` and ``... 20 %`` (shares of
        the flawed documents) and ``AUC above loss``; without, how alike the rankings by
        self-influence and by loss are. ``details["suspects"]`` lists documents.

    Raises:
        EvaluationError: ``truth`` is not of the documents, or names none or all of them, or there
            are no questions to be harmed.
        ModelError: A log-likelihood is not finite.
    """
    if show < 0:
        raise EvaluationError(f"show={show}; give at least 0")
    if held_out and not subject.questions:
        raise EvaluationError("held_out=True, but the subject has no questions; give some")
    flawed = None if truth is None else _checked(truth, len(subject))
    found = symptoms(subject, fitted)
    suspicion = found.suspicion()
    if held_out:
        suspicion["harm"] = -influence(subject, fitted).sum(0)
    setting: dict[str, JSON] = {
        "documents": len(subject),
        "flawed": None if flawed is None else int(flawed.sum()),
        "held_out": len(subject.questions) if held_out else 0,
        "curvature": fitted.kind,
        "damping": fitted.damping,
        "bootstrap_draws": draws,
        "seed": seed,
    }
    suspects = _suspects(subject, found, suspicion, flawed, show)
    details: dict[str, JSON] = {"suspects": plain(suspects)}
    if flawed is None:
        figures = _likeness(suspicion, draws, seed)
    else:
        figures = _detection(suspicion, flawed, draws, seed)
        shares = np.linspace(0.0, 1.0, 101)
        details["inspected"] = plain(shares)
        details["found"] = plain(
            {name: [_found(s, flawed, share) for share in shares] for name, s in suspicion.items()}
        )
    return Evidence("mislabeled", subject.name, figures, setting, _notes(figures, found), details)


def mislabeled_of_index(
    index: Index,
    *,
    truth: ArrayLike | str | None = None,
    held_out: Queries | None = None,
    show: int = 20,
    draws: int = 1000,
    seed: int = 0,
) -> Evidence:
    """Rank the documents of an open index by how suspicious they are; see :func:`mislabeled`.

    Args:
        index: Opened with its model.
        truth: Which documents are flawed, in the order of ``index.doc_ids()``, or the name of a
            metadata column that says so.
        held_out: Trusted queries to measure harm to.
        show: How many suspects to list.
        draws: Of the bootstrap.
        seed: Of its draws.

    Raises:
        EvaluationError: ``truth`` is no such list or column.
        ModelError: The index was opened without its model.
    """
    subject = Subject.of_index(index, [] if held_out is None else held_out)
    return mislabeled(
        subject,
        index.curvature,
        truth=_column(index, truth) if isinstance(truth, str) else truth,
        held_out=held_out is not None,
        show=show,
        draws=draws,
        seed=seed,
    )


def _checked(truth: ArrayLike, documents: int) -> NDArray[np.bool_]:
    flawed = np.asarray(truth)
    if flawed.shape != (documents,) or flawed.dtype != np.bool_:
        raise EvaluationError(
            f"truth is {flawed.dtype} of shape {flawed.shape}; give one bool for each of the "
            f"{documents} documents"
        )
    if flawed.all() or not flawed.any():
        raise EvaluationError(
            f"truth calls {int(flawed.sum())} of {documents} documents flawed; an evaluation needs "
            "flawed ones and others: leave truth out to list suspects"
        )
    return flawed


def _column(index: Index, name: str) -> NDArray[np.bool_]:
    """A metadata column of bools."""
    known = list(index.manifest.metadata)
    if name not in known:
        raise EvaluationError(
            f"truth={name!r} is no metadata column of {index.location}; it has {known}"
        )
    values = index.table.facts.column(name)
    for doc_id, value in zip(index.doc_ids(), values, strict=True):
        if not isinstance(value, bool):
            raise EvaluationError(
                f"the column {name!r} of document {doc_id!r} is {value!r}; truth must be true or "
                "false of every document"
            )
    return np.array(values, np.bool_)


def _found(scores: NDArray[np.float64], flawed: NDArray[np.bool_], share: float) -> float:
    """Share of the flawed documents among the first ones; of equal scores, as many as expected."""
    count = math.ceil(share * len(scores) - 1e-9)
    if count == 0:
        return 0.0
    last = np.partition(scores, len(scores) - count)[len(scores) - count]
    above, tied = scores > last, scores == last
    found = flawed[above].sum() + flawed[tied].mean() * (count - above.sum())
    return float(found / flawed.sum())


def _detection(
    suspicion: Mapping[str, NDArray[np.float64]],
    flawed: NDArray[np.bool_],
    draws: int,
    seed: int,
) -> tuple[Figure, ...]:
    """Figures of every method, on the same resampled documents."""
    names = ["AUC", *(f"found in first {100 * share:.0f} %" for share in _INSPECTED)]
    generator = np.random.default_rng(seed)
    kinds = np.flatnonzero(flawed), np.flatnonzero(~flawed)
    samples = [
        np.concatenate([generator.choice(kind, len(kind)) for kind in kinds]) for _ in range(draws)
    ]

    def judged(scores: NDArray[np.float64], truth: NDArray[np.bool_]) -> list[float]:
        return [area_under_roc(scores, truth), *(_found(scores, truth, s) for s in _INSPECTED)]

    values = {name: judged(scores, flawed) for name, scores in suspicion.items()}
    drawn = {
        name: np.array([judged(scores[sample], flawed[sample]) for sample in samples]).T
        for name, scores in suspicion.items()
    }
    figures = []
    for method, own in values.items():
        for name, value, spread in zip(names, own, drawn[method], strict=True):
            figures.append(Figure.of(method, name, interval(value, spread)))
        if method != LOSS:
            gained = interval(own[0] - values[LOSS][0], drawn[method][0] - drawn[LOSS][0])
            figures.append(Figure.of(method, "AUC above loss", gained))
    return tuple(figures)


def _likeness(
    suspicion: Mapping[str, NDArray[np.float64]], draws: int, seed: int
) -> tuple[Figure, ...]:
    """Rank correlation of self-influence with each other method."""
    own = suspicion[SELF_INFLUENCE]
    figures = []
    for name, other in suspicion.items():

        def alike(at: NDArray[np.int64], other: NDArray[np.float64] = other) -> float:
            return spearman(own[at], other[at])

        if name != SELF_INFLUENCE:
            estimate = bootstrap(alike, len(own), draws=draws, seed=seed)
            figures.append(Figure.of(SELF_INFLUENCE, f"rank correlation with {name}", estimate))
    return tuple(figures)


def _suspects(
    subject: Subject,
    found: Symptoms,
    suspicion: Mapping[str, NDArray[np.float64]],
    flawed: NDArray[np.bool_] | None,
    show: int,
) -> list[dict[str, Any]]:
    """The most suspicious documents by self-influence, with what the model says of their label."""
    names = getattr(getattr(subject.extractor.model, "config", None), "id2label", None) or {}
    listed = []
    for rank, at in enumerate(np.argsort(-found.self_influence, kind="stable")[:show], start=1):
        suspect: dict[str, Any] = {
            "rank": rank,
            "position": at,
            "doc_id": subject.doc_ids[at],
            **{method: scores[at] for method, scores in suspicion.items()},
        }
        if subject.texts is not None:
            text = subject.texts[at]
            suspect["text"] = text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
        if found.labels is not None:
            given, preferred = int(found.labels.given[at]), int(found.labels.preferred[at])
            suspect["label"] = names.get(given, given)
            suspect["label_probability"] = math.exp(found.nats[at])
            suspect["model_label"] = names.get(preferred, preferred)
            suspect["model_probability"] = math.exp(found.labels.nats[at])
        if flawed is not None:
            suspect["flawed"] = flawed[at]
        listed.append(suspect)
    return listed


def _notes(figures: Sequence[Figure], found: Symptoms) -> tuple[str, ...]:
    notes = []
    if found.labels is None:
        notes.append(
            "Documents have no class here: suspects are unusual documents. Log-likelihoods and "
            "gradients are summed over a document's predictions, so long ones rank first."
        )
    else:
        fitted = float((found.labels.given == found.labels.preferred).mean())
        if fitted >= _LEARNT:
            notes.append(
                f"The model gives {100 * fitted:.1f} % of the documents the label they have: where "
                "labels are wrong it has learnt them, and no longer finds them unlikely. A model "
                "trained for less long, or on other documents, shows more."
            )
    for figure in figures:
        gained = (figure.method, figure.name) == (SELF_INFLUENCE, "AUC above loss")
        if gained and figure.low is not None and figure.low <= 0.0:
            notes.append("Self-influence finds the flawed documents no better than the loss does.")
    return tuple(notes)
