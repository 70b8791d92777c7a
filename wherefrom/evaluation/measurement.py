"""What a model says to each question: the number that influence foretells and retraining shows."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wherefrom.errors import EvaluationError
from wherefrom.evaluation.sources import class_text, tensor_text
from wherefrom.gradients.batches import Batch
from wherefrom.gradients.objectives import Objective
from wherefrom.query.questions import Question

__all__ = ["Measurement"]

_AT_ONCE = 256
_KNOWN = {"wherefrom", "abc", "typing"}


class Measurement:
    """The value of every question under any model of the same kind.

    Terms of the same shape run together: a model is measured once, not once a question.

    Args:
        objective: Bound, where it is one of text.
        questions: Weighted log-likelihoods.

    Attributes:
        digest: SHA-256 of all that decides the values but for the model: questions, and the
            objective's kind and options; the source of its class too, where that is the user's.

    Raises:
        EvaluationError: There are no questions, or the source of an objective of the user's cannot
            be read.
    """

    def __init__(self, objective: Objective, questions: Sequence[Question]) -> None:
        if not questions:
            raise EvaluationError("no question to measure; give at least one query")
        self._objective = objective
        self._count = len(questions)
        groups = defaultdict(list)
        for number, question in enumerate(questions):
            for weight, batch in question.terms:
                groups[_form(batch)].append((number, weight, batch))
        self._groups = [
            (
                np.array([number for number, _, _ in group]),
                np.array([weight for _, weight, _ in group]),
                _together([batch for _, _, batch in group]),
            )
            for group in groups.values()
        ]
        self.digest = _digest(objective, questions)

    def __len__(self) -> int:
        """Number of questions."""
        return self._count

    @torch.no_grad()
    def __call__(self, module: nn.Module) -> NDArray[np.float64]:
        """Nats of each question, float64 ``[question]``.

        Args:
            module: Read in evaluation mode; each of its modules is left in the mode it came in.

        Raises:
            EvaluationError: A value is not finite.
        """
        values = np.zeros(self._count)
        parameter = next(module.parameters(), None)
        device = torch.device("cpu") if parameter is None else parameter.device
        modes = {part: part.training for part in module.modules()}
        module.eval()
        try:
            for numbers, weights, batch in self._groups:
                nats = [
                    self._nats(module, part.to(device)).double().cpu().numpy()
                    for part in _parts(batch, _AT_ONCE)
                ]
                np.add.at(values, numbers, weights * np.concatenate(nats))
        finally:
            for part, mode in modes.items():
                part.training = mode
        if not np.isfinite(values).all():
            worst = int(np.argmin(np.isfinite(values)))
            raise EvaluationError(
                f"a retrained model's value of query {worst} is not finite: its training diverged; "
                "train with a lower learning rate"
            )
        return values

    def _nats(self, module: nn.Module, batch: Batch) -> Tensor:
        outputs = self._objective.outputs(module, batch)
        return self._objective.log_likelihood(outputs, batch.targets, batch)


def _form(batch: Batch) -> tuple[object, ...]:
    """Batches of one form can be put together without padding."""
    parts = (batch.inputs, batch.targets, batch.attended, batch.scored)
    return tuple(None if part is None else (part.shape[1:], part.dtype) for part in parts)


def _together(batches: Sequence[Batch]) -> Batch:
    first = batches[0]
    return replace(
        first,
        inputs=torch.cat([batch.inputs for batch in batches]),
        targets=torch.cat([batch.targets for batch in batches]),
        doc_ids=tuple(doc_id for batch in batches for doc_id in batch.doc_ids),
        keys=np.concatenate([batch.keys for batch in batches]),
        attended=_joined([batch.attended for batch in batches]),
        scored=_joined([batch.scored for batch in batches]),
    )


def _joined(masks: Sequence[Tensor | None]) -> Tensor | None:
    present = [mask for mask in masks if mask is not None]
    return torch.cat(present) if present else None


def _parts(batch: Batch, size: int) -> list[Batch]:
    """A batch in parts of at most ``size`` examples."""
    cuts = [slice(start, start + size) for start in range(0, len(batch), size)]
    return [
        replace(
            batch,
            inputs=batch.inputs[cut],
            targets=batch.targets[cut],
            doc_ids=batch.doc_ids[cut],
            keys=batch.keys[cut],
            attended=None if batch.attended is None else batch.attended[cut],
            scored=None if batch.scored is None else batch.scored[cut],
        )
        for cut in cuts
    ]


def _digest(objective: Objective, questions: Sequence[Question]) -> str:
    own = [
        class_text(kind)
        for kind in type(objective).__mro__
        if kind is not object and kind.__module__.partition(".")[0] not in _KNOWN
    ]
    known = [objective.kind, dict(objective.options()), own]
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode())
    for question in questions:
        for weight, batch in question.terms:
            digest.update(repr(float(weight)).encode())
            digest.update(batch.keys.tobytes())
            for part in (batch.inputs, batch.targets, batch.attended, batch.scored):
                digest.update(("-" if part is None else tensor_text(part)).encode())
        digest.update(b";")
    return digest.hexdigest()
