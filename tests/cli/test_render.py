"""Answers on a terminal: everything there, nothing obeyed, never wider than asked."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest
from rich.cells import cell_len
from rich.console import Console

from answers import (
    CLASSIFIED,
    CONTRAST,
    HOSTILE,
    QUERIES,
    answer,
    certificate,
    hit,
    hostile_answers,
)
from wherefrom.cli.render import answer_table, emit_json, print_facts, terminal
from wherefrom.cli.stability import sweep_table
from wherefrom.query.answer import Answer
from wherefrom.query.measurement import measurement_of
from wherefrom.query.sweep import DampingSweep, SweepRow
from wherefrom.query.wording import PERCENTILE, certificate_in_words
from wherefrom.records import SCORE_CONTRACT, Background, Query, QuerySet

COLOURS = re.compile(r"\x1b\[[0-9;]*3[0-7][;m]")


def shown(answer_: Answer, width: int = 120, **options) -> str:
    stream = io.StringIO()
    console = Console(
        file=stream, width=width, markup=False, emoji=False, highlight=False, **options
    )
    answer_table(answer_, console)
    return stream.getvalue()


def words(text: str) -> str:
    return " ".join(text.split())


def test_table_tells_everything() -> None:
    text = shown(answer())
    lines = text.splitlines()
    assert "The Union shall| be preserved" in text
    assert "-3.250 nats over 2 tokens" in text
    assert "year < 1900 and party is present" in text
    (first,) = (line for line in lines if "+0.0123" in line)
    assert words(first) == "1 +0.0123 1861 Abraham Lincoln – speech 1"
    assert words(lines[lines.index(first) + 1]).startswith("The Union")
    assert text.index("+0.00617") < text.index("Opponents") < text.index("-0.00309")
    assert words(text).endswith(f"{certificate_in_words(answer())} {SCORE_CONTRACT}")


def test_unasked_sign_has_no_table() -> None:
    text = shown(answer(opponents=()))
    assert "Proponents" in text
    assert "Opponents" not in text


@pytest.mark.parametrize(
    ("documents", "reason"),
    [(0, "No document passes the filter."), (5, "No document has influence in the direction")],
)
def test_empty_answer_says_why(documents: int, reason: str) -> None:
    found = certificate(documents=documents, candidates=0)
    assert reason in shown(answer(proponents=(), opponents=(), certificate=found))


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_no_line_is_wider_than_asked(width: int) -> None:
    crowd = {f"a column called {i}": "a value " * i for i in range(9)}
    wide = answer(
        query=Query("wide 字 " * 30, " so be it" * 30),
        proponents=(hit(1, -1.23e-7, metadata=crowd, text="統一 " * 200, doc_id="x" * 90),),
    )
    ranked = replace(
        wide,
        proponents=tuple(replace(one, percentile=99.9) for one in wide.proponents),
        normalise="relatif",
    )
    for one in (answer(), wide, ranked, answer(query=QUERIES), *hostile_answers()):
        lines = shown(one, width).splitlines()
        assert max(map(cell_len, lines)) <= width
    assert "…" in shown(wide, width)


def test_metadata_without_a_column_stand_above_the_text() -> None:
    crowd = {f"column{i}": "some value" for i in range(9)}
    one = answer(proponents=(hit(1, 1.0, metadata=crowd),), opponents=())
    assert words(shown(one, 60)).count("column8: some value") == 1
    assert "column8: some value" not in words(shown(one, 250))
    assert words(shown(one, 60)).count("The Union shall be preserved.") > 3


def test_ids_are_shown_whole() -> None:
    doc_id = "0123456789" * 6
    text = shown(answer(proponents=(hit(1, 1.0, doc_id=doc_id, text=""),), opponents=()), 80)
    assert doc_id in re.sub(r"[^0-9]|1861", "", text.split("document")[1])


def test_metadata_that_some_documents_lack() -> None:
    hits = (hit(1, 2.0, metadata={"a": 1}), hit(2, 1.0, metadata={"b": False}))
    text = words(shown(answer(proponents=hits, opponents=())))
    assert "1 +2.00 1 – speech 1" in text
    assert "2 +1.00 – false speech 2" in text


@pytest.mark.parametrize("hostile", hostile_answers(), ids=["plain", "contrast", "label", "set"])
@pytest.mark.parametrize("terminal_", [True, False])
def test_hostile_text_is_shown_and_never_obeyed(terminal_: bool, hostile: Answer) -> None:
    text = shown(hostile, 200, force_terminal=terminal_, color_system="standard")
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert "[red]danger[/red] :skull: {{ 7*7 }} red" in plain
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", plain)
    assert "\x1b[31mred" not in text


def test_tensor_answers() -> None:
    bare = answer(query=None, proponents=(hit(1, 1.0, text="", metadata={}),), opponents=())
    text = shown(bare)
    assert "asked with tensors" in words(text)
    assert "Proponents: they raise the log-likelihood" in text
    assert "text" not in text.split("document")[0].split("Proponents")[1]


def test_contrasts_are_shown_beside_what_was_said() -> None:
    text = shown(answer(query=CONTRAST, log_likelihood=0.5, scored_tokens=4))
    for expected in (
        "prompt|completion The Union shall| be preserved rather than be dissolved",
        "measured the completion's log-likelihood minus the contrast's value +0.500 nats over 4",
        "Proponents: they favour the completion over the contrast",
        "Opponents: they favour the contrast over the completion",
    ):
        assert expected in words(text)
    assert SCORE_CONTRACT not in words(text)
    assert words(text).endswith(measurement_of(CONTRAST).contract)


def test_sets_show_their_first_questions() -> None:
    text = words(shown(answer(query=QUERIES, scored_tokens=60)))
    for expected in (
        "asked as one the mean over 30 questions",
        "Question 3:| answer 3 and 27 more",
        "measured the mean log-likelihood of the completions value -3.250 nats over 60 tokens",
        "Proponents: they raise the mean log-likelihood",
    ):
        assert expected in text
    assert "Question 4" not in text
    pair = answer(query=QuerySet((CONTRAST, Query("a", "b")), "sum"))
    assert "the sum over 2 questions" in words(shown(pair))
    assert "be dissolved prompt|completion a|b measured" in words(shown(pair))


def test_labels_stand_by_themselves() -> None:
    label = answer(query=Query("A fine film", "good", "bad"), index=CLASSIFIED)
    text = words(shown(label))
    assert "text A fine film label good rather than bad measured the label's" in text
    assert "they favour the label over the contrast" in text


def test_another_damping_and_residuals_are_told() -> None:
    assert "damping" not in shown(answer())
    assert "residual" not in shown(answer())
    text = words(shown(answer(damping=0.5, residual=0.00312)))
    assert "damping 0.5 for this answer; the index was built with 0.1" in text
    assert "residual 0.0031 of the query's gradient left unsolved" in text


def test_refined_questions_are_told_of() -> None:
    text = words(shown(answer(refined=1, damping=20.0, residual=0.6)))
    assert "refined 1 step of conjugate gradients on the Gauss-Newton matrix of all" in text
    assert "residual 0.6 of" in text
    assert "damping 20 for this answer" not in text


@pytest.mark.parametrize(
    ("width", "row"), [(100, "1 +0.500 97.3 a"), (40, "1 +0.500 a · pct 97.3")]
)
def test_percentiles_have_a_column_where_there_is_room(width: int, row: str) -> None:
    one = hit(1, 0.5, doc_id="a", text="", metadata={}, percentile=97.34)
    text = shown(answer(proponents=(one,), opponents=()), width)
    assert row in words(text)
    assert words(text).endswith(f"{SCORE_CONTRACT} pct = {PERCENTILE}")
    assert "pct" not in shown(answer(), width)


@pytest.mark.parametrize(
    ("normalise", "how", "row"),
    [
        ("cosine", "cosine in the whitened space # cosine nats", "1 +5.00 +0.500 speech 1"),
        (
            "relatif",
            "l-RelatIF (score / norm of the document) # l-RelatIF nats",
            "1 +0.250 +0.500 speech 1",
        ),
    ],
)
def test_other_rankings_are_shown_first(normalise: str, how: str, row: str) -> None:
    one = hit(1, 0.5, metadata={})
    text = words(shown(answer(proponents=(one,), opponents=(), normalise=normalise)))
    assert f"they make the completion more likely; ranked by {how}" in text
    assert row in text


def test_fewer_documents_are_shown_and_the_certificate_is_of_all() -> None:
    stream = io.StringIO()
    answer_table(answer(), Console(file=stream, width=100), 1)
    assert "speech 1" in stream.getvalue()
    assert "speech 2" not in stream.getvalue()
    assert words(stream.getvalue()).count(certificate_in_words(answer())) == 1


def test_verdicts_on_chance_follow_the_certificate() -> None:
    background = Background(5000, 32, None, False, None, 40.0, None)
    text = words(shown(answer(certificate=certificate(background=background))))
    verdict = (
        "Proponents are not distinguishable from background: 60% of 32 random documents in the "
        "query's place have a hit as near."
    )
    assert f"for opponents). {verdict} score =" in text


@pytest.mark.parametrize("width", [40, 100])
def test_sweeps_are_tables(width: int) -> None:
    rows = tuple(
        SweepRow(damping, (HOSTILE, "b", "c", "d"), ("e",), overlap, spearman, None)
        for damping, overlap, spearman in [(0.01, 0.625, 0.5), (10.0, 1.0, -0.25)]
    )
    stream = io.StringIO()
    console = Console(file=stream, width=width, markup=False, emoji=False, highlight=False)
    sweep_table(DampingSweep(CONTRAST, "causal_lm", 0.1, 4, rows), console)
    text = stream.getvalue()
    assert max(map(cell_len, text.splitlines())) <= width
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", text)
    told = words(text)
    assert "0.01 62% +0.500 <scr" in told
    assert "10 100% -0.250 <scr" in told
    assert "own damping, 0.1, that are found again; 62% at least" in told
    assert told.endswith(measurement_of(CONTRAST).contract)
    if width == 100:
        assert "end, b, c, ..." in told
    assert ", d" not in told


def test_colours_unless_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    colourful = shown(answer(), force_terminal=True, color_system="standard")
    assert COLOURS.search(colourful)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not COLOURS.search(shown(answer(), force_terminal=True, color_system="standard"))


def test_terminal_takes_text_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    terminal(60).print("[red]danger[/red] :skull: 42")
    assert capsys.readouterr().out == "[red]danger[/red] :skull: 42\n"


def test_facts_are_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    print_facts([("who", HOSTILE), ("what", None), ("many", 3)], terminal(40))
    out = capsys.readouterr().out
    assert "[red]danger[/red]" in out
    assert "\x1b" not in out
    assert [line.split() for line in out.splitlines()[1:]] == [["what", "–"], ["many", "3"]]


def test_json_is_one_utf8_object(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    emit_json(answer(query=Query("naïve", " 字")).to_dict())
    out = capfdbinary.readouterr().out
    assert out.endswith(b"}\n")
    assert json.loads(out.decode())["query"] == {
        "prompt": "naïve",
        "completion": " 字",
        "contrast": None,
    }
    assert "naïve".encode() in out


def test_a_terminal_of_few_letters_shows_stand_ins() -> None:
    program = (
        "from answers import answer\n"
        "from wherefrom.cli.render import *\n"
        "answer_table(answer(), terminal(100)); emit_json({'a': 'é'})"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONIOENCODING": "ascii", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
    )
    assert finished.returncode == 0, finished.stderr.decode()
    *table, last = finished.stdout.splitlines()
    assert b"speech 1" in b"".join(table)
    assert b"".join(table).isascii()
    assert json.loads(last.decode()) == {"a": "é"}
