"""Filters: their answer is that of the same comparisons made in Python."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fact_files import written
from wherefrom.errors import FilterError
from wherefrom.records import Document
from wherefrom.store import parse_where, parse_wheres
from wherefrom.store.facts import Facts
from wherefrom.store.layout import TableLayout
from wherefrom.store.live_rows import LiveRows

COLUMNS: dict[str, Any] = {
    "year": "int64",
    "first name": "string",
    'x" OR 1=1 --`': "string",
    "share": "float64",
    "war": "bool",
}
STRINGS = ["Whig", "whig", "", "'", "x' OR '1'='1", 'a"b', "a\\", "%", "_", "é", "🗳", "a,b", "\n"]
STRINGS += ["\0", "`", "; DROP TABLE documents", "--", "NULL", "null"]
VALUES: dict[str, list[Any]] = {
    "int64": [0, 1, -1, 1861, 2**63 - 1, -(2**63), 2**53, 2**53 + 1],
    "string": STRINGS,
    "float64": [0.0, -0.0, 0.1, 1 / 3, -1.5, 1e300, 5e-324, -1e308, 3],
    "bool": [True, False],
}
ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def passes(value: Any, name: str, wanted: Any) -> bool:
    """The reference: one condition on one value."""
    if wanted is None:
        return (value is None) == (name == "==")
    if value is None:
        return False
    if name == "contains":
        return wanted in value
    if name in ("in", "not in"):
        return (value in wanted) == (name == "in")
    return ORDER[name](value, wanted)


def rows_of_values() -> list[dict[str, Any]]:
    """Every value of every column at least once, missing ones among them."""
    pools = [[*VALUES[kind], None] for kind in COLUMNS.values()]
    return [
        {
            name: pool[(i * step) % len(pool)]
            for step, name, pool in zip(range(1, 6), COLUMNS, pools, strict=True)
        }
        for i in range(60)
    ]


ROWS = rows_of_values()


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    layout = TableLayout(COLUMNS, 1, 32)
    documents = [Document(str(i), metadata=row) for i, row in enumerate(ROWS)]
    files = written(tmp_path_factory.mktemp("index"), layout, documents[:20], documents[20:])
    return Facts.open(files, layout, LiveRows.every(len(ROWS)))


@st.composite
def conditions(draw: st.DrawFn, kind: str) -> tuple[str, Any]:
    names = ["==", "!=", "in", "not in"]
    names += [] if kind == "bool" else ["<", "<=", ">", ">="]
    names += ["contains"] if kind == "string" else []
    name = draw(st.sampled_from(names))
    values = st.sampled_from(VALUES[kind])
    if name in ("in", "not in"):
        return name, draw(st.lists(values, min_size=1, max_size=4))
    if name in ("==", "!="):
        return name, draw(st.none() | values)
    return name, draw(values)


wheres = st.lists(st.sampled_from(list(COLUMNS)), max_size=3, unique=True).flatmap(
    lambda names: st.fixed_dictionaries(
        {name: st.lists(conditions(COLUMNS[name]), min_size=1, max_size=2) for name in names}
    )
)


@given(where=wheres)
def test_filters_agree_with_python(facts: Facts, where: Mapping[str, Any]) -> None:
    expected = [
        i
        for i, row in enumerate(ROWS)
        if all(
            passes(row[column], name, value)
            for column, pairs in where.items()
            for name, value in pairs
        )
    ]
    assert facts.where(where).tolist() == expected


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_no_text_escapes_its_quotes(facts: Facts, text: str) -> None:
    for column in ("first name", 'x" OR 1=1 --`'):
        expected = [i for i, row in enumerate(ROWS) if row[column] == text]
        assert facts.where({column: text}).tolist() == expected


def test_short_forms(facts: Facts) -> None:
    def found(**where: Any) -> Any:
        return facts.where(where).tolist()

    assert found() == list(range(len(ROWS)))
    assert found(year=1861) == found(year=("==", 1861)) == found(year=[("==", 1861)])
    assert found(year=["<", 1]) == found(year=[["<", 1]]) == found(year=("<", 1))
    assert found(year=None) == [i for i, row in enumerate(ROWS) if row["year"] is None]
    assert found(year=[(">=", 0), ("<", 2)]) == [
        i for i, row in enumerate(ROWS) if row["year"] in (0, 1)
    ]
    assert found(share=3) == found(share=3.0) != []


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"month": 1}, r"no metadata column 'month'; the index has year, first name"),
        ({"year": ("~", 1)}, "no operator '~'"),
        ({"year": "1861"}, "holds int64"),
        ({"year": True}, "holds int64"),
        ({"year": 1861.0}, "holds int64"),
        ({"year": 2**63}, "holds int64"),
        ({"year": ("<", None)}, "holds int64"),
        ({"year": ("contains", "1")}, "for strings"),
        ({"year": ("in", [])}, "one or more"),
        ({"year": ("in", 1861)}, "one or more"),
        ({"year": ("in", [1861, None])}, "holds int64"),
        ({"year": [1861, 1862]}, "give a value"),
        ({"year": []}, "give a value"),
        ({"year": [(">", 1), 2]}, "give a value"),
        ({"share": float("nan")}, "holds float64"),
        ({"share": ("<", float("inf"))}, "holds float64"),
        ({"war": ("<", True)}, "no meaning for bool"),
        ({"war": 1}, "holds bool"),
        ({"first name": 1}, "holds string"),
        ({"first name": ("in", "Whig")}, "one or more"),
    ],
)
def test_filters_that_do_not_fit_are_explained(
    facts: Facts, where: dict[str, Any], message: str
) -> None:
    with pytest.raises(FilterError, match=message) as caught:
        facts.where(where)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("clause", "expected"),
    [
        ("year < 1900", ("year", ("<", 1900))),
        ("year<=1900", ("year", ("<=", 1900))),
        ("  year >=-5 ", ("year", (">=", -5))),
        ("year = 1900", ("year", ("==", 1900))),
        ("year == 1900", ("year", ("==", 1900))),
        ("year != 1900", ("year", ("!=", 1900))),
        ("year in 1861, 1865", ("year", ("in", [1861, 1865]))),
        ("year not in 1861", ("year", ("not in", [1861]))),
        ("year is missing", ("year", ("==", None))),
        ("year is present", ("year", ("!=", None))),
        ("party in Whig,Democratic", ("party", ("in", ["Whig", "Democratic"]))),
        ('party in "Whig, old", New', ("party", ("in", ["Whig, old", "New"]))),
        ("party = a = b", ("party", ("==", "a = b"))),
        ("party =", ("party", ("==", ""))),
        ("party contains O'Neill", ("party", ("contains", "O'Neill"))),
        ("party of year = x", ("party of year", ("==", "x"))),
        ("inn = x", ("inn", ("==", "x"))),
        ("in in x", ("in", ("in", ["x"]))),
        ("a<b<c", ("a<b", ("<", "c"))),
        ("share > 1e-3", ("share", (">", 0.001))),
        ("war = True", ("war", ("==", True))),
    ],
)
def test_written_filters(clause: str, expected: tuple[str, Any]) -> None:
    columns: dict[str, Any] = dict.fromkeys(
        ["party", "party of year", "inn", "in", "a", "a<b"], "string"
    )
    columns |= {"year": "int64", "share": "float64", "war": "bool"}
    assert parse_where(clause, columns) == expected


@pytest.mark.parametrize(
    ("clause", "message"),
    [
        ("month = 1", "a column of year, war"),
        ("year", "cannot read the filter"),
        ("years = 1", "cannot read the filter"),
        ("year ~ 1", "cannot read the filter"),
        ("year in1", "cannot read the filter"),
        ("year = soon", "got 'soon'; the column holds int64"),
        ("year in ", "one or more"),
        ("year = 99999999999999999999", "holds int64"),
        ("year is missing today", "nothing may follow"),
        ("war = yes", "holds bool"),
        ("war < true", "no meaning for bool"),
        ("", "cannot read the filter"),
    ],
)
def test_written_filters_that_cannot_be_read(clause: str, message: str) -> None:
    with pytest.raises(FilterError, match=message):
        parse_where(clause, {"year": "int64", "war": "bool"})


def test_written_filters_on_one_column_must_all_hold(facts: Facts) -> None:
    columns = COLUMNS
    where = parse_wheres(["year >= 0", "first name != whig", "year < 1861"], columns)
    assert where == {"year": [(">=", 0), ("<", 1861)], "first name": [("!=", "whig")]}
    assert facts.where(where).tolist() == [
        i
        for i, row in enumerate(ROWS)
        if row["year"] in (0, 1) and row["first name"] not in ("whig", None)
    ]
