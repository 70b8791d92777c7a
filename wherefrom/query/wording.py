"""Scores, certificates and filters in words: said alike on the terminal and in reports."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from wherefrom.query.answer import Answer
from wherefrom.query.background import STANDS_OUT
from wherefrom.query.interpretation.explanation import (
    Grouping,
    HitSimilarity,
    ScoreParts,
    TokensAre,
)
from wherefrom.query.measurement import Measurement, measurement_of
from wherefrom.query.replay import replay_command
from wherefrom.records import Background, Hit, Normalise, Query, QuerySet, Recall, Tier

__all__ = [
    "LEAST_RUN",
    "NO_PROOF",
    "PERCENTILE",
    "SHARES",
    "SIMILARITY",
    "TOKENS_ARE",
    "ListName",
    "background_in_words",
    "certificate_in_words",
    "damping_in_words",
    "doubt_in_words",
    "empty_in_words",
    "filter_in_words",
    "grouping_in_words",
    "index_in_words",
    "measured",
    "parts_in_words",
    "percentile_in_words",
    "ranked_by",
    "ranked_value",
    "refined_in_words",
    "replay_command",
    "residual_in_words",
    "run_in_words",
    "set_in_words",
    "signed",
    "similarity_in_words",
    "slope_in_words",
    "value_in_words",
    "worth_in_words",
]

ListName = Literal["Proponents", "Opponents"]

_WHOLE = 0.9  # of exact scores: from there on, stored ones are what they are called

NO_PROOF = (
    "Influence says what the model's behaviour would owe to a document, by a first-order estimate. "
    "It is no proof that text was copied, and no measure of similarity."
)

PERCENTILE = "share of random document/query pairs with a smaller cosine, in per cent"

SHARES = "Shares add up to the score: of all layers, or of all tokens, in nats."

TOKENS_ARE: dict[TokensAre, str] = {
    "predictions": (
        "A share is shown on the token whose prediction it comes from, given the text before it."
    ),
    "positions": (
        "A share is shown on the token at whose position layers took it in: the text has one "
        "prediction only, its label."
    ),
}

SIMILARITY = (
    "BM25 compares words only, and the longest shared run is of words one after the other. What is "
    "influential need not be similar, and what is similar need not be influential."
)

LEAST_RUN = 3
"""Words from which on a shared run is told of: all texts share the likes of "of the"."""

_RANKED_BY: dict[Normalise, tuple[str, str]] = {
    "cosine": ("cosine", "ranked by cosine in the whitened space"),
    "relatif": ("l-RelatIF", "ranked by l-RelatIF (score / norm of the document)"),
}
_VALUES: dict[Normalise, str] = {
    "none": "scores",
    "cosine": "cosines",
    "relatif": "l-RelatIF scores",
}
_UNITS: dict[Normalise, str] = {
    "none": "{} nats",
    "cosine": "a cosine of {}",
    "relatif": "{} nats per unit of norm",
}
_TIERS: dict[Tier, str] = {
    "stored": "the {} of the stored vectors",
    "exact": "{} of uncompressed gradients, computed anew",
}
_INDEX_LABELS = {
    "path": "Index",
    "manifest_sha256": "Manifest SHA-256",
    "weights_sha256": "Weights SHA-256",
    "documents": "Documents (N)",
    "bytes_per_document": "Bytes per document",
}


def signed(score: float) -> str:
    """A score with its sign and three significant digits."""
    return f"{score:+#.3g}".rstrip(".")


def value_in_words(value: object) -> str:
    """A metadata value as a reader writes it, to its last digit; a missing one is a dash."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def ranked_by(answer: Answer) -> tuple[str, str] | None:
    """What documents are ranked by, where that is not the score: its name, and in words."""
    return _RANKED_BY.get(answer.normalise)


def ranked_value(hit: Hit, normalise: Normalise) -> float:
    """What a hit is ranked by."""
    return {"none": hit.score, "cosine": hit.cosine, "relatif": hit.relatif}[normalise]


def percentile_in_words(percentile: float) -> str:
    """A percentile with one decimal, which never rounds to an end that it does not reach."""
    if 0.0 < percentile < 100.0:
        percentile = min(max(percentile, 0.1), 99.9)
    return f"{percentile:.1f}"


