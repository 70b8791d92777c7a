"""The command that asks again: what a shell makes of it is what was asked."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from answers import CONTRAST, HOSTILE, INDEX, QUERIES, annotated, answer, certificate
from wherefrom.cli.query import query as query_command
from wherefrom.query.answer import Answer
from wherefrom.query.printable import printable_lines
from wherefrom.query.replay import replay_command
from wherefrom.records import Query, QuerySet
from wherefrom.store import parse_wheres

BASH = shutil.which("bash")
needs_bash = pytest.mark.skipif(BASH is None, reason="no bash")

EXACT = certificate(tier="exact")
COLUMNS = {"year": "int64", "party": "string", "share": "float64", "war": "bool"}


def arguments(command: str | None) -> tuple[list[str], str]:
    """What bash hands to ``wherefrom``, and what it pipes into it."""
    assert command is not None
    script = (
        "wherefrom() { printf '%s\\0' \"$@\"; [ -p /dev/stdin ] && cat; return 0; }\n" + command
    )
    done = subprocess.run([str(BASH), "-c", script], capture_output=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    *words, piped = done.stdout.decode().split("\0")
    return words, piped


def parsed(command: str | None) -> dict[str, Any]:
    """What the command line itself understands."""
    words, _ = arguments(command)
    assert words[0] == "query"
    return query_command.make_context("query", words[1:], resilient_parsing=False).params


@needs_bash
def test_a_plain_question() -> None:
    command = replay_command(answer())
    assert command is not None
    assert command.startswith(
        "wherefrom query /data/my.index --prompt 'The Union shall' --completion ' be preserved' -k"
    )
    given = parsed(command)
    assert (given["prompt"], given["completion"]) == ("The Union shall", " be preserved")
    assert (given["k"], given["rerank"]) == (2, "stored")
    assert parse_wheres(given["clauses"], COLUMNS) == answer().where


@needs_bash
@pytest.mark.parametrize(
    "options",
    [
        {"k": 7, "sign": "opponents", "candidates": 300},
        {"damping": 0.5},
        {"refine": 3, "refine_damping": 20.0, "refine_documents": 64},
        {"normalise": "relatif"},
        {"backend": "faiss-flat"},
    ],
)
def test_all_choices_are_asked_again(options: dict[str, Any]) -> None:
    fields = {
        "sign": options.get("sign", "both"),
        "normalise": options.get("normalise", "none"),
        "damping": options.get("refine_damping", options.get("damping", 0.1)),
        "refined": options.get("refine", 0),
    }
    given = parsed(replay_command(answer(**fields, options=options, certificate=EXACT)))
    assert given["rerank"] == "recompute"
    for name, value in options.items():
        assert given[name] == value, name


def test_defaults_are_left_out() -> None:
    plain = answer(where={}, options={"k": 10, "candidates": 100, "backend": "scan"})
    assert replay_command(plain) == (
        "wherefrom query /data/my.index --prompt 'The Union shall' --completion ' be preserved' "
        "-k 10 --rerank stored"
    )


def test_what_stands_beside_is_asked_for_too() -> None:
    command = replay_command(annotated(answer()))
    assert command is not None
    assert command.endswith("--explain --similar --group-by party --group-by year")
    groups = tuple(replace(one, bins=10) for one in annotated(answer()).groups[1:])
    command = replay_command(replace(answer(), groups=groups))
    assert command is not None
    assert command.endswith("'party is present' --group-by year:10")


@pytest.mark.parametrize("one", [answer(), annotated(answer())])
def test_what_is_to_stand_beside_can_be_chosen(one: Answer) -> None:
    command = replay_command(one, explain=True, similarity=False, group_by={"a b": None, "c": 5})
    assert command is not None
    before, _, chosen = command.partition(" --explain")
    assert chosen == " --group-by 'a b' --group-by c:5"
    assert before == replay_command(one, explain=False, similarity=False, group_by={})


@needs_bash
@given(st.text(min_size=1, max_size=30), st.text(max_size=30), st.none() | st.text(max_size=30))
@settings(max_examples=40)
def test_texts_reach_the_command_unchanged(completion: str, prompt: str, other: str | None) -> None:
    asked = Query(prompt, completion, other)
    command = replay_command(answer(query=asked))
    if "\0" in f"{prompt}{completion}{other}":
        assert command is None
        return
    words, _ = arguments(command)
    expected = ["--prompt", prompt] if prompt else []
    expected += ["--completion", completion] + ([] if other is None else ["--contrast", other])
    assert words[2 : 2 + len(expected)] == expected
    assert command is not None
    assert printable_lines(command) == command
    assert "\n" not in command


@needs_bash
def test_sets_are_piped_into_it() -> None:
    asked = QuerySet((CONTRAST, Query("it's\n\x1b[31m\u202e", "=%s\\n")), "sum")
    command = replay_command(answer(query=asked))
    words, piped = arguments(command)
    assert [json.loads(line) for line in piped.splitlines()] == [asdict(q) for q in asked.queries]
    assert words[2:6] == ["--queries", "-", "--reduce", "sum"]
    assert command is not None
    assert printable_lines(command) == command


WHERES: list[dict[str, Any]] = [
    {"year": [(">=", 1861), ("<=", 1865)]},
    {"party": ("in", ["Whig", "a,b", 'say "it"', "it's"])},
    {"party": ("not in", ("Whig", "é"))},
    {"party": ("contains", "=x"), "war": True},
    {"share": ("<", 0.1), "war": ("!=", False)},
    {"year": None, "party": ("!=", None)},
    {"year": ("in", [1, -2])},
]


@needs_bash
@pytest.mark.parametrize("where", WHERES, ids=str)
def test_filters_are_read_back(where: dict[str, Any]) -> None:
    clauses = parsed(replay_command(answer(where=where)))["clauses"]
    wanted = {
        column: [("==", condition)]
        if not isinstance(condition, (list, tuple))
        else condition
        if isinstance(condition, list)
        else [(condition[0], list(condition[1]) if "in" in condition[0].split() else condition[1])]
        for column, condition in where.items()
    }
    assert parse_wheres(clauses, COLUMNS) == wanted


@pytest.mark.parametrize(
    "fields",
    [
        {"query": None},
        {"query": Query("a\0b", "c")},
        {"query": Query(HOSTILE, "c")},
        {"query": QuerySet((Query("\ud800", "c"),))},
        {"query": QuerySet(QUERIES.queries * 4)},
        {"where": {"party": ("==", " Whig ")}},
        {"where": {"party": ("in", [" Whig"])}},
        {"where": {" party": "Whig"}},
        {"index": {**INDEX, "path": "\ud800"}},
    ],
)
def test_what_no_command_line_holds_has_none(fields: dict[str, Any]) -> None:
    assert replay_command(answer(**fields)) is None
