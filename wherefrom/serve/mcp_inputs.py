"""What each tool of the MCP server is called with: typed, described and limited."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from wherefrom.records import Normalise, Rerank, Sign
from wherefrom.serve.requests import COMPLETION_CHARACTERS, PROMPT_CHARACTERS, WhereField

__all__ = [
    "ExplainHit",
    "GetDocument",
    "IndexInfo",
    "SearchMetadata",
    "TraceOutput",
]


Prompt = Annotated[
    str,
    Field(
        max_length=PROMPT_CHARACTERS,
        description="What the model was given, exactly, spaces at its end included; may be empty. "
        "For a classifier of text, the text.",
    ),
]
Completion = Annotated[
    str,
    Field(
        min_length=1,
        max_length=COMPLETION_CHARACTERS,
        description="What the model said, exactly: prompt and completion are joined as they are, "
        'so that it mostly starts with a space. For a classifier, the label, as "positive".',
    ),
]
Contrast = Annotated[
    Annotated[str, Field(min_length=1, max_length=COMPLETION_CHARACTERS)] | None,
    Field(
        description="What the model might have said instead: scores are then of the completion's "
        "log-likelihood minus that of this text."
    ),
]
DocId = Annotated[
    str,
    Field(
        min_length=1,
        max_length=1_000,
        description="The exact doc_id that another tool returned.",
    ),
]
_EXCERPT = "How many characters to quote of each document; get_document reads on."


class _Input(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TraceOutput(_Input):
    """Of ``trace_output``."""

    completion: Completion
    prompt: Prompt = ""
    contrast: Contrast = None
    k: int = Field(
        default=5, ge=1, le=50, description="At most how many proponents and how many opponents."
    )
    sign: Sign = Field(default="both", description="Which lists to return.")
    where: WhereField = Field(default_factory=dict)
    normalise: Normalise = Field(
        default="none",
        description="What documents are ranked by: scores (none), cosines in the whitened space, "
        "or relatif, scores divided by the documents' norms, which keeps long and unusual "
        "documents from crowding out the rest. The score stays what is returned as score.",
    )
    rerank: Rerank = Field(
        default="auto",
        description="stored: scores of the stored, compressed vectors, quickest; recompute: the "
        "best documents are run through the model again for exact scores; auto: does so where it "
        "takes few seconds.",
    )
    similarity: bool = Field(
        default=False,
        description="Also say how alike each hit and the question are in words (BM25 rank, longest "
        "shared run of words, near-duplicates), for influence and similarity are not the same.",
    )
    group_by: list[Annotated[str, Field(max_length=1_000)]] = Field(
        default_factory=list,
        max_length=3,
        description="Also sum the influence of all documents, not of the hits only, by these "
        "metadata columns.",
    )
    excerpt: int = Field(default=300, ge=0, le=4_000, description=_EXCERPT)


class ExplainHit(_Input):
    """Of ``explain_hit``."""

    doc_id: DocId
    completion: Completion
    prompt: Prompt = ""
    contrast: Contrast = None
    most: int = Field(
        default=12,
        ge=1,
        le=200,
        description="At most how many layers, and how many tokens of each text, to list: those of "
        "the largest shares. What the rest adds up to is always said.",
    )


class GetDocument(_Input):
    """Of ``get_document``."""

    doc_id: DocId
    offset: int = Field(
        default=0, ge=0, description="First character to quote: 0, or the next_offset of before."
    )
    length: int = Field(
        default=4_000, ge=1, le=20_000, description="At most how many characters to quote."
    )


class SearchMetadata(_Input):
    """Of ``search_metadata``."""

    where: WhereField = Field(default_factory=dict)
    offset: int = Field(
        default=0,
        ge=0,
        le=2**53,
        description="How many documents to pass over: 0, or the next_offset of before.",
    )
    limit: int = Field(default=20, ge=1, le=100, description="At most how many to list.")
    excerpt: int = Field(default=120, ge=0, le=1_000, description=_EXCERPT)


class IndexInfo(_Input):
    """Of ``index_info``, which is asked nothing."""