def certificate_in_words(answer: Answer) -> str:
    """What an answer's certificate vouches for, in two or three sentences."""
    certificate = answer.certificate
    searched = _counted(certificate.documents, "document")
    by = _TIERS[certificate.tier].format(_VALUES[answer.normalise])
    if certificate.documents == 0:
        return "Nothing was searched: no document passes the filter."
    if not certificate.certified:
        start = (
            f"Not certified: the best of {certificate.candidates:,} candidates among {searched}, "
            f"by {by}; "
        )
        if certificate.recall is None or not (answer.proponents or answer.opponents):
            return start + "a stronger document may be missing."
        return start + _recall(answer, certificate.recall)
    start = f"Certified: no stronger document exists among the {searched} searched, by {by}. "
    if certificate.candidates == certificate.documents:
        return start + "Each of them was scored in full."
    proposed = "" if certificate.backend == "scan" else f", proposed by {certificate.backend},"
    return start + (
        f"{certificate.candidates:,} of them{proposed} were scored in full; bounds on all others "
        f"rule them out{_bounds(answer)}."
    )


def slope_in_words(answer: Answer) -> str | None:
    """That stored scores are too small, where they are."""
    slope = answer.certificate.slope
    if slope is None or slope >= _WHOLE:
        return None
    return (
        f"These are stored scores, on average {slope:.0%} of exact ones with this encoder: compare "
        "them with each other, and recompute for nats."
    )


def background_in_words(answer: Answer) -> str | None:
    """Whether the strongest hits stand out from chance; ``None`` where nothing was compared."""
    background = answer.certificate.background
    if background is None:
        return None
    sentences = (_verdict("Proponents", background), _verdict("Opponents", background))
    return " ".join(sentence for sentence in sentences if sentence) or None


def doubt_in_words(answer: Answer, name: ListName) -> str | None:
    """That one of an answer's lists is like chance; ``None`` where nothing says so."""
    background = answer.certificate.background
    if background is None or _compared(name, background)[0] is not False:
        return None
    return _verdict(name, background)


def measured(answer: Answer) -> Measurement:
    """What an answer's scores are nats of."""
    return measurement_of(answer.query, answer.index.get("objective"))


def worth_in_words(answer: Answer) -> str:
    """The value of what was measured: of a completion's log-likelihood, a difference, a mean."""
    nats, count = answer.log_likelihood, answer.scored_tokens
    of_labels = measured(answer).answered == "label"
    one = isinstance(answer.query, Query) and answer.query.contrast is None
    if one and of_labels:
        return f"{nats:.3f} nats (probability {math.exp(nats):.3g})"
    noun = "prediction" if answer.query is None else "label" if of_labels else "token"
    over = f"nats over {_counted(count, noun)}"
    if one:
        return f"{nats:.3f} {over}" + (f" ({nats / count:.3f} a token)" if count > 1 else "")
    return f"{nats:+.3f} {over}"


def set_in_words(query: QuerySet) -> str:
    """How many questions were asked as one, and how they were made one."""
    return f"the {query.reduce} over {_counted(len(query.queries), 'question')}"


def damping_in_words(answer: Answer) -> str | None:
    """The damping of the scores, where it is not the index's own."""
    own = answer.index["damping"]
    if answer.refined or answer.damping == own:
        return None
    return f"{answer.damping:g} for this answer; the index was built with {own:g}"


def refined_in_words(answer: Answer) -> str | None:
    """How a query was refined, if it was."""
    if not answer.refined:
        return None
    steps = _counted(answer.refined, "step")
    return (
        f"{steps} of conjugate gradients on the Gauss-Newton matrix of all layers, damping "
        f"{answer.damping:g}"
    )


def residual_in_words(answer: Answer) -> str | None:
    """How closely the inverse was solved for, where it was solved by iteration."""
    if answer.residual is None:
        return None
    return f"{answer.residual:.2g} of the query's gradient left unsolved (0 = an exact inverse)"


def empty_in_words(answer: Answer) -> str:
    """Why an answer lists no document at all."""
    if answer.certificate.documents == 0:
        return "No document passes the filter."
    return "No document has influence in the direction asked for."


def filter_in_words(where: Mapping[str, Any]) -> str:
    """A metadata filter, its conditions joined by ``and``."""
    return " and ".join(
        _condition(column, *pair)
        for column, condition in where.items()
        for pair in _pairs(condition)
    )


