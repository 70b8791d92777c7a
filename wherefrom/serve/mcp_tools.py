"""The five tools of the MCP server: a request in, structured content and a short text out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel

from wherefrom.query.interpretation.explanation import Explanation, Grouping, TokenShare
from wherefrom.query.measurement import measurement_of
from wherefrom.query.wording import (
    NO_PROOF,
    background_in_words,
    certificate_in_words,
    measured,
    slope_in_words,
)
from wherefrom.records import SCORE_CONTRACT, Hit
from wherefrom.serve import mcp_inputs as inputs
from wherefrom.serve import mcp_outputs as outputs
from wherefrom.serve import mcp_text
from wherefrom.serve.mcp_quoting import Fence, clean, cleaned, page
from wherefrom.serve.requests import DocumentsRequest, ExplainRequest, QueryRequest

if TYPE_CHECKING:
    from wherefrom.query.answer import Answer
    from wherefrom.serve.service import Service

__all__ = [
    "Told",
    "explain_hit",
    "get_document",
    "index_info",
    "search_metadata",
    "trace_output",
]

_GROUPS_LISTED = 20
_PRIVATE = ("path",)
"""Of what names an index, what concerns its machine only."""

Share = TypeVar("Share", outputs.LayerPart, outputs.TokenPart)


@dataclass(frozen=True, slots=True)
class Told:
    """What a tool returns.

    Attributes:
        content: Structured and complete.
        text: The same for reading, with all that is quoted between marks.
    """

    content: BaseModel
    text: str


async def trace_output(service: Service, asked: inputs.TraceOutput) -> Told:
    """The documents that made an output more, or less, likely.

    Raises:
        WherefromError: As :meth:`~wherefrom.serve.service.Service.query`.
    """
    request = QueryRequest(**asked.model_dump(exclude={"excerpt"}))
    answer = await service.query(request)
    trace = outputs.Trace(
        contract=measured(answer).contract,
        no_proof=NO_PROOF,
        measured=measured(answer).quantity,
        value=answer.log_likelihood,
        scored_tokens=answer.scored_tokens,
        trust=_trust(answer),
        sign=answer.sign,
        proponents=[_traced(answer, hit, asked.excerpt) for hit in answer.proponents],
        opponents=[_traced(answer, hit, asked.excerpt) for hit in answer.opponents],
        groups=[_groups(grouping) for grouping in answer.groups],
        damping=answer.damping,
        index={name: cleaned(v) for name, v in answer.index.items() if name not in _PRIVATE},
        seconds=answer.seconds,
    )
    return Told(trace, mcp_text.of_trace(answer, trace, Fence()))


async def explain_hit(service: Service, asked: inputs.ExplainHit) -> Told:
    """What the score of one document is made of.

    Raises:
        WherefromError: As :meth:`~wherefrom.serve.service.Service.explain`.
    """
    question = asked.model_dump(exclude={"doc_id", "most"})
    request = ExplainRequest(**question, doc_ids=[asked.doc_id])
    contract = measurement_of(request.question, service.info()["objective"]).contract
    explained = _explained(await service.explain(request), contract, asked.most)
    return Told(explained, mcp_text.of_explanation(explained, Fence()))


async def get_document(service: Service, asked: inputs.GetDocument) -> Told:
    """A page of a document.

    Raises:
        WherefromError: As :meth:`~wherefrom.serve.service.Service.document`.
    """
    found = await service.document(asked.doc_id)
    end = asked.offset + asked.length
    document = outputs.QuotedDocument(
        doc_id=found.doc_id,
        parent_id=found.parent_id,
        char_start=found.char_start,
        metadata=cleaned(found.metadata),
        content_hash=found.content_hash,
        characters=len(found.text),
        offset=asked.offset,
        next_offset=end if end < len(found.text) else None,
        text=page(found.text, asked.offset, asked.length),
    )
    return Told(document, mcp_text.of_document(document, Fence()))


async def search_metadata(service: Service, asked: inputs.SearchMetadata) -> Told:
    """A page of the documents whose metadata pass a filter.

    Raises:
        WherefromError: As :meth:`~wherefrom.serve.service.Service.documents`.
    """
    request = DocumentsRequest(**asked.model_dump(exclude={"excerpt"}))
    found = await service.documents(request.filter, request.offset, request.limit)
    end = found.offset + len(found.documents)
    listed = outputs.DocumentList(
        total=found.total,
        offset=found.offset,
        next_offset=end if found.documents and end < found.total else None,
        documents=[
            outputs.ListedDocument(
                doc_id=document.doc_id,
                metadata=cleaned(document.metadata),
                excerpt=page(document.text, 0, asked.excerpt),
                characters=len(document.text),
            )
            for document in found.documents
        ],
    )
    return Told(listed, mcp_text.of_documents(listed, Fence()))


async def index_info(service: Service, asked: inputs.IndexInfo) -> Told:
    """What the index holds, and was built with.

    Raises:
        WherefromError: As :meth:`~wherefrom.serve.service.Service.info`.
    """
    summary = outputs.IndexSummary(
        contract=SCORE_CONTRACT, no_proof=NO_PROOF, index=cleaned(service.info())
    )
    return Told(summary, mcp_text.of_index(summary, Fence()))


def _trust(answer: Answer) -> outputs.Trust:
    certificate = answer.certificate
    sentences = (
        certificate_in_words(answer),
        slope_in_words(answer),
        background_in_words(answer),
    )
    background = certificate.background
    return outputs.Trust(
        in_words=" ".join(sentence for sentence in sentences if sentence),
        tier=certificate.tier,
        certified=certificate.certified,
        documents=certificate.documents,
        candidates=certificate.candidates,
        expected_recall=None if certificate.recall is None else certificate.recall.estimate,
        proponents_stand_out=None if background is None else background.proponents,
        opponents_stand_out=None if background is None else background.opponents,
    )


def _traced(answer: Answer, hit: Hit, excerpt: int) -> outputs.TracedHit:
    likeness = None if answer.similarity is None else answer.similarity.of(hit.doc_id)
    return outputs.TracedHit(
        rank=hit.rank,
        doc_id=hit.doc_id,
        score=hit.score,
        percentile=hit.percentile,
        cosine=hit.cosine,
        relatif=hit.relatif,
        metadata=cleaned(hit.metadata),
        parent_id=hit.parent_id,
        excerpt=page(hit.text, 0, excerpt),
        characters=len(hit.text),
        likeness=None
        if likeness is None
        else outputs.Likeness(
            bm25_rank=likeness.bm25_rank,
            shared_words=likeness.shared_words,
            cluster=likeness.cluster,
            flag=likeness.flag,
        ),
    )


def _groups(grouping: Grouping) -> outputs.Groups:
    strongest = sorted(grouping.groups, key=lambda group: -abs(group.total))[:_GROUPS_LISTED]
    return outputs.Groups(
        column=clean(grouping.column),
        tier=grouping.tier,
        confidence=grouping.confidence,
        groups=[
            outputs.GroupSum(
                value=cleaned(group.value),
                documents=group.documents,
                total=group.total,
                low=group.low,
                high=group.high,
                mean=group.mean,
            )
            for group in strongest
        ],
        omitted=len(grouping.groups) - len(strongest),
    )


def _explained(explanation: Explanation, contract: str, most: int) -> outputs.ExplainedHit:
    (hit,) = explanation.hits
    layers, other_layers = _strongest(
        [
            outputs.LayerPart(name=clean(layer.name), share=share)
            for layer, share in zip(explanation.layers, hit.layers, strict=True)
        ],
        most,
    )
    return outputs.ExplainedHit(
        contract=contract,
        doc_id=hit.doc_id,
        score=hit.score,
        layers=layers,
        other_layers=other_layers,
        tokens_are=explanation.tokens_are,
        document=None if hit.tokens is None else _tokens(hit.tokens, most),
        question=None
        if hit.question is None
        else [_tokens(text.tokens, most) for text in hit.question],
        elsewhere=hit.elsewhere,
        question_elsewhere=hit.question_elsewhere,
    )


def _tokens(shares: Sequence[TokenShare], most: int) -> outputs.TokenParts:
    tokens, rest = _strongest(
        [
            outputs.TokenPart(
                text=page(token.text, 0, len(token.text)),
                start=token.start,
                end=token.end,
                share=token.share,
            )
            for token in shares
            if token.share is not None
        ],
        most,
    )
    return outputs.TokenParts(tokens=tokens, rest=rest)


def _strongest(parts: list[Share], most: int) -> tuple[list[Share], float]:
    """Those of the largest absolute shares, and the sum of the others."""
    ordered = sorted(parts, key=lambda part: -abs(part.share))
    return ordered[:most], sum(part.share for part in ordered[most:])
