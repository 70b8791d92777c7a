"""Conditions of a gate: read, printed, and refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wherefrom.audit.conditions import (
    ANSWER_FIELDS,
    HIT_FIELDS,
    LONGEST_CONDITION,
    Condition,
    Term,
    parse_condition,
)
from wherefrom.errors import FilterError
from wherefrom.store.filters import Comparison

COLUMNS = {
    "source": "string",
    "year": "int64",
    "weight": "float64",
    "free": "bool",
    "source url": "string",
    "a.b": "string",
    "it's": "string",
    "score": "string",
}
KINDS = {"hit": HIT_FIELDS, "metadata": COLUMNS, "answer": ANSWER_FIELDS}
ORDERED = ("==", "!=", "<", "<=", ">", ">=")

TEXT = st.text(max_size=8)
VALUES = {
    "string": TEXT,
    "int64": st.integers(-(2**63), 2**63 - 1),
    "float64": st.floats(allow_nan=False, allow_infinity=False).map(lambda x: x + 0.0),
    "bool": st.booleans(),
}


@st.composite
def terms(draw: st.DrawFn, scopes: tuple[str, ...]) -> Term:
    scope = draw(st.sampled_from(scopes))
    name, kind = draw(st.sampled_from(sorted(KINDS[scope].items())))
    operators = [*(ORDERED[:2] if kind == "bool" else ORDERED), "in", "not in"]
    operators += ["contains"] if kind == "string" else []
    operator = draw(st.sampled_from(operators))
    value = draw(VALUES[kind])
    if operator in ("in", "not in"):
        value = tuple(draw(st.lists(VALUES[kind], min_size=1, max_size=3)))
    elif operator in ORDERED[:2] and draw(st.integers(0, 3)) == 0:
        value = None
    return Term(scope, Comparison(name, operator, value))


@st.composite
def conditions(draw: st.DrawFn) -> Condition:
    hits = draw(st.sampled_from([None, "hit", "proponent", "opponent"]))
    found = draw(st.lists(terms(("answer",)), min_size=hits is None, max_size=2))
    if hits is not None:
        found += draw(st.lists(terms(("hit", "metadata")), min_size=1, max_size=2))
    return Condition(hits, tuple(draw(st.permutations(found))), "")


@given(conditions())
@settings(max_examples=100)
def test_what_is_printed_is_read(condition: Condition) -> None:
    assert parse_condition(str(condition), COLUMNS) == condition


def read(text: str) -> tuple[Condition | None, str]:
    """The condition, or why it is none."""
    try:
        return parse_condition(text, COLUMNS), ""
    except FilterError as error:
        return None, str(error)


WORDS = ["proponent", "hit", ".", "year", "==", "'x'", "and", "in", "[", "]", "1", "not", '"', "'"]


@given(st.text(max_size=30) | st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join))
@settings(max_examples=200)
def test_anything_else_is_refused_in_one_line(text: str) -> None:
    parsed, refusal = read(text)
    if parsed is None:
        assert "\n" not in refusal
    else:
        assert parse_condition(str(parsed), COLUMNS) == parsed


@pytest.mark.parametrize(
    ("text", "hits", "expected"),
    [
        (
            "proponent.source == 'blocked' and percentile > 99",
            "proponent",
            [("metadata", "source", "==", "blocked"), ("hit", "percentile", ">", 99.0)],
        ),
        ("year=1861", "hit", [("metadata", "year", "==", 1861)]),
        ("  opponent . rank<=3 ", "opponent", [("hit", "rank", "<=", 3)]),
        ("score > -1e-3", "hit", [("hit", "score", ">", -0.001)]),
        ("metadata.score == 'high'", "hit", [("metadata", "score", "==", "high")]),
        ("\"score\" == 'high'", "hit", [("metadata", "score", "==", "high")]),
        ("hit.metadata.'score' == 'high'", "hit", [("metadata", "score", "==", "high")]),
        ("'source url' contains \"wiki\"", "hit", [("metadata", "source url", "contains", "wiki")]),
        ("a.b in ('x', 'y')", "hit", [("metadata", "a.b", "in", ("x", "y"))]),
        ("year not in [1, 2]", "hit", [("metadata", "year", "not in", (1, 2))]),
        (r"'it\'s' == 'a\\b'", "hit", [("metadata", "it's", "==", "a\\b")]),
        ("source is missing", "hit", [("metadata", "source", "==", None)]),
        ("source is present", "hit", [("metadata", "source", "!=", None)]),
        ("free == true", "hit", [("metadata", "free", "==", True)]),
        ("weight > 1", "hit", [("metadata", "weight", ">", 1.0)]),
        ("answer.certified == false", None, [("answer", "certified", "==", False)]),
        (
            "answer.tier == 'stored' and proponent.rank == 1",
            "proponent",
            [("answer", "tier", "==", "stored"), ("hit", "rank", "==", 1)],
        ),
        (
            "rank == 1 and proponent.year == 1",
            "proponent",
            [("hit", "rank", "==", 1), ("metadata", "year", "==", 1)],
        ),
    ],
)
def test_conditions(text: str, hits: str | None, expected: list[tuple]) -> None:
    condition = parse_condition(text, COLUMNS)
    assert condition.hits == hits
    assert condition.given == text
    found = [
        (t.of, t.comparison.column, t.comparison.operator, t.comparison.value)
        for t in condition.terms
    ]
    assert found == expected
    assert [type(value) for *_, value in found] == [type(value) for *_, value in expected]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "it ends; write a field"),
        ("   ", "it ends; write a field"),
        ("year", "it ends; write an operator"),
        ("year ==", "it ends; write a value"),
        ("year == 1 and", "it ends; write a field"),
        ("year == 1 or year == 2", "for 'or', give several conditions"),
        ("year == 1 year == 2", "'year' stands at 11"),
        ("year == 'x", "a quote is not closed at 9"),
        ("year == 1;", "';' has no meaning at 10"),
        ("year == __import__('os')", "'__import__' stands at 9"),
        ("year == 1 and (rank == 1)", "'(' stands at 15"),
        ("year is 1", "'missing' or 'present'"),
        ("year not 1", "'in' after 'not'"),
        ("year in 1", "a list, as"),
        ("year in []", "a value: a string in quotes"),
        ("year in [1", "',' or ']'"),
        ("year in [1)", "',' or ']'"),
        ("yeer == 1", "no field or metadata column 'yeer'; hits have score, percentile"),
        ("metadata.rank == 1", "no field or metadata column 'rank'"),
        ("answer.rank == 1", "answers have no 'rank'; they have certified"),
        ("proponent.rank == 1 and opponent.rank == 2", "not proponent and opponent"),
        ("hit.rank == 1 and opponent.rank == 2", "not hit and opponent"),
        ("year == 'x'", "got 'x'; the column holds int64"),
        ("year == 1.5", "got 1.5; the column holds int64"),
        ("year == 9223372036854775808", "the column holds int64"),
        ("percentile > '99'", "got '99'; the column holds float64"),
        ("percentile > 1e999", "1e999 is beyond all numbers"),
        ("percentile contains 9", "'contains' is for strings"),
        ("free > true", "'>' has no meaning for bool"),
        ("answer.certified == 1", "got 1; the column holds bool"),
        ("source == " + "'" + "x" * LONGEST_CONDITION + "'", "give at most 2,000"),
    ],
)
def test_what_is_refused(text: str, told: str) -> None:
    with pytest.raises(FilterError) as error:
        parse_condition(text, COLUMNS)
    assert told in str(error.value)


def test_columns_of_no_index() -> None:
    with pytest.raises(FilterError, match="the index has none"):
        parse_condition("year == 1", {})


def test_hostile_conditions_end_quickly() -> None:
    for text in ("(" * 1999, "'\\" * 900, "1" * 2000, "year in [" + "1," * 900, "." * 2000):
        with pytest.raises(FilterError):
            parse_condition(text, COLUMNS)
