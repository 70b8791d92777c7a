"""What an evaluation works on: the index, its questions, the scores to judge."""

from __future__ import annotations

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
from wherefrom.evaluation.retraining import Retrainer
from wherefrom.evaluation.scores import fit, influence
from wherefrom.evaluation.statistics import Scores
from wherefrom.evaluation.subject import Subject
from wherefrom.gradients.objectives.base import JSON
from wherefrom.query.index import Index
from wherefrom.query.questions import Queries
from wherefrom.records import Progress, Query
from wherefrom.store import Manifest

__all__ = [
    "Prepared",
    "choose_documents",
    "opened_index",
    "prepare",
    "read_asked",
]


@dataclass(frozen=True, slots=True)
class Prepared:
    """An index and what is judged of it.

    Attributes:
        index: Open.
        subject: Its model, documents and questions.
        scores: ``[query, document]`` by method, the index's own first.
    """

    index: Index
    subject: Subject
    scores: dict[str, Scores]

    @property
    def own(self) -> Scores:
        """The index's uncompressed scores."""
        return next(iter(self.scores.values()))

    @property
    def reference(self) -> str | None:
        """What other methods are set against: the gradient dot product, where it is there."""
        return "dot" if "dot" in self.scores else None

    def recorded(self, evidence: Evidence, retrainer: Retrainer | None, **more: JSON) -> Evidence:
        """Evidence whose setting says of which index it is, and how models were trained."""
        manifest = self.index.manifest
        setting: dict[str, JSON] = {
            "index": str(self.index.path),
            "index_digest": manifest.digest,
            "weights_sha256": manifest.model.weights_sha256,
            "curvature": manifest.curvature.kind,
            "damping": manifest.curvature.damping,
            "questions": retrainer.measurement.digest if retrainer else self._measurement().digest,
        }
        if retrainer is not None:
            setting |= {"recipe": retrainer.trainer.recipe, "retrainings": str(retrainer.path)}
        return replace(evidence, setting={**setting, **evidence.setting, **more})

    def retrainer(self, opened: Opened, retrained: Retrained, progress: Progress) -> Retrainer:
        """Who trains the index's model again.

        Raises:
            EvaluationError: It cannot be trained again with what was given.
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
        return _tensors(asked.queries)
    return read_queries(asked.queries)


def prepare(path: Path, asked: Asked, opened: Opened, compared: Compared, seed: int) -> Prepared:
    """Open an index, read the questions and compute the scores to be judged.

    Raises:
        WherefromError: The index cannot be opened, a question is not well formed, a curvature
            cannot be fitted, or a baseline does not apply.
    """
    queries = read_asked(path, asked)
    index = opened_index(path, opened)
    subject = Subject.of_index(index, queries)
    own = index.manifest.curvature.kind
    scores = {own: influence(subject, index.curvature)}
    if index.manifest.encoder.fidelity is not None:
        scores[f"{own}, stored"] = index.scores(queries, tier="stored")
    for kind in compared.curvatures:
        if kind != own:
            scores[kind] = influence(subject, fit(subject, kind, seed=seed))
    scores |= baselines(subject, compared.baselines, seed=seed)
    return Prepared(index, subject, scores)


def choose_documents(scores: Scores, count: int, how: str, seed: int) -> NDArray[np.int64]:
    """Positions of documents to look at, ascending: ``random``, or ``largest`` mean magnitude.

    Raises:
        EvaluationError: There are not so many.
    """
    documents = scores.shape[1]
    if count > documents:
        raise EvaluationError(f"{count} documents are asked for and {documents} are there")
    if how == "random":
        return np.sort(np.random.default_rng(seed).permutation(documents)[:count])
    return np.sort(np.argsort(-np.abs(scores).mean(0), kind="stable")[:count])


def _is_code(model: str) -> bool:
    return model.partition(":")[0].endswith(".py")


def _tensors(path: Path) -> Queries:
    try:
        with np.load(path) as arrays:
            inputs, targets = arrays["inputs"], arrays["targets"]
    except (OSError, ValueError, KeyError) as error:
        raise QueryError(
            f"{path} cannot be read as questions ({error}); save it with "
            "numpy.savez(file, inputs=..., targets=...)"
        ) from error
    return torch.from_numpy(inputs), torch.from_numpy(targets)