def similarity_in_words(similar: HitSimilarity, documents: int) -> str:
    """How alike a hit and the question are in words, and whether other hits are like it.

    Args:
        similar: Of the hit.
        documents: How many its BM25 rank is among.
    """
    parts = [
        f"BM25 rank {similar.bm25_rank:,} of {documents:,}"
        if similar.bm25 > 0.0
        else "no word in common by BM25",
        f"longest shared run {similar.shared_words:,} words"
        if similar.shared_words >= LEAST_RUN
        else f"no run of {LEAST_RUN} words shared",
    ]
    if similar.cluster is not None:
        parts.append(f"near-duplicates among the hits: group {similar.cluster}")
    return "; ".join(parts)


def run_in_words(shared_words: int) -> str:
    """The length of the longest shared run in a column; a dash where it says nothing."""
    return f"{shared_words:,}" if shared_words >= LEAST_RUN else "–"


def parts_in_words(parts: ScoreParts | None) -> str | None:
    """Where a score lies; ``None`` where all of it lies on the text, or that is not known."""
    if parts is None or not (parts.special or parts.elsewhere):
        return None
    told = [f"{signed(parts.text)} nats lie on the text itself"]
    if parts.special:
        told.append(f"{signed(parts.special)} nats lie on special tokens, which stand for no text")
    if parts.elsewhere:
        told.append(f"{signed(parts.elsewhere)} nats come from layers that see no tokens")
    return "; ".join(told)


def grouping_in_words(grouping: Grouping) -> str:
    """What was summed over, and what the intervals of the sums are."""
    return (
        f"Sums, over all documents searched, of {_TIERS[grouping.tier].format(_VALUES['none'])}; "
        f"{_share(grouping.confidence)} intervals by {grouping.draws:,} bootstrap draws."
    )


def index_in_words(index: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What identifies an index, as ``(label, value)``."""
    return [
        (
            _INDEX_LABELS.get(name, name.replace("_", " ").capitalize()),
            f"{value:.0f}" if name == "bytes_per_document" else value_in_words(value),
        )
        for name, value in index.items()
    ]


def _recall(answer: Answer, recall: Recall) -> str:
    """An estimated recall, of lists as long as they are."""
    true = " + ".join(f"{len(hits)}" for hits in (answer.proponents, answer.opponents) if hits)
    return (
        f"they are expected to hold {_share(recall.estimate)} of the true top {true} "
        f"({_share(recall.confidence)} interval {_share(recall.low)} to {_share(recall.high)}, "
        f"from {_counted(recall.sample, 'random document')} scored exactly)."
    )


def _share(share: float) -> str:
    """A share in per cent, which is called 100 only where it is."""
    return "over 99%" if 0.995 <= share < 1.0 else f"{share:.0%}"


def _bounds(answer: Answer) -> str:
    """The largest value that a document left out could have, of each sign."""
    found = answer.certificate
    bounds = {"proponents": found.next_proponent, "opponents": found.next_opponent}
    unit = _UNITS[answer.normalise]
    known = [
        f"{unit.format(f'{bound:.3g}')} for {name}"
        for name, bound in bounds.items()
        if bound is not None
    ]
    return f" (at most {' and '.join(known)})" if known else ""


def _compared(name: ListName, background: Background) -> tuple[bool | None, float | None]:
    """Whether a list stands out, and which share of random queries it is beyond."""
    if name == "Proponents":
        return background.proponents, background.proponents_beyond
    return background.opponents, background.opponents_beyond


def _verdict(name: ListName, background: Background) -> str | None:
    stands_out, beyond = _compared(name, background)
    if stands_out is None or beyond is None:
        return None
    queries = f"{background.queries} random documents in the query's place"
    if stands_out:
        return f"{name} stand out: nearer than the best hits of {beyond:.0f}% of {queries}."
    if beyond >= STANDS_OUT:
        return f"{name} do not stand out: the encoder's own noise reaches as far."
    return (
        f"{name} are not distinguishable from background: {100 - beyond:.0f}% of {queries} have "
        "a hit as near."
    )


def _pairs(condition: object) -> list[tuple[str, object]]:
    """The (operator, value) pairs of a condition in any of its written forms."""
    if not isinstance(condition, (list, tuple)):
        return [("==", condition)]
    if len(condition) == 2 and isinstance(condition[0], str):
        return [(condition[0], condition[1])]
    return [(operator, value) for operator, value in condition]


def _condition(column: str, operator: str, value: object) -> str:
    if value is None:
        return f"{column} is {'missing' if operator == '==' else 'present'}"
    if isinstance(value, (list, tuple, set, frozenset)):
        return f"{column} {operator} {', '.join(map(value_in_words, value))}"
    return f"{column} {'=' if operator == '==' else operator} {value_in_words(value)}"


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
