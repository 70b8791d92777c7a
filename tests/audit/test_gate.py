"""What a gate stops: what holds, what cannot be decided, and nothing else."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from answers import answer, certificate, hit
from wherefrom.audit.conditions import ANSWER_FIELDS, HIT_FIELDS
from wherefrom.audit.gate import Finding, Gate
from wherefrom.errors import FilterError
from wherefrom.records import Background, Recall

COLUMNS = {"year": "int64", "source": "string"}


def known(rank: int, score: float, percentile: float | None, **metadata: Any) -> Any:
    return hit(rank, score, doc_id=f"d{rank}", percentile=percentile, metadata=metadata)


ANSWER = answer(
    proponents=(
        known(1, 0.3, 99.5, source="open", year=1860),
        known(2, 0.2, 99.4, source="blocked", year=None),
        known(3, 0.1, 80.0, source="blocked", year=1900),
    ),
    opponents=(known(1, -0.4, 0.1, source="blocked", year=1861),),
)
BACKGROUND = Background(9, 3, None, True, False, 99.0, 10.0)


def stopped(condition: str, asked: Any = ANSWER) -> list[tuple[str, str | None, int | None]]:
    findings = Gate.parse([condition], COLUMNS).judge(asked)
    assert all(finding.condition == condition for finding in findings)
    return [(finding.verdict, finding.hit, finding.rank) for finding in findings]


def fired(*ranks: int, hit: str = "proponent") -> list[tuple[str, str, int]]:
    return [("fired", hit, rank) for rank in ranks]


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("proponent.source == 'blocked' and percentile > 99", fired(2)),
        ("proponent.source == 'blocked'", fired(2, 3)),
        ("source == 'blocked'", [*fired(2, 3), *fired(1, hit="opponent")]),
        ("opponent.source == 'blocked'", fired(1, hit="opponent")),
        ("proponent.source == 'open' and percentile < 99", []),
        ("proponent.year >= 1860 and year < 1900", fired(1)),
        ("proponent.year != 1860 and rank != 2", fired(3)),
        ("proponent.year != 1860", [("undecidable", "proponent", 2), *fired(3)]),
        ("proponent.year not in [1860]", [("undecidable", "proponent", 2), *fired(3)]),
        ("proponent.year == 1 and year != 1860", []),
        ("proponent.year is present and year not in [1860]", fired(3)),
        ("proponent.year < 1900 and rank == 2", []),
        ("proponent.year in [1860, 1900]", fired(1, 3)),
        ("proponent.year is missing", fired(2)),
        ("proponent.year is present and rank > 1", fired(3)),
        ("proponent.doc_id == 'd2'", fired(2)),
        ("proponent.text contains 'Union' and rank == 1", fired(1)),
        ("proponent.text contains 'union'", []),
        ("proponent.parent_id is missing and rank == 3", fired(3)),
        ("proponent.parent_id == 'x'", []),
        ("score <= -0.4", fired(1, hit="opponent")),
        ("answer.certified == true", [("fired", None, None)]),
        ("answer.certified == false", []),
        ("answer.tier == 'stored' and opponent.rank == 1", fired(1, hit="opponent")),
        ("answer.tier == 'exact' and opponent.rank == 1", []),
        ("answer.recall < 1", []),
        ("answer.log_likelihood < -3", [("fired", None, None)]),
        ("answer.documents > 5000", []),
    ],
)
def test_conditions(condition: str, expected: list[tuple]) -> None:
    assert stopped(condition) == expected


def test_any_condition_will_do() -> None:
    gate = Gate.parse(["proponent.rank == 1", "answer.certified == true"], COLUMNS)
    assert gate.judge(ANSWER) == (
        Finding("proponent.rank == 1", "fired", "proponent", "d1", 1),
        Finding("answer.certified == true", "fired"),
    )
    assert Gate(()).judge(ANSWER) == ()


def test_what_was_not_measured_cannot_be_decided() -> None:
    unmeasured = answer(
        proponents=(known(1, 0.3, None, source="blocked"), known(2, 0.2, None, source="open")),
        opponents=(),
    )
    asked = "proponent.source == 'blocked' and percentile > 99"
    assert stopped(asked, unmeasured) == [("undecidable", "proponent", 1)]
    assert stopped("percentile > 99 and score > 1", unmeasured) == []
    assert stopped("percentile is missing and rank == 1", unmeasured) == fired(1)
    assert stopped("percentile is present", unmeasured) == []
    assert stopped("percentile != 3 and rank == 2", unmeasured) == [("undecidable", "proponent", 2)]


def test_conditions_on_the_certificate() -> None:
    uncertain = answer(
        certificate=certificate(
            certified=False, recall=Recall(0.8, 0.7, 0.9, 0.95, 64), background=BACKGROUND
        )
    )
    yes = [("fired", None, None)]
    assert stopped("answer.recall < 0.9", uncertain) == yes
    assert stopped("answer.recall < 0.8", uncertain) == []
    assert stopped("answer.opponents_stand_out == false", uncertain) == yes
    assert stopped("answer.proponents_stand_out == false", uncertain) == []
    unknown = [("undecidable", None, None)]
    assert stopped("answer.proponents_stand_out == false", ANSWER) == unknown
    unproved = answer(certificate=certificate(certified=False))
    assert stopped("answer.recall < 0.9", unproved) == unknown
    one_sided = dataclasses.replace(uncertain, sign="opponents")
    assert stopped("answer.proponents_stand_out == false", one_sided) == unknown
    alone = dataclasses.replace(BACKGROUND, proponents=None)
    nothing = answer(certificate=certificate(background=alone), proponents=())
    assert stopped("answer.proponents_stand_out == false", nothing) == yes


def test_every_field_has_a_value_of_its_type() -> None:
    types = {"float64": float, "int64": int, "string": str, "bool": bool}
    full = known(1, 0.3, 99.5)
    for name, kind in HIT_FIELDS.items():
        if name != "parent_id":
            assert type(getattr(full, name)) is types[kind]
    measured = answer(certificate=certificate(background=BACKGROUND))
    for name in ANSWER_FIELDS:
        assert stopped(f"answer.{name} is present", measured) == [("fired", None, None)]


def test_hits_that_are_not_asked_for() -> None:
    for sign, kind in (("proponents", "opponent"), ("opponents", "proponent")):
        with pytest.raises(FilterError, match=f"only {sign} are asked for"):
            Gate.parse([f"{kind}.rank == 1"], COLUMNS, sign)
        Gate.parse([f"{sign[:-1]}.rank == 1", "rank == 1", "answer.tier == 'x'"], COLUMNS, sign)
