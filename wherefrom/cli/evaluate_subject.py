"""What an evaluation works on: the index, its questions, the scores to judge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from wherefrom.api import open as open_index
from wherefrom.cli.evaluate_options import Asked, Compared, Opened, Retrained
from wherefrom.cli.evaluate_training import trainer_of, user_function
from wherefrom.cli.query_file import read_queries
from wherefrom.errors import EvaluationError, QueryError
from wherefrom.evaluation.baselines import baselines
from wherefrom.evaluation.evidence import Evidence
from wherefrom.evaluation.measurement import Measurement
from wherefrom.evaluation.receipts import what_was_asked
from wherefrom.evaluation.retraining import Retrainer
from wherefrom.evaluation.scores import fit, influence
from wherefrom.evaluation.statistics import Scores
from wherefrom.evaluation.subject import Subject
from wherefrom.gradients.objectives.base import JSON
from wherefrom.maintenance.index import Index
from wherefrom.query.questions import Queries
from wherefrom.records import Progress, Query
from wherefrom.store import InputRecord, Manifest

__all__ = [
    "Prepared",
    "chosen_documents",
    "noting_choice",
    "opened_index",
    "prepare",
    "read_asked",
    "reference",
    "require_documents",
]


@dataclass(frozen=True, slots=True)
class Prepared:
    """An index and what is asked of its model.

    Attributes:
        index: Open.
        queries: As they were given.
        subject: Its model, documents and questions.
    """

    index: Index
    queries: Queries
    subject: Subject

    def scores(self, compared: Compared, seed: int) -> dict[str, Scores]:
        """What is to be judged: ``[query, document]`` by method, the index's own first.

        Raises:
            WherefromError: A curvature cannot be fitted, or a baseline does not apply.
        """
        subject, index = self.subject, self.index
        # What does not apply is known before any curvature is fitted.
        simpler = baselines(subject, compared.baselines, seed=seed)
        own = index.manifest.curvature.kind
        scores = {own: influence(subject, index.curvature)}
        if index.manifest.encoder.fidelity is not None:
            scores[f"{own}, stored"] = index.scores(self.queries, tier="stored")
        for kind in compared.curvatures:
            if kind != own:
                scores[kind] = influence(subject, fit(subject, kind, seed=seed))
        return scores | simpler

    def recorded(self, evidence: Evidence, retrainer: Retrainer | None, **more: JSON) -> Evidence:
        """Evidence that says of which index it is, what was asked, how models were trained."""
        manifest = self.index.manifest
        setting: dict[str, JSON] = {
            "index": str(self.index.location),
            "index_digest": manifest.digest,
            "weights_sha256": manifest.model.weights_sha256,
            "curvature": manifest.curvature.kind,
            "damping": manifest.curvature.damping,
            "questions": retrainer.measurement.digest if retrainer else self._measurement().digest,
        }
        if retrainer is not None:
            setting |= {"recipe": retrainer.trainer.recipe, "retrainings": str(retrainer.path)}
        return replace(
            evidence,
            setting={**setting, **evidence.setting, **more},
            details={"asked": what_was_asked(self.subject.questions), **evidence.details},
        )

    def retrainer(self, opened: Opened, retrained: Retrained, progress: Progress) -> Retrainer:
        """Who trains the index's model again; made before scores are, which can take hours.

        Raises:
            EvaluationError: It cannot be trained again with what was given.
            ModelError: The base cannot be loaded.
        """
        return Retrainer(
            trainer_of(self.index, self.subject, opened, retrained),
            self._measurement(),
            self.subject.digest,
            cache=retrained.cache,
            workers=retrained.workers,
            progress=progress,
        )

    def _measurement(self) -> Measurement:
        return Measurement(self.subject.extractor.objective, self.subject.questions)


def opened_index(path: Path, opened: Opened) -> Index:
    """The index with its model, which a function of the user's may return.

    Raises:
        WherefromError: It is no index, or the model is missing or another one.
    """
    model: Any = opened.model
    objective = None
    if model is not None and _is_code(model):
        made = user_function(model)()
        model, objective = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
        if not isinstance(model, nn.Module):
            raise EvaluationError(
                f"{opened.model} gives {type(model).__name__}; return the torch.nn.Module that the "
                "index was built with"
            )
    record = Manifest.read(path).model
    if model is None and record.kind == "module":
        raise EvaluationError(
            f"{path} was built from a model in memory, which it cannot load by itself; give "
            "--model FILE.py:FUNCTION, where function() returns the model"
        )
    base = opened.base_model if record.adapter is not None else None
    return open_index(path, model=model, base_model=base, objective=objective, device=opened.device)


def read_asked(path: Path, asked: Asked) -> Queries:
    """The questions to an index, a sequence of queries or tensors.

    Raises:
        QueryError: The file cannot be read, holds no questions, or those of another kind of index.
    """
    tensors = Manifest.read(path).inputs is not None
    if tensors != (asked.queries is not None and asked.queries.suffix == ".npz"):
        raise QueryError(
            f"{path} holds tensors; give --queries FILE.npz with inputs and targets"
            if tensors
            else f"{path} holds text; give --queries FILE.jsonl, or --prompt and --completion"
        )
    if asked.queries is None:
        return [Query(asked.prompt or "", asked.completion or "", asked.contrast)]
    if asked.queries.suffix == ".npz":
        return _tensors(asked.queries, Manifest.read(path).inputs)
    return read_queries(asked.queries)


def prepare(path: Path, asked: Asked, opened: Opened) -> Prepared:
    """Open an index and read the questions.

    Raises:
        WherefromError: The index cannot be opened, or a question is not well formed.
    """
    queries = read_asked(path, asked)
    index = opened_index(path, opened)
    return Prepared(index, queries, Subject.of_index(index, queries))


def reference(scores: Mapping[str, Scores], *wanted: str) -> str | None:
    """The first of these methods that is there, for others to be set against."""
    return next((method for method in wanted if method in scores), None)


def require_documents(count: int, documents: int) -> None:
    """Refuse to look at more documents than there are.

    Raises:
        EvaluationError: There are not so many.
    """
    if count > documents:
        raise EvaluationError(f"{count} documents are asked for and {documents} are there")


def chosen_documents(
    scores: Mapping[str, Scores], count: int, how: str, seed: int
) -> NDArray[np.int64]:
    """Positions of documents to look at, ascending: ``random``, or those of ``largest`` scores.

    Of the largest every method but ``random`` names one in turn. Were they chosen by one method,
    it would be judged where its own scores are largest, and the others where theirs need not be: of
    two that are as good the one that chose would seem better.

    Args:
        scores: ``[query, document]`` of each method.
        count: How many.
        how: ``random`` or ``largest``.
        seed: Of the random ones.

    Raises:
        EvaluationError: There are not so many.
    """
    documents = next(iter(scores.values())).shape[1]
    require_documents(count, documents)
    if how == "random":
        return np.sort(np.random.default_rng(seed).permutation(documents)[:count])
    rankings = [
        np.argsort(-np.abs(found).mean(0), kind="stable")
        for method, found in scores.items()
        if method != "random"
    ]
    in_turn = np.stack(rankings, 1).reshape(-1)
    first = np.sort(np.unique(in_turn, return_index=True)[1])
    return np.sort(in_turn[first[:count]])


def noting_choice(evidence: Evidence, how: str) -> Evidence:
    """Evidence with a note where its documents were not drawn at random."""
    if how == "random":
        return evidence
    note = (
        "These documents have the largest scores of some method: figures are of them, and not of "
        "documents drawn at random, of which most do less."
    )
    return replace(evidence, notes=(*evidence.notes, note))


def _is_code(model: str) -> bool:
    return model.partition(":")[0].endswith(".py")


def _tensors(path: Path, record: InputRecord | None) -> Queries:
    """Inputs and targets of a file, in the precision of the index."""
    try:
        with np.load(path) as arrays:
            inputs, targets = arrays["inputs"], arrays["targets"]
    except (OSError, ValueError, KeyError) as error:
        raise QueryError(
            f"{path} cannot be read as questions ({error}); save it with "
            "numpy.savez(file, inputs=..., targets=...)"
        ) from error
    if record is not None:
        inputs = _of_type(inputs, record.dtype)
        targets = _of_type(targets, record.target_dtype)
    return torch.from_numpy(inputs), torch.from_numpy(targets)


def _of_type(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Values as the index has them, where both are fractions or both whole numbers."""
    wanted = np.dtype(dtype)
    return values.astype(wanted) if values.dtype.kind == wanted.kind else values
