"""The receipt of an answer: what removing its documents did, in words."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from wherefrom.errors import EvaluationError
from wherefrom.evaluation.counterfactual import RANDOM
from wherefrom.evaluation.evidence import Evidence, plain
from wherefrom.evaluation.retraining import NO_CHANCE
from wherefrom.evaluation.statistics import CONFIDENCE
from wherefrom.gradients.objectives.base import JSON
from wherefrom.query.printable import excerpt
from wherefrom.query.questions import Question

__all__ = ["receipt", "what_was_asked", "with_receipts"]

_EXCERPT = 60
_BETWEEN = "\n\n"


def what_was_asked(questions: Sequence[Question]) -> list[JSON]:
    """Questions as plain JSON, for the record.

    Returns:
        Of a text its ``prompt``, ``completion`` and ``contrast``; of a set its ``queries`` and
        ``reduce``; of tensors the ``target`` (where it is one number) and ``sha256`` of inputs and
        target. Of several weighted examples a list of these, with the ``weight`` of each.
    """
    return [plain(_asked(question)) for question in questions]


def with_receipts(evidence: Evidence, questions: Sequence[Question]) -> Evidence:
    """Evidence of removals whose ``details`` say what was asked, and tell of each change in words.

    Args:
        evidence: From :func:`removals`.
        questions: Those that the models were measured by.

    Returns:
        With ``details["receipt"]``, the paragraphs, and of each of ``details["queries"]`` the
        ``asked`` and its own ``receipt``.

    Raises:
        EvaluationError: It is evidence of another kind, or of more questions.
    """
    _require(evidence)
    asked = what_was_asked(questions)
    details: Any = evidence.details
    if max(one["query"] for one in details["queries"]) >= len(asked):
        raise EvaluationError(f"evidence of more than {len(asked)} questions; give all of them")
    queries: list[dict[str, Any]] = [
        {**one, "asked": asked[one["query"]]} for one in details["queries"]
    ]
    named = replace(evidence, details={**details, "queries": plain(queries)})
    for one in queries:
        one["receipt"] = _paragraphs(receipt(named, one["query"]))
    told = {"receipt": _paragraphs(receipt(named)), "queries": plain(queries)}
    return replace(evidence, details={**details, **told})


def receipt(evidence: Evidence, query: int | None = None) -> str:
    """What removing documents did, in a paragraph for each number of documents.

    Args:
        evidence: From :func:`removals`.
        query: One of its queries; by default the only one, or the mean of all.

    Raises:
        EvaluationError: It is evidence of another kind, or the query was not asked.
    """
    _require(evidence)
    # Details are plain JSON, whose form removals() decides.
    details: Any = evidence.details
    known = {one["query"]: one for one in details["queries"]}
    if query is not None and query not in known:
        raise EvaluationError(f"query {query} was not asked; choose among {sorted(known)}")
    if query is None and len(known) == 1:
        (query,) = known
    if query is None:
        entries, what = details["removals"], f"the mean of {len(known)} queries"
    else:
        entries, what = known[query]["removals"], f"query {query}"
        if "asked" in known[query]:
            what += f" ({_in_words(known[query]['asked'])})"
    # Seeds that make no difference are one.
    seeds = 1 if NO_CHANCE in evidence.notes else len(evidence.setting["seeds"])  # type: ignore[arg-type]
    trained = f"retrained with {seeds} seeds" if seeds > 1 else "retrained with one seed"
    draws: Any = evidence.setting["random_draws"]
    paragraphs = []
    for heading in dict.fromkeys(entry["what"] for entry in entries):
        own = [entry for entry in entries if entry["what"] == heading]
        paragraphs.append(_paragraph(own, what, trained, draws))
    return _BETWEEN.join(paragraphs)


def _require(evidence: Evidence) -> None:
    if evidence.kind != "counterfactual":
        raise EvaluationError(f"evidence of kind {evidence.kind!r} holds no removals to tell of")


def _paragraphs(text: str) -> list[JSON]:
    return [*text.split(_BETWEEN)]


def _asked(question: Question) -> Any:
    if question.asked is not None:
        return asdict(question.asked)
    terms = [
        (weight, _example(batch.inputs[0], batch.targets[0])) for weight, batch in question.terms
    ]
    if len(terms) == 1 and terms[0][0] == 1.0:
        return terms[0][1]
    return [{"weight": weight, **example} for weight, example in terms]


def _example(inputs: Tensor, target: Tensor) -> dict[str, Any]:
    parts = [_as_bytes(part) for part in (inputs, target)]
    digest = hashlib.sha256(b"".join(parts)).hexdigest()
    number = {"target": target.item()} if target.numel() == 1 else {}
    return {**number, "sha256": digest}


def _as_bytes(values: Tensor) -> bytes:
    # Not by numpy's own: it has no bfloat16.
    flat = values.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return flat.numpy().tobytes()


def _in_words(asked: Any) -> str:
    """What :func:`what_was_asked` says of a question, cut to fit a sentence."""
    if isinstance(asked, list):
        return f"{len(asked)} weighted examples"
    if "queries" in asked:
        return (
            f"{asked['reduce']} of {len(asked['queries'])}: {_in_words(asked['queries'][0])}, ..."
        )
    if "sha256" in asked:
        target = f"target {asked['target']:g}" if "target" in asked else "an example"
        return f"{target}, SHA-256 {asked['sha256'][:12]}"
    said = _quoted(asked["completion"])
    if asked["prompt"]:
        said += f" after {_quoted(asked['prompt'])}"
    return said if asked["contrast"] is None else f"{said}, not {_quoted(asked['contrast'])}"


def _quoted(text: str) -> str:
    return json.dumps(excerpt(text, _EXCERPT), ensure_ascii=False)


def _paragraph(entries: Sequence[Mapping[str, Any]], what: str, trained: str, draws: int) -> str:
    """The first method in full, the others beside it."""
    first, *others = entries
    end, count, _ = first["what"].split(" ")
    predicted = first["predicted"]
    told = (
        f"Without the {count} documents that {first['method']} scores "
        f"{'highest' if end == 'top' else 'lowest'}, {trained}, the measurement of {what} changes "
        f"by {_nats(first['change'])}"
        f"{'' if predicted is None else f'; the scores predicted {predicted:+.4g} nats'}."
    )
    for entry in others:
        if entry["method"] == RANDOM:
            told += (
                f" Without {count} random documents ({draws} draw{'s' if draws > 1 else ''}) it "
                f"changes by {_nats(entry['change'])}."
            )
        else:
            told += f" Without those of {entry['method']}: {_nats(entry['change'])}"
            beyond = first["beyond"].get(entry["method"])
            told += "." if beyond is None else f"; the difference is {_nats(beyond)}."
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
