"""What terminal and reports say of an answer, for the page: one wording for all."""

from __future__ import annotations

from wherefrom.query import wording
from wherefrom.query.answer import Answer

__all__ = ["answer_in_words"]


def answer_in_words(answer: Answer) -> dict[str, str | None]:
    """Sentences by what they are about; ``None`` where there is nothing to say."""
    measured = wording.measured(answer)
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
    }
