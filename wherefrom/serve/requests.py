"""What can be asked of the service, with the limits of each field: pydantic models.

A filter is written as everywhere (:mod:`wherefrom.store.filters`), in JSON::

    {"president": "Abraham Lincoln", "year": ["<", 1900], "party": [["!=", null], ["!=", "Whig"]]}
"""

from __future__ import annotations

from typing import Annotated, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    StringConstraints,
)

from wherefrom.records import Normalise, Query, Rerank, Sign
from wherefrom.store import Where

__all__ = [
    "COMPLETION_CHARACTERS",
    "PROMPT_CHARACTERS",
    "DocumentsRequest",
    "ExplainRequest",
    "GroupsRequest",
    "QueryRequest",
    "WhereField",
]

PROMPT_CHARACTERS = 100_000
COMPLETION_CHARACTERS = 20_000
_NAME_CHARACTERS = 1_000
_VALUE_CHARACTERS = 10_000


def _valid_unicode(text: str) -> str:
    """Refuse what JSON can write and UTF-8 cannot.

    Raises:
        ValueError: It holds a lone surrogate.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("holds half of a surrogate pair, which is no character") from error
    return text


def _whole(value: object) -> object:
    """A number written with a point but without a fraction, which JSON counts among the whole."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


_Text = Annotated[StrictStr, AfterValidator(_valid_unicode)]
_Completion = Annotated[_Text, StringConstraints(min_length=1, max_length=COMPLETION_CHARACTERS)]
_Name = Annotated[_Text, StringConstraints(max_length=_NAME_CHARACTERS)]
_Finite = Annotated[float, Field(strict=True, allow_inf_nan=False)]
_WHOLE = BeforeValidator(_whole)
_Damping = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=0.0)]
_Value = (
    StrictBool
    | StrictInt
    | _Finite
    | Annotated[_Text, StringConstraints(max_length=_VALUE_CHARACTERS)]
    | None
)
_Operand = _Value | Annotated[list[_Value], Field(max_length=1_000)]
_Operator = Annotated[_Text, StringConstraints(max_length=10)]
_Pair = tuple[_Operator, _Operand]
_Condition = _Value | _Pair | Annotated[list[_Pair], Field(min_length=1, max_length=20)]

WhereField = Annotated[
    dict[_Name, _Condition],
    Field(
        max_length=20,
        description="Filter on metadata, all of which must hold: a value to equal, [operator, "
        "value], or a list of such pairs. Operators: == != < <= > >= in, not in, contains; null "
        "is a missing value.",
        examples=[{"year": ["<", 1900], "party": ["in", ["Whig", "Democratic"]]}],
    ),
]
"""A filter as JSON writes it."""


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Asked(_Request):
    """A question about one output of the model.

    Attributes:
        prompt: What the model was given.
        completion: What it said.
        contrast: What it might have said instead.
        damping: Another than the index's.
    """

    prompt: Annotated[_Text, StringConstraints(max_length=PROMPT_CHARACTERS)] = Field(
        "", description="What the model was given; for a classifier, the text."
    )
    completion: _Completion = Field(description="What it said; for a classifier, the label.")
    contrast: _Completion | None = Field(
        None,
        description="What it might have said instead: scores are then of the difference of the "
        "two log-likelihoods.",
    )

    damping: _Damping | None = Field(
        None, description="Another than the index's, in units of a layer's mean eigenvalue."
    )

    @property
    def question(self) -> Query:
        """The question as a record."""
        return Query(self.prompt, self.completion, self.contrast)


class _Filtered(_Request):
    """A request about documents whose metadata pass a filter.

    Attributes:
        where: The filter.
    """

    where: WhereField = Field(default_factory=dict)

    @property
    def filter(self) -> Where:
        """The filter as the index takes it."""
        return cast("Where", self.where)


class QueryRequest(_Asked, _Filtered):
    """Which documents made the model say that?

    Attributes:
        k: At most how many proponents and how many opponents.
        sign: Which of them.
        rerank: ``stored``, ``recompute`` or ``auto``, as for :meth:`wherefrom.Index.query`.
        normalise: What to rank by.
        explain: Whether to add the shares of layers and tokens.
        similarity: Whether to add BM25 and the like.
        group_by: Metadata columns to sum the influence of all documents by.
    """

    k: Annotated[StrictInt, Field(ge=1, le=100), _WHOLE] = Field(
        10, description="At most how many proponents and how many opponents."
    )
    sign: Sign = Field("both", description="Proponents have positive scores, opponents negative.")
    rerank: Rerank = Field(
        "auto",
        description="Rank by scores of stored vectors, or run the best documents again for exact "
        "ones; auto does so where it is quick.",
    )
    normalise: Normalise = Field(
        "none", description="Rank by scores, by cosines, or by scores over documents' norms."
    )
    explain: StrictBool = Field(
        False, description="Add the shares of each hit's score by layer and by token."
    )
    similarity: StrictBool = Field(
        False, description="Add how alike hits and question are in words (BM25, shared runs)."
    )
    group_by: Annotated[list[_Name], Field(max_length=10)] = Field(
        default_factory=list,
        description="Metadata columns to sum the influence of all documents by.",
    )


class ExplainRequest(_Asked):
    """What the scores of some documents are made of.

    Attributes:
        doc_ids: The documents.
    """

    doc_ids: Annotated[list[_Name], Field(min_length=1, max_length=20)] = Field(
        description="The documents."
    )


class GroupsRequest(_Asked, _Filtered):
    """The influence of all documents, summed by a metadata column.

    Attributes:
        by: The column.
        bins: Into how many bins of about equally many documents to cut a column of numbers.
    """

    by: _Name = Field(description="The metadata column.")
    bins: Annotated[StrictInt, Field(ge=2, le=100), _WHOLE] | None = Field(
        None,
        description="Cut a column of numbers into so many bins of about equally many documents.",
    )


class DocumentsRequest(_Filtered):
    """Documents whose metadata pass a filter, a page of them.

    Attributes:
        offset: How many to leave out.
        limit: At most how many to give.
    """

    offset: Annotated[StrictInt, Field(ge=0, le=2**53), _WHOLE] = Field(
        0, description="How many to leave out."
    )
    limit: Annotated[StrictInt, Field(ge=1, le=200), _WHOLE] = Field(
        50, description="At most how many to give."
    )
