"""Entries are read back to the last bit, and nothing else is read as one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from answers import answer, every_answer
from wherefrom.audit.canonical import canonical_json, read_strictly
from wherefrom.audit.entries import Entry, Failure, Wanted, read_answer, read_entries
from wherefrom.audit.gate import Finding
from wherefrom.errors import IntegrityError, QueryError
from wherefrom.records import Query

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)
FOUND = (Finding("rank == 1", "fired", "proponent", "speech 1", 1),)
FAILED = Entry(
    "b",
    Query("p", ""),
    {"k": 3},
    Wanted(True, False, {"year": 10}),
    failure=Failure("QueryError", "the completion is empty"),
    fail_if=("rank == 1",),
)


def entry(**fields: Any) -> Entry:
    return Entry.of(answer(**fields), "a", fail_if=("rank == 1",), gate=FOUND, tags={"n": [1.5]})


def line(one: Entry) -> bytes:
    return canonical_json(one.to_dict()) + b"\n"


@pytest.mark.parametrize("name", sorted(every_answer()))
def test_answers_are_read_back(name: str) -> None:
    asked = every_answer()[name]
    fields = json.loads(json.dumps(asked.to_dict()))
    again = read_answer(fields)
    assert canonical_json(again.to_dict()) == canonical_json(asked.to_dict())
    assert again.hits == asked.hits
    assert again.certificate == asked.certificate
    assert again.explanation == asked.explanation
    assert again.similarity == asked.similarity
    assert again.groups == asked.groups
    assert again.query == asked.query


def test_entries_are_read_back() -> None:
    found = list(read_entries([line(entry()), line(FAILED)], "f"))
    assert [line(one) for one in found] == [line(entry()), line(FAILED)]
    assert found[0].gate == FOUND
    assert found[0].wanted == Wanted()
    assert found[1] == FAILED


def test_an_entry_says_what_came_of_its_question() -> None:
    fields = entry().to_dict()
    assert fields["id"] == "a"
    assert fields["tags"] == {"n": [1.5]}
    assert fields["fail_if"] == ["rank == 1"]
    (finding,) = fields["gate"]
    assert finding == {
        "condition": "rank == 1",
        "verdict": "fired",
        "hit": "proponent",
        "doc_id": "speech 1",
        "rank": 1,
    }
    assert {key: fields[key] for key in answer().to_dict()} == answer().to_dict()
    assert "gate" not in Entry.of(answer(), "a").to_dict()
    failed = FAILED.to_dict()
    assert (failed["schema"], failed["error"]) == ("wherefrom-failure/1", "QueryError")


def test_tensors_make_no_entries() -> None:
    with pytest.raises(QueryError, match="tensors"):
        Entry.of(answer(query=None), "a")
    fields = {**entry().to_dict(), "query": None}
    with pytest.raises(IntegrityError):
        Entry.from_dict(json.loads(json.dumps(fields)))


def changed(**fields: Any) -> bytes:
    return canonical_json({**entry().to_dict(), **fields}) + b"\n"


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (line(entry())[:-1], "line 1 is cut off"),
        (line(entry())[:-9] + b"\n", "line 1 is not JSON"),
        (b"[]\n", "line 1 is no JSON object"),
        (b"{}\n", "id: Field required"),
        (line(entry()) + line(entry()), "line 2 has the id 'a' of another line"),
        (b'{"id":"a","id":"b"}\n', "a key stands twice"),
        (changed(schema="wherefrom-answer/1"), "this wherefrom reads 'wherefrom-answer/2'"),
        (changed(extra=1), "'extra' cannot be what wherefrom wrote"),
        (changed(damping="0.1"), "'damping' cannot be"),
        (changed(scored_tokens=2.5), "scored_tokens: "),
        (changed(contract="score = anything"), "'contract' cannot be"),
        (changed(proponents=[{"rank": 1}]), "proponents.0.doc_id: "),
        (changed(id=7), "id: "),
        (changed(tags=[]), "tags: "),
        (changed(gate=[{"condition": "x", "verdict": "passed"}]), "gate.0.verdict: "),
        (canonical_json({**FAILED.to_dict(), "answer": 1}) + b"\n", "more or less than a question"),
        (canonical_json({**FAILED.to_dict(), "schema": "x"}) + b"\n", "more or less than a"),
        (changed(options={"k": 0}), "line 1 has options that cannot be: k=0"),
        (changed(options={"k": "3"}), "k: Input should be a valid integer"),
        (changed(options={"where": []}), "where: "),
        (changed(options={"refine_damping": 1.0}), "goes with refine="),
        (changed(options={"__class__": 1}), "has an option '__class__', which there is not"),
        (changed(options=[]), "line 1 is no answer of ours: "),
        (canonical_json({**FAILED.to_dict(), "options": {"model": "/"}}) + b"\n", "'model'"),
        (canonical_json({**FAILED.to_dict(), "detail": None}) + b"\n", "detail: "),
        (line(entry()).replace(b'"seconds":0.0', b'"seconds":NaN'), "NaN is no number"),
        (b"[" * 100_000 + b"\n", "line 1 is not JSON"),
        (b'{"id":"\xff"}\n', "line 1 is not JSON"),
        (b'{"id":1e999}\n', "1e999 is beyond all numbers"),
        (b'{"tags":' + b"[" * 101 + b"]" * 101 + b"}\n", "nested deeper than 100 levels"),
        (b'{"id":' + b"9" * 5000 + b"}\n", "line 1 is not JSON"),
    ],
)
def test_what_is_no_entry(data: bytes, told: str) -> None:
    with pytest.raises(IntegrityError) as error:
        list(read_entries(data.splitlines(keepends=True), "f"))
    assert told in str(error.value)
    assert str(error.value).startswith("f, line ")


@given(JSON)
def test_canonical_json_depends_on_values_only(value: Any) -> None:
    data = canonical_json(value)
    assert data.isascii()
    assert b"\n" not in data
    again = read_strictly(data, "it")
    assert canonical_json(again) == data
    assert repr(again) == repr(json.loads(json.dumps(value, sort_keys=True)))


@given(st.dictionaries(st.text(max_size=3), st.integers(), max_size=4))
def test_canonical_json_forgets_order(fields: dict[str, int]) -> None:
    assert canonical_json(dict(reversed(fields.items()))) == canonical_json(fields)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_canonical_json_holds_numbers_only(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json([value])
