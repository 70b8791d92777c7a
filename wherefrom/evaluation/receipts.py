"""The receipt of an answer: what removing its documents did, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wherefrom.errors import EvaluationError
from wherefrom.evaluation.counterfactual import RANDOM
from wherefrom.evaluation.evidence import Evidence
from wherefrom.evaluation.statistics import CONFIDENCE

__all__ = ["receipt"]


def receipt(evidence: Evidence, query: int | None = None) -> str:
    """What removing documents did, in a paragraph for each number of documents.

    Args:
        evidence: From :func:`removals`.
        query: One of its queries; by default the only one, or the mean of all.

    Raises:
        EvaluationError: It is evidence of another kind, or the query was not asked.
    """
    if evidence.kind != "counterfactual":
        raise EvaluationError(f"evidence of kind {evidence.kind!r} holds no removals to tell of")
    # Details are plain JSON, whose form removals() decides.
    details: Any = evidence.details
    known = {one["query"]: one["removals"] for one in details["queries"]}
    if query is not None and query not in known:
        raise EvaluationError(f"query {query} was not asked; choose among {sorted(known)}")
    if query is None and len(known) == 1:
        (query,) = known
    entries = details["removals"] if query is None else known[query]
    what = f"the mean of {len(known)} queries" if query is None else f"query {query}"
    setting: Any = evidence.setting
    paragraphs = []
    for heading in dict.fromkeys(entry["what"] for entry in entries):
        own = [entry for entry in entries if entry["what"] == heading]
        paragraphs.append(_paragraph(own, what, setting))
    return "\n\n".join(paragraphs)


def _paragraph(entries: Sequence[Mapping[str, Any]], what: str, setting: Mapping[str, Any]) -> str:
    """The first method in full, the others beside it."""
    first, *others = entries
    end, count, _ = first["what"].split(" ")
    seeds = len(setting["seeds"])
    trained = f"retrained with {seeds} seeds" if seeds > 1 else "retrained with one seed"
    predicted = first["predicted"]
    told = (
        f"Without the {count} documents that {first['method']} scores "
        f"{'highest' if end == 'top' else 'lowest'}, {trained}, the measurement of {what} changes "
        f"by {_nats(first['change'])}"
        f"{'' if predicted is None else f'; the scores predicted {predicted:+.4g} nats'}."
    )
    for entry in others:
        if entry["method"] == RANDOM:
            draws = setting["random_draws"]
            told += (
                f" Without {count} random documents ({draws} draw{'s' if draws > 1 else ''}) it "
                f"changes by {_nats(entry['change'])}."
            )
        else:
            told += f" Without those of {entry['method']}: {_nats(entry['change'])}."
    beyond = first["beyond"][RANDOM]
    if beyond["p"] is None:
        return f"{told} The difference from random ones is {_nats(beyond)}."
    verdict = "beyond chance" if beyond["p"] <= 1.0 - CONFIDENCE else "within chance"
    return (
        f"{told} The difference from random ones, {_nats(beyond)}, is {verdict} "
        f"(p = {beyond['p']:.2g})."
    )


def _nats(effect: Mapping[str, Any]) -> str:
    if effect["error"] is None:
        return f"{effect['value']:+.4g} nats (no interval)"
    return (
        f"{effect['value']:+.4g} nats (standard error {effect['error']:.2g}, 95 % interval "
        f"{effect['low']:+.4g} to {effect['high']:+.4g})"
    )
