"""Answers on a terminal: everything there, nothing obeyed, never wider than asked."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import pytest
from rich.cells import cell_len
from rich.console import Console

from answers import (
    CLASSIFIED,
    CONTRAST,
    HOSTILE,
    LAYERS,
    QUERIES,
    annotated,
    answer,
    certificate,
    compared,
    every_answer,
    explained,
    grouped,
    hit,
    hit_shares,
)
from wherefrom.cli.groups import bar
from wherefrom.cli.heat_map import heat_table
from wherefrom.cli.render import answer_table, emit_json, print_facts, terminal
from wherefrom.cli.stability import sweep_table
from wherefrom.cli.stand_ins import STAND_INS
from wherefrom.query.answer import Answer
from wherefrom.query.interpretation.explanation import (
    Explanation,
    Group,
    Grouping,
    HitShares,
    LayerName,
    TokenShare,
)
from wherefrom.query.measurement import measurement_of
from wherefrom.query.sweep import DampingSweep, SweepRow
from wherefrom.query.wording import NO_PROOF, PERCENTILE, certificate_in_words
from wherefrom.records import SCORE_CONTRACT, Background, Query, QuerySet

EVERY = every_answer()
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


@pytest.mark.parametrize("width", [40, 63, 64, 80, 200])
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
    for one in (wide, ranked, annotated(ranked), *EVERY.values()):
        lines = shown(one, width).splitlines()
        assert max(map(cell_len, lines)) <= width
    assert "…" in shown(wide, width)


def test_metadata_without_a_column_stand_above_the_text() -> None:
    crowd = {f"column{i}": "some value" for i in range(9)}
    one = answer(proponents=(hit(1, 1.0, metadata=crowd),), opponents=())
    assert words(shown(one, 60)).count("column8: some value") == 1
    assert "column8: some value" not in words(shown(one, 280))
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


@pytest.mark.parametrize("hostile", [name for name in EVERY if name.startswith(("host", "worse"))])
@pytest.mark.parametrize("terminal_", [True, False])
@pytest.mark.parametrize("width", [50, 200])
def test_hostile_text_is_shown_and_never_obeyed(terminal_: bool, hostile: str, width: int) -> None:
    text = shown(EVERY[hostile], width, force_terminal=terminal_, color_system="standard")
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert "[red]danger[/red]" in plain
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
    ("width", "row"), [(100, "1 +0.500 97.3 a"), (40, "1 +0.500 nats a · pct 97.3")]
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


def test_piped_lines_have_no_blanks_at_their_ends(capsys: pytest.CaptureFixture[str]) -> None:
    answer_table(annotated(answer(proponents=(hit(1, 1.0, metadata={"x": "y "}),))), terminal(80))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 20
    assert [line for line in lines if line != line.rstrip(" ")] == []


def test_a_list_like_chance_is_said_to_be_so_above_it() -> None:
    for proponents, opponents, named in (
        (False, True, ["Proponents"]),
        (True, False, ["Opponents"]),
        (False, False, ["Proponents", "Opponents"]),
        (True, None, []),
    ):
        judged = Background(1000, 32, None, proponents, opponents, 56.25, 40.0)
        lines = shown(answer(certificate=certificate(background=judged)), 200).splitlines()
        above = [
            after.split()[0]
            for before, after in pairwise(lines)
            if re.match("(Proponents|Opponents): ", before) and "from background" in after
        ]
        assert above == named
        for name in named:
            assert sum(f"{name} are not distinguishable" in line for line in lines) == 2


def test_numbers_of_metadata_are_told_to_the_last_digit() -> None:
    exact = {"x": 1234567.5, "y": 0.1 + 0.2, "z": 1800.0}
    one = answer(proponents=(hit(1, 1.0, metadata=exact),), where={"x": ("<", 1234568.25)})
    text = words(shown(one, 200))
    assert "1234567.5 0.30000000000000004 1800 " in text
    assert "x < 1234568.25" in text


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
        "from answers import annotated, answer\n"
        "from wherefrom.cli.render import *\n"
        "answer_table(annotated(answer()), terminal(100)); emit_json({'a': 'é'})"
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
    assert re.search(rb"Whig .* \|#+:+-+", b"\n".join(table))
    assert re.search(rb"<.*Union.*shall.*>", b"\n".join(table))
    assert json.loads(last.decode()) == {"a": "é"}


def test_shares_are_shown_with_every_document() -> None:
    one = explained(answer(opponents=()))
    text = words(shown(one, 100))
    assert "acting on The {+Union+}" in text
    first = hit_shares(one.hits[0], one.query)
    layer, share = max(zip(LAYERS, first.layers, strict=True), key=lambda pair: abs(pair[1]))
    name = layer.module if layer.depth is None else f"{layer.depth}:{layer.module}"
    assert f"layers {name} {100 * share / first.score:+.0f}%" in text
    assert "shown " in text
    assert f"of {first.score:+.3g}" in text
    assert "on the words whose prediction it comes from" in text
    assert NO_PROOF in text
    assert "at whose positions" in words(shown(explained(answer(), "positions")))


def test_documents_of_which_no_shares_are_known_are_shown_without() -> None:
    one = explained(answer())
    assert one.explanation is not None
    some = replace(one, explanation=replace(one.explanation, hits=one.explanation.hits[:1]))
    text = words(shown(some, 200))
    assert text.count("shown ") == 1
    assert "Opponents by layer" not in text
    assert "in per cent of the score" in text


@pytest.mark.parametrize("fields", [{"refined": 5, "damping": 20.0}, {"query": None}])
def test_shares_without_tokens_or_without_the_question_s(fields: dict) -> None:
    text = words(shown(explained(answer(**fields)), 100))
    assert "acting on" not in text
    assert "Proponents by layer: module and block, in per cent of the 2 scores, summed" in text
    assert ("marks =" in text) == ("query" not in fields)


def test_similarity_stands_beside_influence() -> None:
    text = words(shown(compared(answer()), 160))
    assert "# nats BM25 run alike" in text
    assert "1 +0.0123 #3 3 1 1861" in text
    assert "2 +0.00617 – – 1 1862" in text
    assert text.count("influential but not similar") == 2
    one = compared(answer())
    assert one.similarity is not None
    run = one.similarity.hits[0]
    before, shared = one.hits[0].text[: run.shared_start], one.hits[0].text[run.shared_start :]
    assert f"{before}«{shared[: run.shared_end - run.shared_start]}» " in text
    for told in (
        "Most like the question in words (by BM25), and their influence",
        "1 12.25 -4.00e-05 4 41.5 message 77 · similar but not influential The Union is perpetual",
        "BM25 = rank among 4,321 documents",
    ):
        assert told in text
    assert NO_PROOF in text
    narrow = words(shown(compared(answer()), 50))
    assert "1 +0.0123 nats speech 1 · BM25 #3 · run 3 · alike 1 · year: 1861" in narrow


def test_runs_that_are_not_in_the_passage_are_quoted() -> None:
    one = answer(proponents=(hit(1, 1.0, text="So be it. " + "The Union forever. " * 99),))
    shares = [TokenShare("forever", 1000, 1007, 1.0)]
    explanation = Explanation(
        LAYERS, "predictions", (replace(hit_shares(one.hits[0], one.query), tokens=(*shares,)),)
    )
    similar = compared(one).similarity
    assert similar is not None
    run = replace(similar.hits[0], shared_start=0, shared_end=8)
    both = replace(one, explanation=explanation, similarity=replace(similar, hits=(run,)))
    assert "run «So be it»" in words(shown(both, 100))


def test_groups_are_bars_around_a_zero_line() -> None:
    lines = shown(grouped(answer()), 120).splitlines()
    (whig,) = (line for line in lines if line.startswith("Whig"))
    (democratic,) = (line for line in lines if line.startswith("Democratic"))
    assert words(whig).startswith("Whig 10 +0.500 +0.250 to +0.750 │█")
    assert re.search(r"│█+▒+─+\s*$", whig)
    assert re.search(r"─+▒+█+│\s*$", democratic)
    assert whig.index("│") == democratic.index("│")
    text = words(shown(grouped(answer()), 120))
    assert "By party: stored scores of all documents searched, summed" in text
    assert "By year: exact scores" in text
    assert "its 95% interval, by 1,000 draws" in text
    alone = replace(grouped(answer()).groups[0].groups[0], documents=1, low=0.5, high=0.5)
    single = replace(answer(), groups=(Grouping("party", "stored", 0.95, 10, (alone,)),))
    assert "Whig +0.500 from 1 document │█" in words(shown(single, 40))
    assert re.search(r"Whig +1 +\+0\.500 +– +│█+\n", shown(single, 120))
    narrow = words(shown(grouped(answer()), 40))
    assert "Whig +0.500 from 10 documents, +0.250 to +0.750 │█" in narrow


@pytest.mark.parametrize("width", [40, 120])
def test_of_very_many_groups_both_ends_are_shown(width: int) -> None:
    groups = tuple(Group(f"g{i:02}", 1, 50.0 - i, 49.0 - i, 51.0 - i, 1.0) for i in range(99))
    many = replace(answer(), groups=(Grouping("party", "stored", 0.95, 10, groups),))
    text = shown(many, width)
    assert [name for name in re.findall(r"\bg\d\d\b", text)] == [
        f"g{i:02}" for i in (*range(8), *range(91, 99))
    ]
    assert "83 " in text
    none = replace(answer(), groups=(Grouping("party", "stored", 0.95, 10, ()),))
    assert "No document has a score." in shown(none, width)


@pytest.mark.parametrize(
    ("low", "total", "high", "drawn"),
    [
        (2.0, 4.0, 6.0, "    │██▒▒──"),
        (-1.0, 1.0, 3.0, "   ─│▒──"),
        (-3.0, -1.0, 1.0, " ──▒│─"),
        (0.0, 0.0, 0.0, "    │"),
        (-4.0, -4.0, -4.0, "████│"),
    ],
)
def test_bars_end_where_totals_and_intervals_do(
    low: float, total: float, high: float, drawn: str
) -> None:
    assert bar(Group("a", 1, total, low, high, total), -4.0, 6.0, 11).plain == drawn


def test_heat_maps_give_up_figures_before_blocks() -> None:
    layers = tuple(
        LayerName(f"layers.{depth}.{module}", depth, module)
        for depth in range(40)
        for module in ("attention", "mlp")
    )
    shares = [0.0] * 80
    shares[0], shares[3], shares[79] = 3.0, -2.0, 1.0
    made_of = HitShares("a", 2.0, tuple(shares), None, 0.0, None, 0.0)

    def lines(width: int) -> list[str]:
        stream = io.StringIO()
        console = Console(file=stream, width=width, markup=False)
        console.print(heat_table(Explanation(layers, None, (made_of,)), [made_of], console))
        return [line.rstrip() for line in stream.getvalue().splitlines()]

    wide = lines(500)
    assert words(wide[0]) == " ".join(["module", *map(str, range(40)), "all"])
    assert words(wide[2]).startswith("attention ██ +150% ·· +0%")
    assert words(wide[3]).startswith("mlp ·· +0% ▓▓ -100%")
    assert words(wide[4]).startswith("all +150% -100%")
    narrow = lines(120)
    assert re.fullmatch(r"module +0 {77}39 +all", narrow[0])
    assert narrow[2] == "attention    █" + " ·" * 39 + "   +150%"
    assert narrow[3] == "mlp          ·-▓" + " ·" * 37 + " ▒" + "    -50%"
    narrowest = lines(40)
    assert narrowest[2].startswith("attention    █ ·")
    assert max(map(len, narrowest)) <= 40


def test_colours_and_signs_never_come_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    one = annotated(answer())
    coloured = shown(one, 160, force_terminal=True, color_system="standard")
    assert "{+" not in coloured
    # rich keeps a style's codes for the colours of the console that first showed it.
    assert re.search(r"\x1b\[1;4;(36|38;5;32)mUnion", coloured)
    monkeypatch.setenv("NO_COLOR", "1")
    signed = shown(one, 160, force_terminal=True, color_system="standard")
    assert "{+Union+}" in signed
    assert not COLOURS.search(signed)
    assert "{+Union+}" in shown(one, 160)


def test_letters_that_an_encoding_lacks_have_stand_ins_as_wide() -> None:
    assert "│██▒▒──┤ … – · «字» é".encode("ascii", STAND_INS) == b"|##::--? ~ - | <??> ?"
    assert "«é» █".encode("latin-1", STAND_INS).decode("latin-1") == "«é» #"
    assert "e\u0301\u200d".encode("ascii", STAND_INS) == b"e"
    with pytest.raises(UnicodeDecodeError):
        b"\xff".decode("utf-8", STAND_INS)
