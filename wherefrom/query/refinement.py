"""A refined question: its gradient, solved for with documents' Gauss-Newton matrix."""

from __future__ import annotations

import numpy as np

from wherefrom.query.asker import Asker
from wherefrom.query.conjugate_gradients import REFINE_DAMPING, refine
from wherefrom.query.documents import document_batches
from wherefrom.query.exact import gradient_of
from wherefrom.query.options import QueryOptions
from wherefrom.query.questions import EncodedQuestion, Question
from wherefrom.query.recall import drawn
from wherefrom.store import DocumentTable

__all__ = ["FEWEST_BITS", "refined"]

FEWEST_BITS = 4
"""Codes of fewer bits spoil what a refined query gains."""


def refined(
    asker: Asker, table: DocumentTable, question: Question, options: QueryOptions
) -> EncodedQuestion:
    """A question's vector after ``options.refine`` steps.

    Raises:
        QueryError: The curvature cannot precondition.
        CurvatureError: The damping is not allowed, the objective knows no distribution, or memory
            does not suffice.
    """
    encoder, extractor = asker.encoder, asker.extractor
    gradient, nats = gradient_of(extractor, encoder.curvature, question)
    chosen = None
    if options.refine_documents is not None:
        chosen = drawn(options.refine_documents, np.arange(len(table)), 0)
    damping = REFINE_DAMPING if options.refine_damping is None else options.refine_damping
    found = refine(
        extractor,
        encoder.curvature,
        gradient,
        lambda: (batch for _, batch in document_batches(table, extractor, chosen)),
        steps=options.refine,
        damping=damping,
    )
    vector = encoder.encode_solved([solved[None] for solved in found.solved])[0]
    return EncodedQuestion(
        vector.astype(np.float32), nats, found.residual, damping, found.steps, found.solved
    )
