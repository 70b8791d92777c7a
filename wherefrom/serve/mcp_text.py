"""Results of the tools as short texts: first what the tool says, then what it quotes, fenced."""

from __future__ import annotations

import json

from wherefrom.query.answer import Answer
from wherefrom.query.wording import (
    empty_in_words,
    measured,
    percentile_in_words,
    ranked_by,
    signed,
    worth_in_words,
)
from wherefrom.serve.mcp_outputs import (
    DocumentList,
    ExplainedHit,
    Groups,
    IndexSummary,
    QuotedDocument,
    TokenParts,
    Trace,
    TracedHit,
)
from wherefrom.serve.mcp_quoting import Fence

__all__ = ["of_document", "of_documents", "of_explanation", "of_index", "of_trace"]

_TOKENS_ARE = {
    "predictions": "a token's share is that of its prediction, from all that stands before it",
    "positions": "a token's share is of what the layers did at its position",
}


def of_trace(answer: Answer, trace: Trace, fence: Fence) -> str:
    """A trace: what was measured, how far to trust it, then the hits."""
    lines = [
        f"{measured(answer).quantity}: {worth_in_words(answer)}.",
        f"Trust: {trace.trust.in_words}",
        f"{trace.contract}. {trace.no_proof}",
    ]
    ranked = ranked_by(answer)
    if ranked is not None:
        lines.append(f"The lists are {ranked[1]}.")
    if not answer.hits:
        return "\n".join([*lines, empty_in_words(answer)])
    lines.append(trace.notice)
    for title, does, hits in (
        ("Proponents", measured(answer).raised, trace.proponents),
        ("Opponents", measured(answer).lowered, trace.opponents),
    ):
        if hits:
            lines.append(f"{title} ({does}):")
            lines += [_hit(hit, fence) for hit in hits]
    lines += [_grouped(groups, fence) for groups in trace.groups]
    return "\n".join(lines)


def of_explanation(found: ExplainedHit, fence: Fence) -> str:
    """The parts of a score: layers, then tokens on both sides."""
    lines = [
        f"Score {signed(found.score)} nats, computed anew and exactly; its layers sum to it.",
        f"{found.contract}.",
        "Layers: "
        + ", ".join(f"{layer.name} {signed(layer.share)}" for layer in found.layers)
        + f"; all others {signed(found.other_layers)}.",
        found.notice,
    ]
    if found.tokens_are is not None:
        lines.append(
            f"Tokens: {_TOKENS_ARE[found.tokens_are]}; what they lack of the score lies on special "
            "tokens, or comes from layers that see no tokens."
        )
    if found.document is not None:
        facts = {"doc_id": found.doc_id, **_shares(found.document)}
        lines.append(fence.quote("tokens of the document, in nats", facts))
    for part in found.question or ():
        lines.append(fence.quote("tokens of the question, in nats", _shares(part)))
    return "\n".join(lines)


def of_document(found: QuotedDocument, fence: Fence) -> str:
    """A page of a document, and how to read on."""
    shown = f"characters {found.offset} to {found.next_offset or found.characters}"
    lines = [
        found.notice,
        fence.quote(
            f"{shown} of {found.characters}",
            {"doc_id": found.doc_id, "parent_id": found.parent_id, "metadata": found.metadata},
            found.text,
        ),
    ]
    if found.offset >= found.characters:
        lines.append(f"Nothing is at offset {found.offset}; the text ends at {found.characters}.")
    if found.next_offset is not None:
        lines.append(f"The text goes on: ask again with offset={found.next_offset}.")
    return "\n".join(lines)


def of_documents(found: DocumentList, fence: Fence) -> str:
    """A list of documents, and how to read on."""
    lines = [f"{found.total:,} documents pass."]
    if found.documents:
        lines.append(found.notice)
    for place, document in enumerate(found.documents, start=found.offset + 1):
        facts = {"doc_id": document.doc_id, "metadata": document.metadata}
        label = f"document {place}, {document.characters} characters"
        lines.append(fence.quote(label, facts, document.excerpt))
    if found.next_offset is not None:
        lines.append(f"The list goes on: ask again with offset={found.next_offset}.")
    return "\n".join(lines)


def of_index(found: IndexSummary, fence: Fence) -> str:
    """What an index is."""
    return "\n".join(
        [f"{found.contract}. {found.no_proof}", found.notice, fence.quote("the index", found.index)]
    )


def _hit(hit: TracedHit, fence: Fence) -> str:
    marks = [f"{hit.rank}. {signed(hit.score)} nats"]
    if hit.percentile is not None:
        marks.append(f"percentile {percentile_in_words(hit.percentile)}")
    marks.append(f"cosine {signed(hit.cosine)}")
    if hit.likeness is not None:
        marks.append(f"BM25 rank {hit.likeness.bm25_rank:,}")
        marks.append(f"{hit.likeness.shared_words} shared words in a row")
        if hit.likeness.cluster is not None:
            marks.append(f"near-duplicates: group {hit.likeness.cluster}")
        if hit.likeness.flag is not None:
            marks.append(hit.likeness.flag)
    shown = min(len(hit.excerpt), hit.characters)
    marks.append(f"{shown} of {hit.characters} characters")
    facts = {"doc_id": hit.doc_id, "parent_id": hit.parent_id, "metadata": hit.metadata}
    return fence.quote(", ".join(marks), facts, hit.excerpt)


def _grouped(groups: Groups, fence: Fence) -> str:
    facts = {
        json.dumps(group.value, ensure_ascii=False): f"{signed(group.total)} "
        f"({signed(group.low)} to {signed(group.high)}), {group.documents:,} documents"
        for group in groups.groups
    }
    label = f"influence of all documents in nats, summed ({groups.confidence:.0%} intervals)"
    if groups.omitted:
        label += f"; {groups.omitted:,} more groups left out"
    return fence.quote(label, {"column": groups.column, **facts})


def _shares(parts: TokenParts) -> dict[str, object]:
    listed = [[token.text, token.start, signed(token.share)] for token in parts.tokens]
    return {"[token, start, nats]": listed, "all other tokens": signed(parts.rest)}
