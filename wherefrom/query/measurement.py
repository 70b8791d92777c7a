"""What a question measured, in words: a log-likelihood, a difference of two, a mean or sum."""

from __future__ import annotations

from dataclasses import dataclass

from wherefrom.records import SCORE_CONTRACT, Query, QuerySet

__all__ = ["Measurement", "measurement_of"]

_REDUCED = {"mean": "mean", "sum": "summed"}


@dataclass(frozen=True, slots=True)
class Measurement:
    """The quantity that scores are nats of, and what raising it means.

    Attributes:
        quantity: As "the completion's log-likelihood".
        raised: What proponents do, as "they make the completion more likely".
        lowered: What opponents do.
        answered: What the model said, as the field calls it: ``completion`` or ``label``.
    """

    quantity: str
    raised: str
    lowered: str
    answered: str

    @property
    def contract(self) -> str:
        """Unit and sign of the scores, in the words of ``SCORE_CONTRACT`` where they fit."""
        if self == measurement_of(Query("", "")):
            return SCORE_CONTRACT
        return (
            f"score = nats of {self.quantity} per added copy of the document, to first order; "
            "positive = proponent (raises it), negative = opponent (lowers it)"
        )


def measurement_of(query: Query | QuerySet | None, objective: str | None = None) -> Measurement:
    """What a question measures.

    Args:
        query: What was asked; ``None`` for tensor queries.
        objective: Kind of the index's objective; a sequence classifier says labels.
    """
    noun = "label" if objective == "sequence_classification" else "completion"
    if isinstance(query, QuerySet):
        reduced = _REDUCED[query.reduce]
        quantity, short = f"the {reduced} log-likelihood of the {noun}s", "log-likelihood"
        if any(one.contrast is not None for one in query.queries):
            quantity = f"the {reduced} difference in log-likelihood, {noun} minus contrast"
            short = "difference"
        return Measurement(
            quantity, f"they raise the {reduced} {short}", f"they lower the {reduced} {short}", noun
        )
    if query is None:
        quantity = "the log-likelihood"
        return Measurement(quantity, f"they raise {quantity}", f"they lower {quantity}", noun)
    if query.contrast is None:
        quantity = f"the {noun}'s log-likelihood"
        makes = f"they make the {noun}"
        return Measurement(quantity, f"{makes} more likely", f"{makes} less likely", noun)
    return Measurement(
        f"the {noun}'s log-likelihood minus the contrast's",
        f"they favour the {noun} over the contrast",
        f"they favour the contrast over the {noun}",
        noun,
    )
