"""What terminal and reports say of an answer, for the page: one wording for all."""

from __future__ import annotations

from typing import Any

from wherefrom.query import wording
from wherefrom.query.answer import Answer
from wherefrom.serve.requests import QueryRequest

__all__ = ["answer_in_words"]


def answer_in_words(
    answer: Answer, request: QueryRequest | None = None
) -> dict[str, str | int | None]:
    """Sentences by what they are about; ``None`` where there is nothing to say.

    Args:
        answer: What they are about.
        request: Which wants more beside hits than the answer holds yet: the command under
            ``replay`` asks for that, too.
    """
    measured = wording.measured(answer)
    beside: dict[str, Any] = {}
    if request is not None:
        beside = {
            "explain": request.explain,
            "similarity": request.similarity,
            "group_by": dict.fromkeys(request.group_by),
        }
    return {
        "measured": measured.quantity,
        "raised": measured.raised,
        "lowered": measured.lowered,
        "worth": wording.worth_in_words(answer),
        "certificate": wording.certificate_in_words(answer),
        "slope": wording.slope_in_words(answer),
        "background": wording.background_in_words(answer),
        "damping": wording.damping_in_words(answer),
        "empty": wording.empty_in_words(answer),
        "filter": wording.filter_in_words(answer.where),
        "percentile": wording.PERCENTILE,
        "no_proof": wording.NO_PROOF,
        "replay": wording.replay_command(answer, **beside),
        "least_run": wording.LEAST_RUN,
    }
